"""Which source serves a data set of which kind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from attrfn._torch.say import say
from attrfn.data._columns import BadRow, Columns, no_column
from attrfn.data._files import file_source
from attrfn.data._frames import as_columns
from attrfn.data._indexed import Examples, Held, Indexed
from attrfn.data._ray_data import is_ray_data, ray_stream
from attrfn.data._sources import Source
from attrfn.data._streams import Stream

_EXAMPLES = 32  # of a stream, which are put together
_SHUFFLES = (RandomSampler, WeightedRandomSampler, SubsetRandomSampler)


def source(data: Any, columns: Columns) -> Source:
    """The source of a data set of any kind.

    Raises:
        TypeError: It is of none of the kinds.
    """
    if isinstance(data, (str, os.PathLike)):
        return file_source(data, columns)
    if isinstance(data, DataLoader):
        return _loader(data, columns)
    if is_ray_data(data):
        return ray_stream(data, columns)
    data = as_columns(data)
    if isinstance(data, (Tensor, Mapping, tuple)) or hasattr(data, "__array__"):
        return Held(_held(data, columns), columns)
    by_number = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, IterableDataset) or (hasattr(data, "column_names") and not by_number):
        return Stream(data, _groups, columns, collate=collated)
    if by_number and hasattr(data, "column_names"):
        return _hugging_face(data, columns)
    if by_number and not isinstance(data, list):
        return Examples(data, collated, columns)
    if isinstance(data, Iterable):
        return Stream(data, iter, columns)
    raise TypeError(
        f"data is {say(data)}, expected a DataLoader, a Dataset, tensors, an iterable of batches, "
        "or the path of a Parquet or safetensors file"
        + (": give it a __len__" if hasattr(data, "__getitem__") else "")
    )


def _held(data: Any, columns: Columns) -> Any:
    """Tensors that are in memory."""
    try:
        return columns.rows(data)
    except BadRow as error:
        raise ValueError(f"example {error.row}: {error}") from error


def _hugging_face(data: Any, columns: Columns) -> Source:
    """A data set whose slices are dicts of columns; columns that no one needs are not decoded."""
    needed = columns.needed()
    for name in needed:
        if name not in data.column_names:
            raise no_column(dict.fromkeys(data.column_names), name)
    if needed and hasattr(data, "select_columns"):
        data = data.select_columns([str(name) for name in needed])
    return Indexed(lambda a, b: data[a:b], columns, length=len(data), now=lambda: len(data))


def _loader(data: DataLoader[Any], columns: Columns) -> Source:
    batches = data.batch_sampler
    inner = getattr(batches, "sampler", data.sampler)
    if isinstance(inner, _SHUFFLES) or getattr(inner, "shuffle", False) is True:
        raise ValueError(
            f"data is a DataLoader with a {type(inner).__name__}, whose order nothing could match "
            "with the results: make it with shuffle=False"
        )
    if data.num_workers and not getattr(data, "in_order", True):
        raise ValueError(
            "data is a DataLoader with in_order=False, whose order nothing could match with the "
            "results: make it with in_order=True"
        )
    length = None
    if type(batches) is BatchSampler and isinstance(inner, Sized):
        size = batches.batch_size
        length = len(inner) // size * size if batches.drop_last else len(inner)
    in_order = type(data) is DataLoader and type(inner) is SequentialSampler and length is not None
    more = _by_number(data) if in_order else {}
    return Stream(data, iter, columns, length=length, batch=data.batch_size, **more)


def _by_number(data: DataLoader[Any]) -> dict[str, Any]:
    """How examples of a loader that goes through a data set in order are read by number."""
    whole: Any = data.dataset
    names = ["batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout"]
    names += ["multiprocessing_context", "prefetch_factor"]
    same: dict[str, Any] = {name: getattr(data, name) for name in names}

    def jump(row: int) -> tuple[Iterator[Any], int]:
        start = row // same["batch_size"] * same["batch_size"]
        return iter(DataLoader(Subset(whole, range(start, len(whole))), **same)), start

    # What starts a worker may ask for the data set, which a part of it is not.
    one = (whole.__getitem__, data.collate_fn)
    return {"one": one, "jump": jump if data.worker_init_fn is None else None}


def collated(group: list[Any]) -> Any:
    """Examples put together; a list of numbers is one of the tensors of an example."""
    kinds = set(map(type, group))
    if kinds == {Tensor}:
        return torch.stack(group)
    if kinds <= {int, float}:
        return default_collate(group)
    # Of lists default_collate makes a list with a tensor for each place, not for each example.
    return default_collate([_of_tensors(example) for example in group])


def _of_tensors(example: Any) -> Any:
    if isinstance(example, Mapping):
        return {k: _of_tensors(v) for k, v in example.items()}
    if isinstance(example, tuple) and not hasattr(example, "_fields"):
        return tuple(map(_of_tensors, example))
    if isinstance(example, list) and example and isinstance(example[0], (int, float, list)):
        return torch.as_tensor(example)
    if isinstance(example, list) and example and isinstance(example[0], Tensor):
        return torch.stack(example)
    return example


def _groups(items: Iterator[Any]) -> Iterator[list[Any]]:
    """Lists of single examples."""
    group: list[Any] = []
    failed: Exception | None = None
    try:
        for item in items:
            group.append(item)
            if len(group) == _EXAMPLES:
                yield group
                group = []
    except Exception as error:  # raised when the examples before have been taken
        failed = error
    if group:
        yield group
    if failed is not None:
        raise failed
