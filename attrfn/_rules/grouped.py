"""Reductions over groups of elements that an index forms: scatter_reduce and index_reduce."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.maxima import picked
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.run import Run, Values
from attrfn._rules.slopes import Function
from attrfn._rules.table import own_derivative


class Groups(NamedTuple):
    """The elements that a call reduces, in one dimension.

    Attributes:
        values: The elements of the tensor that is reduced into, then those of the source.
        group: The flat position in the output that each of them belongs to.
        counted: Whether an element takes part; None where all do.
    """

    values: Tensor
    group: Tensor
    counted: Tensor | None


def reduce(run: Record | Replay, call: Call) -> Any:
    """Sums and means over groups are linear; maxima and minima have the rule of maxima."""
    how = call.argument(4, "reduce")
    if how in ("sum", "mean"):
        return own_derivative(run, call)
    if how not in ("amax", "amin"):
        refuse_unknown(call, run.table.name, f"with reduce={how!r}")
    return run.primitive(call, _extreme)


def own_reduce(run: Run, call: Call) -> Any:
    """LRP: sums and means are linear, and a maximum passes all relevance to the winner."""
    how = call.argument(4, "reduce")
    if how not in ("sum", "mean", "amax", "amin"):
        refuse_unknown(call, run.table.name, f"with reduce={how!r}")
    return own_derivative(run, call)


def _extreme(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    y: Tensor = call(*x)
    sign = 1.0 if call.argument(4, "reduce") == "amax" else -1.0
    # All arguments become one tensor, of which each output takes one element.
    at_z, at_x, at_x0 = (_groups(call, t) for t in (z, x, x0))
    at, at0 = (_winners(sign * g.values, g, y.numel()) for g in (at_x, at_x0))

    def pick(positions: Tensor) -> Function:
        return lambda t: t.gather(0, positions)

    zs, xs, x0s = (sign * g.values for g in (at_z, at_x, at_x0))
    out = picked(run, sign * y.reshape(-1), zs, xs, x0s, pick(at), pick(at0))
    return (sign * out).reshape(y.shape)


def _groups(call: Call, values: Values) -> Groups:
    args, kwargs = call.filled(values)
    filled = call._replace(args=tuple(args), kwargs=kwargs)
    into, dim, index = (
        filled.argument(i, name) for i, name in enumerate(("input", "dim", "index"))
    )
    source = filled.argument(3, "src", filled.kwargs.get("source"))
    dim, own = dim % max(into.ndim, 1), torch.arange(into.numel(), device=into.device)
    if call.name == "index_reduce":
        index = index.reshape([-1 if d == dim else 1 for d in range(into.ndim)])
        index = index.expand(source.shape)
    source = source[tuple([slice(n) for n in index.shape])]
    group = _flat_positions(into, index, dim).reshape(-1)
    found = torch.cat([into.reshape(-1), source.reshape(-1)])
    counted = None
    if not call.argument(5, "include_self", True):
        alone = torch.ones_like(own).scatter(0, group, 0).bool()
        counted = torch.cat([alone, torch.ones_like(group).bool()])
    return Groups(found, torch.cat([own, group]), counted)


def _flat_positions(into: Tensor, index: Tensor, dim: int) -> Tensor:
    """Where each element of a source goes in the flat output."""
    flat, stride = torch.zeros_like(index), 1
    for d in reversed(range(into.ndim)):
        size = [-1 if k == d else 1 for k in range(into.ndim)]
        here = torch.arange(index.shape[d], device=index.device).reshape(size)
        flat = flat + stride * (index if d == dim else here)
        stride = stride * into.shape[d]
    return flat


def _winners(values: Tensor, g: Groups, n: int) -> Tensor:
    """The position of the greatest element of each group; the first of several."""
    if g.counted is not None:
        values = torch.where(g.counted, values, -torch.inf)
    least = values.new_full((n,), -torch.inf)
    best = least.scatter_reduce(0, g.group, values, "amax", include_self=True)
    wins = values == best.gather(0, g.group)
    wins = wins if g.counted is None else wins & g.counted
    places = torch.arange(len(values), device=values.device)
    none = places.new_full((n,), len(values))
    places = torch.where(wins, places, len(values))
    first = none.scatter_reduce(0, g.group, places, "amin", include_self=True)
    return first.clamp(max=len(values) - 1)  # a group with NaN has no winner
