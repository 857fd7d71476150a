"""The head of a model as a function whose outputs are the neurons of a layer."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._explain.baseline import baseline_distribution, fill_baselines, per_example
from attrfn._explain.introspect import is_over_distribution
from attrfn._explain.shared import mark_of, marked
from attrfn._explain.tree import batch_size, call_model, each, flatten
from attrfn._layers.named import check_rows_of
from attrfn._layers.rows import has_examples_first, opened, place_of
from attrfn._layers.split import layers_of, split_once
from attrfn._model.source import describe
from attrfn._torch.guard import called
from attrfn._torch.say import say
from attrfn._torch.typing import At, Layer, Method, ModelFn, RowsOf, Target, Tree


def head_at(
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    neuron: Target,
    *,
    at: At,
    call: int | None,
    rows: RowsOf,
    frozen: bool,
) -> ModelFn:
    """From the inputs to the layer's value, with the examples in dimension 0.

    Raises:
        ValueError: The neuron is an index, and nothing tells what it would index.
    """
    check_rows_of(rows)
    halves = split_once(model_fn, layer, at=at, call=call, frozen=frozen)
    if callable(rows):
        return functools.partial(_moved, halves.head, rows)
    if rows == "time_first":
        return functools.partial(_moved, halves.head, _swapped)
    if rows is None and neuron is not None and not callable(neuron):
        batch = len(inputs) if _has_rows(inputs) else batch_size(flatten(inputs)[0])
        place = place_of(model_fn, layer, at, call)
        try:
            first = not batch or has_examples_first(halves, inputs, batch, place)
        except Exception:
            if all(t.is_floating_point() for t in flatten(inputs)[0]):
                raise
            first = True  # the model takes no integers: the method itself says so
        if not first:
            raise ValueError(not_first(layer))
    return halves.head


def not_first(layer: Layer) -> str:
    """The message for an index into a value that does not have the examples in dimension 0."""
    return (
        f"layer {describe(layers_of(layer)[0])} does not have the examples in dimension 0, or "
        "nothing tells whether it has, so that neuron may pick from another dimension: name the "
        "layout with rows=, or give a callable neuron"
    )


def _has_rows(inputs: Tree) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim > 0 and inputs.layout == torch.strided


def _moved(head: ModelFn, move: Callable[[Any], Tree], *inputs: Any) -> Tree:
    rows = called("rows", move, head(*inputs))
    if not any(isinstance(t, Tensor) for t in optree.tree_leaves(rows)):
        raise ValueError(f"rows returned {say(rows)}, expected a tensor, or a tree of tensors")
    return rows


def _swapped(value: Tree) -> Tree:
    def swap(t: Any) -> Any:
        return t.transpose(0, 1) if isinstance(t, Tensor) and t.ndim > 1 else t

    return optree.tree_map(swap, opened(value))


def is_of_batch(error: BaseException) -> bool:
    """Whether a callable neuron returned one number for a whole batch."""
    one = r"the callable target returned shape \((1,)?\) for \d+ row"
    return isinstance(error, ValueError) and re.match(one, str(error)) is not None


def explain_of_batch(
    method: Method, head: ModelFn, inputs: Tree, neuron: Any, options: dict[str, Any]
) -> Tree:
    """What a method finds for a neuron that is one number for the whole batch.

    The batch is explained as one example, (1, B, ...), and its copies run one after the other. The
    examples do not reach each other, so that each has its own part of the number.
    """
    x, rebuild = flatten(inputs)

    def one_by_one(*copies: Tensor) -> Tensor:
        found = []
        for leaves in zip(*copies, strict=True):
            value = called("neuron", neuron, call_model(head, rebuild(leaves)))
            found.append(value.sum())
        return torch.stack(found)

    options = dict(options)
    if is_over_distribution(method):
        pool = baseline_distribution(options.get("baselines"), inputs, x)
        options["baselines"] = each(per_example, pool, x)
    elif options.get("baselines") is not None:
        options["baselines"] = fill_baselines(options["baselines"], inputs, x)
    found = method(one_by_one, tuple([t[None] for t in x]), **options)
    leaves = optree.tree_leaves(found)
    if len(leaves) != len(x):
        return found
    # Dimensions in front of the only example are those of several baselines.
    parts = [a.squeeze(a.ndim - t.ndim - 1) for a, t in zip(leaves, x, strict=True)]
    return rebuild(marked(parts, mark_of(leaves)))
