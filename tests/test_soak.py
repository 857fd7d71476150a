"""Nothing stays behind: 2,000 calls leave no tensors and no memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attrfn

CALLS = 2000
METHODS: dict[str, Callable[..., Any]] = {
    "gradient": attrfn.gradient,
    "noise_tunnel": attrfn.noise_tunnel(attrfn.gradient, n_samples=2),
    "feature_ablation": attrfn.feature_ablation,
    "layer_conductance": lambda f, x, **o: attrfn.layer_conductance(
        f, x, layer="0", n_steps=2, **o
    ),
    "deep_lift": attrfn.deep_lift,
    "lrp": attrfn.lrp,
}


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_calls_leave_nothing_behind(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, target = torch.randn(2, 4), torch.tensor([0, 2])
    run = METHODS[name]
    for _ in range(20):
        run(model, x, target=target)
    before = tensors()
    measured = Path("/proc/self/status").exists()
    resident = resident_kb() if measured else 0
    for _ in range(CALLS // len(METHODS)):
        run(model, x, target=target)
    assert tensors() - before < 50  # other tests' garbage may go meanwhile; one a call is 333
    if measured:
        assert resident_kb() - resident < 8 * 1024  # a kept tensor a call would be seen above
