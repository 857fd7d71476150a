"""Points between the baselines and the inputs, where features are there, or not, or in part."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._copies.batch import wide


def mix(z: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """``x0 + z (x - x0)``, (S, B, ...)."""
    if z.dtype == torch.bool:
        return torch.where(z, x, x0)
    if not x.is_floating_point():
        raise TypeError(
            f"inputs has a tensor of {x.dtype} and features that are present in part ({z.dtype}), "
            "expected floating point, or features that are there or not (booleans)"
        )
    return (x0 + z.to(wide(x.dtype)) * (x - x0)).to(x.dtype)
