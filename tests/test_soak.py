"""Nothing stays behind: thousands of calls leave no tensors and no objects."""

from __future__ import annotations

import functools
import gc
import mmap
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attrfn

CALLS = 2000
STATM = Path("/proc/self/statm")  # in pages
Method = Callable[..., Any]
METHODS: dict[str, Method] = {
    "gradient": attrfn.gradient,
    "noise_tunnel": attrfn.noise_tunnel(attrfn.gradient, n_samples=2),
    "feature_ablation": attrfn.feature_ablation,
    "shapley_value_sampling": functools.partial(attrfn.shapley_value_sampling, n_samples=2),
    "kernel_shap": functools.partial(attrfn.kernel_shap, n_samples=8),
    "layer_conductance": functools.partial(attrfn.layer_conductance, layer="1", n_steps=2),
    "neuron_gradient": lambda f, x, target: attrfn.neuron_gradient(f, x, layer="1", neuron=(2, 1)),
    "grad_cam": functools.partial(attrfn.grad_cam, layer="1"),
    "deep_lift": attrfn.deep_lift,
    "lrp": attrfn.lrp,
}


@pytest.fixture(autouse=True)
def _no_garbage_of_others() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # after thousands of tests each look at all objects would take seconds
    yield
    gc.unfreeze()
    torch._dynamo.reset()


def network() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3))
    return model, torch.randn(2, 1, 4), torch.tensor([0, 2])


def tensors() -> int:
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def left(run: Callable[[], object], calls: int) -> tuple[int, int]:
    """How many tensors and blocks of Python's memory some calls leave: the least of four rounds.

    What is kept at each call is kept in every round; a cache that fills, or other tests' garbage
    that goes, is not.
    """
    found = []
    for _ in range(5):
        before = tensors(), sys.getallocatedblocks()
        for _ in range(calls):
            run()
        gc.collect()
        found.append((tensors() - before[0], sys.getallocatedblocks() - before[1]))
    return min(n for n, _ in found[1:]), min(n for _, n in found[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_calls_leave_nothing_behind(name: str) -> None:
    model, x, target = network()
    calls = CALLS // len(METHODS) // 2  # in each of five rounds
    found, blocks = left(lambda: METHODS[name](model, x, target=target), calls)
    assert found <= 0
    assert blocks < 0.9 * calls  # one object a call would be seen


@pytest.mark.slow
def test_compiled_calls_leave_nothing_behind() -> None:
    model, x, target = network()
    run = attrfn.compile(attrfn.integrated_gradients, model, n_steps=2, backend="eager")
    found, blocks = left(lambda: run(x, target=target), 100)
    assert found <= 0
    assert blocks < 90


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="the system does not say how much memory it gave")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_2000_calls_take_no_memory_of_the_system(compiled: bool) -> None:
    """Also none that Python does not count: if each kept its input, it would be 250 MB."""
    model, x = nn.Sequential(nn.Linear(256, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(128, 256)
    run: Method = functools.partial(attrfn.integrated_gradients, model, n_steps=2)
    if compiled:
        run = attrfn.compile(attrfn.integrated_gradients, model, n_steps=2, backend="eager")

    def calls(n: int) -> int:
        for _ in range(n):
            run(x, target=1)
        gc.collect()
        return int(STATM.read_text().split()[1]) * mmap.PAGESIZE

    before = calls(200)
    assert calls(CALLS) - before < 2**25


@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_the_garbage_collector(name: str) -> None:
    """A tensor in a cycle of references would stay, with its memory, until it comes."""
    model, x, target = network()
    METHODS[name](model, x, target=target)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for _ in range(5):
            METHODS[name](model, x, target=target)
        assert tensors() <= before
    finally:
        gc.enable()
