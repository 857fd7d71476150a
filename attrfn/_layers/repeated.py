"""Options of a method for several copies of a batch: what has a row per example follows it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import optree
from torch import Tensor

from attrfn._copies.batch import repeat_bound
from attrfn._explain.introspect import is_over_distribution
from attrfn._explain.options import PER_EXAMPLE
from attrfn._explain.tree import as_dicts, batch_size, flatten
from attrfn._layers.at import place_of
from attrfn._layers.rows import read
from attrfn._layers.split import split_once
from attrfn._torch.typing import At, Layer, Method, ModelFn, Target, Tree


def repeat_options(
    method: Method, options: dict[str, Any], model_fn: ModelFn, inputs: Tree, copies: int
) -> dict[str, Any]:
    """The options of a method for several copies: what has a row per example follows the batch.

    The type of an option says in which form it can hold something for each example.
    """
    if isinstance(method, functools.partial):
        options = {**method.keywords, **options}
    batch = batch_size(flatten(inputs)[0])
    repeated = dict(options)
    for name, value in options.items():
        form = PER_EXAMPLE.get(name)
        if form is None or value is None:
            continue
        if form == "index":
            repeated[name] = _repeat_target(value, batch, copies)
        elif form == "key":
            repeated[name] = _repeat_key(value, copies)
        else:
            # Baselines of a distribution have their K in front of the examples.
            dim = 1 if name == "baselines" and is_over_distribution(method) else 0
            rows = _Rows(batch, copies, dim)
            if any(map(rows.are_in, optree.tree_leaves(value, none_is_leaf=True))):
                ranks = _ranks(method, name, options, model_fn, inputs)
                repeated[name] = rows.repeat(value, ranks)
    return repeated


def _repeat_key(key: Any, copies: int) -> Any:
    """A key for each example several times; one for all of them as it is."""
    return key.repeat(copies, 1) if isinstance(key, Tensor) and key.ndim == 2 else key


class _Rows(NamedTuple):
    """Where a tensor has the examples of a batch, and how many copies of them follow."""

    batch: int
    copies: int
    dim: int

    def are_in(self, value: Any) -> bool:
        """Whether a tensor has as many rows as there are examples."""
        return (
            isinstance(value, Tensor)
            and value.ndim > self.dim
            and value.shape[self.dim] == self.batch
        )

    def repeat(self, tree: Tree, ranks: set[int]) -> Tree:
        """A tree with its rows several times; what only broadcasts to the examples as it is."""

        def leaf(value: Any) -> Any:
            # A tensor (B,) for inputs (B, B) has no rows: it broadcasts over the features.
            if not self.are_in(value) or value.ndim - self.dim not in ranks:
                return value
            return value.repeat([self.copies if d == self.dim else 1 for d in range(value.ndim)])

        return optree.tree_map(leaf, tree, none_is_leaf=True)


def _ranks(
    method: Method, name: str, options: dict[str, Any], model_fn: ModelFn, inputs: Tree
) -> set[int]:
    """The ranks of the tensors that an option goes with: the inputs, or a layer's activation."""
    place = None
    if name != "baselines":  # those of a method at a layer are given for the inputs
        place = getattr(method, "moved_to", None)
        if PER_EXAMPLE[name] == "layer":
            place = place or place_of(options)
    tensors = flatten(inputs)[0] if place is None else _activation(model_fn, inputs, *place)
    return {t.ndim for t in tensors}


def _activation(
    model_fn: ModelFn, inputs: Tree, layer: Layer, at: At, call: int | None
) -> list[Tensor]:
    """The tensors of a layer's activation."""
    halves = split_once(model_fn, layer, at=at, call=call, frozen=True)
    value = read(halves, inputs, create_graph=False)
    return [t for t in optree.tree_leaves(as_dicts(value)) if isinstance(t, Tensor)]


def _repeat_target(target: Target, batch: int, copies: int) -> Target:
    if isinstance(target, Tensor) and target.ndim == 1 and target.shape[0] == batch:
        return target.repeat(copies)
    if isinstance(target, list):
        return target * copies
    repeated: Target = repeat_bound(target, batch, copies)
    return repeated
