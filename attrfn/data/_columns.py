"""Columns: which parts of a data set are inputs, options of a method, and bound arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._torch.say import say
from attrfn._torch.typing import Tree

Column = str | int
_MOST_NAMES = 8  # in a message


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a data set, every tensor (B, ...).

    Attributes:
        inputs: What is explained.
        options: Options of the method that differ from example to example.
        bound: Arguments of the model that do.
        numbers: The number of each example, by which its random numbers are drawn; None: its place.
    """

    inputs: Tree
    options: dict[str, Tensor]
    bound: dict[str, Tensor]
    numbers: Tensor | None

    def tree(self) -> Any:
        """All of it, as a pytree."""
        return self.inputs, self.options, self.bound, self.numbers

    def __len__(self) -> int:
        """The number of rows."""
        inputs: Any = self.inputs
        first = inputs if isinstance(inputs, Tensor) else optree.tree_leaves(inputs)[0]
        return int(first.shape[0])

    def pick(self, i: slice | Tensor) -> Rows:
        """Some of the rows."""
        return self.each(lambda t: t[i])

    def each(self, f: Callable[[Tensor], Tensor]) -> Rows:
        """A function of each tensor."""
        # A walk through a tree costs more than what is done to one tensor.
        single = isinstance(self.inputs, Tensor)
        inputs: Any = self.inputs
        return Rows(
            f(inputs) if single else optree.tree_map(f, inputs),
            {name: f(t) for name, t in self.options.items()},
            {name: f(t) for name, t in self.bound.items()},
            None if self.numbers is None else f(self.numbers),
        )


class Columns:
    """What ``columns=`` says.

    Args:
        columns: The argument; None: the data are the inputs.
        names: The options that the method takes.

    Raises:
        TypeError: It is not a dict of names.
        ValueError: It has no inputs, or a key that the method does not know.
    """

    def __init__(self, columns: Any, names: Sequence[str] | None) -> None:
        if columns is not None and not isinstance(columns, Mapping):
            raise TypeError(
                f"columns is {say(columns)}, expected a dict such as "
                "{'inputs': 'image', 'target': 'label', 'bind': {'mask': 'mask'}}"
            )
        given = dict(columns or {})
        if columns is not None and "inputs" not in given:
            raise ValueError(
                "columns has no 'inputs', expected the name of a column, a tuple or dict of names, "
                "or a list of names (the features of a table)"
            )
        self.given = columns
        self.inputs = given.pop("inputs", None)
        self.bind = given.pop("bind", {})
        self.index = given.pop("index", None)
        self.dtype: torch.dtype | None = None  # of tables; None: that of the columns
        self.options = given
        trees: Any = (self.inputs, self.bind, self.index, self.options)
        self._needed: list[Column] = list(dict.fromkeys(optree.tree_leaves(trees)))
        if columns is not None and not optree.tree_leaves(self.inputs):
            raise ValueError(f"columns['inputs'] is {say(self.inputs)}, expected names of columns")
        if not isinstance(self.bind, Mapping):
            raise TypeError(
                f"columns['bind'] is {say(self.bind)}, expected a dict from arguments of the model "
                "to names of columns"
            )
        for name in given:
            if names is not None and name not in names:
                near = difflib.get_close_matches(name, [*names, "bind", "index"], n=1)
                hint = f"did you mean {near[0]!r}?" if near else "name options of the method"
                raise ValueError(f"columns has {name!r}, which the method does not take: {hint}")

    @property
    def table(self) -> list[str] | None:
        """The names of the features, where the inputs are columns of a table."""
        return [str(name) for name in self.inputs] if isinstance(self.inputs, list) else None

    def needed(self) -> list[Column]:
        """The columns that are read; empty: all."""
        return self._needed

    def parts(self, examples: list[Any]) -> dict[Column, list[Any]]:
        """The parts of examples that are read, by name: what else they have may be of any kind."""
        return {name: _parts(examples, name) for name in self._needed}

    def rows(self, item: Any) -> Rows:
        """The rows of a batch, as tensors."""
        if self.given is None:
            inputs = optree.tree_map(lambda v: _tensor(v, "data"), _as_tree(item))
            rows = Rows(inputs, {}, {}, None)
        else:
            index = None if self.index is None else _column(item, self.index).long()
            rows = Rows(
                self._inputs(item),
                {name: _column(item, c) for name, c in self.options.items()},
                {name: _column(item, c) for name, c in self.bind.items()},
                index,
            )
        return _checked(rows)

    def _inputs(self, item: Any) -> Tree:
        if not isinstance(self.inputs, list):
            return optree.tree_map(lambda c: _column(item, c), self.inputs)
        features = [_column(item, c) for c in self.inputs]
        for name, t in zip(self.inputs, features, strict=True):
            if t.shape != features[0].shape[:1]:
                raise ValueError(
                    f"column {name!r} has shape {tuple(t.shape)}, expected one number per example, "
                    "because a list of columns is a table: give a tuple for several inputs"
                )
        dtype = self.dtype or torch.result_type(features[0], torch.tensor(0.0))
        return torch.stack([t.to(dtype) for t in features], 1)


def _as_tree(item: Any) -> Any:
    """A mapping that optree does not know, such as the batches of tokenizers, as a dict."""
    return {k: _as_tree(v) for k, v in item.items()} if isinstance(item, Mapping) else item


def _column(item: Any, name: Column) -> Tensor:
    return _tensor(_part(item, name), f"column {name!r}")


def _parts(examples: list[Any], name: Column) -> list[Any]:
    usual = (dict, tuple, list) if type(name) is int else (dict,)
    if type(examples[0]) in usual:  # without a question to each of them
        with contextlib.suppress(KeyError, IndexError, TypeError):
            return [example[name] for example in examples]
    return [_part(example, name) for example in examples]


def _part(item: Any, name: Column) -> Any:
    """A column of a batch, or a part of an example."""
    if isinstance(item, Mapping) and name in item:
        return item[name]
    if isinstance(item, (tuple, list)) and isinstance(name, int) and -len(item) <= name < len(item):
        return item[name]
    if hasattr(item, "_fields") and name in item._fields:
        return getattr(item, str(name))
    raise no_column(item, name)


class ColumnError(ValueError):
    """Data have no such columns."""


class BadRow(ValueError):
    """A column holds something else than a number.

    Args:
        message: What it holds.
        row: The place of the row in the batch.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


def no_column(item: Any, name: Column) -> ColumnError:
    """The error where data have no such column."""
    return ColumnError(f"columns names {name!r}, which the data do not have: {_there(item, name)}")


def _there(item: Any, name: Column) -> str:
    if isinstance(item, Mapping) or hasattr(item, "_fields"):
        names = [repr(k) for k in (item if isinstance(item, Mapping) else item._fields)]
        near = difflib.get_close_matches(repr(name), names, n=1)
        shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
        return f"did you mean {near[0]}?" if near else f"they have {shown}"
    if isinstance(item, (tuple, list)):
        return f"they have the places 0 to {len(item) - 1}"
    return f"a batch is {say(item)}; leave columns out where all of it is the inputs"


def _tensor(value: Any, what: str) -> Tensor:
    """A tensor without a graph."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        if hasattr(value, "__array__"):
            value = value.__array__()
        if hasattr(value, "__array__") and value.dtype != object:
            # torch warns of memory that no one may write into, such as that of a file.
            return torch.as_tensor(value if value.flags.writeable else value.copy())
        others = (list, tuple, str, bytes, Mapping)
        if not isinstance(value, others) and hasattr(value, "__getitem__"):
            value = list(value)  # such as a column of Hugging Face, or of arrays in pandas
        if isinstance(value, (list, tuple)) and value and hasattr(value[0], "__array__"):
            return torch.stack([_tensor(v, what) for v in value])
        return torch.as_tensor(value)
    except Exception as error:
        if not isinstance(value, (list, tuple)) and not getattr(value, "ndim", 0):
            raise TypeError(
                f"{what} holds {say(value)}, expected numbers: turn it into tensors first"
            ) from error
        row, found = _odd_one(value)
        raise BadRow(
            f"{what} holds {say(found)}, expected numbers of one shape: turn it into tensors first",
            row,
        ) from error


def _odd_one(values: Any) -> tuple[int, Any]:
    """The first value, and its place, that is no number or is of another shape than the first."""
    shape = None
    for i, value in enumerate(values):
        try:
            found = _tensor(value, "").shape
        except Exception:
            return i, value
        if found != (shape := found if shape is None else shape):
            return i, value
    return 0, values


def _checked(rows: Rows) -> Rows:
    """The same rows, if there is one of everything for each example."""
    leaves: list[Any] = [t for t in optree.tree_leaves(rows.tree()) if isinstance(t, Tensor)]
    if not optree.tree_leaves(rows.inputs):
        raise ValueError("data holds no tensor, expected examples in dimension 0 of every tensor")
    sizes = {t.shape[0] if t.ndim else None for t in leaves}
    if len(sizes) > 1 or None in sizes:
        shown = ", ".join(str(tuple(t.shape)) for t in leaves[:4])
        raise ValueError(
            f"data has tensors of shapes {shown}, expected one row for each example in dimension 0 "
            "of all of them: give single examples as a Dataset, lists are read as batches"
        )
    return rows


def form_of(rows: Rows) -> tuple[Any, ...]:
    """What all batches of a data set have in common: structure, types, and shapes of a row."""
    leaves, spec = optree.tree_flatten(rows.tree())
    return (spec, *[(t.dtype, tuple(t.shape[1:])) for t in leaves])


def said_forms(here: tuple[Any, ...], first: tuple[Any, ...]) -> tuple[str, str]:
    """Two forms for messages."""
    texts = _said_form(here), _said_form(first)
    if texts[0] != texts[1]:
        return texts
    return f"{texts[0]} in {str(here[0])[:60]}", f"in {str(first[0])[:60]}"


def _said_form(form: tuple[Any, ...]) -> str:
    parts = []
    for path, (dtype, shape) in zip(optree.treespec_paths(form[0]), form[1:], strict=True):
        # The inputs, options, bound arguments and numbers of Rows.tree.
        names = (*path[1:],) if path[0] < 3 else ("index",)
        name = ".".join(map(str, names))
        parts.append(f"{name} {shape} {dtype}".replace("torch.", "").strip())
    more = " and more" if len(parts) > 4 else ""
    return " and ".join(parts[:4]) + more or "nothing"
