"""A method inside another one as a compiled unit, and which methods are made of smaller units."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from attrfn._explain.introspect import is_ours
from attrfn._explain.tree import flatten
from attrfn._torch.typing import Method, ModelFn, Tree
from attrfn._torch.units import active_units


def loops_over_chunks(method: Method) -> bool:
    """Whether a method is a loop over chunks, of which each is a compiled unit."""
    mark = _mark(method)
    if mark is not None:
        return mark
    if not is_ours(method) or not _in_methods(method):
        return False
    return "chunk_size" in inspect.signature(method).parameters


def _mark(method: Any) -> bool | None:
    """What a method that another one makes says of itself, as a noise tunnel does."""
    while isinstance(method, functools.partial):
        method = method.func
    mark: bool | None = getattr(method, "loops_over_chunks", None)
    return mark


def _in_methods(method: Any) -> bool:
    while isinstance(method, functools.partial) or hasattr(method, "__wrapped__"):
        method = method.func if isinstance(method, functools.partial) else method.__wrapped__
    return str(method.__module__).startswith("attrfn._methods.")


def whole_or_in_units(
    method: Method, model_fn: ModelFn, inputs: Tree, options: Mapping[str, Any]
) -> Tree:
    """The method's attributions; where units are compiled, the method is one, or made of them."""
    units = active_units()
    rows = flatten(inputs)[0][0].shape[0]
    if units is None or rows == 0 or loops_over_chunks(method):
        return method(model_fn, inputs, **options)
    create_graph = bool(options.get("create_graph", False))
    return units.run(_whole, (method, model_fn, inputs, dict(options)), (rows,), create_graph)


def _whole(method: Method, model_fn: ModelFn, inputs: Tree, options: dict[str, Any]) -> Tree:
    return method(model_fn, inputs, **options)
