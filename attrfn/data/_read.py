"""What a folder holds, read when it is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import is_integer
from attrfn._explain.shared import marked
from attrfn._torch.say import say
from attrfn._torch.typing import Tree
from attrfn.data._log import MANIFEST, all_lines, current, read_json
from attrfn.data._reduce import reduction
from attrfn.data._shards import Shard
from attrfn.data._sources import joined_leaves
from attrfn.data._tree import leaf_names, rebuilt

_TABLES = 4  # which are kept decoded, because a table cannot be mapped into memory


class Attributions:
    """The attributions in a folder, mapped into memory: only the rows asked for are read.

    ``a[i]`` are those of one example, ``a[i:j]`` of some with a leading dimension, ``len(a)`` says
    how many there are, and a loop goes over examples; ``shards`` has larger parts.

    Attributes:
        path: The folder.
        manifest: What was run: method, options, key, digests, versions.
        complete: Whether all examples of the data set are there.
        failed: Why examples failed, by their place; their attributions are nan.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_json(path / MANIFEST)
        self._lines = all_lines(path)
        self._open: list[Shard] = []  # tables that are in memory
        self._shards: list[tuple[int, int, Shard, str]] = []
        self.failed: dict[int, str] = {}
        end = 0
        for line in current(self._lines):
            start = line["start"]
            if start != end:
                raise ValueError(
                    f"{path} lacks the rows {end} to {start - 1}: call attrfn.data.explain again, "
                    "which explains them"
                )
            form = self.manifest
            shard = Shard(path / line["file"], line["bytes"], form["dtypes"], form["table"])
            self._shards.append((start, line["stop"], shard, line["sha256"]))
            self.failed |= {int(i): why for i, why in line["failed"].items()}
            end = line["stop"]
        self._length = end
        self.complete = any(line.get("complete") == end for line in self._lines)

    def __len__(self) -> int:
        """The number of examples."""
        return self._length

    def __repr__(self) -> str:
        """What is there, in a line."""
        state = "complete" if self.complete else "not complete"
        return f"Attributions({str(self.path)!r}, {len(self)} examples, {state})"

    def __getitem__(self, i: int | slice) -> Tree:
        """The attributions of an example, or of several."""
        if not isinstance(i, slice) and not is_integer(i):
            raise TypeError(
                f"the index is {say(i)}, expected an int or a slice: index what a[:] gives"
            )
        if isinstance(i, slice):
            start, stop, step = i.indices(len(self))
            if step != 1:
                raise ValueError(f"the slice has the step {step}, expected 1: index what it gives")
            return self._tree(self.rows(start, max(start, stop))[0])
        place = i + len(self) if i < 0 else i
        if not 0 <= place < len(self):
            raise IndexError(f"there is no example {i}: there are {len(self)}")
        return self._tree([t[0] for t in self.rows(place, place + 1)[0]])

    def __iter__(self) -> Iterator[Tree]:
        """The examples, one after the other."""
        for start, stop, _, _ in self._shards:
            leaves, _ = self.rows(start, stop)
            for i in range(stop - start):
                yield self._tree([t[i] for t in leaves])

    def shards(self) -> Iterator[Tree]:
        """The attributions shard by shard, with a leading dimension."""
        for start, stop, _, _ in self._shards:
            yield self[start:stop]

    def index(self) -> Tensor:
        """The numbers by which random numbers were drawn: places, or the column ``index``."""
        parts = [self._opened(shard).index(0, b - a) for a, b, shard, _ in self._shards]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def names(self) -> list[str]:
        """The names of the tensors of the tree, in their order."""
        return list(leaf_names(self.manifest["form"]))

    def reduce(self, how: Any) -> Any:
        """What ``attrfn.data.explain(..., reduce=how)`` gives, from the folder."""
        method = reduction(how)
        state = method.init()
        for start, stop, _, _ in self._shards:
            leaves, index = self.rows(start, stop)
            good = [i - start for i in range(start, stop) if i not in self.failed]
            if len(good) < stop - start:
                leaves, index = [t[good] for t in leaves], index[good]
            if good:
                state = method.update(state, self._tree(leaves), index)
        return method.compute(state)

    def verify(self) -> None:
        """Read all shards and compare their digests.

        Raises:
            ValueError: One is gone or damaged.
        """
        for _, _, shard, sha in self._shards:
            found = (
                hashlib.sha256(shard.path.read_bytes()).hexdigest() if shard.path.exists() else ""
            )
            if found != sha:
                raise ValueError(
                    f"{shard.path} is not as it was written: delete it and call "
                    "attrfn.data.explain again, which writes its rows again"
                )

    def parts(self) -> list[tuple[int, int]]:
        """The first row of each shard, and the row after its last."""
        return [(a, b) for a, b, _, _ in self._shards]

    def rows(self, start: int, stop: int) -> tuple[list[Tensor], Tensor]:
        """The tensors of some examples in the order of ``names``, and their numbers."""
        parts = [
            self._opened(shard).rows(max(start, a) - a, min(stop, b) - a)
            for a, b, shard, _ in self._shards
            if a < stop and start < b
        ]
        if not parts:
            form = zip(self.manifest["shapes"], self.manifest["dtypes"], strict=True)
            empty = [torch.empty(0, *s, dtype=getattr(torch, d)) for s, d in form]
            return empty, torch.empty(0, dtype=torch.int64)
        return joined_leaves([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _opened(self, shard: Shard) -> Shard:
        """The shard; a table that has not been used for long leaves the memory."""
        if shard.table and shard not in self._open:
            self._open.append(shard)
            for old in self._open[:-_TABLES]:
                old.close()
            del self._open[:-_TABLES]
        return shard

    def _tree(self, leaves: list[Tensor]) -> Tree:
        return rebuilt(self.manifest["form"], list(marked(leaves, self.manifest["scores"])))


def read(folder: str | os.PathLike[str]) -> Attributions:
    """Open a folder that ``explain`` has written, or still writes.

    Args:
        folder: The folder.

    Returns:
        Its attributions, of which only the rows asked for are read.

    Raises:
        FileNotFoundError: There is no such folder, or nothing has been written yet.
        ValueError: It is damaged; the message says how to mend it.

    Example:
        >>> import tempfile, torch, attrfn.data
        >>> out = tempfile.mkdtemp()
        >>> f = lambda x: (x**2).sum(1)
        >>> a = attrfn.data.explain(attrfn.gradient, f, torch.eye(3), out=out, progress=False)
        >>> attrfn.data.read(out)[1]
        tensor([0., 2., 0.])
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder is {say(folder)}, expected the path of a folder")
    path = Path(folder)
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(
            f"folder is {say(str(folder))}, which has no manifest, expected one that "
            "attrfn.data.explain has written a shard to"
        )
    return Attributions(path)
