"""Gradients of the explained output under rules."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attrfn._explain.explain import Explained
from attrfn._rules.errors import refuse_constant, refuse_lengths, unwatched, warn_unread
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.run import Seen
from attrfn._rules.table import Rules
from attrfn._torch import pytree
from attrfn._torch.autodiff import normal_tensors, transforming, values_and_gradients
from attrfn._torch.compiling import is_compiling
from attrfn._torch.typing import Leaves


def gradients_by_rules(
    p: Explained,
    rules: Rules,
    x: Leaves,
    x0: Leaves | None = None,
    *,
    copies: int = 1,
    scope: Sequence[Any] = (),
) -> tuple[Leaves, list[str]]:
    """Gradients at rows x (and baselines x0) of some copies of the batch.

    Where nobody can differentiate the result, one pass at x is enough; elsewhere a run on x comes
    first, see :mod:`attrfn._rules.run`.

    Returns:
        One gradient per leaf, and the names of the operations that had a rule.
    """
    once = p.undifferentiated and x0 is None  # with baselines it saves nothing
    keep = p.create_graph or (transforming() and not once)
    at: list[Seen] | None = None
    base: list[Seen] | None = None
    if x0 is not None:
        base = _seen(p, rules, x0, copies, scope, keep, False)
    if keep:
        at = _seen(p, rules, x, copies, scope, keep, True)
    calls: list[str] = []

    def f(*z: Tensor) -> Tensor:
        run = Replay(rules, calls, at, base, scope)
        run.unseen = True
        run.surrounded = is_compiling()
        with contextlib.nullcontext() if transforming() else unwatched(rules.name):
            values = p.values(run.add(z), copies, run)
        run.finished(values)
        if run.has_first_rule and not run.read and p.batch:
            warn_unread(rules.name)
        if base is not None and len(calls) < len(base):
            refuse_lengths()
        if rules.complete and run.any_cut and not values.requires_grad:
            refuse_constant(rules.name)
        return values

    return values_and_gradients(f, x, create_graph=p.create_graph)[1], calls


def _seen(
    p: Explained,
    rules: Rules,
    rows: Leaves,
    copies: int,
    scope: Sequence[Any],
    keep: bool,
    values: bool,
) -> list[Seen]:
    """What a run on some rows writes down, with a graph if one is wanted."""
    if is_compiling():
        return _traced(p, rules, rows, copies, scope, values)
    if keep:
        return _watched(p, rules, rows, copies, scope, values, True)[1]
    with torch.inference_mode(False), torch.no_grad():
        run, seen = _watched(p, rules, normal_tensors(rows), copies, scope, values, False)
        if run.overwritten():
            seen = _watched(p, rules, normal_tensors(rows), copies, scope, values, True)[1]
    return seen


def _traced(
    p: Explained, rules: Rules, rows: Leaves, copies: int, scope: Sequence[Any], values: bool
) -> list[Seen]:
    """The same under torch.compile, in a vjp, where dependents show that they have a gradient."""
    others: list[Any] = []

    def f(*z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen = _watched(p, rules, z, copies, scope, values, True)[1]
        flat, spec = pytree.tree_flatten(seen)
        others.append((spec, [(False, 0) if isinstance(t, Tensor) else (True, t) for t in flat]))
        return z[0].sum(), tuple([t for t in flat if isinstance(t, Tensor)])

    result: Any = torch.func.vjp(f, *rows, has_aux=True)
    tensors = iter(result[2])
    spec, flat = others[0]
    found: list[Seen] = pytree.tree_unflatten(
        [t if known else next(tensors) for known, t in flat], spec
    )
    return found


def _watched(
    p: Explained,
    rules: Rules,
    rows: Leaves,
    copies: int,
    scope: Sequence[Any],
    values: bool,
    safe: bool,
) -> tuple[Record, list[Seen]]:
    """A run on some rows, which keeps copies of what it sees if it has to be safe."""
    seen: list[Seen] = []
    run = Record(rules, [], seen, values, scope, safe)
    run.surrounded = is_compiling()
    p.values(run.add(rows), copies, run)
    return run, seen
