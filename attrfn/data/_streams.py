"""Sources that are read from the start: loaders, iterable data sets, generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from attrfn.data._columns import Columns, Rows
from attrfn.data._sources import Batch, Source, joined, places_of, put_together, short


class Stream(Source):
    """Batches that come one after the other and are cut to the size that is asked for.

    Args:
        data: What they come from.
        items: From an iterator over ``data`` to an iterator over batches.
        columns: What is read.
        collate: What puts examples together, where a batch is a list of examples.
        jump: From a row to an iterator over ``data`` from near it on, and the row where that
            begins.
        one: From a row to its example, and from examples to a batch.
        **more: What else is known of the source.
    """

    def __init__(
        self,
        data: Any,
        items: Callable[[Iterator[Any]], Iterator[Any]],
        columns: Columns,
        collate: Callable[[list[Any]], Any] | None = None,
        jump: Callable[[int], tuple[Iterator[Any], int]] | None = None,
        one: tuple[Callable[[int], Any], Callable[[list[Any]], Any]] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(columns, again=not hasattr(data, "__next__"), **more)
        self.of_examples = collate is not None
        self._collate = collate
        self._jump, self._one = jump, one
        self._data, self._iterate = data, items
        self._arguments = (data, items, columns, collate, jump, one), more
        self._items: Iterator[Any] | None = None
        self._kept: list[Rows | _Failed] = []
        self._at = 0  # the number of the first row that is kept

    def fresh(self) -> Source:
        arguments, more = self._arguments
        found = Stream(*arguments, **more)
        found.begin()
        return found

    def begin(self) -> None:
        self._begun()

    def _begun(self) -> Iterator[Any]:
        """The batches, which begin with the first call."""
        if self._items is None:
            self._items = self._iterate(iter(self._data))
        return self._items

    def skip_to(self, start: int) -> None:
        if self._jump is not None and start > 0 and start >= self._at + self._count():
            iterator, self._at = self._jump(start)
            self._kept, self._items = [], self._iterate(iterator)

    def close(self) -> None:
        self._kept, self._items = [], iter(())

    def together(self, item: Any) -> Any:
        if self._collate is None:
            return super().together(item)
        return put_together(item, self._collate, self.columns)

    def _more(self) -> bool:
        """Keep one batch more, if there is one."""
        place = self._at + self._count()
        item, failed = None, None
        try:
            item = next(self._begun())
        except StopIteration:
            return False
        except Exception as error:
            failed = error
        # Outside of the handler, because what is raised there would keep the first error.
        found = self._rows_of(item, place) if failed is None else self._apart(place, failed)
        self._kept += [part for part in found if len(part)]
        return True

    def _apart(self, place: int, error: Exception) -> list[Rows | _Failed]:
        """The rows of a batch that cannot be read, from examples that are read one by one."""
        if self._one is None or self.batch is None or str(error).startswith("DataLoader "):
            raise ValueError(
                f"{self.name} failed after {place} examples: {short(error)}: repair it and call "
                "again; a folder keeps the batches before"
            ) from error
        error.__traceback__ = None  # whose frames keep the processes of a loader
        one, gather = self._one
        good: dict[int, Any] = {}
        failed: dict[int, Exception] = {}
        places = range(place, min(place + self.batch, self.length or place))
        for i in places:
            try:
                good[i] = one(i)
            except Exception as caught:
                failed[i] = ValueError(
                    f"{self.where(i)} cannot be read: {short(caught)}: repair it, or pass "
                    "on_error='skip'"
                )
                failed[i].__cause__ = caught
        rows = self._gathered(gather, good) if good else None
        each = iter([] if rows is None else [rows.pick(slice(j, j + 1)) for j in range(len(rows))])
        return [_Failed(failed[i]) if i in failed else next(each) for i in places]

    def _gathered(self, gather: Callable[[list[Any]], Any], good: dict[int, Any]) -> Rows:
        place = min(good)
        try:
            item = gather(list(good.values()))
        except Exception as error:
            raise ValueError(
                f"{self.where(place, onwards=True)} cannot be put into one batch: {short(error)}: "
                "bring them into one form"
            ) from error
        rows = self.rows(item, place, numbers=list(good))
        if len(rows) != len(good):
            raise ValueError(
                f"{self.where(place, onwards=True)}: collate_fn made {len(rows)} rows of "
                f"{len(good)} examples, expected one row of each"
            )
        return rows

    def _rows_of(self, item: Any, place: int) -> list[Rows | _Failed]:
        """A batch as rows; examples that are no batch one by one."""
        try:
            return [self.rows(item, place)]
        except (TypeError, ValueError):
            if self._collate is None:
                raise
        found: list[Rows | _Failed] = []
        for i, example in enumerate(item, place):
            try:
                found.append(self.rows([example], i, alone=True))
            except (TypeError, ValueError) as error:
                found.append(_Failed(error))
        return found

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
        return None if end == start else self._taken(start, min(stop, end), skip)

    def _taken(self, start: int, stop: int, skip: bool) -> Batch:
        """The rows from start to stop, which are no longer kept."""
        found: list[Rows] = []
        rest: list[Rows | _Failed] = []
        failed: dict[int, Exception] = {}
        at = self._at
        for part in self._kept:
            a, b, end = max(start, at), min(stop, at + len(part)), at + len(part)
            if at >= stop:
                rest.append(part)
            elif isinstance(part, _Failed):
                if not skip:
                    raise part.error
                failed[at] = part.error
            else:
                found.append(part.pick(slice(a - at, b - at)))
                rest += [part.pick(slice(stop - at, None))] if end > stop else []
            at = end
        self._kept, self._at = rest, stop
        rows = joined(found) if found else None
        return Batch(start, stop - start, rows, places_of(start, stop, failed), failed)

    def first(self) -> Rows | None:
        try:
            while not self._kept and self._more():
                pass
        except BaseException:
            self.close()
            raise
        return next((part for part in self._kept if isinstance(part, Rows)), None)


class _Failed:
    """An example that cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1
