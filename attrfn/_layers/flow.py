"""The head of a model and the gradient downstream of it, along the path of the inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import repeat_bound, split_rows
from attrfn._copies.memory import out_of_memory
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import Explained, explain, repeat_chosen
from attrfn._explain.path import on_copies, over_path
from attrfn._explain.target import select
from attrfn._explain.tree import call_model, each, flatten, is_arguments, row_total
from attrfn._layers.at import locate
from attrfn._layers.rows import like
from attrfn._layers.split import Split, of_activation, watched
from attrfn._torch import pytree
from attrfn._torch.autodiff import (
    gradients_inside,
    normal_tensors,
    push_forward,
    takes_tangents,
    tangents_on,
    transforming,
    twice_differentiable,
    values_and_gradients,
)
from attrfn._torch.typing import At, Baselines, Batching, Layer, Leaves, ModelFn, Target, Tree
from attrfn._torch.units import Units, active_units


class Flow(NamedTuple):
    """The head, and the gradient downstream of it, for the rows of any number of copies.

    Attributes:
        p: The explained inputs and target.
        halves: The split at the layer.
        activation: Leaves of the layer's activation at the inputs.
        rebuild: From such leaves to the activation's tree.
        watched: Both halves in one pass (:func:`attrfn._layers.split.watched`), or None where the
            two halves have to run one after the other.
    """

    p: Explained
    halves: Split
    activation: Leaves
    rebuild: Callable[[Sequence[Tensor]], Tree]
    watched: ModelFn | None

    def head(self, copies: int, *rows: Tensor) -> Leaves:
        """The layer's activation, (copies * B, ...) each."""
        head = repeat_bound(self.halves.head, self.p.batch, copies)
        with twice_differentiable(self.p.create_graph):
            value = call_model(head, self.p.rebuild(rows))
        return self._leaves(value)

    def both(self, rows: Leaves, copies: int) -> tuple[Leaves, Leaves]:
        """The layer's activation, and df/da there."""
        if self.p.batch and (units := active_units()) is not None:
            found: tuple[Leaves, Leaves] = self._in_unit(units, _both, rows, copies)
            return found
        if self.watched is None or transforming():
            a = self.head(copies, *rows)
            return a, self.gradients(a, rows, copies)
        return gradients_inside(lambda: self._watch(rows, copies, None)[:2])

    def along(self, rows: Leaves, tangents: Leaves, copies: int) -> tuple[Leaves, Leaves]:
        """How the layer's activation changes in a direction of the inputs, and df/da there."""
        if self.p.batch and (units := active_units()) is not None:
            found: tuple[Leaves, Leaves] = self._in_unit(units, _along, rows, copies, tangents)
            return found
        if self.watched is not None and takes_tangents():
            try:
                return self._along_at_once(rows, tangents, copies)
            except RuntimeError as error:
                # An operation without forward mode: the two halves know another way. An error of
                # the model comes again there. Less memory is what only the caller can ask for.
                if out_of_memory(error):
                    raise
        a, change = push_forward(functools.partial(self.head, copies), rows, tangents)
        return change, self.gradients(a, rows, copies)

    def back(self, rows: Leaves, factors: Leaves, copies: int) -> Leaves:
        """The gradient of ``<factors, a(rows)>``, which are constants."""
        if self.p.batch and (units := active_units()) is not None:
            found: Leaves = self._in_unit(units, _back, rows, copies, factors)
            return found

        def passed_on(*z: Tensor) -> Tensor:
            return row_total(each(torch.mul, self.head(copies, *z), factors))

        return values_and_gradients(passed_on, rows, create_graph=self.p.create_graph)[1]

    def _in_unit(
        self, units: Units, function: Callable[..., Any], rows: Leaves, copies: int, *more: Leaves
    ) -> Any:
        """A function of this at all rows as a compiled unit."""
        points, *others = [split_rows(leaves, copies) for leaves in (rows, *more)]
        # Its form is all that counts.
        example = self.rebuild([t[:0].detach() for t in self.activation])
        found = self.p.in_unit(
            units, function, points, "fold", example, more=others, functions=self.halves
        )
        return pytree.tree_map_only(Tensor, lambda t: t.flatten(0, 1), found)

    def _along_at_once(self, rows: Leaves, tangents: Leaves, copies: int) -> tuple[Leaves, Leaves]:
        change: Leaves = ()

        def values_and_leaves() -> tuple[Tensor, Leaves]:
            nonlocal change
            with tangents_on(normal_tensors(rows), normal_tensors(tangents)) as (dual, end):
                values, z, change = self._watch(dual, copies, end)
            return values, z

        grads = gradients_inside(values_and_leaves)[1]
        return change, grads

    def _watch(
        self, rows: Leaves, copies: int, end: Callable[[], None] | None
    ) -> tuple[Tensor, Leaves, Leaves]:
        run: Any = repeat_bound(self.watched, self.p.batch, copies)
        chosen = repeat_chosen(self.p.chosen, self.p.batch, copies)
        found, outputs = run(self.p.rebuild(rows), end=end)
        values = select(outputs, chosen, copies * self.p.batch, self.p.name)
        return values, self._leaves(found.value), self._leaves(found.tangents) if end else ()

    def _leaves(self, value: Tree) -> Leaves:
        return tuple(optree.tree_leaves(like(self.rebuild(self.activation), value)))

    def gradients(self, a: Leaves, rows: Leaves, copies: int) -> Leaves:
        """df/da at the layer's activation ``a`` for the inputs ``rows``."""
        tail = repeat_bound(self.halves.tail, self.p.batch, copies)
        # The tail explained at the activation: the same target, but other leaves and another batch.
        there = self.p._replace(
            model=functools.partial(
                of_activation,
                tail,
                inputs=self.p.rebuild(rows),
                unpacked=is_arguments(self.rebuild(a)),
            ),
            rebuild=self.rebuild,
            batch=copies * self.p.batch,
            chosen=repeat_chosen(self.p.chosen, self.p.batch, copies),
        )
        return values_and_gradients(
            lambda *z: there.values(z), a, create_graph=self.p.create_graph
        )[1]


def _at_rows(p: Explained, head: ModelFn, tail: ModelFn, example: Tree) -> Flow:
    return Flow(p, Split(head, tail), *flatten(example, "layer"), None)


def _both(p: Explained, mapped: bool, *halves: Any) -> tuple[Leaves, Leaves]:
    return _at_rows(p, *halves).both(p.x, 1)


def _along(p: Explained, mapped: bool, tangents: Leaves, *halves: Any) -> tuple[Leaves, Leaves]:
    return _at_rows(p, *halves).along(p.x, tangents, 1)


def _back(p: Explained, mapped: bool, factors: Leaves, *halves: Any) -> Leaves:
    return _at_rows(p, *halves).back(p.x, factors, 1)


def flow_of(
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    target: Target,
    at: At,
    call: int | None,
    create_graph: bool,
) -> Flow:
    """Check the arguments, split the model at the layer and evaluate the head."""
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    here = locate(model_fn, inputs, layer, at=at, call=call, create_graph=create_graph)
    activation, rebuild = flatten(here.activation, "layer")
    # One pass ends the graph at the layer, so that the result has no derivatives by the inputs and
    # parameters; and of several calls of the layer each would have to start a graph.
    in_one_pass = call is not None and not create_graph and p.batch > 0
    run = watched(model_fn, layer, at=at, call=call) if in_one_pass else None
    return Flow(p, here.halves, activation, rebuild, run)


def at_layer_over_path(
    through: Callable[[Flow, Leaves, Leaves, int], Leaves],
    model_fn: ModelFn,
    inputs: Tree,
    layer: Layer,
    *,
    target: Target,
    baselines: Baselines,
    at: At,
    call: int | None,
    create_graph: bool,
    batching: Batching,
    **path: Any,
) -> Tree:
    """The integral of ``through`` over the path, in the structure of the layer's activation."""
    flow = flow_of(model_fn, inputs, layer, target, at, call, create_graph)
    x0 = fill_baselines(baselines, inputs, flow.p.x)
    total = over_path(
        flow.p,
        x0,
        lambda points: on_copies(functools.partial(through, flow, x0), points, batching),
        batching=batching,
        **path,
    )
    return flow.p._replace(x=flow.activation, rebuild=flow.rebuild).result(total)
