"""Where attributions go: into memory, a running statistic or a folder."""

from __future__ import annotations

from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._explain.shared import marked
from attrfn._torch.typing import Tree
from attrfn._torch.warn import warn
from attrfn.data._ahead import Behind
from attrfn.data._folder import Folder, cannot_write
from attrfn.data._reduce import Reduce
from attrfn.data._runner import Found
from attrfn.data._shards import pack
from attrfn.data._sources import joined_leaves
from attrfn.data._tree import form_and_leaves

# A shard is closed when it has so many bytes: it waits in memory, twice while it is written.
_BYTES = 2**25
# Batches of a shard at most, and bytes of inputs: what a killed process loses.
MOST_BATCHES, INPUT_BYTES = 16, 2**24


class Memory:
    """Keeps the attributions, or a statistic of them.

    Args:
        reduce: The statistic; None: the attributions.
        length: How many examples there will be, None if that is unknown.
    """

    def __init__(self, reduce: Reduce | None, length: int | None = None) -> None:
        self._reduce = reduce
        self._state = None if reduce is None else reduce.init()
        self._length = length
        self._parts: list[list[Tensor]] = []
        self._whole: list[Tensor] = []  # of a known length, filled batch by batch
        self._form: tuple[Any, ...] | None = None
        self._failed: dict[int, str] = {}
        self._scores: str | None = None

    def put(self, found: Found) -> None:
        """Take the attributions of a batch."""
        self._failed.update(found.failed)
        leaves, spec = optree.tree_flatten(found.tree)
        form = (spec, *[(t.dtype, t.shape[1:]) for t in leaves])
        if self._form is not None and form != self._form:
            raise ValueError(
                f"example {found.start}: the attributions are {_said(form)}, expected "
                f"{_said(self._form)} as for the first batch: bring all rows into one form"
            )
        self._form = form
        if self._reduce is not None:
            tree, index = found.good()
            if len(index):
                self._state = self._reduce.update(self._state, tree, index)
            return
        self._scores = found.scores or self._scores
        if self._length is None:
            self._parts.append(leaves)
            return
        if not self._whole:
            self._whole = [t.new_empty(self._length, *t.shape[1:]) for t in leaves]
        for whole, t in zip(self._whole, leaves, strict=True):
            whole[found.start : found.start + found.size] = t

    def finish(self) -> Any:
        """The attributions of all examples, or the statistic."""
        if self._failed:
            first = min(self._failed)
            warn(
                f"{len(self._failed)} of the examples failed, the first is {first}: "
                f"{self._failed[first]}; their attributions are "
                + ("nan" if self._reduce is None else "left out")
            )
        if self._reduce is not None:
            return self._reduce.compute(self._state)
        if self._form is None:
            raise ValueError("data has no examples, expected at least one")
        leaves = marked(self._whole or joined_leaves(self._parts), self._scores)
        return optree.tree_unflatten(self._form[0], leaves)


def _said(form: tuple[Any, ...]) -> str:
    shapes = " and ".join(f"{tuple(s)} {d}".replace("torch.", "") for d, s in form[1:5])
    return shapes or "nothing"


class _Piece(NamedTuple):
    """What becomes a shard."""

    start: int
    stop: int
    leaves: list[list[Tensor]]
    numbers: list[Tensor]
    failed: dict[int, str]
    size: int


class Shards:
    """Writes shards into a folder, in a thread.

    Args:
        folder: The folder.
        manifest: What the manifest says, without the form of the attributions.
        rows: The rows after which a shard ends.
    """

    def __init__(self, folder: Folder, manifest: dict[str, Any], rows: int) -> None:
        self._folder = folder
        self._manifest = manifest
        self._rows = rows
        self._found: list[tuple[Found, list[Tensor]]] = []
        self._size = 0
        self._form: Any = None
        self._behind = Behind(self._write)

    def put(self, found: Found, size: int) -> None:
        """Take the attributions of a batch.

        Args:
            found: The attributions.
            size: How many rows are explained at once from now on.
        """
        form, leaves = form_and_leaves(found.tree)
        self._check(found, form, leaves)
        if self._found and self._found[-1][0].start + self._found[-1][0].size != found.start:
            self._close()
        self._found.append((found, leaves))
        self._size = size
        total = sum(t.numel() * t.element_size() for _, ts in self._found for t in ts)
        if (found.start + found.size) % self._rows == 0 or total >= _BYTES:
            self._close()

    def _check(self, found: Found, form: Any, leaves: list[Tensor]) -> None:
        """Compare the form with that of the manifest, or put it there."""
        here = {
            "form": form,
            "dtypes": [str(t.dtype).removeprefix("torch.") for t in leaves],
            "shapes": [list(t.shape[1:]) for t in leaves],
        }
        if self._form is None:
            self._form = {k: self._folder.manifest.get(k, v) for k, v in here.items()}
        if here != self._form:
            raise ValueError(
                f"example {found.start}: the attributions have the shapes {here['shapes']}, "
                f"expected {self._form['shapes']} as those before: bring all rows into one form"
            )
        if not self._folder.manifest:
            table = self._manifest["table"]
            fits = table is not None and here["shapes"] == [[len(table)]]
            more = {"table": table if fits else None, "scores": found.scores}
            self._folder.begin({**self._manifest, **here, **more})

    def _close(self) -> None:
        """Give what has come so far to the thread."""
        found, self._found = self._found, []
        if not found:
            return
        last = found[-1][0]
        failed: dict[int, str] = {}
        for f, _ in found:
            failed.update(f.failed)
        leaves = [ts for _, ts in found]
        index = [f.numbers for f, _ in found]
        stop = last.start + last.size
        self._behind.put(_Piece(found[0][0].start, stop, leaves, index, failed, self._size))

    def _write(self, piece: _Piece) -> None:
        table = self._folder.manifest["table"]
        name = f"rows-{piece.start:012}-{piece.stop:012}.{'parquet' if table else 'safetensors'}"
        line = {
            "start": piece.start,
            "stop": piece.stop,
            "size": piece.size,
            "failed": {str(i): why for i, why in piece.failed.items()},
        }
        content = pack(joined_leaves(piece.leaves), torch.cat(piece.numbers), table)
        try:
            self._folder.add(name, content, line)
        except OSError as error:
            rows = f"rows {piece.start} to {piece.stop - 1}"
            raise cannot_write(error, rows, self._folder.path / name) from error

    def finish(self, total: int | None) -> None:
        """Write what is left and, if all examples have been explained, say so."""
        try:
            self._close()
        finally:
            self._behind.close()
        if total is not None and self._folder.total() != total:
            self._folder.finish(total)

    def stop(self) -> None:
        """Write what is left after an error, which is the one to raise."""
        is_of_writing = self._behind.failed
        try:
            self.finish(None)
        except Exception as error:
            if not is_of_writing:
                warn(f"what was explained last could not be written: {error}")


def tree_bytes(tree: Tree) -> int:
    """The bytes of the tensors of a tree."""
    leaves: list[Any] = optree.tree_leaves(tree)
    return sum(t.numel() * t.element_size() for t in leaves)
