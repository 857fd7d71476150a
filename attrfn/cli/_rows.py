"""Rows of a data set as a method gets them, through ``attrfn.data.explain``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optree
from torch import Tensor

import attrfn
import attrfn.data
from attrfn._torch.typing import ModelFn, Tree
from attrfn.cli._data import Data
from attrfn.cli._method import as_dtype
from attrfn.cli._model import dtype_of


class Batch(NamedTuple):
    """The first rows.

    Attributes:
        model_fn: The model, with the columns that are bound.
        inputs: The inputs.
        options: What of a method's options is known for them.
    """

    model_fn: ModelFn
    inputs: Tree
    options: dict[str, Any]


class _Enough(BaseException):
    """Ends a loop over data as soon as the first batch is there; no handler of errors takes it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


def first_rows(model: Any, data: Data, rows: int, **given: Any) -> Batch:
    """The first rows of a data set, as ``attrfn.data.explain`` would give them to a method.

    Args:
        model: The model.
        data: The data set.
        rows: How many, or fewer where there are no more.
        given: A target and baselines.

    Raises:
        ValueError: There are none.
    """

    def stop(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        raise _Enough(Batch(model_fn, inputs, options))

    _sign(stop)
    options: dict[str, Any] = {"batch_size": rows, "progress": False, **given}
    try:
        attrfn.data.explain(stop, model, data.source, columns=data.columns, **options)
    except _Enough as found:
        if data.casts:
            dtype = dtype_of(model)
            return found.batch._replace(inputs=as_dtype(found.batch.inputs, dtype))
        return found.batch
    raise ValueError("DATA has no examples, expected at least one")


def mean_inputs(model: Any, data: Data, progress: bool) -> Tree:
    """The mean of all inputs, (1, ...), in memory that does not grow.

    Raises:
        ValueError: The inputs are not floating numbers.
    """

    def inputs_of(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        leaves: list[Tensor] = optree.tree_leaves(inputs)
        if not all(t.is_floating_point() for t in leaves):
            raise ValueError("--baselines is mean, and the inputs are whole numbers: give a FILE")
        return inputs

    _sign(inputs_of)
    if _is_read_once(data.source):
        raise ValueError(
            "--baselines is mean, which reads DATA twice, and DATA is an iterator: let its "
            "function return a Dataset, or give a FILE"
        )
    columns = data.columns and {k: v for k, v in data.columns.items() if k == "inputs"}
    found = attrfn.data.explain(
        inputs_of, model, data.source, columns=columns, reduce="mean", progress=progress
    )
    return optree.tree_map(lambda t: t[None], found)


def _is_read_once(source: Any) -> bool:
    """Whether a data set can be read only once."""
    return isinstance(source, Iterator)


def _sign(function: Callable[..., Any]) -> None:
    """Let a function look as if it had the options that columns may name."""
    options = inspect.signature(attrfn.feature_ablation)
    function.__signature__ = options  # type: ignore[attr-defined]
