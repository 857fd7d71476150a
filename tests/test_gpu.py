"""On a GPU: the numbers of the CPU, CUDA graphs, measured chunks and half precision."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import assert_close, assert_informative
from models import NETS, Net, targets
from registry import Row, explain, rows
from torch import Tensor
from zoo import make

import attrfn

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def there(r: Row, net: Net, dtype: torch.dtype = torch.float64, **options: Any) -> Tensor:
    """A row explained on the device: model, inputs, targets and baselines are there."""
    model, x = net.build().to(DEVICE, dtype), net.inputs().to(DEVICE, dtype)
    if r.baselines == "pool":
        options["baselines"] = net.pool.to(DEVICE, dtype)
    found: Tensor = explain(r, net, model, x, target=targets(3).to(DEVICE), **options)
    assert found.device.type == DEVICE
    return found


@rows()
def test_the_numbers_of_the_cpu(r: Row) -> None:
    assert_close(there(r, r.net).cpu(), explain(r, r.net), rtol=1e-8, atol=1e-10)


@rows(lambda r: r.layer and not r.spatial and not r.relu)
def test_the_numbers_of_the_cpu_with_attention(r: Row) -> None:
    net = NETS["attention"]
    assert_close(there(r, net).cpu(), explain(r, net), rtol=1e-8, atol=1e-10)


@rows(lambda r: r.chunked)
def test_chunks_are_measured(r: Row) -> None:
    assert_close(there(r, r.net, chunk_size="auto"), there(r, r.net, chunk_size=None), rtol=1e-8)


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["integrated_gradients", "feature_ablation"])
def test_compiled_with_cuda_graphs(name: str) -> None:
    """Twice, since the second run replays; each result is read before the next run writes it."""
    torch._dynamo.reset()
    net = NETS["mlp"]
    model, method = net.build().to(DEVICE), getattr(attrfn, name)
    run = attrfn.compile(method, model, mode="reduce-overhead")
    for seed in (1, 2, 3):
        x, target = net.inputs(seed=seed).to(DEVICE), targets(3).to(DEVICE)
        assert_close(run(x, target=target).clone(), method(model, x, target=target), rtol=1e-8)


@rows(lambda r: r.name in ("gradient", "integrated_gradients", "deep_lift", "lrp", "kernel_shap"))
def test_half_precision_under_autocast(r: Row) -> None:
    net = NETS["cnn"]
    with torch.autocast(DEVICE, torch.bfloat16):
        found = there(r, net, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert_informative(found)
    expected = there(r, net)
    worse = 4 if r.rules else 1  # quotients of small differences lose some bits
    assert (found - expected).abs().max() <= worse * 0.1 * expected.abs().max()


def test_chunks_fit_into_memory() -> None:
    """One copy of the batch takes 1/8 of what is free, so that all 64 at once do not fit."""
    width = int((torch.cuda.mem_get_info()[0] / 8 / 4) ** 0.5)
    model = make(lambda: torch.nn.Linear(4, 3)).float().to(DEVICE)

    def wide(x: Tensor) -> Tensor:
        big = x.new_ones(x.shape[0], width, width)
        return model(x) + big.mean((1, 2))[:, None]

    x = torch.randn(1, 4, device=DEVICE)
    method = functools.partial(attrfn.integrated_gradients, target=0, n_steps=64)
    found = method(wide, x, chunk_size="auto")
    assert_close(found, method(wide, x, chunk_size=1), rtol=1e-4, atol=1e-6)
