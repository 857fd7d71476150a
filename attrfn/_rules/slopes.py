"""Slopes of functions of one number between two points, which may be equal, close or infinite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._torch.autodiff import transforming

Function = Callable[[Tensor], Tensor]


def slope(f: Function, x: Tensor, x0: Tensor, step: bool = False) -> Tensor:
    """``(f(x) - f(x0)) / (x - x0)``, and f'(x) where x = x0 (0 for a step function)."""
    y, y0 = f(x), f(x0)
    if step:
        dx = apart(x.expand(y.shape), x0)
        return quotient(y - y0, dx, torch.zeros_like(dx))
    return slope_between(f, x, x0, y, y0)


def slope_between(
    f: Function,
    x: Tensor,
    x0: Tensor,
    y: Tensor,
    y0: Tensor,
    may_read: bool = False,
    of_any_shape: bool = False,
) -> Tensor:
    """The slope from both values.

    Args:
        f: The function.
        x: A point.
        x0: Another one.
        y: f(x).
        y0: f(x0).
        may_read: Values may decide where f' is computed.
        of_any_shape: f takes a part of x, too: no other argument is a tensor.
    """
    if x.shape != y.shape:
        x, x0, of_any_shape = x.expand(y.shape), x0.expand(y.shape), False
    # On a CPU reading a flag costs less than computing f' for nothing; on a GPU it would wait for
    # all work that is queued.
    if may_read and x.device.type == "cpu":
        found = _slope_by_quotient(f, x, x0, y, y0, of_any_shape)
        if found is not None:
            return found
    return _slope_by_both(f, x, x0, y, y0)


def _slope_by_quotient(
    f: Function, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, of_any_shape: bool
) -> Tensor | None:
    """The quotient, corrected at a few points; None if that is not enough."""
    # Computing f' everywhere takes a third of deep_lift's time on EfficientNet (batch 1, in
    # benchmarks/rules_cost_little.py), where few x are close to x0.
    end, x, y = x, x.to(wide(x.dtype)), y.to(wide(y.dtype))
    dx = x - x0
    m = (y - y0) / dx
    gap, eps = dx.abs(), _resolution(dx)
    if not m.numel():
        return m
    if bool(gap.amin() <= eps):
        close = gap <= eps
        if not of_any_shape or 4 * int(close.count_nonzero()) > close.numel():
            return None
        at = close.nonzero(as_tuple=True)
        m[at] = _slope_by_both(f, end[at], x0[at], y[at], y0[at]).to(m.dtype)
    return m if all_finite(m) else None


def _slope_by_both(f: Function, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """The slope from the quotient and f', which is computed everywhere."""
    end, x, y = x, x.to(wide(x.dtype)), y.to(wide(y.dtype))
    start = end if x.is_complex() else finite(end)
    x, x0, y, y0 = (t if t.is_complex() else finite(t) for t in (x, x0.to(x.dtype), y, y0))
    return _guarded_slope(x - x0, y - y0, derivative(f, start).to(y.dtype), y.abs())


def _guarded_slope(dx: Tensor, dy: Tensor, derivative: Tensor, size: Tensor) -> Tensor:
    """``dy / dx``, or the derivative where that quotient says nothing.

    It says nothing where x = x0, and where x is so close to x0 that the derivative explains all of
    dy up to the rounding of values of this ``size``.
    """
    at_rest = torch.where(derivative.isfinite(), derivative, 0.0)
    eps = _resolution(dx)
    explained = (dy - at_rest * dx).abs() <= 4 * eps * size
    vanishes = (dx.abs() <= eps) & explained
    return torch.where(vanishes, at_rest, dy / torch.where(vanishes, 1.0, dx))


def slope_of_clamp(f: Function, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor | None:
    """The slope of a function that cuts off values, where they may be read; None of any other.

    ``(y - y0 + t f'(x)) / (x - x0 + t)`` with t so small that it counts where x = x0 only.
    """
    # Below the resolution of x, y - y0 is still exact, unlike that of other functions. One pass
    # over all elements takes less time than finding those where x = x0, which may be many.
    wider = wide(x.dtype)
    t = torch.finfo(wider).tiny
    dx, dy = x.to(wider) - x0, y.to(wider) - y0
    if not dx.numel():
        return dx
    gap, far_above_t = dx.abs(), t * 2**60
    least = float(gap.amin())
    if least < far_above_t:
        if least > 0 or 0 < _least_positive(gap) < far_above_t:
            return None
        dy.add_(derivative(f, x), alpha=t)
        dx.add_(t)
    m = dy.div_(dx)
    return m if all_finite(m) else None


def _least_positive(t: Tensor) -> float:
    """The least element above zero of a tensor without negative ones; -0 if there is none."""
    # Bits of such numbers are integers in the same order; less one, those of zero are the largest.
    kind = torch.int32 if t.dtype == torch.float32 else torch.int64
    bits = t.view(kind).sub(1).bitwise_and_(torch.iinfo(kind).max)
    return float(bits.amin().add_(1).view(t.dtype))


def far(x: Tensor) -> Tensor:
    """A very large number for infinity, at which derivatives are those of the limit."""
    # The fourth root leaves room for the powers that formulas of derivatives form.
    most = torch.finfo(x.dtype).max ** 0.25
    return x.nan_to_num(nan=torch.nan, posinf=most, neginf=-most)


def change(z: Tensor, x: Tensor) -> Tensor:
    """``z - x``, which is zero, also where both are infinite (as in masks of attention)."""
    return torch.where(x.isinf(), 0.0, z - x)


def moved_by(value: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """``z - x``; z where x and the value are infinite, so that m z leaves the value as it is."""
    return torch.where(x.isinf(), torch.where(value.isinf(), z, 0.0), z - x)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """``a - b``, zero where both are the same infinity."""
    return torch.where(a == b, 0.0, a - b)


def finite(t: Tensor) -> Tensor:
    """Half the greatest number for infinity, so that differences of two are finite."""
    most = torch.finfo(t.dtype).max / 2
    return t.nan_to_num(nan=torch.nan, posinf=most, neginf=-most)


def quotient(change: Tensor, dx: Tensor, otherwise: Tensor) -> Tensor:
    """``change / dx``, and another value where dx vanishes."""
    # Below the resolution of its type (for values near 1) a difference is mostly rounding, and so
    # would be the quotient.
    vanishes = dx.abs() <= _resolution(dx)
    return torch.where(vanishes, otherwise, change / torch.where(vanishes, 1.0, dx))


def at_rest_zero(m: Tensor, y: Tensor, y0: Tensor, may_read: bool = False) -> Tensor:
    """A multiplier, 0 where it is not finite although the value does not change."""
    if may_read and m.device.type == "cpu" and all_finite(m):
        return m
    return torch.where((y == y0) & ~m.isfinite(), 0.0, m)


def all_finite(t: Tensor) -> bool:
    """Whether no element is infinite or NaN, for values that may be read; False may be wrong."""
    return bool(t.sum().isfinite())


def _resolution(t: Tensor) -> float:
    return torch.finfo(t.dtype).eps


def derivative(f: Function, x: Tensor) -> Tensor:
    """f'(x) of an elementwise function."""
    if transforming():
        y, pull = torch.func.vjp(f, x)[:2]
        return _by_pull(lambda g: pull(g)[0], x, y)
    # With a graph the derivative can be differentiated again, as under create_graph.
    graph = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        at = x if graph else x.detach().requires_grad_()
        y = f(at)
        if not y.requires_grad:
            return torch.zeros_like(x)
        parts = y.is_complex() and not x.is_complex()

        def pull(g: Tensor) -> Tensor:
            return torch.autograd.grad(y, at, g, create_graph=graph, retain_graph=graph or parts)[0]

        return _by_pull(pull, x, y)


def _by_pull(pull: Function, x: Tensor, y: Tensor) -> Tensor:
    """The derivative from a pullback: torch pulls a cotangent g back to conj(f'(x)) g."""
    ones = torch.ones_like(y)
    if x.is_complex():
        return pull(ones).conj_physical()  # vmap has no views of conjugates
    return torch.complex(pull(ones), pull(1j * ones)) if y.is_complex() else pull(ones)
