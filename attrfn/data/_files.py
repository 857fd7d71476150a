"""Parquet and safetensors files as data sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrfn._torch.extras import need
from attrfn._torch.say import say
from attrfn.data._columns import ColumnError, Columns, no_column
from attrfn.data._indexed import Indexed
from attrfn.data._sources import Source, short

_REMEDY = "the file may be damaged, so write it again"


def file_source(path: str | os.PathLike[str], columns: Columns) -> Source:
    """The source of a file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is of another kind, or cannot be read.
    """
    file = Path(path)
    kinds = {".parquet": _parquet, ".safetensors": _safetensors}
    if file.suffix not in kinds:
        raise ValueError(
            f"data is {say(str(path))}, expected a file that ends in .parquet or .safetensors: "
            "load other files yourself and give tensors or a Dataset"
        )
    if not file.is_file():
        raise FileNotFoundError(f"data is {say(str(path))}, and there is no such file")
    try:
        get, length = kinds[file.suffix](file, columns)
    except ImportError:
        raise
    except ColumnError as error:
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read: {short(error)}: it may be truncated, so write it again"
        ) from error
    return Indexed(get, columns, name=str(file), length=length, remedy=_REMEDY)


def _needed(columns: Columns, names: list[str]) -> list[str]:
    """The columns that are read."""
    for name in columns.needed():
        if name not in names:
            raise no_column(dict.fromkeys(names), name)
    return [str(name) for name in columns.needed()] or names


def _safetensors(file: Path, columns: Columns) -> tuple[Callable[[int, int], Any], int]:
    """Slices of the tensors, which are mapped into memory."""
    opened = need("safetensors", "a safetensors file", "data").safe_open(str(file), framework="pt")
    needed = _needed(columns, list(opened.keys()))
    slices = {name: opened.get_slice(name) for name in needed}
    shapes = {name: s.get_shape() for name, s in slices.items()}
    sizes: list[Any] = [shape[0] if shape else None for shape in shapes.values()]
    if len(set(sizes)) > 1 or None in sizes:
        raise ColumnError(
            f"its tensors have the shapes {say(shapes)}, expected one row for each example in "
            "dimension 0 of all of them"
        )

    def get(start: int, stop: int) -> Any:
        return {name: s[start:stop] for name, s in slices.items()}

    return get, next(iter(sizes), 0)


def _parquet(file: Path, columns: Columns) -> tuple[Callable[[int, int], Any], int]:
    """Row groups, of which the last one stays in memory."""
    arrow, parquet = (
        need("pyarrow", "a Parquet file", "data"),
        need("pyarrow.parquet", "a Parquet file", "data"),
    )
    opened = parquet.ParquetFile(str(file), memory_map=True)
    sizes = [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)]
    starts = [sum(sizes[:g]) for g in range(len(sizes))]
    needed = _needed(columns, opened.schema_arrow.names)
    last: dict[int, Any] = {}

    def group(g: int) -> Any:
        if g not in last:
            last.clear()
            last[g] = opened.read_row_group(g, columns=needed)
        return last[g]

    def get(start: int, stop: int) -> Any:
        parts = [
            group(g).slice(max(start - a, 0), min(stop, a + n) - max(start, a))
            for g, (a, n) in enumerate(zip(starts, sizes, strict=True))
            if a < stop and start < a + n
        ]
        return arrow.concat_tables(parts)

    return get, sum(sizes)
