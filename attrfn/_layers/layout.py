"""How a method sees a layer whose value does not have the examples in dimension 0.

Where ``rows`` names the layout, the value is moved to rows of examples and back, and copies of the
batch become one call as anywhere else. Where it does not, the whole value is explained as one
thing. Examples do not reach each other, so that the gradient of the sum of their targets holds that
of each, whatever the layout. Copies of such a value cannot be put together: the model runs for one
after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._explain.shared import laid_out
from attrfn._layers.leaves import complex_view, repacked
from attrfn._layers.routing import Routes
from attrfn._layers.rows import opened
from attrfn._torch.autodiff import transforming
from attrfn._torch.typing import Tree


class Layout:
    """The whole value as one thing, with a dimension of size 1 in front of each tensor.

    Attributes:
        value: The layer's value at the inputs.
        own: The tensors of it that are explained, as they are; None elsewhere.
        batch: The number of examples.
        named: Whether a method sees a row for each example.
        folds: Whether several copies of the batch can be one value.
        seen: What a method sees at the inputs.
        again: Computes the value at the inputs again.
    """

    named = False
    folds = False
    seen: Tree
    again: Callable[[], Tree]

    def __init__(self, value: Tree, own: Tree, batch: int) -> None:
        self.value = value
        self.own = own
        self.batch = batch
        self.leaves, self.spec = optree.tree_flatten(own)
        self.seen = self.present(own)

    def present(self, own: Tree) -> Tree:
        """What a method sees of the explained tensors of a value."""
        leaves = optree.tree_leaves(own)
        for t, mine in zip(leaves, self.leaves, strict=True):
            if t.shape != mine.shape:
                raise ValueError(
                    f"layer gives a tensor of shape {tuple(mine.shape)} for the inputs, but "
                    f"{tuple(t.shape)} for other points, so that no path leads from one to the "
                    "other: use a method of one gradient, such as layer_gradient_x_activation"
                )
        return optree.tree_unflatten(self.spec, [t[None] for t in leaves])

    def plant(self, seen: Tree) -> Tree:
        """The layer's value with what a method puts there, for one copy of the batch."""
        return self.filled([t[0] for t in optree.tree_leaves(seen)])

    def filled(self, leaves: Sequence[Tensor]) -> Tree:
        """Explained tensors in the form of the value; None elsewhere."""
        given = [t for t in _paired(opened(self.value), self.own) if t is not None]
        whole = [
            complex_view(t) if u.is_complex() else t for t, u in zip(leaves, given, strict=True)
        ]
        return repacked(optree.tree_unflatten(self.spec, whole), self.value)

    def restored(self, found: Tree) -> Tree:
        """What a method has found, in the shape of the layer's value."""
        mine, form = optree.tree_flatten(self.seen)
        leaves, spec = optree.tree_flatten(found)
        if spec != form:
            return found
        before = {_before(t, u.shape[1:]) for t, u in zip(leaves, mine, strict=True)}
        if len(before) != 1 or (sizes := before.pop()) is None:
            return found
        place = self._place(sizes)
        if place is None:
            return found
        others = sizes[:place] + sizes[place + 1 :]
        moved = [t.movedim(place, len(sizes) - 1) for t in leaves]
        flat = [t.reshape(math.prod(others), *t.shape[len(others) :]) for t in moved]
        each = [self._unseen(list(parts)) for parts in zip(*flat, strict=True)]
        new = [torch.stack(t).reshape(*others, *t[0].shape) for t in zip(*each, strict=True)]
        if place == 0 and others:
            # Several values of each element follow the first dimension, as they do elsewhere.
            many = tuple(range(len(others)))
            new = [t.movedim(many, tuple([i + 1 for i in many])) for t in new]
        laid_out(new, leaves)
        return repacked(optree.tree_unflatten(self.spec, new), self.value)

    def _place(self, sizes: tuple[int, ...]) -> int | None:
        """Which of some dimensions in front is that of the examples."""
        return sizes.index(1) if 1 in sizes else None

    def _unseen(self, seen: list[Tensor]) -> list[Tensor]:
        """The tensors of what a method has found, in the shape of the value."""
        return [t[0] for t in seen]

    def option(self, entries: Sequence[Any]) -> Tree:
        """What is given for each tensor of the value, as something for what a method sees."""
        return optree.tree_unflatten(self.spec, list(entries))


class TimeFirst(Layout):
    """The examples are in dimension 1."""

    named = True
    folds = True

    def present(self, own: Tree) -> Tree:
        return optree.tree_map(lambda t: t.transpose(0, 1), own)

    def plant(self, seen: Tree) -> Tree:
        return self.filled([t.transpose(0, 1) for t in optree.tree_leaves(seen)])

    def _place(self, sizes: tuple[int, ...]) -> int | None:
        return only(sizes, self.batch)

    def _unseen(self, seen: list[Tensor]) -> list[Tensor]:
        return [t.transpose(0, 1) for t in seen]

    def option(self, entries: Sequence[Any]) -> Tree:
        def moved(entry: Any, t: Tensor) -> Any:
            if not isinstance(entry, Tensor) or entry.ndim < t.ndim - 1 or entry.ndim < 1:
                return entry
            return entry.reshape(*[1] * (t.ndim - entry.ndim), *entry.shape).transpose(0, 1)

        pairs = zip(entries, self.leaves, strict=True)
        return optree.tree_unflatten(self.spec, [moved(e, t) for e, t in pairs])


def elsewhere(layouts: Sequence[Layout | None], run: Callable[[], Tree]) -> Tree:
    """The value of layers at other inputs, where those of these layouts are to have the same rows.

    Raises:
        ValueError: The model chooses other rows there, such as other tokens for an expert.
    """
    whole = [lay for lay in layouts if lay is not None and not lay.named]
    if not whole or transforming():
        return run()
    with Routes() as there:
        value = run()
    for layout in whole if there.found else ():
        with Routes() as here:
            layout.again()
        if not here.begins(there):
            raise ValueError(
                "the model chooses the rows of layer by values (as tokens for an expert), and "
                "chooses others at the baselines or on the path from there: use a method of one "
                "gradient, such as layer_gradient_x_activation, or other baselines"
            )
    return value


def _paired(value: Tree, own: Tree) -> list[Any]:
    """The tensors of a value in the places of those that are explained, None elsewhere."""
    leaves = optree.tree_leaves(own, none_is_leaf=True)
    whole = optree.tree_leaves(value, none_is_leaf=True)
    return [None if mine is None else t for mine, t in zip(leaves, whole, strict=True)]


def _before(t: Any, shape: torch.Size) -> tuple[int, ...] | None:
    """The dimensions of a tensor in front of some last ones; None if it does not end in them."""
    if not isinstance(t, Tensor) or t.ndim <= len(shape):
        return None
    n = t.ndim - len(shape)
    return tuple(t.shape[:n]) if t.shape[n:] == shape else None


def only(sizes: tuple[int, ...], batch: int) -> int | None:
    """The place of the examples among some sizes, if there is one."""
    if sizes.count(batch) > 1:
        raise ValueError(
            f"the result has several dimensions of size {batch}, and nothing tells which is that "
            "of the examples: give another number of baselines, samples or examples"
        )
    return sizes.index(batch) if batch in sizes else None
