"""Points between the baselines and the inputs: features are present, absent, or present in part."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._copies.batch import wide


def mix(z: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """``x0 + z (x - x0)``, (S, B, ...)."""
    # Selected and not computed: x0 + 1 (x - x0) is not x to the last bit, an infinite baseline
    # makes it nan, and inputs of any type can be selected.
    if z.dtype == torch.bool:
        return torch.where(z, x, x0)
    if not x.is_floating_point():
        raise TypeError(
            f"inputs has a tensor of {x.dtype} and features that are present in part ({z.dtype}), "
            "expected floating point, or booleans for features that are there"
        )
    return (x0 + z.to(wide(x.dtype)) * (x - x0)).to(x.dtype)
