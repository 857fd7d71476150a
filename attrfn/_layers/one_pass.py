"""A layer's activation and the gradient there, in one pass of the model where torch allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
from torch import Tensor

from attrfn._explain.explain import explain
from attrfn._explain.shared import marked
from attrfn._explain.target import choose, select
from attrfn._explain.tree import batch_size, flatten
from attrfn._layers.at import locate
from attrfn._layers.at_sites import activations_and_gradients
from attrfn._layers.rows import like, place_of, with_examples
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
) -> tuple[Tree, Tree]:
    """A layer's activation, and the gradient of the explained output with respect to it.

    Of a list of layers, which may lie behind each other, lists.
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
        p = explain(here.model, here.activation, target, create_graph=create_graph)
        _, grads = values_and_gradients(lambda *a: p.values(a), p.x, create_graph=create_graph)
        return here.activation, p.result(grads)
    inputs = rebuild([t.detach() for t in x])
    halves = split_once(model_fn, layer, at=at, call=call, frozen=True)
    run = watched(model_fn, layer, at=at, call=call)
    chosen = choose(target, batch)
    activation: Tree = None

    def values_and_leaves() -> tuple[Tensor, Leaves]:
        nonlocal activation
        (found,), outputs = run(inputs)
        place = place_of(model_fn, layer, at, call)
        activation = with_examples(found.value, halves, inputs, batch, layer, place)
        values = select(outputs, chosen, batch)
        return values, tuple(optree.tree_leaves(like(activation, found.value)))

    found, grads = gradients_inside(values_and_leaves)
    spec = optree.tree_structure(activation)
    return optree.tree_unflatten(spec, found), optree.tree_unflatten(spec, grads)


def each_gradient(
    make: Callable[[Tree, Tree, Any], Tree],
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    **where: Any,
) -> Tree:
    """``make(activation, gradient, layer)`` of a layer, or a list of it for a list of layers.

    All layers of a list share one pass of the model.
    """
    layers = layers_of(layer)
    many = isinstance(layer, (list, tuple))
    pairs: Any
    if many and batch_size(flatten(inputs)[0]) > 0:
        pairs = zip(*activation_and_gradient(model_fn, inputs, layer, **where), strict=True)
    else:
        pairs = [activation_and_gradient(model_fn, inputs, one, **where) for one in layers]
    found: Any = [make(a, g, one) for (a, g), one in zip(pairs, layers, strict=True)]
    marked([t for t in optree.tree_leaves(found) if isinstance(t, Tensor)], "divided")
    return found if many else found[0]
