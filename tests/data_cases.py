"""What the tests of attrfn.data share: a small network and its data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 100


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A perceptron with 6 features and 3 outputs."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype).eval()


def examples(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Inputs and targets."""
    torch.manual_seed(4)
    return torch.randn(rows, 6, dtype=torch.float64), torch.randint(0, 3, (rows,))
