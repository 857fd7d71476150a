"""Gradients of the explained output under rules."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attrfn._explain.explain import Explained
from attrfn._model.bind import prepare
from attrfn._rules.deferred import Overwritten
from attrfn._rules.errors import (
    refuse_constant,
    refuse_lengths,
    unwatched,
    warn_unread,
)
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.routes import check_routes
from attrfn._rules.run import Entry
from attrfn._rules.table import Rules
from attrfn._torch import pytree
from attrfn._torch.autodiff import (
    autograd_leaves,
    normal_tensors,
    transforming,
    twice_differentiable,
    values_and_gradients,
)
from attrfn._torch.compiling import is_compiling
from attrfn._torch.ranks import together
from attrfn._torch.typing import Leaves


# Up to three runs of the model. The baselines are recorded first, if there are any. The
# inputs are recorded only if the gradients may be differentiated again: with create_graph, and
# inside transforms and compiled code, where nothing tells what the caller will do. Last comes
# the replay, the only run with a backward pass. Eager code records without a graph unless it
# needs one. Compiled code records inside a vjp, see `_record_in_vjp`; there attrfn.compile may
# promise that nothing is differentiated (`undifferentiated`), which saves the recorded run on
# the inputs, but nothing where there are baselines.
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

    Returns:
        One gradient per leaf, and the names of the operations that had a rule.
    """
    first_order = p.undifferentiated and x0 is None
    with_graph = p.create_graph or (transforming() and not first_order)
    at_x: list[Entry] | None = None
    at_x0: list[Entry] | None = None
    if x0 is not None:
        at_x0 = _entries(p, rules, x0, copies, scope, with_graph, False)
    if with_graph:
        at_x = _entries(p, rules, x, copies, scope, with_graph, True)
    calls: list[str] = []
    defers = True

    def f(*z: Tensor) -> Tensor:
        run = Replay(rules, calls, at_x, at_x0, scope)
        run.gradient_only, run.defers = True, defers and run.first_order
        run.in_vjp = is_compiling()
        try:
            with contextlib.nullcontext() if transforming() else unwatched(rules.name):
                values = p.values(run.add(z), copies, run)
        finally:  # another path explains whatever went wrong on this one
            if x0 is not None and run.routes:
                check_routes(run, x0, lambda rows, record: p.values(rows, copies, record))
        _check_run(run, p, rules, values, calls, at_x0)
        return values

    if not transforming():
        with contextlib.suppress(Overwritten):
            return values_and_gradients(f, x, create_graph=p.create_graph)[1], calls
        calls.clear()
        defers = False
    return values_and_gradients(f, x, create_graph=p.create_graph)[1], calls


def _check_run(
    run: Replay,
    p: Explained,
    rules: Rules,
    values: Tensor,
    calls: list[str],
    at_x0: list[Entry] | None,
) -> None:
    """Refuse a run whose values the rules cannot explain."""
    run.finished(values)
    if run.has_first_rule and not run.read and p.batch:
        warn_unread(rules.name)
    if at_x0 is not None and len(calls) < len(at_x0):
        refuse_lengths()
    if rules.complete and run.any_cut and not values.requires_grad:
        refuse_constant(rules.name)


def _entries(
    p: Explained,
    rules: Rules,
    rows: Leaves,
    copies: int,
    scope: Sequence[Any],
    with_graph: bool,
    keep_values: bool,
) -> list[Entry]:
    """The entries of a recorded run on some rows, with a graph if one is wanted."""
    if with_graph or is_compiling():
        with twice_differentiable(p.create_graph):
            if is_compiling():
                return _record_in_vjp(p, rules, rows, copies, scope, keep_values)
            return _record(p, rules, rows, copies, scope, keep_values, True)[1]
    with torch.inference_mode(False):
        prepare(p.model)
    if together():  # the graph tells which values processes have exchanged
        with torch.inference_mode(False), torch.enable_grad():
            leaves = autograd_leaves(rows)
            entries = _record(p, rules, leaves, copies, scope, keep_values, True)[1]
        found: list[Entry] = pytree.tree_map_only(Tensor, Tensor.detach, entries)
        return found
    # Most models write nothing that was recorded, so clones of everything would be wasted: the run
    # is repeated with clones in the rare case.
    with torch.inference_mode(False), torch.no_grad():
        run, entries = _record(p, rules, normal_tensors(rows), copies, scope, keep_values, False)
        if run.overwritten():
            entries = _record(p, rules, normal_tensors(rows), copies, scope, keep_values, True)[1]
    return entries


def _record_in_vjp(
    p: Explained, rules: Rules, rows: Leaves, copies: int, scope: Sequence[Any], keep_values: bool
) -> list[Entry]:
    """The same under torch.compile, in a vjp, where values that depend on the rows have a gradient.

    The vjp's pullback is not used.
    """
    # A vjp returns tensors only. So the entries leave it as a flat list of tensors; names and
    # numbers leave separately, and both are joined again afterwards.
    others: list[Any] = []

    def f(*z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        entries = _record(p, rules, z, copies, scope, keep_values, True)[1]
        flat, spec = pytree.tree_flatten(entries)
        others.append((spec, [(False, 0) if isinstance(t, Tensor) else (True, t) for t in flat]))
        return z[0].sum(), tuple([t for t in flat if isinstance(t, Tensor)])

    result: Any = torch.func.vjp(f, *rows, has_aux=True)
    tensors = iter(result[2])
    spec, flat = others[0]
    found: list[Entry] = pytree.tree_unflatten(
        [t if known else next(tensors) for known, t in flat], spec
    )
    return found


def _record(
    p: Explained,
    rules: Rules,
    rows: Leaves,
    copies: int,
    scope: Sequence[Any],
    keep_values: bool,
    clone: bool,
) -> tuple[Record, list[Entry]]:
    """A recorded run on some rows."""
    entries: list[Entry] = []
    run = Record(rules, [], entries, keep_values, scope, clone)
    run.in_vjp = is_compiling()
    p.values(run.add(rows), copies, run)
    return run, entries
