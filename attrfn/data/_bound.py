"""What a model function binds: the same for all examples, unless it is a column."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import optree
from torch import Tensor, nn

from attrfn import per_example, shared
from attrfn._copies.batch import binds_rows, bound_tensors, unmarked_rows
from attrfn._torch.typing import ModelFn


def shared_by_all(model_fn: ModelFn, length: int | None) -> ModelFn:
    """The model function with its bound tensors marked as the same for all examples.

    A batch may be as long as such a tensor by chance.

    Args:
        model_fn: The model function.
        length: The number of examples, None if it is unknown.

    Raises:
        ValueError: A tensor has a row for each example of the data, as it seems.
    """
    if not isinstance(model_fn, functools.partial) or not bound_tensors(model_fn):
        return model_fn
    if length is not None and length > 1 and binds_rows(model_fn, length):
        raise ValueError(
            f"model_fn binds a tensor of {length} rows, as many as there are examples: name it in "
            "columns['bind'], or mark it with attrfn.shared if it is the same for all"
        )
    parts: Any = (model_fn.args, dict(model_fn.keywords))
    args, keywords = optree.tree_map(_marked, parts)
    return functools.partial(shared_by_all(model_fn.func, length), *args, **keywords)


def bound_to(model_fn: ModelFn, columns: Mapping[str, Tensor], rows: int) -> ModelFn:
    """The model function with columns bound to it.

    Raises:
        TypeError: There are several.
        ValueError: An object that it binds has a tensor as long as the batch.
    """
    if unmarked_rows(model_fn, rows):
        raise ValueError(
            f"model_fn binds an object with a tensor of {rows} rows, which a batch of {rows} "
            "examples takes for its own: mark it with attrfn.shared"
        )
    if not columns:
        return model_fn
    if not callable(model_fn):
        raise TypeError(
            "columns['bind'] is given with a list of models, expected one model: let each of them "
            "take the column as an input"
        )
    marked = {name: per_example(t) for name, t in columns.items()}
    return functools.partial(model_fn, **marked)


def _marked(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return shared_by_all(value, None)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return shared(value)
    return value
