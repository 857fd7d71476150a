"""DeepLIFT: every operation y = f(x) passes back multipliers m with m (x - x0) = f(x) - f(x0).

    elementwise   m = (f(x) - f(x0)) / (x - x0), or f'(x) where x = x0
    products      op(a, b) - op(a0, b0) = op(a - a0, (b + b0) / 2) + op((a + a0) / 2, b - b0)
    maxima        what f gains goes to the argument that is greatest at x, what it loses to the one
                  that was greatest at x0

Reference:
    Shrikumar, Greenside and Kundaje, Learning Important Features Through Propagating Activation
    Differences, 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attrfn._core.batch import wide
from attrfn._core.derive import transforming
from attrfn._rules.call import Call
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.run import Replay, Values

Function = Callable[[Tensor], Tensor]


def elementwise(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """The rescale rule, of one argument or of two.

    For two, the change along one argument is the mean over the two values of the other:
    f(a, b) - f(a0, b0) = [f(a, .) - f(a0, .)] + [f(., b) - f(., b0)].
    """
    y: Tensor = call(*x)
    if len(z) == 1:
        return y + (slope(lambda t: call(t), x[0], x0[0]) * _difference(z[0], x[0])).to(y.dtype)
    if len(z) > 2:
        refuse_unknown(call, run.table.name)
    (a, b), (a0, b0) = x, x0
    along_a = 0.5 * (slope(lambda t: call(t, b), a, a0) + slope(lambda t: call(t, b0), a, a0))
    along_b = 0.5 * (slope(lambda t: call(a, t), b, b0) + slope(lambda t: call(a0, t), b, b0))
    return y + (along_a * (z[0] - a) + along_b * (z[1] - b)).to(y.dtype)


def product(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """Operations that are affine in each argument: the mean over both orders of changing them."""
    y: Tensor = call(*x)
    if len(z) == 2:
        mean = [(a + b) / 2 for a, b in zip(x, x0, strict=True)]
        y = y + run.change(lambda t: call(t, mean[1]), z[0], x[0])
        return y + run.change(lambda t: call(mean[0], t), z[1], x[1])
    n = len(z)
    for i in range(n):
        for first, then in ((x, x0), (x0, x)):

            def part(t: Tensor, i: int = i, first: Values = first, then: Values = then) -> Tensor:
                whole: Tensor = call(*first[:i], t, *then[i + 1 :])
                return whole / 2

            y = y + run.change(part, z[i], x[i])
    return y


def softmax(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``e / sum(e)``, e = exp(x - c): rescale for exp and 1 / s, the product rule between them."""
    y: Tensor = call(*x)
    dim = _softmax_dim(call, y.ndim)
    dz = _difference(z[0], x[0]).to(wide(y.dtype))
    e, e0, grown = _exponentials(x[0], x0[0], dim, dz)
    s, s0 = e.sum(dim, keepdim=True), e0.sum(dim, keepdim=True)
    change = grown * (1 / s + 1 / s0) / 2
    change = change - (e + e0) / 2 * (grown.sum(dim, keepdim=True) / (s * s0))
    return y + change.to(y.dtype)


def logsumexp(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``c + log(sum(exp(x - c)))``: rescale for exp and for log."""
    y: Tensor = call(*x)
    dim = call.argument(1, "dim")
    keepdim = bool(call.argument(2, "keepdim", False))
    dz = _difference(z[0], x[0]).to(wide(y.dtype))
    e, e0, grown = _exponentials(x[0], x0[0], dim, dz)
    s, s0 = e.sum(dim, keepdim=keepdim), e0.sum(dim, keepdim=keepdim)
    return y + (slope(torch.log, s, s0) * grown.sum(dim, keepdim=keepdim)).to(y.dtype)


def log_softmax(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``x - logsumexp(x)``."""
    y: Tensor = call(*x)
    dim = _softmax_dim(call, y.ndim)
    dz = _difference(z[0], x[0]).to(wide(y.dtype))
    e, e0, grown = _exponentials(x[0], x0[0], dim, dz)
    s, s0 = e.sum(dim, keepdim=True), e0.sum(dim, keepdim=True)
    change = dz - slope(torch.log, s, s0) * grown.sum(dim, keepdim=True)
    return y + change.to(y.dtype)


def picked(
    z: Tensor, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, pick: Function, pick0: Function
) -> Tensor:
    """Y and its change where ``pick`` finds the maxima at x and ``pick0`` those at x0."""
    top = torch.maximum(y, y0)
    gain = quotient(top - y0, pick(x) - pick(x0), 1.0)
    loss = quotient(y - top, pick0(x) - pick0(x0), 0.0)
    dz = _difference(z, x)
    return y + gain * pick(dz) + loss * pick0(dz)


def slope(f: Function, x: Tensor, x0: Tensor) -> Tensor:
    """``(f(x) - f(x0)) / (x - x0)``, and f'(x) where x = x0."""
    y, y0 = f(x), f(x0)
    x, x0 = x.expand(y.shape), x0.expand(y.shape)
    dx = x.to(wide(x.dtype)) - x0
    return quotient(y.to(wide(y.dtype)) - y0, dx, derivative(f, x))


def quotient(change: Tensor, dx: Tensor, else_: Tensor | float) -> Tensor:
    """``change / dx``, and another value where dx is nothing (in the precision of its type)."""
    nothing = dx.abs() <= torch.finfo(dx.dtype).eps
    other = else_ if isinstance(else_, Tensor) else torch.full_like(dx, else_)
    return torch.where(nothing, other, change / torch.where(nothing, torch.ones_like(dx), dx))


def derivative(f: Function, x: Tensor) -> Tensor:
    """f'(x) of an elementwise function."""
    if transforming():
        y, pull = torch.func.vjp(f, x)[:2]
        found: Tensor = pull(torch.ones_like(y))[0]
        return found
    graph = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        at = x if graph else x.detach().requires_grad_()
        y = f(at)
        if not y.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(y, at, torch.ones_like(y), create_graph=graph)[0]


def _exponentials(x: Tensor, x0: Tensor, dim: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(x - c), exp(x0 - c) and the change of the first with dz; c is the greatest of all."""
    x, x0 = x.to(dz.dtype), x0.to(dz.dtype)
    c = torch.maximum(x, x0).amax(dim, keepdim=True)
    c = torch.where(c == -torch.inf, torch.zeros_like(c), c)
    low = torch.finfo(dz.dtype).min / 4  # masked positions: exp is 0, and no difference is NaN
    x, x0 = (x - c).clamp(min=low), (x0 - c).clamp(min=low)
    return x.exp(), x0.exp(), slope(torch.exp, x, x0) * dz


def _difference(z: Tensor, x: Tensor) -> Tensor:
    """Z - x, which is zero; also where both are infinite."""
    return torch.where(x.isinf(), torch.zeros_like(x), z - x)


def _softmax_dim(call: Call, ndim: int) -> int:
    dim = call.argument(1, "dim")
    if dim is None:
        return 0 if ndim in (0, 1, 3) else 1
    return int(dim)


def max_pool(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Any:
    """Max pooling: the rule of maxima, with the positions that pooling itself returns."""
    n = 1 if "1d" in call.name else 2 if "2d" in call.name else 3
    function = getattr(F, f"{'adaptive_' if 'adaptive' in call.name else ''}max_pool{n}d")
    (y, at), (y0, at0) = (_pooled(call, function, t) for t in (x[0], x0[0]))

    def pick(positions: Tensor) -> Function:
        return lambda t: t.flatten(-n).gather(-1, positions.flatten(-n)).reshape(positions.shape)

    out = picked(z[0], x[0], x0[0], y, y0, pick(at), pick(at0))
    return (out, at) if call.name.endswith("with_indices") or _wants_indices(call) else out


def _wants_indices(call: Call) -> bool:
    last = 2 if "adaptive" in call.name else 6
    return bool(call.argument(last, "return_indices", False))


def _pooled(call: Call, function: Callable[..., Any], x: Tensor) -> Any:
    args, kwargs = call.filled([x])
    last = 2 if "adaptive" in call.name else 6
    kwargs.pop("return_indices", None)
    return function(*args[:last], **kwargs, return_indices=True)


def amax(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """The greatest (or least) along one dimension: the rule of maxima."""
    sign = -1.0 if call.name == "amin" else 1.0
    dim = call.argument(1, "dim")
    axis = int(dim[0] if isinstance(dim, (tuple, list)) else dim)
    zs, xs, x0s = (sign * t for t in (z[0], x[0], x0[0]))
    at, at0 = xs.argmax(axis, keepdim=True), x0s.argmax(axis, keepdim=True)

    def pick(positions: Tensor) -> Function:
        return lambda t: t.gather(axis, positions)

    out = sign * picked(zs, xs, x0s, pick(at)(xs), pick(at0)(x0s), pick(at), pick(at0))
    return out if call.argument(2, "keepdim", False) else out.squeeze(axis)
