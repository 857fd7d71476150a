"""Options of a method for several copies of a batch: what has a row per example follows it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import repeat_bound
from attrfn._explain.introspect import is_over_distribution
from attrfn._explain.options import PER_EXAMPLE
from attrfn._explain.shared import is_laid_out
from attrfn._explain.tree import as_dicts, batch_size, each, flatten
from attrfn._layers.at import place_of
from attrfn._layers.routing import Routes
from attrfn._layers.rows import read
from attrfn._layers.split import split_once
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.say import say
from attrfn._torch.typing import At, Layer, Leaves, Method, ModelFn, Target, Tree


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


def in_copies(
    run: Callable[[slice], Tree], i: slice, batch: int, alone: list[bool]
) -> tuple[Leaves, Tree]:
    """What a method finds for copies ``i`` of the batch, at once or one after the other.

    Args:
        run: From a slice of the copies to what the method finds for them as one batch.
        i: The copies.
        batch: The number of examples.
        alone: Holds something once the results are known to have no examples in dimension 0, as
            those of a layer of another layout. Copies then run alone.

    Returns:
        The tensors, (S, ...) for S copies, and what the method returned for all or the last one.
    """
    copies = i.stop - i.start
    if not alone:
        found = _together(run, i)
        leaves = _flat(found)
        if copies == 1 or _have_rows(leaves, batch, copies, lambda: run(slice(0, 1))):
            return tuple(
                [a.reshape(copies, a.shape[0] // copies, *a.shape[1:]) for a in leaves]
            ), found
        alone.append(True)
    parts: list[Leaves] = []
    routes: list[Routes | None] = []
    found = None
    for j in range(i.start, i.stop):
        with contextlib.nullcontext() if transforming() else Routes() as chosen:
            found = run(slice(j, j + 1))
        parts.append(_flat(found))
        routes.append(chosen)
    shapes = {tuple([a.shape for a in leaves]) for leaves in parts}
    first = routes[0]
    same = all(r is None or first is None or r.begins(first) for r in routes)
    if len(shapes) > 1 or not same:
        raise ValueError(
            "the model chooses the rows of layer by values (as tokens for an expert), and chooses "
            "others in other copies of the inputs, so that they have no mean: explain the "
            "copies one by one"
        )
    return each(lambda *t: torch.stack(t), *parts), found


def _together(run: Callable[[slice], Tree], i: slice) -> Tree:
    if i.stop - i.start == 1 or transforming():
        return run(i)
    try:
        return run(i)
    except ValueError:
        # An option of a layer of another layout does not fit the value for several copies.
        with contextlib.suppress(Exception):
            one = run(slice(i.start, i.start + 1))
            if is_laid_out(_flat(one)):
                return one
        raise


def _flat(found: Tree) -> Leaves:
    leaves: list[Any] = optree.tree_leaves(found)
    if not leaves or not all(isinstance(a, Tensor) for a in leaves):
        raise TypeError(f"method returned {say(found)}, expected tensors")
    return tuple(leaves)


def _have_rows(leaves: Leaves, batch: int, copies: int, one: Callable[[], Tree]) -> bool:
    """Whether tensors have the examples of some copies in dimension 0."""
    if is_laid_out(leaves) or any(a.ndim == 0 or a.shape[0] != copies * batch for a in leaves):
        return False
    if not is_compiling():
        return True
    # Compiled code has no marks. It drops this run, of which only the sizes count.
    return all(a.ndim and a.shape[0] == batch for a in _flat(one()))


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
