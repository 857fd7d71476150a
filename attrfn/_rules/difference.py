"""DeepLIFT: every operation y = f(x) passes back multipliers m with m (x - x0) = f(x) - f(x0).

    elementwise   m = (f(x) - f(x0)) / (x - x0), or f'(x) where x = x0
    products      op(a, b) - op(a0, b0) = op(a - a0, (b + b0) / 2) + op((a + a0) / 2, b - b0)
    maxima        a gain of f goes to the argument that is greatest at x, a loss to the one that is
                  greatest at x0

Reference:
    Shrikumar, Greenside and Kundaje, Learning Important Features Through Propagating Activation
    Differences, 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._rules.call import Call
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.graft import Back
from attrfn._rules.ops import HOLOMORPHIC, STEPS
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._torch.autodiff import transforming

Function = Callable[[Tensor], Tensor]


def elementwise(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """The rescale rule, of one argument or of two.

    For two, the change along one argument is the mean over the two values of the other:
    f(a, b) - f(a0, b0) = [f(a, .) - f(a0, .)] + [f(., b) - f(., b0)].
    """
    y: Tensor = call(*x)
    if any(t.is_complex() for t in z) and call.name not in HOLOMORPHIC:
        refuse_unknown(call, run.table.name, "of complex numbers")
    if len(z) == 1:
        # A closed form is faster than a quotient, and exact where x and x0 are close: the
        # difference y - y0 loses digits there.
        y0: Tensor = call(*x0) if run.y0 is None else run.y0
        secant = _SECANTS.get(call.name)
        if secant is not None and (call.name != "pow" or _is_two(call.argument(1, "exponent"))):
            return run.scale(y, secant(x[0], x0[0], y, y0), z[0], x[0])
        if call.name in STEPS:
            dx = x[0].expand(y.shape) - x0[0]
            return run.scale(y, quotient(y - y0, dx, torch.zeros_like(dx)), z[0], x[0])
        m = _slope(lambda t: call(t), x[0], x0[0], y, y0, run.first_order)
        return run.scale(y, m, z[0], x[0])
    if len(z) > 2:
        refuse_unknown(call, run.table.name)
    (a, b), (a0, b0) = x, x0
    step = call.name in STEPS
    along_a = slope(lambda t: call(t, b), a, a0, step) + slope(lambda t: call(t, b0), a, a0, step)
    along_b = slope(lambda t: call(a, t), b, b0, step) + slope(lambda t: call(a0, t), b, b0, step)
    return run.graft(y, lambda t: [0.5 * along_a * (t[0] - a), 0.5 * along_b * (t[1] - b)], z, x)


def product(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """Operations that are affine in each argument: the mean over both orders of change."""
    y: Tensor = call(*x)
    if len(z) == 2:
        a, b = [(v + v0) / 2 for v, v0 in zip(x, x0, strict=True)]
        back = transposed(call, a, b)
        return run.graft(y, lambda t: [call(t[0], b), call(a, t[1])], z, x, back)

    # Of three and more arguments one order and its reverse suffice: in each, the changes of the
    # arguments one after the other add up to y - y0.
    def surrogates(t: Values) -> list[Tensor]:
        return [
            call(*changed[:i], t[i], *unchanged[i + 1 :]) / 2
            for i in range(len(z))
            for changed, unchanged in ((x, x0), (x0, x))
        ]

    return run.graft(y, surrogates, z, x)


def transposed(call: Call, a: Tensor, b: Tensor) -> Back | None:
    """The pullback of ``t, s -> op(t, b) + op(a, s)`` for a product op, or None."""
    if a.is_complex() or b.is_complex():
        return None
    if call.name in _ELEMENTWISE_PRODUCTS:
        return lambda g: (g * b, a * g)
    if call.name in _MATRIX_PRODUCTS and a.ndim > 1 and b.ndim > 1 and len(call.args) == 2:
        return lambda g: (g @ b.mT, a.mT @ g)
    return None


def ratio(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``y = a / b`` by the product rule for a = y b: y - y0 = (a - a0 - y_ (b - b0)) / b_."""
    # The product rule for a * (1 / b) is complete as well, and unstable: with a baseline of zero,
    # the mean of 1 / b puts 1 / sqrt(eps) into every normalisation.
    y: Tensor = call(*x)
    y0: Tensor = call(*x0)
    upper = 1 if call.name.startswith("__r") else 0  # b.__rdiv__(a)
    mean_b, mean_y = (x[1 - upper] + x0[1 - upper]) / 2, (y + y0) / 2
    return run.graft(
        y,
        lambda t: [
            (t[upper] - x[upper]) / mean_b,
            -mean_y * (t[1 - upper] - x[1 - upper]) / mean_b,
        ],
        z,
        x,
    )


def times_inverse(inverse: int) -> Callable[..., Tensor]:
    """``y = a r``, r = 1 / s, by the product rule for a = y s as in :func:`ratio`.

    Args:
        inverse: Which factor is r.
    """

    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        y: Tensor = call(*x)
        y0: Tensor = call(*x0)
        i, j = inverse, 1 - inverse
        r, r0 = x[i], x0[i]
        along_a, along_r = 2 * r * r0 / (r + r0), (y + y0) / (r + r0)
        return run.graft(y, lambda t: [(t[j] - x[j]) * along_a, (t[i] - x[i]) * along_r], z, x)

    return rule


def slope(f: Function, x: Tensor, x0: Tensor, step: bool = False) -> Tensor:
    """``(f(x) - f(x0)) / (x - x0)``, and f'(x) where x = x0 (0 for a step function)."""
    if step:
        y, y0 = f(x), f(x0)
        dx = x.expand(y.shape) - x0
        return quotient(y - y0, dx, torch.zeros_like(dx))
    return _slope(f, x, x0, f(x), f(x0), False)


def _slope(f: Function, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, may_read: bool) -> Tensor:
    """The slope from both values; with ``may_read``, values may decide whether f' is computed."""
    if x.shape != y.shape:
        x, x0 = x.expand(y.shape), x0.expand(y.shape)
    dtype = wide(x.dtype)
    dx, dy = x.to(dtype) - x0, y.to(dtype) - y0
    # On a CPU reading a flag costs less than computing f' for nothing; on a GPU it would wait for
    # all work that is queued.
    if may_read and x.device.type == "cpu" and not bool(_vanishes(dx).any()):
        return dy / dx
    at_x = derivative(f, x).to(dtype)
    return quotient(dy, dx, torch.where(at_x.isfinite(), at_x, 0.0))


def quotient(change: Tensor, dx: Tensor, otherwise: Tensor) -> Tensor:
    """``change / dx``, and another value where dx vanishes."""
    vanishes = _vanishes(dx)
    return torch.where(vanishes, otherwise, change / torch.where(vanishes, 1.0, dx))


def _vanishes(dx: Tensor) -> Tensor:
    # Below the resolution of its type (for values near 1) a difference is mostly rounding, and so
    # would be the slope; the derivative is better there.
    return dx.abs() <= torch.finfo(dx.dtype).eps


def change(z: Tensor, x: Tensor) -> Tensor:
    """``z - x``, which is zero, also where both are infinite (as in masks of attention)."""
    return torch.where(x.isinf(), 0.0, z - x)


def derivative(f: Function, x: Tensor) -> Tensor:
    """f'(x) of an elementwise function."""
    if transforming():
        y, pull = torch.func.vjp(f, x)[:2]
        found: Tensor = pull(torch.ones_like(y))[0]
        return found
    # With a graph the derivative can be differentiated again, as under create_graph.
    graph = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        at = x if graph else x.detach().requires_grad_()
        y = f(at)
        if not y.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(y, at, torch.ones_like(y), create_graph=graph)[0]


def _is_two(exponent: Any) -> bool:
    return not isinstance(exponent, Tensor) and bool(exponent == 2)


def _rectified(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """``p / (p + q)``: the share of the way between x and x0 that lies above zero."""
    # If neither is above zero, p = 0 gives 0; if both are, q = 0 gives 1. No branch is needed.
    p, q = torch.maximum(y, y0), -torch.minimum(x, x0).clamp(max=0)
    return p / (p + q).clamp(min=torch.finfo(x.dtype).tiny)


_ELEMENTWISE_PRODUCTS = frozenset(["mul", "multiply", "__mul__", "__rmul__"])
_MATRIX_PRODUCTS = frozenset(["matmul", "__matmul__", "linalg_matmul", "mm", "bmm"])

_SECANTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "relu": _rectified,
    "square": lambda x, x0, y, y0: x + x0,
    "pow": lambda x, x0, y, y0: x + x0,
    "reciprocal": lambda x, x0, y, y0: -y * y0,
    "rsqrt": lambda x, x0, y, y0: -((y * y0) ** 2) / (y + y0),
}
"""Slopes in closed form, from x, x0, f(x) and f(x0); of ``pow`` for squares."""
