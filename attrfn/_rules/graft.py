"""Values with other derivatives, for one derivative in eager mode.

Each function here is an ``autograd.Function`` that is right for one backward pass only. Elsewhere
:mod:`attrfn._rules.replay` writes the same derivative with ordinary operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attrfn._torch.autodiff import refuse_undifferentiable

Back = Callable[[Tensor], Sequence[Tensor]]
"""From the cotangent of an operation's output to those of its arguments."""


class _Grafted(torch.autograd.Function):
    """``value``, with the derivative of the sum of the surrogates."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *surrogates: Tensor) -> Tensor:
        ctx.count = len(surrogates)
        # A new tensor: an argument that is returned as it is becomes a view of itself, into which
        # autograd lets no model write.
        return value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[g] * ctx.count


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
        # The gradient of a complex m z is conj(m) g; of real numbers conj is the tensor itself.
        return None, _fitted(g * m.conj(), ctx.shape, ctx.dtype), None


class _Pulled(torch.autograd.Function):
    """``value``, with the pullback ``back`` to z."""

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
    """``value``, which passes positive cotangents back to z."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, z: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[None, Tensor]:
        return None, _positive_part(g)


def rectified(y: Tensor) -> Tensor:
    """The fresh output of an operation, which gets positive cotangents only."""
    # A hook cuts off the rest, and the operation's own backward follows. That takes a third of the
    # time of an autograd.Function, in which Python runs forward and backward.
    if y.requires_grad:
        y.register_hook(_positive_part)  # type: ignore[no-untyped-call]
    return y


def _positive_part(g: Tensor | None) -> Tensor:
    if g is None:
        refuse_undifferentiable()
    return g.clamp_min(0)


def positive_cotangents(value: Tensor, z: Tensor) -> Tensor:
    """``value``, which passes positive cotangents back to z."""
    found: Tensor = _Positive.apply(value, z)  # type: ignore[no-untyped-call]
    return found


def pulled(value: Tensor, back: Back, *z: Tensor) -> Tensor:
    """``value``, with the pullback ``back`` to z."""
    found: Tensor = _Pulled.apply(value, back, *z)  # type: ignore[no-untyped-call]
    return found


def grafted(value: Tensor, *surrogates: Tensor) -> Tensor:
    """``value``, with the derivative of the sum of the surrogates."""
    found: Tensor = _Grafted.apply(value, *surrogates)  # type: ignore[no-untyped-call]
    return found


def scaled(value: Tensor, z: Tensor, m: Tensor) -> Tensor:
    """``value``, with the derivative ``m`` by ``z``, element by element."""
    found: Tensor = _Scaled.apply(value, z, m)  # type: ignore[no-untyped-call]
    return found


def _fitted(g: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A gradient in the shape and type of its argument, which may have been broadcast."""
    if g.shape != shape:
        g = g.sum_to_size(shape)
    if g.dtype == dtype:
        return g
    return (g.real if g.is_complex() and not dtype.is_complex else g).to(dtype)
