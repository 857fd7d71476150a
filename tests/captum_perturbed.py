"""Models and inputs for comparisons of perturbation methods with Captum, float32."""

from __future__ import annotations

import oracles
import pytest
import torch
from captum_cases import F32
from oracles import randn
from torch import nn

attr = pytest.importorskip("captum.attr")

TABLE, TABLE0 = randn(6, 6, 5, dtype=F32), randn(7, 1, 5, dtype=F32)

captum_fits_rows_in_a_loop = pytest.mark.filterwarnings(
    r"ignore:You are providing multiple inputs for Lime:UserWarning"
)


def mlp():
    """(B, 5) to (B, 3), with interactions."""
    return oracles.seeded(
        lambda: nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)), dtype=F32
    )


PAIR_MASKS = {
    "none": None,
    "by_tensor": (torch.tensor([[0]]), torch.tensor([[[1]]])),
    "across_tensors": (torch.tensor([[0, 1, 2]]), torch.tensor([[[2, 0], [3, 3]]])),
    "gaps": (torch.tensor([[7, 1, 7]]), torch.tensor([[[1, 9], [12, 9]]])),
    "of_each_row": (
        torch.tensor([[0, 1, 1], [1, 0, 2], [2, 2, 0], [1, 1, 1]]),
        torch.tensor([[[0, 3], [3, 2]]]),
    ),
}


def seeded(run):
    """A method of Captum with its draws from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run()
