"""Models and inputs for comparisons with Captum, float32."""

from __future__ import annotations

import functools

import oracles
import pytest
import torch
from oracles import close, randn
from torch import nn

attr = pytest.importorskip("captum.attr")

captum_marks_inputs = pytest.mark.filterwarnings(
    # Captum's plain gradients call requires_grad_() on the user's tensors, and say so.
    r"ignore:Input Tensor \d+ did not already require gradients:UserWarning"
)

F32 = torch.float32
same = functools.partial(close, tolerance=1e-5)

IMAGES, IMAGES0 = (randn(seed, 3, 2, 8, 8, dtype=F32) for seed in (0, 1))
PAIR, PAIR0 = (
    (randn(seed, 4, 3, dtype=F32), randn(seed + 1, 4, 2, 2, dtype=F32)) for seed in (2, 4)
)

QUADRATURES = {
    "gauss_legendre": "gausslegendre",
    "riemann_left": "riemann_left",
    "riemann_right": "riemann_right",
    "riemann_middle": "riemann_middle",
}
"""Our names and Captum's; the trapezoid has a test of its own."""


def cnn(activation=nn.ReLU):
    return oracles.seeded(lambda: oracles.Cnn(activation), dtype=F32)


def two_inputs():
    return oracles.seeded(oracles.TwoInputs, dtype=F32)


def grid():
    """Outputs (B, 3, 4), which Captum takes with tuples as targets."""
    return oracles.seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 12), nn.Unflatten(1, (3, 4))
        ),
        dtype=F32,
    )


TARGETS = {
    "int": (cnn, 3),
    "tensor": (cnn, torch.tensor([4, 0, 2])),
    "list": (cnn, [4, 0, 2]),
    "tuple": (grid, (2, 1)),
    "list_of_tuples": (grid, [(2, 1), (0, 3), (1, 0)]),
}
each_target = pytest.mark.parametrize(("make", "target"), TARGETS.values(), ids=TARGETS)

TABLE, TABLE0 = randn(6, 5, 3, dtype=F32), randn(7, 1, 3, dtype=F32)
