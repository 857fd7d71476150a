"""Split a model at a layer into two pure functions, without hooks or changes of the model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._explain.flags import check_flags
from attrfn._explain.tree import call_model, map_tensors
from attrfn._layers.probe import Done, LayerValue, Probe, Watch, Where, check_called, value_of
from attrfn._layers.sites import Site
from attrfn._model.bind import Reused, bind_source
from attrfn._model.source import Source, describe, shown, source
from attrfn._model.unloaded import refuse_unloaded, refuse_without_layers
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import guarded
from attrfn._torch.marks import Marks
from attrfn._torch.ranks import together
from attrfn._torch.say import say
from attrfn._torch.typing import At, Layer, ModelFn, Tree


class Split(NamedTuple):
    """The two halves of a model: ``tail(head(inputs), inputs)`` is the model.

    Attributes:
        head: ``head(inputs) -> activation``; a model function itself.
        tail: ``tail(activation, inputs) -> outputs``; leaves of the activation that are ``None``
            are computed from the inputs.
    """

    head: ModelFn
    tail: ModelFn


@guarded
def split(
    model: ModelFn, layer: Layer, *, at: At = "output", call: int | None = 0, frozen: bool = False
) -> Split:
    """Split a model at a layer: ``model(inputs) == tail(head(inputs), inputs)``.

    Args:
        model: A module, a bound method of one, or ``functools.partial`` of either (also
            ``functools.partial(torch.func.functional_call, module, params)``).
        layer: A module of the model, its qualified name, or a list of either (then the activation
            is a list).
        at: ``"output"`` of the layer or its ``"input"`` (positional arguments, a tuple if there are
            several; the dict of keyword arguments if there are no positional ones).
        call: Which call of a layer that is used several times; ``None`` takes all calls (then the
            activation is a tuple with one value per call).
        frozen: Detach the parameters, where nothing will differentiate with respect to them.

    Returns:
        The named pair ``(head, tail)``, both pure, differentiable, batchable and thread-safe.

    Raises:
        TypeError: The model function hides its module.
        ValueError: The layer is not part of the model, or is not called while the model runs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> head, tail = attrfn.split(model, "1")
        >>> x = torch.randn(5, 3)
        >>> torch.equal(tail(head(x), x), model(x))
        True
    """
    check_flags(("frozen",), {"frozen": frozen})
    return _halves(*_checked(model, layer, at, call, frozen, name="model"))


def split_once(model: ModelFn, layer: Layer, *, at: At, call: int | None, frozen: bool) -> Split:
    """:func:`split` for the time of one call of a method, in which the model does not change.

    Private copies that a run leaves unchanged serve for the next run.
    """
    return _halves(*_checked(model, layer, at, call, frozen, reuse=True))


def layers_of(layer: Layer) -> tuple[Any, ...]:
    """The layers that an argument ``layer`` names.

    Raises:
        TypeError: It is a site.
        ValueError: There are none.
    """
    layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
    if isinstance(layer, Site) or any(isinstance(one, Site) for one in layers):
        text = "layer is a Site, expected a module, its qualified name or a list of either: "
        raise TypeError(text + "give the parts of the site as layer=, at= and call=")
    if not layers:
        raise ValueError("layer is an empty list, expected at least one layer")
    return layers


def _halves(where: Where, bare: Source, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Split:
    # What is bound to the model is bound to its halves in turn, where repeat_bound finds it and
    # lets it follow the batch.
    def head(args: tuple[Any, ...], kwargs: dict[str, Any], *inputs: Any) -> Tree:
        return _run_head(bare, where, args, kwargs, inputs[0] if len(inputs) == 1 else inputs)

    tail = Tail(bare, where).function()
    return Split(functools.partial(head, args, kwargs), functools.partial(tail, args, kwargs))


class Tail(NamedTuple):
    """What the second half of a split runs.

    Attributes:
        source: The model without its bound arguments.
        where: The layers.
    """

    source: Source
    where: Where

    def function(self) -> ModelFn:
        """``tail(args, kwargs, activation, inputs)``."""
        source, where = self

        # A function, because runs get copies of all other objects that a model function binds.
        def tail(
            args: tuple[Any, ...], kwargs: dict[str, Any], activation: Tree, inputs: Tree
        ) -> Any:
            return _run_tail(source, where, args, kwargs, activation, inputs)[0]

        tail.attrfn_tail = self  # type: ignore[attr-defined]
        return tail

    def around(self, layers: tuple[tuple[Any, Any], ...]) -> Tail:
        """The same, with interventions around the forward of some layers."""
        return Tail(self.source._replace(around=layers), self.where._replace(reused=None))


def _checked(
    model: ModelFn,
    layer: Layer,
    at: At,
    call: int | None,
    frozen: bool,
    *,
    reuse: bool = False,
    name: str = "model_fn",
) -> tuple[Where, Source, tuple[Any, ...], dict[str, Any]]:
    """Check the arguments, and separate the model's bound arguments from its module."""
    src = source(model)
    if src is None:
        refuse_unloaded(model, name)
        refuse_without_layers(model, name)
        raise TypeError(
            f"{name} is {shown(model)}, and no module can be found in it: give a torch.nn.Module, "
            "a bound method of one or functools.partial of either, or wrap the function in a module"
        )
    if not is_one_of(at, "input", "output"):
        raise ValueError(f"at is {say(at)}, expected 'input' or 'output'")
    if call is not None and (type(call) is not int or call < 0):
        raise ValueError(f"call is {say(call)}, expected None (all calls) or an int of at least 0")
    many, layers = isinstance(layer, (list, tuple)), layers_of(layer)
    bare = src._replace(args=(), kwargs={})
    # A private copy with attached parameters, or made inside a transform, holds tensors of this
    # graph or of this level, which another run must not meet.
    reused = Reused.of(bare, layers=layers) if reuse and frozen and not transforming() else None
    return Where(layers, at, call, many, frozen, reused), bare, src.args, src.kwargs


def _bound(
    src: Source,
    where: Where,
    probes: Sequence[Probe],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ModelFn:
    """The model on private copies, with probes at its layers."""
    reused: Reused | None = where.reused
    if reused is None or transforming():
        src = src._replace(args=args, kwargs=kwargs)
        return bind_source(src, where.layers, probes, frozen=where.frozen)

    def run(*args: Any, **kwargs: Any) -> Any:
        return reused.run(probes, args, kwargs)

    return functools.partial(run, *args, **kwargs)


def check_independent(
    model: ModelFn, layer: Layer, at: At, call: int | None, activation: Tree, inputs: Tree
) -> None:
    """Refuse a layer that is downstream of another one.

    Both are given values from outside, and the value of the layer downstream would hide the effect
    of the other. One forward pass marks everything that is computed from the planted values; a
    layer with a marked input is downstream of another.
    """
    where, bare, args, kwargs = _checked(model, layer, at, call, frozen=True)
    marks, graph = Marks(), together()
    if graph:  # which leads through the messages between processes
        activation = map_tensors(_as_leaf, activation)
    with torch.set_grad_enabled(graph), marks:
        probes = _run_tail(bare, where, args, kwargs, activation, inputs, marks)[1]
    for probe, named in zip(probes, where.layers, strict=True):
        if probe.downstream:
            raise ValueError(
                f"layer {describe(named)} depends on what another layer (or call) of the selection "
                "returns, so they cannot be explained together: explain them one by one, as in "
                "[at_layer(method, l)(model, inputs) for l in layers]"
            )


def _as_leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_() if t.is_floating_point() else t


def _run_head(
    src: Source, where: Where, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Tree
) -> Tree:
    """Run the model up to the layers and return what they return."""
    probes = [Probe(where) for _ in where.layers]
    for probe in probes:
        probe.peers = probes
    with contextlib.suppress(Done):
        call_model(_bound(src, where, probes, args, kwargs), inputs)
    values = [value_of(probe, layer) for probe, layer in zip(probes, where.layers, strict=True)]
    for probe in probes:  # a cycle of references would hold the values until garbage is collected
        probe.peers = []
    return values if where.many else values[0]


def _run_tail(
    src: Source,
    where: Where,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    activation: Tree,
    inputs: Tree,
    marks: Marks | None = None,
) -> tuple[Any, list[Probe]]:
    """Run the model with the layers' values replaced by ``activation``."""
    values = activation if where.many else [activation]
    if len(values) != len(where.layers):
        raise ValueError(
            f"activation holds {len(values)} values, expected one for each of the "
            f"{len(where.layers)} layers"
        )
    probes = [Probe(where, v if where.call is None else (v,), marks) for v in values]
    outputs = call_model(_bound(src, where, probes, args, kwargs), inputs)
    for probe, layer in zip(probes, where.layers, strict=True):
        check_called(probe, layer)
    return outputs, probes


def watched(
    model: ModelFn, layer: Layer, *, at: At, call: int | None, apart: bool = False
) -> Callable[..., tuple[list[LayerValue], Any]]:
    """One pass of a model in which a graph starts at the value of each of some layers.

    The part before the layers runs once, and not twice as in ``tail(head(x), x)``. It is for eager
    mode only: transforms cannot start a graph in the middle of a function. Parameters are detached.

    Args:
        model: As for :func:`split`, like ``at``.
        layer: One layer or several different ones.
        at: Their ``"output"`` or ``"input"``.
        call: Not None.
        apart: Each layer is explained for itself: downstream of another it stays in its graph.

    Returns:
        ``run(*inputs) -> (found, outputs)``: the outputs are computed from ``found[i].value``.
    """
    where, bare, args, kwargs = _checked(model, layer, at, call, frozen=True, reuse=True)

    def run(
        args: tuple[Any, ...], kwargs: dict[str, Any], *inputs: Any
    ) -> tuple[list[LayerValue], Any]:
        watches = [Watch(where, apart) for _ in where.layers]
        model = _bound(bare, where, watches, args, kwargs)
        outputs = call_model(model, inputs[0] if len(inputs) == 1 else inputs)
        for watch, named in zip(watches, where.layers, strict=True):
            check_called(watch, named)
        return [watch.found[0] for watch in watches], outputs

    return functools.partial(run, args, kwargs)
