"""Values with other derivatives, where nobody differentiates a second time.

Plain ``autograd.Function``s: they hold for one derivative in eager mode only, and are used nowhere
else (elsewhere :mod:`attrfn._rules.run` says the same with plain operations).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Back = Callable[[Tensor], Sequence[Tensor]]
"""From the cotangent of an operation's output to those of its arguments."""


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
        return None, _fitted(g * m, ctx.shape, ctx.dtype), None


class _Pulled(torch.autograd.Function):
    """``value``, which passes back to each z what ``back`` makes of a cotangent."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, back: Back, *z: Tensor) -> Tensor:
        ctx.back = back
        ctx.like = [(t.shape, t.dtype) for t in z]
        return value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.back(g), ctx.like, strict=True)
        return None, None, *[_fitted(t, *like) for t, like in found]


class _Positive(torch.autograd.Function):
    """``value``, which passes back to z what is positive."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, z: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, g.clamp(min=0)


def rectified(z: Tensor) -> Tensor:
    """``relu(z)``, which passes back what is positive, where it is.

    What is positive is taken where the cotangent reaches this tensor, which nobody else has: at a
    third of the cost of a function of its own.
    """
    y = torch.relu(z)
    if y.requires_grad:
        y.register_hook(_positive_part)  # type: ignore[no-untyped-call]
    return y


def _positive_part(g: Tensor) -> Tensor:
    return g.clamp_min(0)


def positive_cotangents(value: Tensor, z: Tensor) -> Tensor:
    """``value``, which passes back to z what is positive."""
    found: Tensor = _Positive.apply(value, z)  # type: ignore[no-untyped-call]
    return found


def pulled(value: Tensor, back: Back, *z: Tensor) -> Tensor:
    """``value``, which passes back to each z what ``back`` makes of a cotangent."""
    found: Tensor = _Pulled.apply(value, back, *z)  # type: ignore[no-untyped-call]
    return found


def grafted(value: Tensor, *parts: Tensor) -> Tensor:
    """``value``, with the derivative of the sum of the parts."""
    found: Tensor = _Grafted.apply(value, *parts)  # type: ignore[no-untyped-call]
    return found


def scaled(value: Tensor, z: Tensor, m: Tensor) -> Tensor:
    """``value``, with the derivative ``m`` by ``z``, element by element."""
    found: Tensor = _Scaled.apply(value, z, m)  # type: ignore[no-untyped-call]
    return found


def _fitted(g: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A gradient in the shape and type of what it is of, which may have been broadcast."""
    if g.shape != shape:
        g = g.sum_to_size(shape)
    return g if g.dtype == dtype else g.to(dtype)
