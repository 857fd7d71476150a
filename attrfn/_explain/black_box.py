"""Inputs of methods that only run the model: in the forms that derivatives do not take."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._explain.baseline import is_fraction, per_leaf
from attrfn._explain.output import Outcome
from attrfn._explain.tree import batch_size, flatten, map_tensors
from attrfn._torch.typing import Baselines, Leaves, ModelFn, Tree


def as_tensors(inputs: Tree) -> Tree:
    """The same tree with tensors for arrays, which share their memory."""
    leaves = optree.tree_leaves(inputs)
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return inputs
    return optree.tree_map(_as_tensor, inputs)


def _as_tensor(leaf: Any) -> Any:
    if isinstance(leaf, (Tensor, numbers.Number)) or not hasattr(leaf, "__array__"):
        return leaf
    return torch.as_tensor(leaf)


def fit_for(baselines: Baselines, inputs: Tree) -> Tree:
    """The inputs, those of integers as floating numbers where their baseline is a fraction."""
    x, rebuild = flatten(inputs)
    if all(t.is_floating_point() for t in x) or baselines is None:
        return inputs
    kind = torch.get_default_dtype()
    given = per_leaf(baselines, inputs, x, "baselines")
    return rebuild(
        [
            t.to(kind) if is_fraction(b) and not (t.is_floating_point() or t.is_complex()) else t
            for t, b in zip(x, given, strict=True)
        ]
    )


def has_no_rows(x: Leaves) -> bool:
    """Whether dimension 0 cannot be that of the examples: its sizes differ."""
    # Sizes in a set would make a graph for each of them.
    return all(t.ndim for t in x) and any(t.shape[0] != x[0].shape[0] for t in x[1:])


def on_whole(model: ModelFn) -> ModelFn:
    """A model as one of a batch of 1, whose only example is the whole input."""

    def run(*inputs: Any) -> Any:
        return model(*map_tensors(lambda t: t[0], inputs))

    return run


def evaluated(
    evaluate: Callable[[Leaves], Outcome], points: Leaves, given: Tree, whole: bool
) -> Outcome:
    """The values at inputs that were changed to fit, or why the model does not take them.

    Args:
        evaluate: From points to values.
        points: x, as it was made to fit.
        given: The inputs as they were given.
        whole: Whether the examples are not in dimension 0.

    Raises:
        TypeError: The model takes no floating numbers for integers.
        ValueError: The inputs seem to have different numbers of examples.
    """
    x = flatten(given)[0]
    try:
        found = evaluate(points)
    except Exception as error:
        if whole:
            batch_size(x)  # raises
        kinds = sorted({str(t.dtype) for t in x if not t.is_floating_point()})
        raise TypeError(
            f"baselines has fractions for an input of {', '.join(kinds)}, and the model fails with "
            "floating numbers there: expected integers, such as the id of a padding token"
        ) from error
    if whole and not found.per_batch:
        batch_size(x)  # raises
    # As many values as a tensor has rows are those of examples, whose numbers disagree.
    if whole and found.values.shape[2:] in {t.shape[:1] for t in x}:
        batch_size(x)
    return found
