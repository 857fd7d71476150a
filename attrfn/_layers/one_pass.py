"""A layer's activation and the gradient there, in one pass of the model where torch allows it."""

from __future__ import annotations

import optree
from torch import Tensor

from attrfn._explain.explain import explain
from attrfn._explain.target import choose, select
from attrfn._explain.tree import batch_size, flatten
from attrfn._layers.at import locate
from attrfn._layers.rows import like, place_of, with_examples
from attrfn._layers.split import split_once, watched
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
    """A layer's activation, and the gradient of the explained output with respect to it."""
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    # A graph that starts at the layer has no derivatives by the inputs and parameters, which
    # create_graph and transforms ask for; several calls of a layer cannot all start one.
    if call is None or create_graph or transforming() or batch == 0:
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
