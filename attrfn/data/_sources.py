"""Sources: data sets of every kind as rows from a to b, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._torch.say import say
from attrfn.data._columns import Columns, Rows, form_of, said_form


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
    """

    def __init__(
        self,
        columns: Columns,
        name: str = "data",
        length: int | None = None,
        batch: int | None = None,
        slow: bool = True,
    ) -> None:
        self.columns = columns
        self.name = name
        self.length = length
        self.batch = batch
        self.slow = slow
        self.again = True  # whether it can be read from the start once more
        self._form: tuple[Any, ...] | None = None

    def where(self, i: int) -> str:
        """An example in messages."""
        return f"example {i}" if self.name == "data" else f"{self.name}, row {i}"

    def read(self, start: int, stop: int, skip: bool = False) -> Batch | None:
        """Rows from start to stop, or fewer at the end; None after it. Calls go forward only.

        Args:
            start: The first row.
            stop: The row after the last.
            skip: Whether rows that cannot be read are left out; else the error is raised.
        """
        raise NotImplementedError

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

    def check(self, rows: Rows, start: int) -> Rows:
        """The same rows, if they have the form of those before."""
        form = form_of(rows)
        if self._form is None:
            self._form = form
        if form != self._form:
            raise ValueError(
                f"{self.where(start)}: rows are {said_form(form)}, expected those of the first "
                f"batch, {said_form(self._form)}: bring all batches into one form, such as one "
                "length"
            )
        return rows


class Indexed(Source):
    """A source of which rows can be read by number: ``get`` from two numbers to a batch."""

    def __init__(self, get: Callable[[int, int], Any], columns: Columns, **more: Any) -> None:
        super().__init__(columns, **more)
        self._get = get

    def read(self, start: int, stop: int, skip: bool = False) -> Batch | None:
        assert self.length is not None
        stop = min(stop, self.length)
        if start >= stop:
            return None
        rows = self.check(self.columns.rows(self._get(start, stop)), start)
        return Batch(start, stop - start, rows, torch.arange(start, stop), {})

    def at(self, places: Tensor) -> Rows:
        return joined([self.columns.rows(self._get(i, i + 1)) for i in places.tolist()])

    def first(self) -> Rows | None:
        return self.columns.rows(self._get(0, 1)) if self.length else None


class Examples(Indexed):
    """A map-style data set: ``data[i]`` is one example. An example that fails leaves the others."""

    def __init__(self, data: Any, collate: Callable[[list[Any]], Any], columns: Columns) -> None:
        super().__init__(self._collated, columns, length=_length(data))
        self._data, self._collate = data, collate

    def _collated(self, start: int, stop: int) -> Any:
        return self._together([self._data[i] for i in range(start, stop)], start)

    def _together(self, found: list[Any], start: int) -> Any:
        try:
            return self._collate([plain(item, self.columns) for item in found])
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"examples {start} to {start + len(found) - 1} cannot be put into one batch, "
                f"expected tensors of equal shapes: {first_line(error)}"
            ) from error

    def read(self, start: int, stop: int, skip: bool = False) -> Batch | None:
        assert self.length is not None
        stop = min(stop, self.length)
        if start >= stop:
            return None
        found, failed = {}, {}
        for i in range(start, stop):
            try:
                found[i] = self._data[i]
            except Exception as error:
                if not skip:
                    raise RuntimeError(
                        f"{self.where(i)} cannot be read: {first_line(error)}: repair it, or pass "
                        "on_error='skip'"
                    ) from error
                failed[i] = error
        places = torch.tensor(list(found), dtype=torch.int64)
        if not found:
            return Batch(start, stop - start, None, places, failed)
        item = self._together(list(found.values()), start)
        rows = self.check(self.columns.rows(item), start)
        return Batch(start, stop - start, rows, places, failed)

    def first(self) -> Rows | None:
        try:
            return super().first()
        except Exception:  # the first read says so
            return None


class Stream(Source):
    """Batches that come one after the other and are cut to the size that is asked for."""

    def __init__(
        self,
        data: Any,
        items: Callable[[Iterator[Any]], Iterator[Any]],
        columns: Columns,
        **more: Any,
    ) -> None:
        super().__init__(columns, **more)
        self._more_arguments = (data, items, columns, more)
        iterator = iter(data)
        self.again = iterator is not data
        self._items = items(iterator)
        self._kept: list[Rows] = []
        self._at = 0  # the number of the first row that is kept

    def fresh(self) -> Source:
        data, items, columns, more = self._more_arguments
        return Stream(data, items, columns, **more)

    def _more(self) -> bool:
        """Keep one batch more, if there is one."""
        place = self._at + self._count()
        try:
            item = next(self._items)
        except StopIteration:
            return False
        except Exception as error:
            raise RuntimeError(
                f"data failed after {place} examples: {first_line(error)}: what came before is "
                "kept; repair it and call again"
            ) from error
        rows = self.columns.rows(item)
        if len(rows):
            self._kept.append(self.check(rows, place))
        return True

    def _count(self) -> int:
        return sum(map(len, self._kept))

    def read(self, start: int, stop: int, skip: bool = False) -> Batch | None:
        while True:
            while self._kept and self._at + len(self._kept[0]) <= start:
                self._at += len(self._kept.pop(0))
            if self._at + self._count() >= stop or not self._more():
                break
        end = self._at + self._count()
        if end < start:
            raise ValueError(
                f"data has ended after {end} examples, expected the {start} that are done: "
                "give the data set that the folder was begun with; what is written is kept"
            )
        if end == start:
            return None
        rows = joined(self._kept)
        stop = min(stop, self._at + len(rows))
        found, rest = rows.pick(slice(start - self._at, stop - self._at)), stop - self._at
        self._kept, self._at = [rows.pick(slice(rest, None))] if rest < len(rows) else [], stop
        return Batch(start, stop - start, found, torch.arange(start, stop), {})

    def first(self) -> Rows | None:
        while not self._kept and self._more():
            pass
        return self._kept[0] if self._kept else None


class Held(Source):
    """Tensors that are in memory: rows are views of them."""

    def __init__(self, whole: Rows, columns: Columns) -> None:
        super().__init__(columns, length=len(whole), slow=False)
        self._whole = whole

    def read(self, start: int, stop: int, skip: bool = False) -> Batch | None:
        stop = min(stop, len(self._whole))
        if start >= stop:
            return None
        rows = self._whole.pick(slice(start, stop))
        return Batch(start, stop - start, rows, torch.arange(start, stop), {})

    def at(self, places: Tensor) -> Rows:
        return self._whole.pick(places)

    def first(self) -> Rows | None:
        return self._whole.pick(slice(0, 1)) if len(self._whole) else None


def plain(item: Any, columns: Columns) -> Any:
    """An example or a batch of which it is known what its parts are."""
    if columns.given is not None or not isinstance(item, (tuple, list, Mapping)):
        return item
    there = list(item) if isinstance(item, Mapping) else list(range(len(item)))
    if len(there) == 1:
        return item[there[0]]
    raise ValueError(
        f"data has examples of {len(there)} parts, {say(there)}, expected columns that say what "
        f"they are, such as columns={{'inputs': {there[0]!r}, 'target': {there[-1]!r}}}"
    )


def joined(parts: list[Rows]) -> Rows:
    """Rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Rows(*optree.tree_map(lambda *t: torch.cat(t), *[part.tree() for part in parts]))


def joined_leaves(parts: list[list[Tensor]]) -> list[Tensor]:
    """Lists of tensors one after the other."""
    return parts[0] if len(parts) == 1 else [torch.cat(t) for t in zip(*parts, strict=True)]


def _length(data: Any) -> int:
    return len(data)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
