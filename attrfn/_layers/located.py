"""A layer of a model, split there, and what a method explains of its value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import binds_rows, flat_rows, repeat_bound
from attrfn._explain.baseline import (
    baseline_distribution,
    broadcasts,
    fill_baselines,
    per_example,
    per_leaf,
)
from attrfn._explain.introspect import explains_all_outputs, needs_examples
from attrfn._explain.tree import batch_size, each, flatten, is_arguments
from attrfn._layers.layout import Layout, elsewhere
from attrfn._layers.leaves import have_parts, of_parts, present, repacked
from attrfn._layers.named import layout_of, layouts_of
from attrfn._layers.rows import like, opened, place_of, read
from attrfn._layers.split import Split, check_independent, split_once
from attrfn._layers.tails import Apart, of_activation, of_copies, one_value
from attrfn._torch.autodiff import keeps_graph, transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import current
from attrfn._torch.typing import At, Baselines, Layer, Method, ModelFn, RowsOf, Tree
from attrfn._torch.units import using


class Located(NamedTuple):
    """A layer's activation and the model as a function of it.

    Attributes:
        model: The tail as a model function of the activation.
        activation: What a method explains: the tensors that can be explained, in rows of examples
            where the layout is known; None in the other places.
        inputs: The model's inputs.
        halves: The split.
        create_graph: Whether the result is to be differentiable.
        layout: The layout of the layer's value, if that does not have the examples in dimension 0.
    """

    model: ModelFn
    activation: Tree
    inputs: Tree
    halves: Split
    create_graph: bool
    layout: Layout | None = None

    @property
    def own(self) -> Tree:
        """The explained tensors of the layer's value as they are."""
        if self.layout is None:
            return self.activation
        return repacked(self.layout.own, self.layout.value)

    def option(self, given: Tree, name: str) -> Tree:
        """What is given for the layer's value, as something for what a method explains."""
        if self.layout is None or given is None:
            return given
        if name == "layer_mask" and not self.layout.named and self.layout.batch > 1:
            raise ValueError(mask_without_rows(name))
        if isinstance(given, Number):
            return given
        entries = per_leaf(given, self.layout.own, tuple(self.layout.leaves), name)
        for entry, t in zip(entries, self.layout.leaves, strict=True):
            if isinstance(entry, Tensor) and not broadcasts(entry, t.shape):
                raise ValueError(
                    f"{name} has shape {tuple(entry.shape)} for a value of the layer of shape "
                    f"{tuple(t.shape)}, expected a shape that broadcasts to it"
                )
        return self.layout.option(entries)

    def explained(self, method: Method, options: dict[str, Any]) -> Tree:
        """What a method finds here, in the shape of the layer's value."""
        if self.layout is None:
            return method(self.model, self.activation, **options)
        if is_compiling():
            return self._laid_out(self.layout, method, options)
        with using(None):  # the passes of a layout are not compiled one by one
            return self._laid_out(self.layout, method, options)

    def _laid_out(self, layout: Layout, method: Method, options: dict[str, Any]) -> Tree:
        if layout.named:
            return layout.restored(method(self.model, self.activation, **options))
        if needs_examples(method):
            raise ValueError(
                "rows is None, but the method covers regions or exchanges parts of examples, and "
                "nothing tells where those are in the layer's value: name them with "
                "rows='time_first' or a callable"
            )
        if layout.batch > 1 and options.get("feature_mask") is not None:
            raise ValueError(mask_without_rows("feature_mask"))
        options = dict(options)
        target = options.pop("target", None)
        finish = one_value(target, layout.batch, explains_all_outputs(method))
        model = self.apart(layout, finish)
        return layout.restored(method(model, self.activation, **options))

    def apart(self, layout: Layout, finish: Callable[[Any], Tensor] | None) -> ModelFn:
        """The model as a function that runs for one copy of the layer's value after the other."""
        one = Apart(self.halves.tail, self.inputs, layout, finish)
        unpacked = is_arguments(self.activation)
        return functools.partial(of_copies, lambda: one, unpacked=unpacked)

    def baselines(self, baselines: Baselines, *, distribution: bool = False) -> Tree:
        """Baselines of the inputs, carried to the layer by the head."""
        x, rebuild = flatten(self.inputs)
        if not distribution:
            return self._carried(rebuild(fill_baselines(baselines, self.inputs, x)))
        pool = baseline_distribution(baselines, self.inputs, x)
        batch, k = x[0].shape[0], pool[0].shape[0]
        layout = self.layout
        if layout is None and pool[0].ndim == x[0].ndim and not binds_rows(self.halves.head, batch):
            return self._carried(rebuild(pool))
        # A tensor bound to the model has a row for each example. The K baselines of all examples
        # are then K copies of the batch, so that each meets the rows that belong to it.
        pairs = each(per_example, pool, x)
        one = current()
        if layout is not None or (one is not None and one.one_by_one):
            found = [self._carried(rebuild([t[i] for t in pairs])) for i in range(k)]
            join = torch.stack if layout is None or layout.named else torch.cat
            return optree.tree_map(lambda *t: join(t), found[0], *found[1:])
        halves = self.halves._replace(head=repeat_bound(self.halves.head, batch, k))
        value = read(halves, rebuild(flat_rows(pairs)), self.create_graph)
        unfold = functools.partial(torch.Tensor.unflatten, dim=0, sizes=(k, batch))
        return optree.tree_map(unfold, like(self.activation, value))

    def _carried(self, inputs: Tree) -> Tree:
        def run() -> Tree:
            return read(self.halves, inputs, self.create_graph)

        if self.layout is None:
            return like(self.activation, run())
        return self.layout.present(like(self.layout.own, elsewhere([self.layout], run)))


def mask_without_rows(name: str) -> str:
    """The message for a mask over a value in which nothing tells the examples apart."""
    return (
        f"{name} says which elements belong together, and nothing tells which of them are of one "
        "example in the layer's value: name the layout with rows='time_first' or a callable, or "
        "explain one example at a time"
    )


def locate(
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    *,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    create_graph: bool = False,
) -> Located:
    """Split the model at the layer, evaluate the head and check that the layers are independent."""
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    if not (create_graph or transforming()):
        inputs = rebuild([t.detach() for t in x])
    frozen = not keeps_graph(create_graph)
    halves = split_once(model_fn, layer, at=at, call=call, frozen=frozen)
    place = place_of(model_fn, layer, at, call)
    value = read(halves, inputs, create_graph)
    own, layout = layout_of(value, halves, inputs, batch, layer, place, rows)
    here, planted = _located(value, own, layout, halves, inputs, create_graph)
    # One layer with one call cannot depend on itself, and the check costs a forward pass.
    if (isinstance(layer, (list, tuple)) or call is None) and not is_compiling():
        check_independent(model_fn, layer, at, call, planted, inputs)
    return here


def locate_each(
    model_fn: ModelFn,
    inputs: Tree,
    layers: Sequence[Any],
    *,
    at: At,
    call: int,
    create_graph: bool,
    rows: RowsOf = None,
) -> tuple[list[Located], ModelFn]:
    """:func:`locate` of each of some layers by itself, and the head of them all.

    The layers may depend on each other, because the head runs once for all.
    """
    x, rebuild = flatten(inputs)
    if not (create_graph or transforming()):
        inputs = rebuild([t.detach() for t in x])
    frozen = not keeps_graph(create_graph)
    layer: Layer = list(layers)
    together = split_once(model_fn, layer, at=at, call=call, frozen=frozen)
    place = place_of(model_fn, layer, at, call)
    values = read(together, inputs, create_graph)
    parts = layouts_of(values, together, inputs, batch_size(x), layer, place, rows)
    found = []
    for named, value, (own, layout) in zip(layers, values, parts, strict=True):
        halves = split_once(model_fn, named, at=at, call=call, frozen=frozen)
        found.append(_located(value, own, layout, halves, inputs, create_graph)[0])
    return found, together.head


def _located(
    value: Tree, own: Tree, layout: Layout | None, halves: Split, inputs: Tree, create_graph: bool
) -> tuple[Located, Tree]:
    """A layer with what is explained of its value, and what is planted for that."""
    planted = own
    if layout is not None:
        layout.again = functools.partial(read, halves, inputs, False)
        planted = layout.plant(layout.seen)
    elif any(flags := have_parts(own, opened(value))):
        planted = present(own, opened(value))
        halves = halves._replace(tail=functools.partial(of_parts, flags, halves.tail))
    activation = own if layout is None else layout.seen
    unpacked = is_arguments(activation)
    model = functools.partial(
        of_activation, halves.tail, inputs=inputs, unpacked=unpacked, layout=layout
    )
    here = Located(model, activation, inputs, halves, create_graph, layout)
    if layout is not None and not layout.folds:
        here = here._replace(model=here.apart(layout, None))
    return here, planted
