"""Attributions as tables."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attrfn._torch.extras import need
from attrfn._torch.say import say
from attrfn.data._read import Attributions, read
from attrfn.data._sources import first_line

INDEX = "index"


def to_pandas(attributions: Attributions | str | os.PathLike[str]) -> Any:
    """The attributions of a folder as a table: a row for each example, a column for each element.

    Args:
        attributions: What ``read`` returns, or the folder.

    Returns:
        A ``pandas.DataFrame`` with the numbers of the examples as index. Columns are the features
        of a table by name; else elements, such as ``attribution[0, 3]``.

    Raises:
        ImportError: pandas is missing.
        ValueError: The folder is damaged.

    Example:
        >>> import tempfile, torch, attrfn.data
        >>> out = tempfile.mkdtemp()
        >>> f = lambda x: (x**2).sum(1)
        >>> a = attrfn.data.explain(attrfn.gradient, f, torch.eye(2), out=out, progress=False)
        >>> attrfn.data.to_pandas(a)
               attribution[0]  attribution[1]
        index
        0                 2.0             0.0
        1                 0.0             2.0
    """
    pandas = need("pandas", "to_pandas", "data")
    a = _opened(attributions)
    columns = _columns(a, 0, len(a))
    index = columns.pop(INDEX)
    found = pandas.DataFrame({k: t.numpy() for k, t in columns.items()})
    found.index = pandas.Index(index.numpy(), name=INDEX)
    return found


def to_parquet(
    attributions: Attributions | str | os.PathLike[str], path: str | os.PathLike[str]
) -> Path:
    """Write the attributions of a folder into one Parquet file, shard by shard.

    Args:
        attributions: What ``read`` returns, or the folder.
        path: The file, with the columns of ``to_pandas`` and a column ``index``.

    Returns:
        The path.

    Raises:
        ImportError: pyarrow is missing.
        OSError: The file cannot be written; an earlier one is left as it is.
        ValueError: The folder is damaged.
    """
    arrow, parquet = (
        need("pyarrow", "to_parquet", "data"),
        need("pyarrow.parquet", "to_parquet", "data"),
    )
    a, file = _opened(attributions), Path(path)
    beside = file.with_name(f".{file.name}.part")
    tables = (
        arrow.table({k: t.numpy() for k, t in _columns(a, start, stop).items()})
        for start, stop in a.parts() or [(0, 0)]
    )
    first = next(tables)
    try:
        with parquet.ParquetWriter(str(beside), first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
        os.replace(beside, file)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"the table cannot be written to {file} ({first_line(error)}): free space or give "
            "another path; a file that was there is as it was",
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return file


def _opened(attributions: Any) -> Attributions:
    if isinstance(attributions, Attributions):
        return attributions
    if not isinstance(attributions, (str, os.PathLike)):
        raise TypeError(
            f"attributions is {say(attributions)}, expected what attrfn.data.read returns, or a "
            "folder"
        )
    return read(attributions)


def _columns(a: Attributions, start: int, stop: int) -> dict[str, Tensor]:
    """The columns of some rows, by name."""
    leaves, index = a.rows(start, stop)
    found = {INDEX: index}
    table = a.manifest["table"]
    for leaf, t in zip(a.names(), leaves, strict=True):
        wide = t.float() if t.dtype in (torch.bfloat16, torch.float16) else t
        places = itertools.product(*map(range, t.shape[1:]))
        for column, place in zip(
            wide.flatten(1).T if t.ndim > 1 else wide[None], places, strict=True
        ):
            shown = f"{leaf}[{', '.join(map(str, place))}]" if place else leaf
            found[table[place[0]] if table else shown] = column
    return found
