"""Values in order: sort, topk, kthvalue, median, running and grouped maxima, under DeepLIFT.

The sum T_k of the k greatest values is a maximum of sums, over all sets of k elements. Let S be the
set that wins at x, and S0 the one at x0; the changes of their sums enclose that of T_k,

    sum_S0 (x - x0)  <=  T_k(x) - T_k(x0)  <=  sum_S (x - x0),

so that T_k changes by a weighted mean of the two, and its multipliers are that mean of the two
sets' indicators. The k-th value is T_k - T_(k-1): its multipliers sum to 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._rules.call import Call
from attrfn._rules.maxima import picked
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._rules.slopes import Function, apart, change
from attrfn._torch import pytree


def ordered(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Any:
    """Values in order; their indices stay as they are."""
    out, spec = pytree.tree_flatten(call(*x))
    y: Tensor = out[0]
    a, a0, axis = _along_axis(call, x[0], x0[0])
    take, mean = _taken(call, axis, a.shape[axis]), _sorted_sums(a, a0, axis)

    def surrogates(t: Values) -> list[Tensor]:
        return [take(mean(change(t[0].reshape(a.shape), a))).reshape(y.shape)]

    return pytree.tree_unflatten([run.graft(y, surrogates, z, x), *out[1:]], spec)


def topk(run: Record | Replay, call: Call) -> Any:
    """The k greatest values in order: without it (``sorted=False``) any order is as good."""
    args, kwargs = call.args[:4], {k: v for k, v in call.kwargs.items() if k != "sorted"}
    return run.primitive(call._replace(args=args, kwargs=kwargs), ordered)


def running(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Any:
    """``cummax`` and ``cummin``: the rule of maxima, with the positions that they return."""
    out, spec = pytree.tree_flatten(call(*x))
    sign = 1.0 if call.name == "cummax" else -1.0
    dim = call.argument(1, "dim")

    def pick(at: Tensor) -> Function:
        return lambda t: t.gather(dim, at)

    picks = pick(out[1]), pick(call(*x0)[1])
    zs, xs, x0s = (sign * t for t in (z[0], x[0], x0[0]))
    value = sign * picked(run, sign * out[0], zs, xs, x0s, *picks)
    return pytree.tree_unflatten([value, *out[1:]], spec)


def _along_axis(call: Call, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor, int]:
    """The arguments and the dimension along which they are ordered."""
    name = call.name
    position = 2 if name in ("topk", "kthvalue") else 1
    dim = 0 if name == "msort" else call.argument(position, "dim", None if name == "median" else -1)
    if dim is None or x.ndim == 0:
        return x.reshape(-1), x0.reshape(-1), 0
    return x, x0, dim % x.ndim


def _sorted_sums(x: Tensor, x0: Tensor, axis: int) -> Function:
    """From changes to those of the values from the greatest to the least."""
    at, at0 = (t.argsort(dim=axis, descending=True, stable=True) for t in (x, x0))
    kind = wide(x.dtype)
    dx = apart(x.to(kind), x0)
    # What is infinite at x and x0 does not change: zeros in its place keep the sums finite.
    rests = (x == x0) & x.isinf()
    top, top0 = (
        torch.where(rests, 0.0, t).to(kind).gather(axis, i) for t, i in ((x, at), (x0, at0))
    )
    grown = (top - top0).cumsum(axis)
    upper, lower = (dx.gather(axis, i).cumsum(axis) for i in (at, at0))
    width = upper - lower
    level = width.abs() <= torch.finfo(kind).eps * (upper.abs() + lower.abs())
    share = torch.where(level, 1.0, (grown - lower) / torch.where(level, 1.0, width))

    def sums(d: Tensor) -> Tensor:
        d = d.to(kind)
        up, down = (d.gather(axis, i).cumsum(axis) for i in (at, at0))
        total = share * up + (1 - share) * down
        first = total.narrow(axis, 0, 1)
        return torch.cat([first, total.diff(dim=axis)], axis)

    return sums


def _taken(call: Call, axis: int, n: int) -> Function:
    """What an operation takes of the values from the greatest to the least, as it orders them."""
    name = call.name
    if name in ("sort", "msort"):
        down = name == "sort" and bool(call.argument(2, "descending", False))
        return (lambda t: t) if down else (lambda t: t.flip(axis))
    if name == "topk":
        k, largest = int(call.argument(1, "k")), bool(call.argument(3, "largest", True))
        if largest:
            return lambda t: t.narrow(axis, 0, k)
        return lambda t: t.flip(axis).narrow(axis, 0, k)
    k = int(call.argument(1, "k")) if name == "kthvalue" else (n - 1) // 2 + 1
    return lambda t: t.select(axis, n - k)
