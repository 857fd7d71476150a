"""Shards as bytes: safetensors, or Parquet for the features of a table."""

from __future__ import annotations

import ctypes
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from attrfn._torch.extras import need
from attrfn.data._sources import short

INDEX = "index"
Buffer: TypeAlias = bytes | memoryview


# The names of types in safetensors files.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def pack(leaves: Sequence[Tensor], index: Tensor, table: list[str] | None) -> list[Buffer]:
    """The content of a shard, in parts.

    Args:
        leaves: The attributions, each (R, ...).
        index: The numbers of the examples.
        table: The names of the features, if the shard is a table.
    """
    if table is not None:
        return [_pack_table(leaves[0], index, table)]
    save = need("safetensors.torch", "out", "data").save
    tensors = {str(i): t.contiguous() for i, t in enumerate(leaves)} | {INDEX: index.contiguous()}
    if not all(t.dtype in _TYPES for t in tensors.values()):
        return [save(tensors)]
    return _pack_tensors(tensors)


def _pack_tensors(tensors: dict[str, Tensor]) -> list[Buffer]:
    """A safetensors file whose tensors are not copied.

    The library copies them while no other thread can run, which the method would wait for.
    """
    header: dict[str, Any] = {}
    parts: list[Buffer] = []
    end = 0
    # Wider numbers first, so that each is at a multiple of its width.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        t = tensors[name]
        start, end = end, end + t.numel() * t.element_size()
        header[name] = {
            "dtype": _TYPES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [start, end],
        }
        if end > start:
            parts.append(_bytes_of(t))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]


def _bytes_of(t: Tensor) -> memoryview:
    found = (ctypes.c_char * (t.numel() * t.element_size())).from_address(t.data_ptr())
    found.tensor = t  # type: ignore[attr-defined]  # which the memory belongs to
    return memoryview(found)


def _pack_table(t: Tensor, index: Tensor, table: list[str]) -> bytes:
    arrow = need("pyarrow", "out for a table", "data")
    parquet = need("pyarrow.parquet", "out for a table", "data")
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
        names = self.table or [str(i) for i in range(len(self.dtypes))]
        *leaves, index = self._columns([*names, INDEX], start, stop)
        if self.table:
            leaves = [torch.stack(leaves, 1).to(getattr(torch, self.dtypes[0]))]
        return leaves, index

    def index(self, start: int, stop: int) -> Tensor:
        """The numbers alone.

        Raises:
            ValueError: The file is gone, cut or damaged.
        """
        return self._columns([INDEX], start, stop)[0]

    def close(self) -> None:
        """Let go of what has been read."""
        self._file = None

    def _columns(self, names: list[str], start: int, stop: int) -> list[Tensor]:
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
            read = self._of_table if self.table else self._of_tensors
            return [read(name, start, stop) for name in names]
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.path} cannot be read: {short(error)}: delete it and call "
                "attrfn.data.explain again, which writes its rows again"
            ) from error

    def _of_tensors(self, name: str, start: int, stop: int) -> Tensor:
        if self._file is None:
            self._file = need("safetensors", "read", "data").safe_open(
                str(self.path), framework="pt"
            )
        found: Tensor = self._file.get_slice(name)[start:stop]
        return found

    def _of_table(self, name: str, start: int, stop: int) -> Tensor:
        if self._file is None:
            parquet = need("pyarrow.parquet", "read of a table", "data")
            self._file = parquet.read_table(str(self.path), memory_map=True)
        column = self._file.column(name).slice(start, stop - start)
        return torch.tensor(column.to_numpy())
