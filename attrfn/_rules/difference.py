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

from attrfn._rules.call import Call, tensors
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.graft import Back
from attrfn._rules.names import FUNCTIONS
from attrfn._rules.ops import HOLOMORPHIC, STEPS
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._rules.slopes import (
    all_finite,
    apart,
    at_rest_zero,
    change,
    quotient,
    slope,
    slope_between,
    slope_of_clamp,
)


def elementwise(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """The rescale rule, of one argument or of two.

    For two, the change along one argument is the mean over the two values of the other:
    f(a, b) - f(a0, b0) = [f(a, .) - f(a0, .)] + [f(., b) - f(., b0)].
    """
    y: Tensor = call(*x)
    of_complex = any(t.is_complex() for t in z)
    if of_complex and call.name not in HOLOMORPHIC and call.name != "sgn":
        refuse_unknown(call, run.table.name, "of complex numbers")
    if len(z) == 1:
        # A closed form is faster than a quotient, and exact where x and x0 are close: the
        # difference y - y0 loses digits there.
        y0: Tensor = call(*x0) if run.y0 is None else run.y0
        secant = _SECANTS.get(call.name)
        if secant is not None and (call.name != "pow" or _is_two(call.argument(1, "exponent"))):
            m = secant(run, x[0], x0[0], y, y0)
            if call.name != "relu":  # always finite
                m = at_rest_zero(m, y, y0, run.first_order)
        elif call.name in STEPS or (of_complex and call.name == "sgn"):
            dx = apart(x[0].expand(y.shape), x0[0])
            m = quotient(y - y0, dx, torch.zeros_like(dx))
        else:
            m = _by_quotient(run, call, x[0], x0[0], y, y0)
        return run.scale(y, m, z[0], x[0])
    if len(z) > 2:
        refuse_unknown(call, run.table.name)
    (a, b), (a0, b0) = x, x0
    step = call.name in STEPS
    along_a = slope(lambda t: call(t, b), a, a0, step) + slope(lambda t: call(t, b0), a, a0, step)
    along_b = slope(lambda t: call(a, t), b, b0, step) + slope(lambda t: call(a0, t), b, b0, step)
    return run.graft(
        y, lambda t: [0.5 * along_a * change(t[0], a), 0.5 * along_b * change(t[1], b)], z, x
    )


def _by_quotient(run: Replay, call: Call, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """``(y - y0) / (x - x0)``, with the derivative where x = x0."""

    def f(t: Tensor) -> Tensor:
        found: Tensor = call(t)
        return found

    alone = call.func in FUNCTIONS and len(tensors(call.args, call.kwargs)) == 1
    if run.first_order and alone and call.name in _CLAMPS and x.device.type == "cpu":
        m = slope_of_clamp(f, x, x0, y, y0)
        if m is not None:
            return m
    return slope_between(f, x, x0, y, y0, run.first_order, alone)


def modulus(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``|z|``: its change is Re((z + z0)^* (z - z0)) / (|z| + |z0|)."""
    y: Tensor = call(*x)
    y0: Tensor = call(*x0)
    total = y + y0
    none = total == 0
    m = (x[0] + x0[0]).conj_physical() / torch.where(none, 1.0, total)
    return run.scale(y, m, z[0], x[0])


def product(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """Operations that are affine in each argument: the mean over both orders of change."""
    y: Tensor = call(*x)
    if len(z) == 2:
        a, b = [(v + v0) / 2 for v, v0 in zip(x, x0, strict=True)]
        if call.name in _ELEMENTWISE_PRODUCTS and not (run.first_order and all_finite(y)):
            a, b = _at_rest(call, y, x0, a, b)
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


def _at_rest(call: Call, y: Tensor, x0: Values, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of an elementwise product, 0 where it stays infinite: there nothing changes."""
    rests = y.isinf() & (y == call(*x0))
    return torch.where(rests, 0.0, a), torch.where(rests, 0.0, b)


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
    y: Tensor = call(*x)
    y0: Tensor = call(*x0)
    upper = 1 if call.name.startswith("__r") else 0  # b.__rdiv__(a)
    a, a0, b, b0 = x[upper], x0[upper], x[1 - upper], x0[1 - upper]
    mean_a, mean_b = (a + a0) / 2, (b + b0) / 2
    along_a, along_b = 1 / mean_b, -(y + y0) / (b + b0)
    along_a, along_b = _unless_opposite(
        run, b, b0, (along_a, along_b), (mean_b / (b * b0), -mean_a / (b * b0))
    )
    return _by_coefficients(run, y, y0, (upper, along_a), (1 - upper, along_b), z, x)


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
        along_a, along_r = _unless_opposite(
            run, r, r0, (along_a, along_r), ((r + r0) / 2, (x[j] + x0[j]) / 2)
        )
        return _by_coefficients(run, y, y0, (j, along_a), (i, along_r), z, x)

    return rule


def _unless_opposite(
    run: Replay, b: Tensor, b0: Tensor, found: tuple[Tensor, Tensor], product: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The coefficients of a quotient; where its divisor changes sign, those of a * (1 / b)."""
    # The product rule for a * (1 / b) is complete as well, and unstable: with a baseline of zero,
    # the mean of 1 / b puts 1 / sqrt(eps) into every normalisation. Where b and b0 have opposite
    # signs their mean is near zero, and the mean of 1 / b is not.
    same = (b * b0.conj()).real > 0 if b.is_complex() else b * b0 > 0
    if run.first_order and b.device.type == "cpu" and bool(same.all()):
        return found
    return (
        torch.where(same | (b0 == 0) | (b == 0), found[0], product[0]),
        torch.where(same | (b0 == 0) | (b == 0), found[1], product[1]),
    )


def _by_coefficients(
    run: Replay,
    y: Tensor,
    y0: Tensor,
    first: tuple[int, Tensor],
    second: tuple[int, Tensor],
    z: Values,
    x: Values,
) -> Tensor:
    """``y`` with one multiplier for each of two arguments."""
    (i, m), (j, n) = first, second
    m, n = (at_rest_zero(c, y, y0, run.first_order) for c in (m, n))
    return run.graft(y, lambda t: [change(t[i], x[i]) * m, change(t[j], x[j]) * n], z, x)


def _is_two(exponent: Any) -> bool:
    return not isinstance(exponent, Tensor) and bool(exponent == 2)


def _rectified(run: Replay, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """``p / (p + q)``: the share of the way between x and x0 that lies above zero."""
    # If neither is above zero, p = 0 gives 0; if both are, q = 0 gives 1. No branch is needed. Half
    # the greatest number stands for infinity, so that the sum is finite.
    info = torch.finfo(x.dtype)
    most = info.max / 2
    p, q = torch.maximum(y, y0), torch.minimum(x, x0)
    if run.first_order:  # in place, which takes half the time where tensors are large
        p, q = p.clamp_(max=most), q.clamp_(-most, 0)
        return p.div_(torch.sub(p, q, out=q).clamp_(min=info.tiny))
    p, q = p.clamp(max=most), -q
    return p / (p + q.clamp(0, most)).clamp(min=info.tiny)


_CLAMPS = frozenset(["relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max"])
_ELEMENTWISE_PRODUCTS = frozenset(["mul", "multiply", "__mul__", "__rmul__"])
_MATRIX_PRODUCTS = frozenset(["matmul", "__matmul__", "linalg_matmul", "mm", "bmm"])

_Secant = Callable[[Replay, Tensor, Tensor, Tensor, Tensor], Tensor]
_SECANTS: dict[str, _Secant] = {
    "relu": _rectified,
    "square": lambda run, x, x0, y, y0: x + x0,
    "pow": lambda run, x, x0, y, y0: x + x0,
    "reciprocal": lambda run, x, x0, y, y0: -y * y0,
    "rsqrt": lambda run, x, x0, y, y0: -((y * y0) ** 2) / (y + y0),
}
"""Slopes in closed form, from x, x0, f(x) and f(x0); of ``pow`` for squares."""
