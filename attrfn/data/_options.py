"""The arguments of a call that hold for a whole data set: what of them belongs to which example."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._explain.forms import refuse_unknown
from attrfn._explain.introspect import is_over_distribution
from attrfn._random.keys import as_key
from attrfn._torch.say import say
from attrfn._torch.typing import Key, Method, Tree
from attrfn.data._columns import Columns

_INDICES = ("target", "neuron")
_KEYS_AT_ONCE = 4096
_FORBIDDEN = {
    "create_graph": "results have no graph: call the method itself",
    "progress": "it is an argument of explain",
    "inputs": "they are in data: name their column in columns",
}


class Options:
    """The options of a method for batches of a data set.

    Args:
        method: The method.
        given: Its options; those that are None are left out.
        columns: Which options are columns.
        key: The key of all examples.
        length: The number of examples, None if it is unknown.

    Raises:
        TypeError, ValueError: The method does not have an option, or it has another length.
    """

    def __init__(
        self,
        method: Method,
        given: Mapping[str, Any],
        columns: Columns,
        key: Key,
        length: int | None,
    ) -> None:
        self.method = method
        self.given = {k: v for k, v in given.items() if v is not None}
        self.length = length
        self.key = as_key(key)
        if self.key.ndim != 1:
            raise ValueError(
                f"key has shape {tuple(self.key.shape)}, expected (2,) or an int: the key of each "
                "example is made of it and of the example's number"
            )
        names = parameters_of(method)
        self.keyed = "key" in _signature(method)
        for name in self.given:
            if name in columns.options:
                raise ValueError(f"{name} is given twice, as an argument and in columns: drop one")
        for name, why in _FORBIDDEN.items():
            if name in given and given[name] is not None and given[name] is not False:
                raise TypeError(f"{name} cannot be given to attrfn.data.explain: {why}")
        if names is not None:
            label = getattr(method, "__name__", type(method).__name__)
            refuse_unknown(label, self.given, names)
        self._check_draws(names, columns)
        self._by_row: list[str] | None = None  # options with a row for each example
        self._same: dict[torch.device, dict[str, Any]] = {}  # the others, on a device
        self._keys: tuple[int, Tensor] = (0, torch.empty(0, 2))  # of examples from a number on
        if length is not None:
            self.check_total(length)

    def of(
        self,
        inputs: Tree,
        places: Tensor,
        draws: Tensor | None,
        columns: Mapping[str, Tensor],
        device: torch.device,
    ) -> dict[str, Any]:
        """The options of a batch.

        Args:
            inputs: Its inputs.
            places: The numbers of its rows.
            draws: The numbers by which random numbers are drawn; None: ``places``.
            columns: The options that are columns.
            device: Where the options go.
        """
        if self._by_row is None:
            self._by_row = [name for name in self.given if self._is_by_row(name, inputs, places)]
        if device not in self._same:
            same = {k: v for k, v in self.given.items() if k not in self._by_row}
            self._same[device] = {k: on(v, device) for k, v in same.items()}
        found = dict(self._same[device])
        for name in self._by_row:
            found[name] = on(self._rows(name, self.given[name], inputs, places), device)
        for name, t in columns.items():
            several = name in _INDICES and t.ndim == 2
            found[name] = [tuple(row) for row in t.tolist()] if several else t
        if self.keyed:
            # The draws of an example depend on the key and on its number: on no batch.
            if draws is None:
                found["key"] = self._of_places(places, device)
            else:
                found["key"] = fold(self.key, draws.to(device))
        return found

    def _of_places(self, places: Tensor, device: torch.device) -> Tensor:
        """A key for each example, made for many at once, which costs as much as for few."""
        start, stop = int(places[0]), int(places[-1]) + 1
        first, keys = self._keys
        if keys.device != device or start < first or first + len(keys) < stop:
            most = start + _KEYS_AT_ONCE if self.length is None else self.length
            numbers = torch.arange(
                start, max(stop, min(start + _KEYS_AT_ONCE, most)), device=device
            )
            first, keys = self._keys = start, fold(self.key, numbers)
        found = keys[start - first : stop - first]
        if len(found) == len(places):
            return found
        return found.index_select(0, (places - start).to(device))

    def _is_by_row(self, name: str, inputs: Tree, places: Tensor) -> bool:
        """Whether an option has a row for each example."""
        if name in _INDICES:
            return self._has_entries(name)
        value = self.given[name]
        found = self._rows(name, value, inputs, places)
        both = zip(optree.tree_leaves(value), optree.tree_leaves(found), strict=True)
        return any(a is not b for a, b in both)

    def _has_entries(self, name: str) -> bool:
        """Whether an index has an entry for each example."""
        value = self.given.get(name)
        return isinstance(value, list) or (
            isinstance(value, Tensor) and value.ndim == 1 and len(value) > 1
        )

    def _rows(self, name: str, value: Any, inputs: Tree, places: Tensor) -> Any:
        """What of an option belongs to the examples of a batch."""
        if name in _INDICES:
            if not self._has_entries(name):
                return value
            if int(places[-1]) >= len(value):
                raise ValueError(
                    f"{name} has {len(value)} entries, and data have more examples, expected one "
                    "entry for each"
                )
            if isinstance(value, list):
                return [value[i] for i in places.tolist()]
            return value.index_select(0, places.to(value.device))
        if name not in ("baselines", "feature_mask"):
            return value
        if name == "feature_mask" and (hasattr(self.method, "moved_to") or "layer" in self.given):
            return value  # of a layer
        # The baselines of a distribution have their K in front of the examples.
        dim = int(name == "baselines" and is_over_distribution(self.method))
        ranks = {t.ndim + dim for t in optree.tree_leaves(inputs)}

        def rows(t: Any) -> Any:
            if not isinstance(t, Tensor) or t.ndim not in ranks or t.shape[dim] == 1:
                return t
            if t.shape[dim] != self.length:
                raise ValueError(
                    f"{name} has {t.shape[dim]} rows, expected 1, or one for each of the "
                    f"{'unknown number of' if self.length is None else self.length} examples: name "
                    f"a column in columns, or bind it by functools.partial(method, {name}=...) if "
                    "its rows are no examples"
                )
            return t.index_select(dim, places.to(t.device))

        return optree.tree_map(rows, value)

    def check_total(self, length: int) -> None:
        """Refuse indices that are not one for each example.

        Raises:
            ValueError: They are more or less.
        """
        for name in _INDICES:
            if self._has_entries(name) and len(self.given[name]) != length:
                raise ValueError(
                    f"{name} has {len(self.given[name])} entries, expected one for each of the "
                    f"{length} examples of data"
                )

    def _check_draws(self, names: Any, columns: Columns) -> None:
        if permutes(self.method):
            raise ValueError(
                "feature_permutation gives an example features of the others in its batch, so that "
                "results depend on batch_size: use attrfn.data.importance, which shuffles the "
                "whole data set, or feature_ablation"
            )
        differ = "feature_mask" in columns.options and "n_features" in (names or ())
        if differ and self.keyed and "n_features" not in self.given:
            raise ValueError(
                "feature_mask is a column, so n_features is needed: without it the draws of an "
                "example depend on how many features the others in its batch have"
            )


def fold(key: Tensor, index: Tensor) -> Tensor:
    """A key for each example, (B, 2)."""
    from attrfn import random

    return random.fold_in(key.to(index.device), index)


def parameters_of(method: Method) -> list[str] | None:
    """The names of the options of a method; None if it takes any."""
    parameters = _signature(method)
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return list(parameters)


def _signature(method: Method) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(method).parameters
    except (TypeError, ValueError):  # of a class that hides it
        return {}


def permutes(method: Any) -> bool:
    """Whether a method, or the one that it wraps or binds, shuffles features among examples."""
    if any(r.__name__ == "PermutationOptions" for r in getattr(method, "records", ())):
        return True
    inner = method.func if isinstance(method, functools.partial) else None
    inner = inner or getattr(method, "__wrapped__", None)
    return inner is not None and permutes(inner)


def check_rows(tree: Tree, leaves: Sequence[Any], rows: int) -> None:
    """Refuse attributions that do not have one row for each example.

    Raises:
        TypeError, ValueError: They have not.
    """
    for t in leaves or [None]:
        if not isinstance(t, Tensor):
            raise TypeError(f"the method returned {say(tree)}, expected tensors of attributions")
        if t.ndim == 0 or t.shape[0] != rows:
            raise ValueError(
                f"the method returned a tensor of shape {tuple(t.shape)} for {rows} examples, "
                "expected the examples in dimension 0: use a method and a model that give each "
                "example results of its own"
            )


def on(value: Any, device: torch.device) -> Any:
    """A tensor on another device, or a tree with its tensors there; anything else as it is."""
    leaves: list[Any] = optree.tree_leaves(value)
    if not any(isinstance(t, Tensor) for t in leaves):
        return value
    return optree.tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, value)


def moved(tree: Tree, device: torch.device | None) -> Tree:
    """A tree on another device."""
    if device is None:
        return tree
    return optree.tree_map(lambda t: t.to(device, non_blocking=True), tree)
