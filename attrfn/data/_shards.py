"""Shards as bytes: safetensors, or Parquet for the features of a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attrfn.data._extras import need
from attrfn.data._sources import first_line

INDEX = "index"


def pack(leaves: Sequence[Tensor], index: Tensor, table: list[str] | None) -> bytes:
    """The content of a shard.

    Args:
        leaves: The attributions, each (R, ...).
        index: The numbers of the examples.
        table: The names of the features, if the shard is a table.
    """
    if table is not None:
        return _pack_table(leaves[0], index, table)
    save = need("safetensors.torch", "out").save
    tensors = {str(i): t.contiguous() for i, t in enumerate(leaves)}
    content: bytes = save({**tensors, INDEX: index.contiguous()})
    return content


def _pack_table(t: Tensor, index: Tensor, table: list[str]) -> bytes:
    arrow = need("pyarrow", "out for a table")
    parquet = need("pyarrow.parquet", "out for a table")
    wide = t if t.dtype in (torch.float32, torch.float64) else t.float()
    columns = {INDEX: index.numpy(), **{n: wide[:, i].numpy() for i, n in enumerate(table)}}
    file = io.BytesIO()
    parquet.write_table(arrow.table(columns), file)
    return file.getvalue()


class Shard:
    """A shard that is read when rows of it are asked for, from a file mapped into memory.

    Args:
        path: The file.
        size: The bytes that it was written with.
        dtypes: The types of the leaves.
        table: The names of the features, if the shard is a table.
    """

    def __init__(self, path: Path, size: int, dtypes: Sequence[str], table: list[str] | None):
        self.path = path
        self.size = size
        self.dtypes = dtypes
        self.table = table
        self._file: Any = None

    def rows(self, start: int, stop: int) -> tuple[list[Tensor], Tensor]:
        """The leaves and the numbers of some rows of the shard.

        Raises:
            ValueError: The file is gone, cut or damaged.
        """
        try:
            found = self.path.stat().st_size
        except OSError:
            found = -1
        if found != self.size:
            what = "is missing" if found < 0 else f"has {found} bytes and was {self.size} long"
            raise ValueError(
                f"{self.path} {what}: call attrfn.data.explain again, which writes its rows again"
            )
        try:
            return self._table(start, stop) if self.table else self._tensors(start, stop)
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.path} cannot be read: {first_line(error)}: delete it and call "
                "attrfn.data.explain again, which writes its rows again"
            ) from error

    def _tensors(self, start: int, stop: int) -> tuple[list[Tensor], Tensor]:
        if self._file is None:
            self._file = need("safetensors", "read").safe_open(str(self.path), framework="pt")
        names = [*map(str, range(len(self.dtypes))), INDEX]
        *leaves, index = [self._file.get_slice(name)[start:stop] for name in names]
        return leaves, index

    def _table(self, start: int, stop: int) -> tuple[list[Tensor], Tensor]:
        if self._file is None:
            parquet = need("pyarrow.parquet", "read of a table")
            self._file = parquet.read_table(str(self.path), memory_map=True)
        part = self._file.slice(start, stop - start)
        names = [*(self.table or ()), INDEX]
        *columns, index = [torch.tensor(part.column(name).to_numpy()) for name in names]
        return [torch.stack(columns, 1).to(getattr(torch, self.dtypes[0]))], index
