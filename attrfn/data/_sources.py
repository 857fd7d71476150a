"""Sources: data sets of every kind as rows from a to b, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._torch.say import say
from attrfn.data._columns import BadRow, ColumnError, Columns, Rows, form_of, said_forms
from attrfn.data._frames import as_columns

_LONGEST = 140  # of an error within another one


class Batch(NamedTuple):
    """Rows of a data set from a place on.

    Attributes:
        start: The number of the first row.
        size: How many rows there are, those that failed included.
        rows: What was read, None if nothing was.
        places: The numbers of the rows that were read.
        failed: Why the others were not, by number.
    """

    start: int
    size: int
    rows: Rows | None
    places: Tensor
    failed: dict[int, Exception]


class Source:
    """A data set.

    Args:
        columns: What is read.
        name: What messages call it.
        length: The number of rows, None if that is unknown.
        batch: The size of its own batches, None if it has none.
        slow: Whether reading takes time, so that a thread should do it.
        again: Whether it can be read from the start once more.
    """

    def __init__(
        self,
        columns: Columns,
        name: str = "data",
        length: int | None = None,
        batch: int | None = None,
        slow: bool = True,
        again: bool = True,
    ) -> None:
        self.columns = columns
        self.name = name
        self.length = length
        self.batch = batch
        self.slow = slow
        self.again = again
        self.of_examples = False  # whether its batches are examples that were put together
        self._form: tuple[Any, ...] | None = None

    def where(self, i: int, *, onwards: bool = False) -> str:
        """An example in messages, or those from it on."""
        if self.name == "data":
            return f"examples from {i} on" if onwards else f"example {i}"
        return f"{self.name}, rows from {i} on" if onwards else f"{self.name}, row {i}"

    def read(self, start: int, stop: int, skip: bool = False) -> Batch | None:
        """Rows from start to stop, or fewer at the end; None after it. Calls go forward only.

        Args:
            start: The first row.
            stop: The row after the last.
            skip: Whether rows that cannot be read are left out; else the error is raised.
        """
        raise NotImplementedError

    def skip_to(self, start: int) -> None:
        """Leave out the rows before, where that takes less time than to read them."""

    def begin(self) -> None:
        """Start what reads: processes of a loader, in the thread of the caller."""

    def close(self) -> None:
        """Let go of what reads: processes of a loader end here, and not when they are found."""

    def fresh(self) -> Source:
        """The same source, to read from the start."""
        return self

    def first(self) -> Rows | None:
        """A few rows from the beginning, which :meth:`read` returns again; None without any."""
        raise NotImplementedError

    def at(self, places: Tensor) -> Rows:
        """The rows with some numbers.

        Raises:
            TypeError: The source has no rows by number.
        """
        raise TypeError(
            f"{self.name} has no rows by number, so that no row can take a feature of another: "
            "give a Dataset, tensors or a file"
        )

    def together(self, item: Any) -> Any:
        """What was read, as one batch."""
        return plain(item, self.columns)

    def rows(
        self, item: Any, start: int, *, alone: bool = False, numbers: Sequence[int] | None = None
    ) -> Rows:
        """What was read as rows, in the form of those before.

        Args:
            item: What was read.
            start: The number of its first row.
            alone: Whether it has one row.
            numbers: The number of each row, if they do not follow each other.

        Raises:
            TypeError, ValueError: It is none of numbers, or has another form; with the row.
        """
        try:
            rows = self.columns.rows(self.together(item))
        except BadRow as error:
            i = start + error.row if numbers is None else numbers[error.row]
            raise ValueError(f"{self.where(i)}: {error}") from error
        except (TypeError, ValueError) as error:
            if start == 0 and self.name == "data":  # of all of it
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self.where(start, onwards=not alone)}: {error}") from error
        return self.check(rows, start)

    def check(self, rows: Rows, start: int) -> Rows:
        """The same rows, if they have the form of those before."""
        form = form_of(rows)
        if self._form is None:
            self._form = form
        if form != self._form:
            here, first = said_forms(form, self._form)
            raise ValueError(
                f"{self.where(start)}: rows are {here}, expected those of the first "
                f"batch, {first}: bring all batches into one form, such as one "
                "length"
            )
        return rows


def plain(item: Any, columns: Columns) -> Any:
    """An example or a batch of which it is known what its parts are."""
    item = as_columns(item)
    if columns.given is not None or not isinstance(item, (tuple, list, Mapping)):
        return item
    there = list(item) if isinstance(item, Mapping) else list(range(len(item)))
    if len(there) == 1:
        return item[there[0]]
    shown = f"{{'inputs': {there[0]!r}, 'target': {there[-1]!r}}}" if there else "{'inputs': 0}"
    raise ColumnError(
        f"data has examples of {len(there)} parts, {say(there)}, expected columns that say what "
        f"they are, such as columns={shown}"
    )


def joined(parts: list[Rows]) -> Rows:
    """Rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Rows(*optree.tree_map(lambda *t: torch.cat(t), *[part.tree() for part in parts]))


def joined_leaves(parts: list[list[Tensor]]) -> list[Tensor]:
    """Lists of tensors one after the other."""
    return parts[0] if len(parts) == 1 else [torch.cat(t) for t in zip(*parts, strict=True)]


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # A worker of a DataLoader gives its whole traceback, the error at the end.
    return lines[-1 if lines[0].startswith("Caught ") else 0].rstrip(".:")


def short(error: BaseException) -> str:
    """The same, cut where another message goes on."""
    text = first_line(error)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def put_together(items: list[Any], collate: Callable[[list[Any]], Any], columns: Columns) -> Any:
    """Examples as one batch, of the parts that are needed.

    Raises:
        ValueError: Their shapes differ, or they hold what is no tensor.
    """
    parts = columns.parts(items)
    try:
        if columns.given is None:
            return collate([plain(item, columns) for item in items])
        return {name: collate(values) for name, values in parts.items()}
    except (RuntimeError, TypeError) as error:
        if len(items) == 1 and columns.given is not None:
            return parts  # of which one is no number
        if len(items) == 1:
            raise ValueError(
                f"the example cannot become tensors: {short(error)}: turn it into tensors first"
            ) from error
        raise ValueError(
            "examples cannot be put into one batch, expected tensors of equal shapes: "
            f"{short(error)}"
        ) from error


def places_of(start: int, stop: int, failed: Mapping[int, Exception]) -> Tensor:
    """The numbers of the rows that did not fail."""
    places = torch.arange(start, stop)
    if not failed:
        return places
    return torch.tensor([i for i in range(start, stop) if i not in failed], dtype=torch.int64)
