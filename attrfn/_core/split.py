"""Split a model at a layer into two pure functions, without hooks, leaving the model alone."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from attrfn._core.bind import bind_source
from attrfn._core.compiling import is_compiling
from attrfn._core.marks import Marks
from attrfn._core.shell import Forward
from attrfn._core.source import Source, describe, source
from attrfn._core.tree import call_model, clone_tensors
from attrfn._core.typing import At, Layer, ModelFn, Tree


class Split(NamedTuple):
    """The two halves of a model: ``tail(head(inputs), inputs)`` is the model.

    Attributes:
        head: ``head(inputs) -> activation``; a model function itself.
        tail: ``tail(activation, inputs) -> outputs``; leaves of the activation that are ``None``
            are computed from the inputs.
    """

    head: ModelFn
    tail: ModelFn


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
        ValueError: The layer is no part of the model, or it is not called while the model runs.

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
    where, bare, args, kwargs = _parts(model, layer, at, call, frozen)

    def head(args: tuple[Any, ...], kwargs: dict[str, Any], *inputs: Any) -> Tree:
        return _run_head(bare, where, args, kwargs, inputs[0] if len(inputs) == 1 else inputs)

    def tail(args: tuple[Any, ...], kwargs: dict[str, Any], activation: Tree, inputs: Tree) -> Any:
        return _run_tail(bare, where, args, kwargs, activation, inputs)[0]

    return Split(functools.partial(head, args, kwargs), functools.partial(tail, args, kwargs))


def _parts(
    model: ModelFn, layer: Layer, at: At, call: int | None, frozen: bool
) -> tuple[_Where, Source, tuple[Any, ...], dict[str, Any]]:
    """Check the arguments and take the model's bound arguments apart from its module."""
    src = source(model)
    if src is None:
        raise TypeError(
            f"model is a {type(model).__name__} with no module in sight, expected a "
            "torch.nn.Module, a bound method of one or functools.partial of either: wrap the "
            "function in a module"
        )
    if at not in ("input", "output"):
        raise ValueError(f"at is {at!r}, expected 'input' or 'output'")
    if call is not None and (type(call) is not int or call < 0):
        raise ValueError(f"call is {call!r}, expected None (all calls) or an int of at least 0")
    many = isinstance(layer, (list, tuple))
    layers: tuple[Any, ...] = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
    if not layers:
        raise ValueError("layer is an empty list, expected at least one layer")
    where = _Where(layers, at, call, many, frozen)
    return where, src._replace(args=(), kwargs={}), src.args, src.kwargs


def check_independent(
    model: ModelFn, layer: Layer, at: At, call: int | None, activation: Tree, inputs: Tree
) -> None:
    """Refuse layers that lie one behind the other: what is planted at the first would be lost.

    One forward pass in which what is computed from the planted values is marked: a layer whose own
    input is marked lies behind another.
    """
    where, bare, args, kwargs = _parts(model, layer, at, call, frozen=True)
    marks = Marks()
    with torch.no_grad(), marks:
        taps = _run_tail(bare, where, args, kwargs, activation, inputs, marks)[1]
    for tap, named in zip(taps, where.layers, strict=True):
        if tap.behind:
            raise ValueError(
                f"layer {describe(named)} depends on what another layer (or call) of the selection "
                "returns, so they cannot be explained together: explain them one by one, as in "
                "[at_layer(method, l)(model, inputs) for l in layers]"
            )


class _Where(NamedTuple):
    layers: tuple[nn.Module | str, ...]
    at: At
    call: int | None
    many: bool
    frozen: bool


class _Done(BaseException):
    """Leaves the model once every layer has been read; never seen outside this module."""


def _run_head(
    src: Source, where: _Where, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Tree
) -> Tree:
    """Run the model up to the layers and return what they return."""
    taps = [_Tap(where) for _ in where.layers]
    for tap in taps:
        tap.peers = taps
    src = src._replace(args=args, kwargs=kwargs)
    model = bind_source(src, where.layers, taps, frozen=where.frozen)
    with contextlib.suppress(_Done):
        call_model(model, inputs)
    values = [_value(tap, layer) for tap, layer in zip(taps, where.layers, strict=True)]
    for tap in taps:  # a cycle would keep the values until the garbage collector comes
        tap.peers = []
    return values if where.many else values[0]


def _run_tail(
    src: Source,
    where: _Where,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    activation: Tree,
    inputs: Tree,
    marks: Marks | None = None,
) -> tuple[Any, list[_Tap]]:
    """Run the model with the layers' values replaced by ``activation``."""
    values = activation if where.many else [activation]
    if len(values) != len(where.layers):
        raise ValueError(
            f"activation holds {len(values)} values, expected one for each of the "
            f"{len(where.layers)} layers"
        )
    taps = [_Tap(where, v if where.call is None else (v,), marks) for v in values]
    src = src._replace(args=args, kwargs=kwargs)
    outputs = call_model(bind_source(src, where.layers, taps, frozen=where.frozen), inputs)
    for tap, layer in zip(taps, where.layers, strict=True):
        _check_called(tap, layer)
    return outputs, taps


class _Tap:
    """What happens at one layer during one run: its calls are counted, read, or overwritten."""

    def __init__(
        self,
        where: _Where,
        plant: Sequence[Tree] | None = None,
        marks: Marks | None = None,
    ) -> None:
        self.at = where.at
        self.call = where.call
        self.plant = plant
        self.read: list[Tree] = []
        self.count = 0
        self.peers: list[_Tap] = []
        self.marks = marks
        self.behind = False

    def __call__(self, run: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = self.count
        self.count = number + 1
        if self.call is not None and number != self.call:
            return run(*args, **kwargs)
        if self.plant is None:
            return self._read(run, args, kwargs)
        place = 0 if self.call is not None else number
        if self.marks is None:
            return self._write(run, args, kwargs, place)
        self.behind = self.behind or self.marks.on((args, kwargs))
        return self.marks.add(self._write(run, args, kwargs, place))

    def _read(self, run: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.at == "input":
            self.read.append(clone_tensors(_arguments(args, kwargs)))
            self._leave_when_done()
            return run(*args, **kwargs)
        out = run(*args, **kwargs)
        self.read.append(clone_tensors(out))
        self._leave_when_done()
        return out

    def _leave_when_done(self) -> None:
        if self.call is not None and not is_compiling() and all(t.read for t in self.peers):
            raise _Done

    def _write(self, run: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], i: int) -> Any:
        plant = () if self.plant is None else self.plant
        if i >= len(plant):
            raise ValueError(
                f"activation holds {len(plant)} values, expected one for each call of the layer"
            )
        if self.at == "input":
            new = merge(plant[i], _arguments(args, kwargs))
            if not args:
                return run(**new)
            return run(*(new if len(args) > 1 else (new,)), **kwargs)
        if _is_complete(plant[i]):
            return clone_tensors(plant[i])
        return merge(plant[i], run(*args, **kwargs))


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
    """A layer's input: its positional arguments, or the keyword ones where there are no others."""
    if not args:
        return kwargs
    return args[0] if len(args) == 1 else args


def _value(tap: _Tap, layer: nn.Module | str) -> Tree:
    _check_called(tap, layer)
    return tuple(tap.read) if tap.call is None else tap.read[0]


def _check_called(tap: _Tap, layer: nn.Module | str) -> None:
    if tap.count == 0:
        raise ValueError(
            f"layer {describe(layer)} was not called while the model ran, so it has no value: "
            "choose a layer that the model calls as a module (scripted, compiled or bypassed ones "
            "are not)"
        )
    if tap.call is not None and not 0 <= tap.call < tap.count:
        raise ValueError(
            f"layer {describe(layer)} was called {tap.count} time(s), so call={tap.call} does not "
            f"exist: expected 0 to {tap.count - 1}, or None for all calls"
        )


def _is_complete(value: Tree) -> bool:
    """Whether a value can stand for a layer's output, without the layer being computed."""
    if isinstance(value, (tuple, list)):
        return all(_is_complete(v) for v in value)
    return isinstance(value, Tensor)


def merge(new: Tree, natural: Tree) -> Tree:
    """The tensors of ``new`` in the places of ``natural``; everything else stays natural."""
    if new is None:
        return natural
    if isinstance(new, Tensor):
        return new.clone()
    if isinstance(new, Mapping) and isinstance(natural, Mapping):
        foreign: Any = natural
        merged = {k: merge(new.get(k), v) for k, v in foreign.items()}
        if optree.all_leaves([foreign]):  # foreign, such as the outputs of transformers
            return type(foreign)(**merged)
        if type(natural) is dict:
            return merged
        filled = copy.copy(foreign)
        filled.update(merged)
        return filled
    if isinstance(new, (tuple, list)) and isinstance(natural, (tuple, list)):
        merged_items = [merge(n, v) for n, v in zip(new, natural, strict=True)]
        if hasattr(natural, "_fields"):
            return type(natural)(*merged_items)
        return type(natural)(merged_items)
    if optree.all_leaves([new]):
        return natural
    return optree.tree_map(merge, new, natural, none_is_leaf=True)
