"""Methods moved to a layer or to a neuron: layer X = X on the tail, neuron X = X on the head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import binds_rows, flat_rows, repeat_bound
from attrfn._explain.baseline import baseline_distribution, fill_baselines, per_example
from attrfn._explain.forms import documented
from attrfn._explain.introspect import is_over_distribution, takes_baselines, wraps
from attrfn._explain.options import AtLayer, AtNeuron
from attrfn._explain.shared import marked
from attrfn._explain.target import speaks_of_target
from attrfn._explain.tree import as_dicts, batch_size, each, flatten, is_arguments
from attrfn._layers import rows
from attrfn._layers.leaves import have_parts, of_parts, present
from attrfn._layers.rows import like, read, with_examples
from attrfn._layers.split import Split, check_independent, layers_of, of_activation, split_once
from attrfn._model.source import shown
from attrfn._torch.autodiff import (
    keeps_graph,
    transforming,
)
from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import current, explained
from attrfn._torch.guard import fail, guarded
from attrfn._torch.typing import At, Baselines, Layer, Method, ModelFn, Target, Tree


@documented(AtLayer, scores=None)
def at_layer(method: Method, layer: Layer, *, at: At = "output", call: int | None = 0) -> Method:
    """Move a method to a layer: it explains the layer's activation instead of the inputs.

        at_layer(X, layer)(f, x) = X(a -> tail(a, x), head(x)),   f = tail o head

    Baselines are given for the inputs and pass through the head, so that a path leads from
    head(x0) to head(x).

    Args:
        method: Any attribution method.

    Returns:
        A method ``(model_fn, inputs, *, target, baselines, **options)`` whose attributions have the
        structure of the layer's activation; None for what lacks the examples in dimension 0.

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
            create_graph=options.get("create_graph", False),
        )
        if with_baselines:
            options["baselines"] = here.baselines(
                options.get("baselines"), distribution=distribution
            )
        return method(here.model, here.activation, **options)

    # A noise tunnel around this method reads from it where its options have rows.
    moved.moved_to = (layer, at, call)  # type: ignore[attr-defined]
    return moved


@documented(AtNeuron, scores=None)
def at_neuron(
    method: Method, layer: Layer, neuron: Target, *, at: At = "output", call: int | None = 0
) -> Method:
    """Move a method to a neuron: the inputs are explained, the neuron is the output.

        at_neuron(X, layer, n)(f, x) = X(head, x, target=n),   f = tail o head

    Args:
        method: Any attribution method.
        neuron: An int, a tuple of ints and slices (slices are summed), one of either per example
            (a tensor or a list), or a callable from the layer's activation to (B,). A list of
            layers, or a layer with several tensors, needs a callable.

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
        head = split_once(model_fn, layer, at=at, call=call, frozen=frozen).head
        # The head has no other output than the neuron, so that errors about "the target" speak of
        # the neuron. An error of the user's model passes as it is.
        try:
            return method(head, inputs, target=neuron, **options)
        except (TypeError, ValueError) as error:
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
    marked([t for t in optree.tree_leaves(found) if isinstance(t, Tensor)], "divided")
    return found if isinstance(layer, (list, tuple)) else found[0]


class Located(NamedTuple):
    """A layer's activation and the model as a function of it.

    Attributes:
        model: The tail as a model function of the activation.
        activation: The tensors of it that can be explained; None in the other places.
        inputs: The model's inputs.
        halves: The split.
        create_graph: Whether the result is to be differentiable.
    """

    model: ModelFn
    activation: Tree
    inputs: Tree
    halves: Split
    create_graph: bool

    def baselines(self, baselines: Baselines, *, distribution: bool = False) -> Tree:
        """Baselines of the inputs, carried to the layer by the head."""
        x, rebuild = flatten(self.inputs)
        if not distribution:
            return self._carried(rebuild(fill_baselines(baselines, self.inputs, x)))
        pool = baseline_distribution(baselines, self.inputs, x)
        batch, k = x[0].shape[0], pool[0].shape[0]
        if pool[0].ndim == x[0].ndim and not binds_rows(self.halves.head, batch):
            return self._carried(rebuild(pool))
        # A tensor bound to the model has a row for each example. The K baselines of all examples
        # are then K copies of the batch, so that each meets the rows that belong to it.
        pairs = each(per_example, pool, x)
        one = current()
        if one is not None and one.one_by_one:
            found = [self._carried(rebuild([t[i] for t in pairs])) for i in range(k)]
            return optree.tree_map(lambda *t: torch.stack(t), found[0], *found[1:])
        halves = self.halves._replace(head=repeat_bound(self.halves.head, batch, k))
        value = read(halves, rebuild(flat_rows(pairs)), self.create_graph)
        unfold = functools.partial(torch.Tensor.unflatten, dim=0, sizes=(k, batch))
        return optree.tree_map(unfold, like(self.activation, value))

    def _carried(self, inputs: Tree) -> Tree:
        return like(self.activation, read(self.halves, inputs, self.create_graph))


def locate(
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    *,
    at: At = "output",
    call: int | None = 0,
    create_graph: bool = False,
) -> Located:
    """Split the model at the layer, evaluate the head and check that the layers are independent."""
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    if not (create_graph or transforming()):
        inputs = rebuild([t.detach() for t in x])
    frozen = not keeps_graph(create_graph)
    halves = split_once(model_fn, layer, at=at, call=call, frozen=frozen)
    place = rows.place_of(model_fn, layer, at, call)
    value = read(halves, inputs, create_graph)
    activation = with_examples(value, halves, inputs, batch, layer, place)
    planted, halves = _planted(value, activation, halves)
    # One layer with one call cannot depend on itself, and the check costs a forward pass.
    if (isinstance(layer, (list, tuple)) or call is None) and not is_compiling():
        check_independent(model_fn, layer, at, call, planted, inputs)
    return _located(activation, halves, inputs, create_graph)


def locate_each(
    model_fn: ModelFn, inputs: Tree, layers: Sequence[Any], *, at: At, call: int, create_graph: bool
) -> tuple[list[Located], ModelFn]:
    """:func:`locate` of each of some layers by itself, and the head of them all.

    The layers may lie behind each other, because the head runs once for all.
    """
    x, rebuild = flatten(inputs)
    if not (create_graph or transforming()):
        inputs = rebuild([t.detach() for t in x])
    frozen = not keeps_graph(create_graph)
    layer: Layer = list(layers)
    together = split_once(model_fn, layer, at=at, call=call, frozen=frozen)
    place = rows.place_of(model_fn, layer, at, call)
    values = read(together, inputs, create_graph)
    activations = with_examples(values, together, inputs, batch_size(x), layer, place)
    found = []
    for named, value, activation in zip(layers, values, activations, strict=True):
        halves = split_once(model_fn, named, at=at, call=call, frozen=frozen)
        halves = _planted(value, activation, halves)[1]
        found.append(_located(activation, halves, inputs, create_graph))
    return found, together.head


def _planted(value: Tree, activation: Tree, halves: Split) -> tuple[Tree, Split]:
    """What is planted for an activation, and the halves that take the activation itself."""
    flags = have_parts(activation, as_dicts(value))
    if not any(flags):
        return activation, halves
    tail = functools.partial(of_parts, flags, halves.tail)
    return present(activation, as_dicts(value)), halves._replace(tail=tail)


def _located(activation: Tree, halves: Split, inputs: Tree, create_graph: bool) -> Located:
    unpacked = is_arguments(activation)
    model = functools.partial(of_activation, halves.tail, inputs=inputs, unpacked=unpacked)
    return Located(model, activation, inputs, halves, create_graph)
