"""Rectifiers: which calls are one, and what else than a derivative may pass back through them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_RELU = (F.relu, torch.relu, Tensor.relu)
_RELU_IN_PLACE = (F.relu_, torch.relu_, Tensor.relu_)
_CLAMP = (torch.clamp, Tensor.clamp, torch.clip, Tensor.clip, torch.clamp_min, Tensor.clamp_min)
_CLAMP_IN_PLACE = (
    torch.clamp_,
    Tensor.clamp_,
    torch.clip_,
    Tensor.clip_,
    torch.clamp_min_,
    Tensor.clamp_min_,
)


def rectified(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, bool] | None:
    """The x of a call that computes max(x, 0) and whether it is written in place, or None."""
    if func in _RELU:
        x = args[0] if args else kwargs["input"]
        return x, bool(args[1] if len(args) > 1 else kwargs.get("inplace", False))
    if func in _RELU_IN_PLACE:
        return args[0], True
    if func in _CLAMP or func in _CLAMP_IN_PLACE:
        bounds = [*args[1:], *kwargs.values()]
        low = args[1] if len(args) > 1 else kwargs.get("min")
        if len(bounds) == 1 and not isinstance(low, Tensor) and low == 0:
            return args[0], func in _CLAMP_IN_PLACE
    return None


class _Guided(torch.autograd.Function):
    """``y = u 1[x > 0]``, backward ``max(g, 0) 1[x > 0]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, x: Tensor) -> Tensor:
        return torch.where(x > 0, u, torch.zeros_like(u))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, g.clamp(min=0), torch.zeros_like(g)), None

    @staticmethod
    def jvp(ctx: Any, u: Tensor, x: Tensor | None) -> Tensor:
        (at,) = ctx.saved_tensors
        return torch.where(at > 0, u, torch.zeros_like(u))


class _Deconv(torch.autograd.Function):
    """``y = u``, backward ``max(g, 0)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(min=0)

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        return u.clone()


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def guided(u: Tensor, x: Tensor) -> Tensor:
    """What passes through where x > 0; of a cotangent only what is positive, too."""
    passed: Tensor = _Guided.apply(u, x)  # type: ignore[no-untyped-call]
    return passed


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def deconvolved(u: Tensor, x: Tensor) -> Tensor:
    """Everything passes through; of a cotangent only what is positive."""
    passed: Tensor = _Deconv.apply(u)  # type: ignore[no-untyped-call]
    return passed
