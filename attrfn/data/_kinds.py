"""Which source serves a data set of which kind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate

from attrfn._torch.say import say
from attrfn.data._columns import Columns
from attrfn.data._files import file_source
from attrfn.data._ray_data import is_ray_data, ray_stream
from attrfn.data._sources import Examples, Held, Indexed, Source, Stream, plain

_EXAMPLES = 32  # of a stream, which are put together
_SHUFFLES = {"RandomSampler", "WeightedRandomSampler", "SubsetRandomSampler"}


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
    if hasattr(data, "iloc") and hasattr(data, "columns"):  # a table of pandas
        data = {name: data[name].to_numpy() for name in data.columns}
    if isinstance(data, (Tensor, Mapping, tuple)) or hasattr(data, "__array__"):
        return Held(columns.rows(data), columns)
    if isinstance(data, IterableDataset):
        return Stream(data, lambda items: _grouped(items, columns), columns, batch=_EXAMPLES)
    by_number = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if by_number and hasattr(data, "column_names"):  # Hugging Face: slices are dicts of columns
        return Indexed(lambda a, b: plain(data[a:b], columns), columns, length=len(data))
    if by_number and not isinstance(data, list):
        return Examples(data, collated, columns)
    if isinstance(data, Iterable):
        return Stream(data, lambda items: _plain(items, columns), columns)
    raise TypeError(
        f"data is {say(data)}, expected a DataLoader, a Dataset, tensors, an iterable of batches, "
        "or the path of a Parquet or safetensors file"
    )


def _loader(data: DataLoader[Any], columns: Columns) -> Source:
    batches = data.batch_sampler
    inner = getattr(batches, "sampler", data.sampler)
    kind = type(inner).__name__
    if kind in _SHUFFLES:
        raise ValueError(
            f"data is a DataLoader with a {kind}, whose order no one could match with the results: "
            "make it with shuffle=False"
        )
    length = None
    if type(batches) is BatchSampler and isinstance(inner, Sized):
        size = batches.batch_size
        length = len(inner) // size * size if batches.drop_last else len(inner)
    of_parts = lambda items: _plain(items, columns)  # noqa: E731
    return Stream(data, of_parts, columns, length=length, batch=data.batch_size)


def _plain(items: Iterator[Any], columns: Columns) -> Iterator[Any]:
    return (plain(item, columns) for item in items)


def collated(group: list[Any]) -> Any:
    """Examples put together; a list of numbers is one of the tensors of an example."""
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


def _grouped(items: Iterator[Any], columns: Columns) -> Iterator[Any]:
    """Single examples put together."""
    group: list[Any] = []
    for item in items:
        group.append(plain(item, columns))
        if len(group) == _EXAMPLES:
            yield collated(group)
            group = []
    if group:
        yield collated(group)
