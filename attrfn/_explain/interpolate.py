"""Points between the baselines and the inputs, where features are there, or not, or in part."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._torch.autodiff import transforming
from attrfn._torch.private import in_forward_mode

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def mix(z: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """``x0 + z (x - x0)``, (S, B, ...)."""
    if z.dtype == torch.bool:
        return choose_where(z, x, x0)
    if not x.is_floating_point():
        raise TypeError(
            f"inputs has a tensor of {x.dtype} and features that are present in part ({z.dtype}), "
            "expected floating point, or features that are there or not (booleans)"
        )
    return (x0 + z.to(wide(x.dtype)) * (x - x0)).to(x.dtype)


def choose_where(z: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """``torch.where(z, x, x0)``; on a CPU as operations on bits, which are faster.

        x0 ^ ((x ^ x0) & z),   z all ones or all zeros

    Every number stays what it was, infinite and undefined ones too.
    """
    if transforming() or not (_is_bits(x) and _is_bits(x0) and x.dtype == x0.dtype):
        return torch.where(z, x, x0)
    bits = _BITS[x.element_size()]
    a, b = x.view(bits), x0.view(bits)
    differences = (a ^ b) & z.to(bits).neg_()
    return differences.bitwise_xor_(b).view(x.dtype)


def _is_bits(t: Tensor) -> bool:
    """Whether the elements of a tensor are plain numbers in the memory of the CPU, and no more."""
    return (
        t.device.type == "cpu"
        and not in_forward_mode()
        and not (t.requires_grad or t.is_complex() or t.is_neg())
        and t.dtype != torch.bool
        and type(t) is Tensor
    )
