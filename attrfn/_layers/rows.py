"""Where the examples are in a layer's value: dimension 0, elsewhere, or nowhere."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from attrfn._copies.batch import binds_rows, flip_bound, repeat_bound, repeat_rows
from attrfn._copies.rows import check_bound
from attrfn._explain.tree import as_dicts, flatten
from attrfn._layers.found import Found, kinds
from attrfn._layers.found import is_floating as is_floating
from attrfn._layers.leaves import real_view
from attrfn._layers.routing import Routes, is_reversed
from attrfn._layers.split import Split, layers_of
from attrfn._model.source import describe, source
from attrfn._torch.autodiff import transforming, twice_differentiable
from attrfn._torch.compiling import is_compiling
from attrfn._torch.dense import is_packed
from attrfn._torch.typing import At, Layer, ModelFn, Tree


class Place(NamedTuple):
    """Where a layer is: the model, and what tells its layers apart.

    Attributes:
        module: The model.
        layers: The layers, as the user gave them.
        at: ``"output"`` or ``"input"``.
        call: Which call.
        bound: What is bound to the model.
    """

    module: nn.Module
    layers: tuple[nn.Module | str, ...]
    at: At
    call: int | None
    bound: Any

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells the place from others in the model."""
        names = [layer if isinstance(layer, str) else id(layer) for layer in self.layers]
        return (*names, self.at, self.call, self.module.training)


def place_of(model_fn: ModelFn, layer: Layer, at: At, call: int | None) -> Place:
    """The place of a layer in a model whose module is visible."""
    src: Any = source(model_fn)
    return Place(src.module, layers_of(layer), at, call, (src.args, src.kwargs))


# What runs have told of a model's layers, as long as the model lives. To run the head again in each
# call would cost a small method half as much again.
_told: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[Found]]] = weakref.WeakKeyDictionary()
_MOST_TOLD = 64  # of each model


def told(
    value: Tree, halves: Split, inputs: Tree, batch: int, layer: Layer, place: Place
) -> tuple[Tree, tuple[bool, ...]]:
    """The tensors of a layer's value that can be explained, None elsewhere; and where examples are.

    Returns:
        For each layer the tensors with the examples in dimension 0, and True; if it has none of
        those, all tensors whose sizes follow the number of examples, and False.

    Raises:
        ValueError: A layer has none of either, or nothing tells what its rows are.
    """
    if isinstance(value, Tensor):  # which is the rule, and trees take time
        kind = _found([value], halves, inputs, batch, place)
        _refuse(layer, kind, [value], batch, place)
        first = kind[0] is Found.ROWS
        if first:
            check_bound_at(value, halves, inputs, batch, place)
        return real_view(value), (first,)
    whole = opened(value)
    leaves, spec = optree.tree_flatten(whole, none_is_leaf=True)
    found = _found(leaves, halves, inputs, batch, place)
    many = isinstance(layer, (list, tuple))
    own, by_rows, start = [], [], 0
    for named, its in zip(layers_of(layer), whole if many else [whole], strict=True):
        parts = optree.tree_leaves(its, none_is_leaf=True)
        of_layer = found[start : start + len(parts)]
        start += len(parts)
        _refuse(named, of_layer, parts, batch, place)
        by_rows.append(Found.ROWS in of_layer)
        kept = Found.ROWS if by_rows[-1] else Found.OTHER
        own += [real_view(t) if f is kept else None for t, f in zip(parts, of_layer, strict=True)]
    if any(by_rows):
        rows = [t if f is Found.ROWS else None for t, f in zip(leaves, found, strict=True)]
        check_bound_at(optree.tree_unflatten(spec, rows), halves, inputs, batch, place)
    return optree.tree_unflatten(spec, own), tuple(by_rows)


def check_bound_at(rows: Tree, halves: Split, inputs: Tree, batch: int, place: Place) -> None:
    """Check whether bound tensors are rows of examples, by the tensors of a value that have those.

    Args:
        rows: Those tensors; None in the other places.
    """

    def run(copies: int) -> Tree:
        x, rebuild = flatten(inputs)
        many = halves._replace(head=repeat_bound(halves.head, batch, copies))
        return like(rows, read(many, rebuild(repeat_rows(x, copies)), False))

    check_bound(run, batch, place.key)


def _refuse(layer: Any, found: list[Found], leaves: list[Any], batch: int, place: Place) -> None:
    if Found.ROWS in found or Found.OTHER in found:
        return
    name = describe(layer)
    if Found.UNKNOWN in found:
        raise ValueError(
            f"layer {name} gives {batch} rows, and the model runs with no other number of examples "
            "to tell whether those are the rows: say so with rows='examples', or else name them"
        )
    constant = any(
        f is Found.CONSTANT and t.ndim and len(t) == batch
        for f, t in zip(found, leaves, strict=True)
    )
    what = (
        f"{batch} rows that are not the {batch} examples, such as tokens or positions"
        if constant
        else f"no floating tensor with the {batch} example(s) in dimension 0 to explain"
    )
    other = "output" if place.at == "input" else "input"
    raise ValueError(f"layer {name} gives {what}: choose another layer, or at={other!r}")


def _found(leaves: list[Any], halves: Split, inputs: Tree, batch: int, place: Place) -> list[Found]:
    """What each tensor is, by a run of the head with another number of examples.

    A state (layers, B, H), time before batch, embeddings of positions or tokens of an expert look
    like B examples where the sizes happen to be equal. Sizes do not tell them apart, but a batch of
    another size does: the head runs again, on two examples or on the whole batch twice. Where rows
    are chosen by values, it also runs on the examples in reverse order.
    """
    if not batch or not any(map(is_floating, leaves)):
        return [
            Found.ROWS if is_floating(t) and t.shape[:1] == (batch,) else Found.NOTHING
            for t in leaves
        ]
    if is_compiling():  # which drops this run, because only a size of it counts
        return kinds(leaves, batch, *_at_twice_the_size(halves, inputs, batch))
    told = _told.setdefault(place.module, {})
    key = (*place.key, _sizes((inputs, leaves, place.bound)), transforming())
    if key in told:
        return told[key]
    with Routes() as routes:
        found = kinds(leaves, batch, *_at_another_size(halves, inputs, batch))
    if routes.found and Found.CONSTANT in found:  # two examples may have as many tokens as all
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            found = kinds(leaves, batch, *_at_twice_the_size(halves, inputs, batch))
    if Found.UNKNOWN in found and not transforming():  # the order of the examples tells, too
        follow = _follow(leaves, halves, inputs, batch)
        found = [
            Found.ROWS if f is Found.UNKNOWN and r else f
            for f, r in zip(found, follow, strict=True)
        ]
    if not routes.found or transforming():
        _keep(told, key, found)
        return found
    if Found.ROWS not in found or batch == 1:
        return found
    follow = _follow(leaves, halves, inputs, batch)
    return [
        Found.OTHER if f is Found.ROWS and not r else f for f, r in zip(found, follow, strict=True)
    ]


def _follow(leaves: list[Any], halves: Split, inputs: Tree, batch: int) -> list[bool]:
    """Whether the rows of each tensor are in reverse order where the examples are."""
    back = optree.tree_map(lambda t: t.flip(0), inputs)
    flipped = halves._replace(head=flip_bound(halves.head, batch))
    again = optree.tree_leaves(opened(read(flipped, back, False)), none_is_leaf=True)
    return [is_reversed(t, u) for t, u in zip(leaves, again, strict=True)]


def has_examples_first(halves: Split, inputs: Tree, batch: int, place: Place) -> bool:
    """Whether a layer's value has the examples in dimension 0, or is not a single tensor."""
    if is_compiling():
        others, size = _at_twice_the_size(halves, inputs, batch)
        return len(others) != 1 or others[0].shape[:1] == (size,)
    known = _told.setdefault(place.module, {})
    bound = _sizes(place.bound) if any(place.bound) else ()
    key = ("neuron", *place.key, _sizes(inputs), bound, transforming())
    if key in known:
        return known[key] == [Found.ROWS]
    with Routes() as routes:
        leaves, size = _at_another_size(halves, inputs, batch)
    if leaves is None:  # also where something is wrong, which the next run raises
        found = _found(_leaves(halves, inputs), halves, inputs, batch, place)
        return len(found) != 1 or found == [Found.ROWS]
    follows = (
        len(leaves) != 1 or not isinstance(leaves[0], Tensor) or leaves[0].shape[:1] == (size,)
    )
    if not routes.found or transforming():
        _keep(known, key, [Found.ROWS if follows else Found.OTHER])
    elif follows and batch > 1:
        return _found(_leaves(halves, inputs), halves, inputs, batch, place) != [Found.OTHER]
    return follows


def _keep(known: dict[Any, list[Found]], key: Any, found: list[Found]) -> None:
    if len(known) >= _MOST_TOLD:
        known.clear()
    known[key] = found


def _sizes(tree: Tree) -> tuple[Any, ...]:
    if isinstance(tree, Tensor):
        return tuple(tree.shape)
    return tuple([t.shape for t in optree.tree_leaves(tree) if isinstance(t, Tensor)])


def _at_another_size(halves: Split, inputs: Tree, batch: int) -> tuple[list[Any] | None, int]:
    # Two examples cost least. A model that needs this number of examples, or tensors that have one
    # row for each of them, fails there and gets the batch twice. What is bound and has as many rows
    # as there are examples may be none of theirs, such as the edges of a graph.
    if batch > 2 and not binds_rows(halves.head, batch):
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            return _leaves(halves, optree.tree_map(lambda t: t[:2], inputs)), 2
    fails = contextlib.suppress(RuntimeError, ValueError, IndexError)
    with fails:
        return _at_twice_the_size(halves, inputs, batch)
    with fails:
        return _leaves(halves, optree.tree_map(_twice, inputs)), 2 * batch
    return None, 0


def _at_twice_the_size(halves: Split, inputs: Tree, batch: int) -> tuple[list[Any], int]:
    doubled = halves._replace(head=repeat_bound(halves.head, batch, 2))
    return _leaves(doubled, optree.tree_map(_twice, inputs)), 2 * batch


def _twice(t: Tensor) -> Tensor:
    return torch.cat([t, t])


def _leaves(halves: Split, inputs: Tree) -> list[Any]:
    return optree.tree_leaves(opened(read(halves, inputs, False)), none_is_leaf=True)


def read(halves: Split, inputs: Tree, create_graph: bool) -> Tree:
    """The head's value, with a graph only if ``create_graph`` or a transform needs one."""
    graph = create_graph or (transforming() and torch.is_grad_enabled())
    with torch.set_grad_enabled(graph), twice_differentiable(create_graph):
        return halves.head(inputs)


def opened(value: Tree) -> Tree:
    """A value as a tree that optree knows: mappings as dicts, packed sequences as their data."""
    if isinstance(value, Tensor):
        return value
    return optree.tree_map(
        lambda v: v.data if is_packed(v) else v, as_dicts(value), is_leaf=is_packed
    )


def like(activation: Tree, value: Tree) -> Tree:
    """The tensors of a value in the places where the activation has one; None elsewhere."""
    if isinstance(activation, Tensor) and isinstance(value, Tensor):
        return real_view(value)

    def view(mine: Any, other: Any) -> Any:
        return None if mine is None or other is None else real_view(other)

    return optree.tree_map(view, activation, opened(value), none_is_leaf=True)
