"""Methods moved to a layer or to a neuron: layer X = X on the tail, neuron X = X on the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree

from attrfn._explain.forms import documented
from attrfn._explain.introspect import is_over_distribution, takes_baselines, wraps
from attrfn._explain.options import AtLayer, AtNeuron
from attrfn._explain.shared import marked
from attrfn._explain.target import speaks_of_target
from attrfn._layers.located import locate
from attrfn._layers.neurons import explain_of_batch, head_at, is_of_batch
from attrfn._layers.rows import is_floating
from attrfn._layers.split import layers_of
from attrfn._model.source import shown
from attrfn._torch.autodiff import keeps_graph
from attrfn._torch.explanation import explained
from attrfn._torch.guard import fail, guarded
from attrfn._torch.typing import At, Layer, Method, ModelFn, RowsOf, Target, Tree


@documented(AtLayer, scores=None)
def at_layer(
    method: Method,
    layer: Layer,
    *,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
) -> Method:
    """Move a method to a layer: it explains the layer's activation instead of the inputs.

        at_layer(X, layer)(f, x) = X(a -> tail(a, x), head(x)),   f = tail o head

    Baselines are given for the inputs and pass through the head, so that a path leads from
    head(x0) to head(x).

    Args:
        method: Any attribution method.

    Returns:
        A method ``(model_fn, inputs, *, target, baselines, **options)`` whose attributions have the
        structure and shapes of the layer's activation; None for a tensor without the examples
        in dimension 0 if others have them there.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> layer_saliency = attrfn.at_layer(attrfn.saliency, "0")
        >>> layer_saliency(model, torch.randn(5, 3), target=1).shape
        torch.Size([5, 4])

    Reference:
        Leino et al., Influence-Directed Explanations for Deep Convolutional Networks, 2018.
    """
    _check_method(method)
    with_baselines, distribution = takes_baselines(method), is_over_distribution(method)

    @wraps(method)
    @guarded
    @explained
    def moved(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        here = locate(
            model_fn,
            inputs,
            layer,
            at=at,
            call=call,
            rows=rows,
            create_graph=options.get("create_graph", False),
        )
        if with_baselines:
            options["baselines"] = here.baselines(
                options.get("baselines"), distribution=distribution
            )
        return here.explained(method, options)

    # A noise tunnel around this method reads from it where its options have rows.
    moved.moved_to = (layer, at, call)  # type: ignore[attr-defined]
    return moved


@documented(AtNeuron, scores=None)
def at_neuron(
    method: Method,
    layer: Layer,
    neuron: Target,
    *,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
) -> Method:
    """Move a method to a neuron: the inputs are explained, the neuron is the output.

        at_neuron(X, layer, n)(f, x) = X(head, x, target=n),   f = tail o head

    Args:
        method: Any attribution method.
        neuron: An int, a tuple of ints and slices (slices are summed), one of either per example
            (a tensor or a list), or a callable from the layer's activation to (B,), or to one
            number for the whole batch. A list of layers, or a layer with several tensors, needs a
            callable.

    Returns:
        A method ``(model_fn, inputs, *, baselines, **options)`` with attributions like the inputs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> neuron_saliency = attrfn.at_neuron(attrfn.saliency, "0", 2)
        >>> neuron_saliency(model, torch.randn(5, 3)).shape
        torch.Size([5, 3])

    Reference:
        Shrikumar, Su and Kundaje, Computationally Efficient Measures of Internal Neuron Importance,
        2018.
    """
    _check_method(method)

    @wraps(method)
    @guarded
    @explained
    def moved(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        if "target" in options:
            raise TypeError(
                "target is given to a method at a neuron, whose target is the neuron itself: leave "
                "it out, or use at_layer for the effect on the model's output"
            )
        frozen = not keeps_graph(options.get("create_graph", False))
        head = head_at(
            *(model_fn, inputs, layer, neuron), at=at, call=call, rows=rows, frozen=frozen
        )
        # The head has no other output than the neuron, so that errors about "the target" speak of
        # the neuron. An error of the user's model passes as it is.
        try:
            return method(head, inputs, target=neuron, **options)
        except (TypeError, ValueError) as error:
            if speaks_of_target(error) and callable(neuron) and is_of_batch(error):
                return explain_of_batch(method, head, inputs, neuron, options)
            if speaks_of_target(error):
                text = str(error).replace("target", "neuron")
                fail(error, text.replace("model_fn returned", "the layer returned"))
            raise

    return moved


def _check_method(method: object) -> None:
    if not callable(method):
        raise TypeError(f"method is {shown(method)}, expected a method such as attrfn.gradient")


def place_of(options: dict[str, Any]) -> tuple[Layer, At, int | None] | None:
    """The layer, its side and the call that the options of a form name."""
    if "layer" not in options:
        return None
    return options["layer"], options.get("at", "output"), options.get("call", 0)


def each_layer(method: Callable[..., Tree], layer: Layer) -> Tree:
    """``method(layer=...)`` of one layer, or the list of it for a list of layers.

    A method that only reads along the path of the inputs explains layers together in this way, even
    layers downstream of one another. Methods that replace activations use :func:`locate`.
    """
    found: Any = [method(layer=named) for named in layers_of(layer)]
    marked([t for t in optree.tree_leaves(found) if is_floating(t)], "divided")
    return found if isinstance(layer, (list, tuple)) else found[0]
