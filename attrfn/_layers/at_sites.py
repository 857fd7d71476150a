"""Values at many sites, and the gradients there, by one pass of the model forward and one back.

What is planted at a site cuts off the sites before it. So values are not planted: a graph starts at
each site that depends on no other and runs on through the rest, or zeros are added at the sites.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._explain.shared import laid_out
from attrfn._explain.target import choose, select
from attrfn._explain.tree import as_dicts, batch_size, call_model, flatten
from attrfn._layers.intervene import visible, with_plan
from attrfn._layers.leaves import real_view, repacked
from attrfn._layers.probe import merge, of_tensors
from attrfn._layers.rows import like, place_of, told
from attrfn._layers.sites import Key, Site, check_sites, keys_of
from attrfn._layers.split import layers_of, split_once
from attrfn._layers.taps import Plan, Silent
from attrfn._model.bind import Reused, bind_source
from attrfn._torch.autodiff import (
    gradients_inside,
    keeps_graph,
    transforming,
    twice_differentiable,
)
from attrfn._torch.typing import At, Layer, ModelFn, Target, Tree

Pick = Callable[[Any], Tree]
"""From the values at all sites to the tensors among them that are explained; None elsewhere."""


def gradients(
    model: ModelFn,
    inputs: Tree,
    sites: Key | Sequence[Key],
    target: Target = None,
    *,
    create_graph: bool = False,
) -> tuple[dict[Key, Tree], dict[Key, Tree]]:
    """The values at some sites, and the gradients of the explained output there.

    Both are dicts by the keys of the sites. They hold the floating tensors of the values (the parts
    of complex ones), and None in the other places; sites may depend on each other.
    """
    plan = Plan(check_sites(visible(model).module, keys_of(sites)))
    values, grads = _pulled(model, inputs, plan, target, create_graph, _floating)
    keys = plan.sites.keys
    return dict(zip(keys, values, strict=True)), dict(zip(keys, grads, strict=True))


def activations_and_gradients(
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    *,
    target: Target,
    at: At,
    call: int | None,
    create_graph: bool,
) -> tuple[Tree, Tree, Any]:
    """The activation of each of some layers, and the gradient there; lists for a list of layers.

    Third come flags, whether each has the examples in dimension 0. The layers, and the calls of one
    (``call=None``), may depend on each other.
    """
    many = isinstance(layer, (list, tuple))
    halves = split_once(model_fn, layer, at=at, call=call, frozen=True)
    keys = [Site(named, at, call) for named in layers_of(layer)]
    plan = Plan(check_sites(visible(model_fn).module, keys))
    x, rebuild = flatten(inputs)
    given = rebuild([t.detach() for t in x]) if not transforming() else inputs
    batch = batch_size(x)

    values: list[Tree] = []
    flags: tuple[bool, ...] = ()

    def explained(found: list[Tree]) -> Tree:
        nonlocal values, flags
        values = found
        value: Tree = found if many else found[0]
        place = place_of(model_fn, layer, at, call)
        activation, flags = told(value, halves, given, batch, layer, place)
        return activation if many else [activation]

    both = _pulled(model_fn, inputs, plan, target, create_graph, explained)
    own, grads = [
        [t if first else repacked(t, v) for t, v, first in zip(trees, values, flags, strict=True)]
        for trees in both
    ]
    for tree, first in zip(grads, flags, strict=True):
        if not first:
            laid_out([t for t in optree.tree_leaves(tree) if isinstance(t, Tensor)], ())
    return (own, grads, flags) if many else (own[0], grads[0], flags[0])


def _floating(found: Tree) -> Tree:
    return optree.tree_map(lambda t: t if t.is_floating_point() else None, found)


def _pulled(
    model_fn: ModelFn, inputs: Tree, plan: Plan, target: Target, create_graph: bool, pick: Pick
) -> tuple[list[Tree], list[Tree]]:
    """The values at the sites of a plan, and the gradients there."""
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    chosen = choose(target, batch)
    src = visible(model_fn)
    bare, first = with_plan(src, plan), len(src.edits)
    if not (create_graph or transforming()):
        inputs = rebuild([t.detach() for t in x])
    frozen = not keeps_graph(create_graph)
    once = frozen and not transforming()
    model = Reused(bare) if once else bind_source(bare, (), (), frozen=frozen)

    def run(edits: Sequence[Silent]) -> Any:
        own = (*src.args[:first], tuple(edits), *src.args[first:])
        return call_model(functools.partial(model, *own, **src.kwargs), inputs)

    def values_of(outputs: Any) -> Tensor:
        return select(outputs, chosen, batch)

    pull = _by_zeros if transforming() else _from_leaves
    activation, found, grads = pull(run, values_of, len(plan.sites.keys), create_graph, pick)
    spec = optree.tree_structure(activation)
    if not (create_graph or transforming()):
        found, grads = [t.detach() for t in found], [t.detach() for t in grads]
    values: Any = optree.tree_unflatten(spec, found)
    at_values: Any = optree.tree_unflatten(spec, grads)
    return values, at_values


def _from_leaves(run: Any, values_of: Any, sites: int, create_graph: bool, pick: Pick) -> Any:
    """In eager mode a graph starts at the sites themselves."""
    activation: Tree = None

    def values_and_leaves() -> tuple[Tensor, tuple[Tensor, ...]]:
        nonlocal activation
        starts = [Start() for _ in range(sites)]
        outputs = run(starts)
        found = [start.value() for start in starts]
        activation = pick(found)
        return values_of(outputs), tuple(optree.tree_leaves(like(activation, found)))

    with twice_differentiable(create_graph):
        found, grads = gradients_inside(values_and_leaves, create_graph=create_graph)
    return activation, found, grads


def _by_zeros(run: Any, values_of: Any, sites: int, create_graph: bool, pick: Pick) -> Any:
    """In transforms no graph can start in the middle of a function, so zeros are added there."""
    # Of the first run only shapes count, so that compiled code drops it.
    looks = [Start(added=None) for _ in range(sites)]
    run(looks)
    activation = pick([look.value() for look in looks])
    leaves, spec = optree.tree_flatten(activation)

    def values(*zeros: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        trees = optree.tree_unflatten(spec, zeros)
        adds = [Start(added=tree) for tree in trees]
        outputs = run(adds)
        found = like(activation, [add.value() for add in adds])
        return values_of(outputs), tuple(optree.tree_leaves(found))

    with twice_differentiable(create_graph):
        zeros = [torch.zeros_like(t) for t in leaves]
        result: Any = torch.func.vjp(values, *zeros, has_aux=True)
        explained, pull, found = result
        return activation, found, pull(torch.ones_like(explained))


class Start(Silent):
    """At one site: a graph starts there, or zeros are added, from which one starts.

    Args:
        added: What is added, for each call or for the only one; None for nothing.
    """

    def __init__(self, **added: Tree) -> None:
        self.adds = bool(added)
        self.added = added.get("added")
        self.found: list[Tree] = []
        self.all_calls = False

    def __call__(self, natural: Tree, site: Site) -> Tree:
        """The value with which the model goes on."""
        self.all_calls = site.call is None
        value = as_dicts(natural)
        if not self.adds:
            # Cloned, because the model may write into the value later.
            leaves = of_tensors(lambda t: _leaf(real_view(t.clone())), value)
            self.found.append(leaves)
            return merge(leaves, natural)
        before = of_tensors(lambda t: real_view(t.clone()), value)
        number = len(self.found)
        self.found.append(before)
        added = self.added
        if added is None:
            return natural
        if self.all_calls:
            added = added[number]

        def moved(d: Any, t: Any) -> Any:
            return None if d is None or t is None else t + d

        return merge(optree.tree_map(moved, added, before, none_is_leaf=True), natural)

    def value(self) -> Tree:
        """What was found: the value, or a tuple with that of each call."""
        return tuple(self.found) if self.all_calls else self.found[0]


def _leaf(t: Tensor) -> Tensor:
    """The tensor itself if it depends on another site, or is part of a graph that is kept."""
    if t.requires_grad or not t.is_floating_point():
        return t
    return t.detach().requires_grad_()
