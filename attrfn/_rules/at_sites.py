"""Relevance at layers that may depend on each other, in one pass.

A layer alone is explained on a value that is planted there: a new tensor, of which no rule knows
how it was made. In one pass each layer is such a barrier, too. That gives a layer what it gets
alone, unless

    a rule looks back across a barrier after the layer, as at a batch norm after a convolution, or
    an operation that is not linear in all its tensors together meets some that depend on the layer
    and others that depend on another one alone, such as attention weights times values.

Both are noticed, and the layers are then explained one by one.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Sequence
from typing import Any

import optree
from torch import Tensor, nn

from attrfn._explain.explain import explain
from attrfn._explain.tree import as_dicts, batch_size, flatten
from attrfn._layers.intervene import visible, with_edits
from attrfn._layers.probe import merge
from attrfn._layers.rows import like, place_of, read, told
from attrfn._layers.sites import Site, check_sites
from attrfn._layers.split import split_once
from attrfn._layers.taps import Plan, Silent
from attrfn._rules import chains, ops
from attrfn._rules.call import members, tensors
from attrfn._rules.deferred import Overwritten
from attrfn._rules.errors import unwatched
from attrfn._rules.replay import Replay
from attrfn._rules.scope import scoped
from attrfn._rules.table import Rules
from attrfn._rules.tags import Tags
from attrfn._torch.autodiff import gradients_inside, transforming
from attrfn._torch.private import no_overrides
from attrfn._torch.typing import At, Layer, ModelFn, Target, Tree

_LINEAR = frozenset([*ops.STRUCTURE.split(), *ops.CONSTANT.split(), "T"])

# Which layers of a model have been found to need a pass each, as long as the model lives.
_apart: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()


class Apart(BaseException):
    """Ends a run in which a layer would not get what it gets alone; a model may catch Exception."""


def relevances(
    model_fn: ModelFn,
    inputs: Tree,
    layers: Sequence[Any],
    *,
    target: Target,
    at: At,
    call: int | None,
    rules: Rules,
) -> list[tuple[Tree, Tree]] | None:
    """The activation of each layer and the gradient there by rules, in one pass of the model.

    Returns:
        A pair for each layer; None where each layer needs a pass of its own.
    """
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    if transforming() or call is None or batch == 0:
        return None
    layer: Layer = list(layers)
    place = place_of(model_fn, layer, at, call)
    key = (*place.key, rules.name)
    if key in _apart.get(place.module, ()):
        return None
    inputs = rebuild([t.detach() for t in x])
    halves = split_once(model_fn, layer, at=at, call=call, frozen=True)
    value = read(halves, inputs, False)
    if any(t.is_complex() for t in optree.tree_leaves(as_dicts(value)) if isinstance(t, Tensor)):
        return None
    activation, by_rows = told(value, halves, inputs, batch, layer, place)
    if not all(by_rows):
        return None
    barriers = tuple([Barrier(1 << i, kept) for i, kept in enumerate(activation)])
    sites = [Site(named, at, call) for named in layers]
    try:
        grads = _gradients(model_fn, inputs, target, sites, barriers, rules)
    except Apart:
        _apart.setdefault(place.module, set()).add(key)
        return None
    spec = optree.tree_structure(activation)
    found: Any = optree.tree_unflatten(spec, grads)
    return list(zip(activation, found, strict=True))


def _gradients(
    model_fn: ModelFn,
    inputs: Tree,
    target: Target,
    sites: Sequence[Site],
    barriers: tuple[Barrier, ...],
    rules: Rules,
) -> tuple[Tensor, ...]:
    """The gradients at barriers that are put at some sites, one after the other."""
    src = visible(model_fn)
    model = with_edits(src, Plan(check_sites(src.module, sites)), barriers, frozen=True)
    scope: list[Any] = []
    model = scoped(model, rules, scope, frozen=True)
    p = explain(model, inputs, target, differentiated=False)

    def f(defers: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        run = Barred(rules, scope)
        run.defers = defers
        for barrier in barriers:
            barrier.run, barrier.leaves = run, []
        with unwatched(rules.name):
            values = p.values(p.x, 1, run)
        run.finished(values)
        return values, tuple([t for barrier in barriers for t in barrier.leaves])

    with contextlib.suppress(Overwritten):
        return gradients_inside(functools.partial(f, True))[1]
    return gradients_inside(functools.partial(f, False))[1]


class Barred(Replay):
    """A replay without recorded runs that notes from which barriers values come."""

    def __init__(self, table: Rules, scope: Sequence[Any]) -> None:
        super().__init__(table, [], None, None, scope)
        self.gradient_only = True
        # From which barriers a value comes, as a sum of their numbers.
        self.origins = Tags("origins")
        self.depth = 0
        self.made, self.inverse = _Cut("made"), _Cut("inverse")
        self.spans = _Spans(self.chains)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, by its rule if it has one."""
        if self.depth:  # an operation inside of one that is decomposed
            return super().__torch_function__(func, types, args, kwargs)
        given = [t for _, t in tensors(args, kwargs or {})]
        first = args[0] if args else None
        before = self.origins.get(first) if isinstance(first, Tensor) else None
        self.depth = 1
        try:
            out = super().__torch_function__(func, types, args, kwargs)
        finally:
            self.depth = 0
        values = [t for t in given if self.marked.get(t)]
        if values:
            known = self.find(func)
            self._follow("" if known is None else known[0].name, values, first, before, out)
        return out

    def _follow(self, name: str, values: list[Tensor], first: Any, before: Any, out: Any) -> None:
        """Note from which barriers the results of an operation come."""
        found = {self.origins.get(t) or 0 for t in values}
        if 0 in found or (len(found) > 1 and name not in _LINEAR):
            raise Apart
        union = functools.reduce(lambda a, b: a | b, found)
        writes = out is None or out is first
        if writes and before not in (None, union):
            raise Apart  # other views of what was written have no note of that
        for t in [first] if out is None else members(out):
            if isinstance(t, Tensor):
                self.origins.put(t, union)
        if writes:
            self.spans.forget(first)
        elif name in chains.KINDS and isinstance(out, Tensor):
            self.spans.follow(values, out)

    def start(self, t: Tensor) -> Tensor:
        """The value of a barrier: a graph starts there, unless it depends on another one."""
        if not (self.marked.get(t) or (self.written.known and self.shares_memory(t))):
            return t.detach().requires_grad_()
        if not self.origins.get(t):
            raise Apart
        return t.clone()

    def put(self, new: Tensor, number: int, before: Tensor) -> None:
        """Mark the tensor with which the model goes on after a barrier."""
        self.follow(new)
        self.origins.put(new, number | (self.origins.get(before) or 0))
        self.spans.cut(new, before)
        notes: Any = (self.made, self.inverse)
        for tags in notes:
            tags.cut(new, before)


class _Cut(Tags):
    """Notes that must not be asked for after a barrier."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.after: dict[int, Tensor] = {}

    def cut(self, new: Tensor, before: Tensor) -> None:
        """Withhold from a tensor the note that another one has."""
        if id(before) in self.known:
            self.after[id(new)] = new

    def get(self, t: Tensor) -> Any:
        """The note of a tensor."""
        if id(t) in self.after:
            raise Apart
        return super().get(t)


class _Spans:
    """Which values a chain of operations would reach across a barrier.

    After a barrier a new chain starts (:mod:`attrfn._rules.chains`). That changes nothing for an
    operation on one value that was moved and scaled alone, nor for one on several values that are
    functions of different ones.
    """

    def __init__(self, nodes: Tags) -> None:
        self.nodes = nodes
        self.bases = Tags("bases")  # of which values it is a function, barriers or not
        self.bent = Tags("bent")  # a barrier after more than moves and scales

    def cut(self, new: Tensor, before: Tensor) -> None:
        """One chain ends at a tensor, and a new one starts at another."""
        node = self.nodes.get(before)
        if node is not None and node.call is not None:
            self.bases.put(new, (self._of(before)[0], True))
            if node.bent or node.whole or node.curve_of is not None:
                self.bent.put(new)

    def follow(self, values: list[Tensor], out: Tensor) -> None:
        """Note of which values the result of an operation that chains know is a function."""
        if len(values) == 1:
            if self.bent.get(values[0]):
                raise Apart
            self.bases.put(out, self._of(values[0]))
            return
        found = [self._of(t) for t in values]
        common = frozenset.intersection(*[bases for bases, _ in found])
        if common:
            if any(across for _, across in found):
                raise Apart
            self.bases.put(out, (common, False))

    def forget(self, t: Any) -> None:
        """Forget a tensor that was written in place."""
        self.bases.drop(t)
        self.bent.drop(t)

    def _of(self, t: Tensor) -> tuple[frozenset[int], bool]:
        if self.bases.get(t) is None:
            self.bases.put(t, (frozenset([id(t)]), False))
        known: tuple[frozenset[int], bool] = self.bases.get(t)
        return known


class Barrier(Silent):
    """At one layer: the model goes on from a new tensor.

    Args:
        number: A power of two.
        kept: The activation, with None in the place of what is not explained.
    """

    def __init__(self, number: int, kept: Tree) -> None:
        self.number = number
        self.kept = kept
        self.run: Any = None
        self.leaves: list[Tensor] = []

    def __call__(self, natural: Tree, site: Site) -> Tree:
        """The value with which the model goes on."""
        with no_overrides():
            value = like(self.kept, natural)
            leaves: Any = optree.tree_map(self.run.start, value)
            self.leaves += optree.tree_leaves(leaves)
            new = merge(leaves, natural)
            after_it = optree.tree_leaves(like(self.kept, new))
            for after, before in zip(after_it, optree.tree_leaves(value), strict=True):
                self.run.put(after, self.number, before)
            return new
