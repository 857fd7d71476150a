"""A layer's activation and the gradient there, in one pass of the model where torch allows it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optree
from torch import Tensor

from attrfn._explain.explain import explain
from attrfn._explain.shared import laid_out, marked
from attrfn._explain.target import choose, select
from attrfn._explain.tree import batch_size, flatten
from attrfn._layers.at_sites import activations_and_gradients
from attrfn._layers.leaves import repacked
from attrfn._layers.located import locate
from attrfn._layers.rows import is_floating, like, place_of, told
from attrfn._layers.split import layers_of, split_once, watched
from attrfn._torch.autodiff import (
    gradients_inside,
    transforming,
    values_and_gradients,
)
from attrfn._torch.typing import At, Layer, Leaves, ModelFn, Target, Tree


def activation_and_gradient(
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    *,
    target: Target,
    at: At,
    call: int | None,
    create_graph: bool,
) -> tuple[Tree, Tree, Any]:
    """A layer's activation, the gradient of the explained output with respect to it, and a flag.

    The flag says whether the activation has the examples in dimension 0. Of a list of layers, which
    may depend on each other, lists.
    """
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    if batch and (call is None or isinstance(layer, (list, tuple))):
        return activations_and_gradients(
            model_fn, inputs, layer, target=target, at=at, call=call, create_graph=create_graph
        )
    # A graph that starts at the layer has no derivatives by the inputs and parameters, which
    # create_graph and transforms ask for.
    if create_graph or transforming() or batch == 0:
        here = locate(model_fn, inputs, layer, at=at, call=call, create_graph=create_graph)
        gradient = functools.partial(_gradient, create_graph=create_graph)
        return here.own, here.explained(gradient, {"target": target}), here.layout is None
    inputs = rebuild([t.detach() for t in x])
    return _in_one_pass(model_fn, inputs, batch, layer, target, at, call)


def _in_one_pass(
    model_fn: ModelFn,
    inputs: Tree,
    batch: int,
    layer: Layer,
    target: Target,
    at: At,
    call: int | None,
) -> tuple[Tree, Tree, Any]:
    """The same in one run of the model, whose graph starts at the layer."""
    halves = split_once(model_fn, layer, at=at, call=call, frozen=True)
    run = watched(model_fn, layer, at=at, call=call)
    chosen = choose(target, batch)
    activation: Tree = None
    value: Tree = None
    flags: tuple[bool, ...] = (True,)

    def values_and_leaves() -> tuple[Tensor, Leaves]:
        nonlocal activation, value, flags
        (found,), outputs = run(inputs)
        value = found.value
        place = place_of(model_fn, layer, at, call)
        activation, flags = told(value, halves, inputs, batch, layer, place)
        values = select(outputs, chosen, batch)
        return values, tuple(optree.tree_leaves(like(activation, value)))

    both = gradients_inside(values_and_leaves)
    spec = optree.tree_structure(activation)
    found, grads = [optree.tree_unflatten(spec, leaves) for leaves in both]
    if not flags[0]:
        laid_out(both[1], ())
        found, grads = repacked(found, value), repacked(grads, value)
    return found, grads, flags[0]


def _gradient(model_fn: ModelFn, inputs: Tree, *, target: Any = None, create_graph: bool) -> Tree:
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    _, grads = values_and_gradients(lambda *a: p.values(a), p.x, create_graph=create_graph)
    return p.result(grads)


def each_gradient(
    make: Callable[[Tree, Tree, Any, bool], Tree],
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    **where: Any,
) -> Tree:
    """``make(activation, gradient, layer, by_rows)`` of a layer, or a list for a list of layers.

    ``by_rows`` says whether the activation has the examples in dimension 0. All layers of a list
    share one pass of the model.
    """
    layers = layers_of(layer)
    many = isinstance(layer, (list, tuple))
    pairs: Any
    if many and batch_size(flatten(inputs)[0]) > 0:
        pairs = zip(*activation_and_gradient(model_fn, inputs, layer, **where), strict=True)
    else:
        pairs = [activation_and_gradient(model_fn, inputs, one, **where) for one in layers]
    found: Any = [make(a, g, one, rows) for (a, g, rows), one in zip(pairs, layers, strict=True)]
    marked([t for t in optree.tree_leaves(found) if is_floating(t)], "divided")
    return found if many else found[0]
