"""Sources whose rows can be read by number."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn.data._columns import Columns, Rows
from attrfn.data._sources import Batch, Source, joined, places_of, put_together, short

_PASSED_ON = (ImportError, Warning)  # which say nothing about a row


class LengthChanged(ValueError):
    """A data set has another length than when it was opened."""


class Indexed(Source):
    """A source of which rows can be read by number.

    Args:
        get: From two numbers to a batch.
        columns: What is read.
        length: The number of rows.
        name: What messages call it.
        now: How many rows there are by now, where that can change.
        remedy: What to do about a row that cannot be read.
        batch: The size of its own batches, None if it has none.
    """

    def __init__(
        self,
        get: Callable[[int, int], Any],
        columns: Columns,
        length: int,
        name: str = "data",
        now: Callable[[], int] | None = None,
        remedy: str = "repair it, or pass on_error='skip'",
        batch: int | None = None,
    ) -> None:
        super().__init__(columns, name=name, length=length, batch=batch)
        self._get = get
        self._end = length
        self._now = now
        self._remedy = remedy
        # A thread reads ahead while rows are asked for by number, and few files and data sets can
        # be read by two threads at once.
        self._lock = threading.Lock()

    def read(self, start: int, stop: int, skip: bool = False) -> Batch | None:
        stop = min(stop, self._end)
        if start >= stop:
            self._refuse_change()
            return None
        failed: dict[int, Exception] = {}
        found = self._parts(start, stop, skip, failed)
        places = places_of(start, stop, failed)
        return Batch(start, stop - start, joined(found) if found else None, places, failed)

    def _parts(self, start: int, stop: int, skip: bool, failed: dict[int, Exception]) -> list[Rows]:
        """The rows that can be read, in parts; by halves, so that an error is that of one row."""
        try:
            return [self._part(start, stop)]
        except (*_PASSED_ON, LengthChanged):
            raise
        except Exception as error:
            if stop - start == 1 and not skip:
                raise
            if stop - start == 1:
                failed[start] = error
                return []
        middle = (start + stop) // 2
        left = self._parts(start, middle, skip, failed)
        return left + self._parts(middle, stop, skip, failed)

    def _part(self, start: int, stop: int) -> Rows:
        alone = stop - start == 1
        try:
            with self._lock:
                item = self._get(start, stop)
        except _PASSED_ON:
            raise
        except Exception as error:
            if not alone:  # the halves say which row it is
                raise
            self._refuse_change()
            raise ValueError(
                f"{self.where(start)} cannot be read: {short(error)}: {self._remedy}"
            ) from error
        return self.rows(item, start, alone=alone)

    def _refuse_change(self) -> None:
        found = self._end if self._now is None else self._now()
        if found != self._end:
            raise LengthChanged(
                f"{self.name} had {self._end} examples and has {found} now, expected a data set "
                "that stays as it is: call again when nothing writes to it; what is written is kept"
            )

    def at(self, places: Tensor) -> Rows:
        # In the order of a file, each part of which is decoded once then.
        order = places.argsort()
        found = [self._part(i, i + 1) for i in places[order].tolist()]
        return joined(found).pick(order.argsort())

    def first(self) -> Rows | None:
        try:
            return self._part(0, 1) if self._end else None
        except Exception:  # the first read says so
            return None


class Examples(Indexed):
    """A map-style data set: ``data[i]`` is one example."""

    def __init__(self, data: Any, collate: Callable[[list[Any]], Any], columns: Columns) -> None:
        super().__init__(self._examples, columns, length=len(data), now=lambda: len(data))
        self._data, self._collate = data, collate
        # The examples of the batch, or why one cannot be read: its halves do not read them again.
        self._read: dict[int, Any] = {}

    def _examples(self, start: int, stop: int) -> list[Any]:
        if not self._read:
            return self._batch(start, stop)
        return [self._example(i) for i in range(start, stop)]

    def _batch(self, start: int, stop: int) -> list[Any]:
        i, read, data = start, self._read, self._data
        try:
            for i in range(start, stop):
                read[i] = data[i]
        except _PASSED_ON:
            raise
        except Exception as error:
            read[i] = error
            raise
        return list(read.values())

    def _example(self, i: int) -> Any:
        if i not in self._read:
            try:
                self._read[i] = self._data[i]
            except _PASSED_ON:
                raise
            except Exception as error:
                self._read[i] = error
        if isinstance(found := self._read[i], Exception):
            raise found
        return found

    def read(self, start: int, stop: int, skip: bool = False) -> Batch | None:
        try:
            return super().read(start, stop, skip)
        finally:
            with self._lock:
                self._read.clear()

    def together(self, item: Any) -> Any:
        return put_together(item, self._collate, self.columns)

    def at(self, places: Tensor) -> Rows:
        try:
            return super().at(places)
        finally:
            with self._lock:
                self._read.clear()

    def first(self) -> Rows | None:
        try:
            return super().first()
        finally:
            self._read.clear()


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
