"""A ``ray.data.Dataset`` as data: row by row in the order of its blocks."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from attrfn._torch.extras import need
from attrfn.data._columns import Columns
from attrfn.data._streams import Stream

_ROWS = 256  # of a batch that is read, which is cut to the size that is asked for


def is_ray_data(data: Any) -> bool:
    """Whether data are a data set of Ray."""
    return type(data).__module__.startswith("ray.data.")


def ray_stream(data: Any, columns: Columns) -> Stream:
    """The source of a data set of Ray that is read from the start."""
    return Stream(_Batches(data), iter, columns, length=data.count())


class _Batches:
    """The batches of a data set of Ray, as often as they are asked for."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        with _in_order(self._data):
            yield from self._data.iter_batches(batch_size=_ROWS, batch_format="numpy")


class Blocks:
    """A data set of Ray whose rows can be read by number, from the object store.

    Args:
        data: The data set, which is run once.
    """

    def __init__(self, data: Any) -> None:
        ray = need("ray", "a ray.data.Dataset", "ray")
        with _in_order(data):
            self._blocks = data.to_numpy_refs()
        # Where each block ends is what tasks say that see one block each.
        rows = ray.remote(_rows)
        sizes = ray.get([rows.remote(block) for block in self._blocks])
        self._stops = list(itertools.accumulate(sizes))
        self.column_names = data.columns() or []
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        """The number of rows."""
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, rows: slice) -> dict[str, Any]:
        """Columns of some rows."""
        numpy = need("numpy", "a ray.data.Dataset", "ray")
        start, stop, _ = rows.indices(len(self))
        parts = []
        while start < stop:
            i = bisect.bisect_right(self._stops, start)
            before = self._stops[i - 1] if i else 0
            end = min(stop, self._stops[i])
            block = self._block(i)
            parts.append({k: v[start - before : end - before] for k, v in block.items()})
            start = end
        if len(parts) == 1:
            return parts[0]
        return {name: numpy.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _block(self, i: int) -> Any:
        """A block, of which the last one stays at hand."""
        if self._last[0] != i:
            ray = need("ray", "a ray.data.Dataset", "ray")
            self._last = i, ray.get(self._blocks[i])
        return self._last[1]

    def __getstate__(self) -> dict[str, Any]:
        """The references, and no block."""
        return {**vars(self), "_last": (-1, None)}


def _rows(block: dict[str, Any]) -> int:
    return len(next(iter(block.values()), ()))


@contextlib.contextmanager
def _in_order(data: Any) -> Iterator[None]:
    """Have Ray keep the order of the blocks of a data set while it is read."""
    # Without this, blocks come as they are ready, in another order each time.
    options = data.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        yield
    finally:
        options.preserve_order = before
