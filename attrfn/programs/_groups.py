"""Programs of a fixed number of rows, which run any other number in groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._torch import pytree
from attrfn._torch.autodiff import transforming
from attrfn._torch.explanation import current
from attrfn._torch.private import no_overrides

DYNAMIC = "export it with a dynamic batch, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
"""What to do about a fixed number of rows."""

Run = Callable[[list[Any]], Any]
"""From the flat inputs of one group to the outputs."""


class Rows(NamedTuple):
    """How many rows a program takes, and how many it got.

    Attributes:
        fixed: What it takes.
        given: What it got.
        split: Of each input, whether it has these rows.
        remedy: What the user may do in place of groups.
    """

    fixed: int
    given: int
    split: Sequence[bool]
    remedy: str = DYNAMIC


class State:
    """What a program holds beside what it is, and what its runs have shown.

    It has slots and no attributes, so that digests of models (attrfn.data) do not see it change.

    Attributes:
        model: What runs, an object of another library.
        source: From what it can be loaded again in another process; None if it cannot.
        known: Whether its rows are known to be independent.
        checks: Whether it is known to compare its inputs.
        fixed: The only number of rows that it takes, once that is known.
    """

    __slots__ = ("checks", "fixed", "known", "model", "source")

    def __init__(self, model: Any = None, source: Any = None) -> None:
        self.model = model
        self.source = source
        self.known = False
        self.checks = False
        self.fixed: int | None = None


def in_groups(run: Run, flat: list[Any], rows: Rows, state: State) -> Any:
    """The outputs of ``run`` for all rows, of which it takes a fixed number at once.

    The last group is filled with copies of its last row.

    Raises:
        ValueError: The rows depend on each other, or an output has no row for each example.
    """
    if rows.given == 0:
        raise ValueError(
            f"the program takes {rows.fixed} rows at once and got none: give at least one row, or "
            f"{rows.remedy}"
        )
    if rows.fixed > 1 and not state.known and not transforming():
        _check_independent(run, flat, rows, state)
    starts = range(0, rows.given, rows.fixed)
    return _joined([run(_group(flat, rows, start)) for start in starts], rows)


def whole_batches(rows: Rows, why: str) -> None:
    """Evaluate each copy of the batch alone, or refuse.

    Raises:
        ValueError: The batch itself has another number of rows, which cannot run in groups.
    """
    one = current()
    if one is not None and rows.given % rows.fixed == 0:
        one.needs_whole_batches()
    raise ValueError(
        f"the program was made for a batch of {rows.fixed} and got {rows.given} rows, which "
        f"cannot run in groups, because {why}: give {rows.fixed} rows, or {rows.remedy}"
    )


def _group(flat: Sequence[Any], rows: Rows, start: int) -> list[Any]:
    return [
        _filled(value[start : start + rows.fixed], rows.fixed) if split else value
        for value, split in zip(flat, rows.split, strict=True)
    ]


def _filled(t: Tensor, n: int) -> Tensor:
    missing = n - t.shape[0]
    return torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) if missing else t


def _joined(parts: list[Any], rows: Rows) -> Any:
    leaves, spec = pytree.tree_flatten(parts[0])
    columns = zip(leaves, *[pytree.tree_leaves(part) for part in parts[1:]], strict=True)
    return pytree.tree_unflatten([_column(column, rows) for column in columns], spec)


def _column(column: tuple[Any, ...], rows: Rows) -> Any:
    if not isinstance(column[0], Tensor):
        return column[0]
    if column[0].ndim == 0 or column[0].shape[0] != rows.fixed:
        shape = tuple(column[0].shape)
        whole_batches(rows, f"an output of shape {shape} has no row for each example")
    return torch.cat(column)[: rows.given]


def _check_independent(run: Run, flat: list[Any], rows: Rows, state: State) -> None:
    """Compare the first row's outputs among its own rows and among others."""
    with torch.no_grad(), no_overrides():  # no mode shall see it
        apart = _depend(run, _group(flat, rows, 0), rows)
    if apart:
        whole_batches(rows, "its rows depend on each other")
    state.known = apart is False


def _depend(run: Run, first: list[Any], rows: Rows) -> bool | None:
    """Whether the first row's outputs depend on the other rows; None if that cannot be told."""
    other = [_first_alone(v) if split else v for v, split in zip(first, rows.split, strict=True)]
    if all(a is b or torch.equal(a, b) for a, b in zip(first, other, strict=True)):
        return None
    found, wanted = (pytree.tree_leaves(run(list(given))) for given in (other, first))
    return any(
        isinstance(a, Tensor) and a.ndim > 0 and a.is_floating_point() and not _near(a[0], b[0])
        for a, b in zip(wanted, found, strict=True)
    )


def _first_alone(t: Tensor) -> Tensor:
    """The first row among others: rows of zeros, or copies of it where numbers are integers."""
    if not t.is_floating_point():
        return t[:1].expand_as(t).clone()
    return torch.cat([t[:1], torch.zeros_like(t[1:])])


def _near(a: Tensor, b: Tensor) -> bool:
    rounding = torch.finfo(a.dtype).eps ** 0.5 * float(a.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return bool(((a - b).abs() <= rounding).logical_or(a == b).logical_or(a.isnan()).all())
