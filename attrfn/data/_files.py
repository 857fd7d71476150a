"""Parquet and safetensors files as data sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrfn._torch.say import say
from attrfn.data._columns import Columns, no_column
from attrfn.data._extras import need
from attrfn.data._sources import Indexed, Source, first_line, plain


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
    except Exception as error:
        if str(error).startswith("columns"):
            raise
        raise ValueError(
            f"{file} cannot be read: {first_line(error)}: it may be truncated, so write it again"
        ) from error
    return Indexed(_named(file, get), columns, name=str(file), length=length)


def _named(file: Path, get: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    def read(start: int, stop: int) -> Any:
        try:
            return get(start, stop)
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith(("columns", "data")):
                raise
            raise ValueError(
                f"{file}, rows {start} to {stop - 1} cannot be read: {first_line(error)}: the file "
                "may be damaged, so write it again"
            ) from error

    return read


def _needed(columns: Columns, names: list[str]) -> list[str]:
    """The columns that are read."""
    for name in columns.needed():
        if name not in names:
            raise no_column(dict.fromkeys(names), name)
    return [str(name) for name in columns.needed()] or names


def _safetensors(file: Path, columns: Columns) -> tuple[Callable[[int, int], Any], int]:
    """Slices of the tensors, which are mapped into memory."""
    opened = need("safetensors", "a safetensors file").safe_open(str(file), framework="pt")
    names = list(opened.keys())
    needed = _needed(columns, names)
    slices = {name: opened.get_slice(name) for name in needed}
    sizes = {name: (s.get_shape() or [1])[0] for name, s in slices.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"its tensors have {say(sizes)} rows, expected one for each example")

    def get(start: int, stop: int) -> Any:
        return plain({name: s[start:stop] for name, s in slices.items()}, columns)

    return get, next(iter(sizes.values()), 0)


def _parquet(file: Path, columns: Columns) -> tuple[Callable[[int, int], Any], int]:
    """Row groups, of which the last one stays in memory."""
    parquet = need("pyarrow.parquet", "a Parquet file")
    opened = parquet.ParquetFile(str(file), memory_map=True)
    sizes = [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)]
    starts = [sum(sizes[:g]) for g in range(len(sizes))]
    names = opened.schema_arrow.names
    needed = _needed(columns, names)
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
        table = need("pyarrow", "a Parquet file").concat_tables(parts)
        return plain({name: _array(table.column(name)) for name in needed}, columns)

    return get, sum(sizes)


def _array(column: Any) -> Any:
    """A column as an array of numpy, (B,) or (B, L) of lists of one length; else as a list."""
    array = column.combine_chunks()
    if array.null_count:
        raise ValueError("a column has empty cells, expected a number in each of them")
    if hasattr(array, "flatten") and hasattr(array.type, "value_type"):
        flat = array.flatten()
        if (
            len(array)
            and len(flat) % len(array) == 0
            and len(set(array.value_lengths().to_pylist())) == 1
        ):
            return flat.to_numpy(zero_copy_only=False).reshape(len(array), -1)
        return array.to_pylist()
    return array.to_numpy(zero_copy_only=False)
