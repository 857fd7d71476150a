"""Linear equations whose solution can be differentiated in any way."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._torch.autodiff import transforming


def solve(A: Tensor, b: Tensor) -> Tensor:
    """``A^-1 b``, of shape (..., n, k)."""
    if not transforming():
        found: Tensor = torch.linalg.solve(A, b)
        return found
    # torch's derivative of solve is wrong in forward mode under vmap or another derivative, without
    # an error (tests/test_canaries.py); that of inv is right. With x held constant, this is A^-1 b
    # for every A and b, and so are its derivatives of any order; its value is that of solve.
    x: Tensor = torch.linalg.solve(A, b).detach()
    inverse: Tensor = torch.linalg.inv(A)
    return x + inverse @ (b - A @ x)
