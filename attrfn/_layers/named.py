"""What of a layer's value is explained, and how a method sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._layers.layout import Layout, TimeFirst
from attrfn._layers.leaves import real_view
from attrfn._layers.moved import Moved
from attrfn._layers.rows import Place, check_bound_at, is_floating, opened, told
from attrfn._layers.split import Split, layers_of
from attrfn._model.source import describe
from attrfn._torch.say import say
from attrfn._torch.typing import Layer, RowsOf, Tree


def layout_of(
    value: Tree,
    halves: Split,
    inputs: Tree,
    batch: int,
    layer: Layer,
    place: Place,
    rows: RowsOf,
) -> tuple[Tree, Layout | None]:
    """The explained tensors of a layer's value, None elsewhere, and the layout of the value.

    The layout is None where the tensors have the examples in dimension 0.

    Raises:
        ValueError: A layer has nothing to explain, or does not have the layout that ``rows`` names.
    """
    check_rows_of(rows)
    if rows is None:
        own, by_rows = told(value, halves, inputs, batch, layer, place)
        return own, None if all(by_rows) else Layout(value, own, batch)
    many = isinstance(layer, (list, tuple))
    if callable(rows):
        parts: Callable[[Any], Tree] = rows
        own = _floating(value, lambda t: True)
        move = (lambda v: [parts(one) for one in v]) if many else parts
        _refuse_empty(own, layer, "no floating tensor")
        return own, Moved(value, own, batch, move)
    dim = 0 if is_one_of(rows, "examples") else 1
    own = _floating(value, lambda t: t.ndim > dim and t.shape[dim] == batch)
    _refuse_empty(own, layer, f"no floating tensor with {batch} example(s) in dimension {dim}")
    if dim:
        return own, TimeFirst(value, own, batch)
    check_bound_at(own, halves, inputs, batch, place)
    return own, None


def layouts_of(
    values: Tree,
    halves: Split,
    inputs: Tree,
    batch: int,
    layers: Layer,
    place: Place,
    rows: RowsOf,
) -> list[tuple[Tree, Layout | None]]:
    """:func:`layout_of` of each layer of a list by itself."""
    if rows is None:
        own, by_rows = told(values, halves, inputs, batch, layers, place)
        parts = zip(values, own, by_rows, strict=True)
        return [(part, None if first else Layout(v, part, batch)) for v, part, first in parts]
    named = zip(layers_of(layers), values, strict=True)
    return [layout_of(v, halves, inputs, batch, one, place, rows) for one, v in named]


def check_rows_of(rows: Any) -> None:
    """Refuse an option ``rows`` of no known kind."""
    if rows is not None and not callable(rows) and not is_one_of(rows, "examples", "time_first"):
        raise ValueError(
            f"rows is {say(rows)}, expected None, 'examples', 'time_first' or a callable that "
            "brings the examples to dimension 0, such as lambda a: a.unflatten(0, (-1, 5))"
        )


def _floating(value: Tree, keep: Callable[[Tensor], bool]) -> Tree:
    """The floating tensors of a value that a test keeps; None elsewhere."""

    def kept(t: Any) -> Any:
        return real_view(t) if is_floating(t) and keep(t) else None

    return optree.tree_map(kept, opened(value))


def _refuse_empty(own: Tree, layer: Layer, what: str) -> None:
    many = isinstance(layer, (list, tuple))
    for named, one in zip(layers_of(layer), own if many else [own], strict=True):
        if not optree.tree_leaves(one):
            raise ValueError(
                f"layer {describe(named)} gives {what}, which rows says that it has: expected the "
                "layout of this layer's value"
            )
