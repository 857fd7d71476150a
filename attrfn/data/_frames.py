"""Tables of pandas, polars and Arrow as dicts of their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attrfn.data._columns import BadRow


def as_columns(value: Any) -> Any:
    """A table as a dict from names to arrays; anything else as it is."""
    if isinstance(value, (Tensor, Mapping, tuple, list)):
        return value
    if hasattr(value, "columns") and hasattr(value, "to_numpy"):  # pandas and polars
        return {name: value[name].to_numpy() for name in value.columns}
    if is_arrow(value):
        return {name: _array(value.column(name), name) for name in value.schema.names}
    return value


def is_arrow(value: Any) -> bool:
    """Whether this is a table or a batch of Arrow."""
    return type(value).__module__.split(".")[0] == "pyarrow" and hasattr(value, "schema")


def _array(column: Any, name: str) -> Any:
    """A column as an array of numpy, (B, ...) of lists of one length; else as a list.

    Raises:
        BadRow: It has an empty cell.
    """
    for change in ("combine_chunks", "dictionary_decode"):
        column = getattr(column, change)() if hasattr(column, change) else column
    if column.null_count:
        raise _empty(name, column.is_null().to_pylist().index(True))
    if not hasattr(column.type, "value_type"):
        return column.to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().to_pylist()
    if len(set(lengths)) != 1 or not lengths[0]:
        return column.to_pylist()
    try:
        flat = _array(column.flatten(), name)
    except BadRow as error:
        raise _empty(name, error.row // lengths[0]) from error
    return (
        column.to_pylist()
        if isinstance(flat, list)
        else flat.reshape(-1, lengths[0], *flat.shape[1:])
    )


def _empty(name: str, row: int) -> BadRow:
    return BadRow(f"column {name!r} has an empty cell, expected a number: fill it in", row)
