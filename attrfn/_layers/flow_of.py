"""From the arguments of a method to the flow through the layers that they name."""

from __future__ import annotations

from typing import Any

from attrfn._explain.explain import explain
from attrfn._explain.tree import flatten
from attrfn._layers.flow import Flow
from attrfn._layers.flow_site import Cut
from attrfn._layers.located import locate, locate_each
from attrfn._layers.split import layers_of, watched
from attrfn._model.source import find, source
from attrfn._torch.typing import At, Layer, ModelFn, RowsOf, Target, Tree


def flow_of(
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    target: Target,
    at: At,
    call: int | None,
    create_graph: bool,
    *,
    rows: RowsOf = None,
    apart: bool = False,
) -> Flow:
    """Check the arguments, split the model at the layer and evaluate the head.

    Args:
        apart: Explain each layer of a list for itself, also layers downstream of one another.
    """
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    listed = apart and _is_list(layer)
    head: ModelFn | None = None
    where: Any = {"at": at, "call": call, "rows": rows, "create_graph": create_graph}
    if listed and call is not None:
        places, head = locate_each(model_fn, inputs, layers_of(layer), **where)
    else:
        several = layers_of(layer) if listed else (layer,)
        places = [locate(model_fn, inputs, one, **where) for one in several]
    many = _is_list(layer) and not listed
    sites = [
        Cut(here.halves, *flatten(here.activation, "layer"), many, here.layout) for here in places
    ]
    # One pass ends the graph at the layer, so that the result has no derivatives by the inputs and
    # parameters; of several calls of the layer each would have to start a graph, and a layer that
    # is listed twice would have to start two.
    in_one_pass = call is not None and not create_graph and p.batch > 0
    in_one_pass = in_one_pass and all(s.layout is None for s in sites)
    if in_one_pass and (not listed or _are_different(model_fn, layer)):
        run = watched(model_fn, layer, at=at, call=call, apart=listed)
    else:
        run = None
    return Flow(p, tuple(sites), run, listed, head)


def _is_list(layer: Layer) -> bool:
    return isinstance(layer, (list, tuple))


def _are_different(model_fn: ModelFn, layer: Layer) -> bool:
    root: Any = source(model_fn)
    modules = [find(root.module, named) for named in layers_of(layer)]
    return len({*map(id, modules)}) == len(modules)
