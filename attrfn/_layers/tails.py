"""The half of a model after a layer as a function of what a method explains there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._explain.said import main_tensor
from attrfn._explain.target import choose, select
from attrfn._layers.layout import Layout
from attrfn._layers.split import Tail
from attrfn._torch import pytree
from attrfn._torch.typing import ModelFn, Target, Tree


def of_activation(
    tail: ModelFn, *activation: Tree, inputs: Tree, unpacked: bool, layout: Layout | None = None
) -> Any:
    """The tail as a model function; the entries of a tuple arrive as arguments (``unpacked``)."""
    seen = activation if unpacked else activation[0]
    return tail(seen if layout is None else layout.plant(seen), inputs)


class Apart(NamedTuple):
    """What runs for each copy of the batch alone.

    Attributes:
        tail: The tail.
        inputs: The model's inputs.
        layout: The layout of the layer's value.
        finish: From the outputs of a copy to its value; None leaves a row for each example.
    """

    tail: ModelFn
    inputs: Tree
    layout: Layout
    finish: Callable[[Any], Tensor] | None


def of_copies(apart: Callable[[], Apart], *seen: Tree, unpacked: bool) -> Any:
    """The tail as a model function of any number of copies, which runs for one after the other.

    Args:
        apart: Returns what runs. A function, because tensors that a model function shows would be
            repeated for the copies.
        *seen: What a method explains.
        unpacked: Whether the entries of a tuple arrive as arguments.
    """
    tail, inputs, layout, finish = apart()
    tree: Tree = seen if unpacked else seen[0]
    leaves, spec = optree.tree_flatten(tree)
    rows = layout.batch if layout.named else 1
    found = []
    for i in range(0, len(leaves[0]), max(rows, 1)):
        one = optree.tree_unflatten(spec, [t[i : i + rows] for t in leaves])
        outputs = tail(layout.plant(one), inputs)
        found.append(outputs if finish is None else finish(outputs))
    if finish is not None:
        return torch.stack(found)
    return found[0] if len(found) == 1 else _joined(found)


def _joined(outputs: list[Any]) -> Any:
    """The outputs of several batches as those of one."""
    flat = [pytree.tree_flatten(o) for o in outputs]
    parts = zip(*[leaves for leaves, _ in flat], strict=True)
    whole = [torch.cat(t) if isinstance(t[0], Tensor) and t[0].ndim else t[0] for t in parts]
    return pytree.tree_unflatten(whole, flat[0][1])


def one_value(target: Target, batch: int, every: bool) -> Callable[[Any], Tensor]:
    """The explained values of a batch, summed over its examples.

    Args:
        target: Which scalar of each example.
        batch: The number of examples.
        every: Whether all outputs are explained where the target is None.
    """
    chosen = choose(target, batch)

    def finish(outputs: Any) -> Tensor:
        found = main_tensor(outputs)
        if every and chosen is None and isinstance(found, Tensor) and found.ndim != 1:
            return _wide(found).sum(0) if found.ndim else found
        values = select(outputs, chosen, batch)
        return (_wide(values) if every else values).sum()

    return finish


def _wide(values: Tensor) -> Tensor:
    # What an ablation changes is one example of the sum, which the others must not round.
    return values if values.device.type == "mps" else values.double()


def tail_of(model_fn: ModelFn) -> Tail | None:
    """The half of a split that a model function of an activation runs, or None."""
    if not isinstance(model_fn, functools.partial):
        return None
    inner: Any = None
    if model_fn.func is of_activation:
        inner = model_fn.args[0]
    elif model_fn.func is of_copies:
        inner = model_fn.args[0]().tail
    if isinstance(inner, functools.partial):
        return getattr(inner.func, "attrfn_tail", None)
    return None


def with_tail(model_fn: ModelFn, tail: Tail) -> ModelFn:
    """The model function of an activation, with another half of the split."""
    whole: Any = model_fn
    first = whole.args[0]
    if whole.func is of_copies:
        apart = first()
        one = apart._replace(tail=_again(apart.tail, tail))
        return functools.partial(of_copies, lambda: one, *whole.args[1:], **whole.keywords)
    return functools.partial(whole.func, _again(first, tail), *whole.args[1:], **whole.keywords)


def _again(inner: Any, tail: Tail) -> ModelFn:
    return functools.partial(tail.function(), *inner.args, **inner.keywords)
