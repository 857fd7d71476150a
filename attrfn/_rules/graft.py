"""Values with other derivatives, where nobody differentiates a second time.

Plain ``autograd.Function``s: they hold for one derivative in eager mode only, and are used nowhere
else (elsewhere :mod:`attrfn._rules.run` says the same with plain operations).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Grafted(torch.autograd.Function):
    """``value``, with the derivative of the sum of the parts."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parts: Tensor) -> Tensor:
        ctx.parts = len(parts)
        return value.detach()  # as a tensor of its own, which may be written in place

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[g] * ctx.parts


class _Scaled(torch.autograd.Function):
    """``value``, with the derivative ``m`` by ``z``, element by element."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, z: Tensor, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        ctx.shape, ctx.dtype = z.shape, z.dtype
        return value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        (m,) = ctx.saved_tensors
        return None, (g * m).sum_to_size(ctx.shape).to(ctx.dtype), None


class _Positive(torch.autograd.Function):
    """``value``, which passes back to z what is positive."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, z: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, g.clamp(min=0)


def positive(value: Tensor, z: Tensor) -> Tensor:
    """``value``, which passes back to z what is positive."""
    found: Tensor = _Positive.apply(value, z)  # type: ignore[no-untyped-call]
    return found


def grafted(value: Tensor, *parts: Tensor) -> Tensor:
    """``value``, with the derivative of the sum of the parts."""
    found: Tensor = _Grafted.apply(value, *parts)  # type: ignore[no-untyped-call]
    return found


def scaled(value: Tensor, z: Tensor, m: Tensor) -> Tensor:
    """``value``, with the derivative ``m`` by ``z``, element by element."""
    found: Tensor = _Scaled.apply(value, z, m)  # type: ignore[no-untyped-call]
    return found
