"""Targets: which scalar of each example's output is explained."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from attrfn._explain import said
from attrfn._explain.called_target import called_target, noted
from attrfn._explain.said import index_text, not_one_per_row, picks, shown
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.guard import called, refuse_unusual
from attrfn._torch.say import say
from attrfn._torch.typing import Index, Target

_SPEAK_OF_TARGETS = (__file__, str(Path(__file__).with_name("output.py")))


class IndexPerExample(NamedTuple):
    """One index per example, (B, k), with its least and greatest values where they are known."""

    rows: Tensor
    low: tuple[int, ...] | None
    high: tuple[int, ...] | None


Chosen: TypeAlias = (
    IndexPerExample | tuple[Index, ...] | list[tuple[Index, ...]] | Callable[..., Any] | None
)
"""A checked target: one index for all rows, one per example, or a callable."""


def speaks_of_target(error: BaseException) -> bool:
    """Whether an error speaks of a target (and was not raised by the user's model)."""
    if str(error).startswith(("target failed: ", "target holds a ")):  # of attrfn._torch.guard
        return True
    if type(error) not in (TypeError, ValueError):
        return False
    # The model may raise the same classes with any text, so that only the place tells.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename in _SPEAK_OF_TARGETS


def choose(target: Target, batch: int, name: str = "target") -> Chosen:
    """Check a target against the number of examples and bring it into one of few forms.

    Raises:
        TypeError: The target is of none of the kinds in :data:`attrfn._torch.typing.Target`.
        ValueError: It is not as long as the batch.
    """
    if target is None:
        return None
    if isinstance(target, Tensor):
        return _per_example(target, batch, name)
    if isinstance(target, list):
        return _listed(target, batch, name)
    if _is_index(target):
        return (_index(target),)
    if isinstance(target, tuple) and all(map(_is_index, target)):
        return tuple([_index(t) for t in target])
    if isinstance(target, tuple) and any(isinstance(t, Tensor) for t in target):
        return _with_tensors(target, batch, name)
    if callable(target):
        return noted(target)
    raise TypeError(
        f"{name} is {shown(target)}, expected None, an int, a tuple of ints and slices, an integer "
        "tensor, a list with one int or tuple per example, or a callable of the outputs"
    )


def select(outputs: Any, chosen: Chosen, rows: int, name: str = "target") -> Tensor:
    """The explained scalar of each row, shape (rows,).

    Args:
        outputs: What the model returned for ``rows`` rows.
        chosen: A checked target (entries picked by slices are summed).
        rows: The number of rows that went into the model.
        name: The argument's name for messages.
    """
    if callable(chosen):
        return _called(called_target(name, chosen, outputs), rows, name)
    outputs = said.main_tensor(outputs)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model_fn returned {shown(outputs)}, expected a tensor: give {name} "
            f"as a callable that picks one, such as {picks(outputs, chosen)}"
        )
    if outputs.is_complex():
        raise TypeError(said.complex_outputs(outputs, "model_fn", name))
    if outputs.ndim == 0 and rows == 1:
        outputs = outputs[None]
    if outputs.ndim == 0 and chosen is not None:
        raise ValueError(
            f"model_fn returned one value for {rows} row(s), but {name} is "
            f"{shown(chosen)}, expected None, because there is nothing to choose from"
        )
    if outputs.ndim == 0 or outputs.shape[0] != rows:
        raise ValueError(
            f"model_fn returned shape {tuple(outputs.shape)} for {rows} row(s), "
            "expected the rows in dimension 0: wrap a model of one example in torch.func.vmap, and "
            f"give another axis order a callable {name}"
        )
    if chosen is None:
        return _only_scalar(outputs, rows, name)
    given = _entries(chosen)
    if 0 < given < outputs.ndim - 1 and outputs.shape[1 + given :].numel() == 1:
        outputs = outputs.flatten(given)  # dimensions of size 1 at the end leave nothing to choose
    depth = outputs.ndim - 1
    if isinstance(chosen, IndexPerExample):
        return _gather(outputs, chosen, depth, name)
    if isinstance(chosen, list):
        return torch.stack(
            [_pick(out, index, depth, name) for out, index in zip(outputs, chosen, strict=True)]
        )
    return _pick(outputs, (slice(None), *chosen), depth + 1, name, rows=True)


def _entries(chosen: Any) -> int:
    """How many entries the index of an example has."""
    if isinstance(chosen, IndexPerExample):
        return chosen.rows.shape[1]
    return len(chosen) if isinstance(chosen, tuple) else max(map(len, chosen), default=0)


def _only_scalar(outputs: Tensor, rows: int, name: str) -> Tensor:
    if outputs.numel() != rows:
        raise ValueError(
            f"{name} is None, but model_fn returns shape {tuple(outputs.shape)}, "
            f"that is {outputs.numel() // max(rows, 1)} values per example: choose one with {name}"
        )
    return outputs.reshape(rows)


def _pick(
    out: Tensor, index: tuple[Index, ...], depth: int, name: str, rows: bool = False
) -> Tensor:
    shown = index[1:] if rows else index
    sizes = tuple(out.shape[1:] if rows else out.shape)
    if len(index) != depth:
        one_more = rows and len(shown) == len(sizes) + 1
        entries = "1 entry" if len(shown) == 1 else f"{len(shown)} entries"
        raise ValueError(
            f"{name} {index_text(shown)} has {entries}, but each example's output has "
            f"{len(sizes)} dimension(s) of sizes {sizes}: "
            + (
                "use None, there is nothing to choose"
                if not sizes
                else "give one int or slice for each of them (slices are summed)"
                + (f", or inputs x[None] if all {len(out)} rows are one example" * one_more)
            )
        )
    for i, size in zip(shown, sizes, strict=True):
        if not isinstance(i, slice) and not -size <= i < size:
            raise ValueError(
                f"{name} {index_text(shown)} is out of range for outputs of sizes {sizes} per "
                f"example: expected {-size} to {size - 1} where it says {i}"
            )
    value = out[index]
    if value.numel() == 0 and 0 in value.shape[1 if rows else 0 :]:
        raise ValueError(
            f"{name} {index_text(shown)} selects nothing from outputs of sizes {sizes} per "
            "example: expected slices with at least one index inside of them"
        )
    return value.flatten(1).sum(1) if rows and value.ndim > 1 else value if rows else value.sum()


def _gather(outputs: Tensor, chosen: IndexPerExample, depth: int, name: str) -> Tensor:
    index, low, high = chosen
    if not transforming() and index.is_inference():
        index = index.clone()  # autograd refuses to save an inference tensor
    sizes = tuple(outputs.shape[1:])
    if index.shape[1] != depth:
        raise ValueError(
            f"{name} picks {index.shape[1]} index(es) per example, but each example's output has "
            f"{depth} dimension(s) of sizes {sizes}: "
            + (
                "use None, there is nothing to choose"
                if depth == 0
                else "give a list of tuples with one int for each of them"
            )
        )
    if index.device != outputs.device:
        index = index.to(outputs.device)
    if low is None and depth > 1 and not is_compiling():
        return _in_turn(outputs, index, name)
    # One gather from the flattened outputs serves any number of dimensions; indices are counted
    # from the end here, because gather, unlike indexing, takes no negative ones.
    flat = index.new_zeros(index.shape[0])
    for d, size in enumerate(sizes):
        i = index[:, d]
        if low is not None and high is not None and (low[d] < -size or high[d] >= size):
            raise ValueError(
                f"{name} has values from {low[d]} to {high[d]}, out of range for outputs of "
                f"sizes {sizes} per example: expected {-size} to {size - 1}"
            )
        if low is None or low[d] < 0:
            i = torch.where(i < 0, i + size, i)
        flat = i if d == 0 else flat * size + i
    picked: Tensor = called(name, torch.gather, outputs.reshape(len(flat), -1), 1, flat[:, None])
    return picked[:, 0]


def _in_turn(outputs: Tensor, index: Tensor, name: str) -> Tensor:
    """The same, dimension by dimension: an index out of range must not reach into the next row."""
    for d in range(index.shape[1]):
        i, size = index[:, d], outputs.shape[1]
        i = torch.where(i < 0, i + size, i).reshape(-1, *[1] * (outputs.ndim - 1))
        i = i.expand(-1, 1, *outputs.shape[2:])
        outputs = called(name, torch.gather, outputs, 1, i)[:, 0]
    return outputs


def _called(value: Any, rows: int, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the callable {name} returned {shown(value)}, expected a tensor with one value per row"
        )
    if value.is_complex():
        raise TypeError(said.complex_outputs(value, f"the callable {name}", name))
    if value.numel() != rows:
        raise ValueError(not_one_per_row(value, rows, name))
    return value.reshape(rows)


def _per_example(target: Tensor, batch: int, name: str) -> IndexPerExample:
    if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise TypeError(f"{name} is a tensor of {target.dtype}, expected integers: use .long()")
    refuse_unusual(target, name)
    if target.ndim > 1 or (target.ndim == 1 and target.shape[0] not in (1, batch)):
        raise ValueError(
            f"{name} is a tensor of shape {tuple(target.shape)}, expected () or ({batch},): one "
            "index per example of inputs (for several indices per example use a list of tuples)"
        )
    return _per_row(target.long().reshape(-1, 1).expand(batch, 1))


def _per_row(index: Tensor) -> IndexPerExample:
    """The index with its range."""
    # Reading values waits for a GPU: it is done here once, and not in every chunk.
    if transforming() or index.numel() == 0:
        return IndexPerExample(index, None, None)
    low, high = index.amin(0), index.amax(0)
    return IndexPerExample(index, tuple(low.tolist()), tuple(high.tolist()))


def _listed(target: list[Any], batch: int, name: str) -> Chosen:
    if len(target) != batch:
        raise ValueError(
            f"{name} is a list of {len(target)}, expected one entry for each of the {batch} "
            "examples"
        )
    entries = [t if isinstance(t, tuple) else (t,) for t in target]
    for entry in entries:
        if not all(map(_is_index, entry)):
            raise TypeError(
                f"{name} is a list with {shown(entry)}, expected an int or a tuple of ints and "
                "slices in each place"
            )
    flat = [tuple([_index(i) for i in entry]) for entry in entries]
    widths = {len(entry) for entry in flat}
    if widths == {0}:
        return ()
    if len(widths) == 1 and not any(isinstance(i, slice) for entry in flat for i in entry):
        return _per_row(torch.tensor(flat).reshape(batch, -1))
    return flat


def _with_tensors(target: tuple[Any, ...], batch: int, name: str) -> Chosen:
    """A tuple of ints and integer tensors (), such as those that vmap maps over."""
    for t in target:
        kind = t.dtype if isinstance(t, Tensor) else type(t).__name__
        integers = isinstance(t, Tensor) and t.ndim == 0 and not t.is_floating_point()
        if (not _is_index(t) and not (integers and kind != torch.bool)) or isinstance(t, slice):
            raise TypeError(
                f"{name} is a tuple with {say(t)} among tensors, expected ints and integer tensors "
                "without dimensions: for tensors of the examples give a list of tuples"
            )
    device = next(t.device for t in target if isinstance(t, Tensor))
    entries = [torch.as_tensor(t, device=device).long() for t in target]
    return _per_row(torch.stack(entries).expand(batch, len(entries)))


def _is_index(value: Any) -> bool:
    return isinstance(value, slice) or (
        isinstance(value, (int, Integral)) and not isinstance(value, bool)
    )


def _index(value: Any) -> Index:
    return value if isinstance(value, slice) else int(value)
