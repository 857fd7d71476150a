"""The explained function: from rows of any number of copies of a batch to one scalar each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, pick_bound, repeat_bound, split_rows
from attrfn._explain.in_parts import in_parts
from attrfn._explain.refuse_rows import refuse_rows
from attrfn._explain.shared import marked
from attrfn._explain.target import Chosen, IndexPerExample, choose, select
from attrfn._explain.tree import batch_size, call_model, flatten, require_floating
from attrfn._model.bind import bind, prepare
from attrfn._torch import pytree
from attrfn._torch.autodiff import (
    keeps_graph,
    transforming,
    values_and_gradients,
)
from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import current
from attrfn._torch.one_run import shared_run
from attrfn._torch.typing import Batching, Leaves, ModelFn, Target, Tree
from attrfn._torch.units import Units, active_units, padded


class Explained(NamedTuple):
    """A model function, its inputs and its target, checked and made flat.

    Attributes:
        model: The model function, bound to private copies.
        x: The leaves of the inputs, each (B, ...).
        rebuild: From leaves to the inputs' tree.
        batch: B.
        chosen: The checked target.
        create_graph: Whether ``.backward()`` on the result reaches inputs and parameters.
        undifferentiated: Whether the result of compiled code will not be differentiated.
        name: The target's name in messages.
        origin: The model function as it was bound, and the user's.
    """

    model: ModelFn
    x: Leaves
    rebuild: Callable[[Sequence[Tensor]], Tree]
    batch: int
    chosen: Chosen
    create_graph: bool
    undifferentiated: bool
    name: str
    origin: tuple[Any, Any] = (None, None)

    def values(
        self,
        rows: Leaves,
        copies: int = 1,
        mode: Any = None,
    ) -> Tensor:
        """The explained scalar of each row of ``copies`` copies of the batch, (copies * B,).

        The model and a target that is a function run under the mode, which sees the outputs.
        """
        if self.batch == 0:
            # Some models refuse an empty batch. The result is made of the rows, so that a gradient
            # with respect to them exists.
            return torch.cat([r.flatten() for r in rows])[:0]
        model = repeat_bound(self.model, self.batch, copies)
        chosen = repeat_chosen(self.chosen, self.batch, copies)
        if mode is None:
            try:
                run = None if self.create_graph else shared_run()
                if run is None:
                    outputs = call_model(model, self.rebuild(rows))
                else:
                    called = functools.partial(call_model, model, self.rebuild(rows))
                    bound, given = self.origin  # of half a model, nothing is known
                    outputs = run.of(given if bound is self.model else None, rows, called)
            except RuntimeError as error:
                refuse_rows(error, self.model, self.batch, copies)
                raise
            return select(outputs, chosen, copies * self.batch, self.name)
        # Private copies are built before, so that the mode sees the model's operations alone and
        # not the clones of its buffers.
        prepare(model)
        with mode:
            outputs = call_model(model, self.rebuild(rows))
            mode.returned(outputs)
            if callable(chosen):  # the user's function, whose operations need rules as well
                return select(outputs, chosen, copies * self.batch, self.name)
        return select(outputs, chosen, copies * self.batch, self.name)

    def gradients(self, points: Leaves, batching: Batching = "fold") -> tuple[Tensor, Leaves]:
        """Values (S, B) and gradients (S, B, ...) at S copies of the batch, (S, B, ...)."""
        copies = points[0].shape[0]
        if self.batch and (units := active_units()) is not None:
            found: tuple[Tensor, Leaves] = self.in_unit(units, _gradients, points, batching)
            return found
        if batching == "vmap" and self.batch:
            mapped = vmapped(self.values)
            return values_and_gradients(mapped, points, create_graph=self.create_graph)
        one = current()
        if copies == 1 and one is not None and (one.rows or self.batch) < self.batch:
            return in_parts(self, one, points)
        values, grads = values_and_gradients(
            lambda *z: self.values(z, copies), flat_rows(points), create_graph=self.create_graph
        )
        return values.reshape(copies, self.batch), split_rows(grads, copies)

    def in_unit(
        self,
        units: Units,
        function: Callable[..., Any],
        points: Leaves,
        batching: Batching,
        *others: Any,
        more: Sequence[Leaves] = (),
        functions: Sequence[ModelFn] = (),
    ) -> Any:
        """``function(p, mapped, *more, *functions, *others)`` as a compiled unit.

        Args:
            units: What runs it.
            function: A function of a module, which gets the explained function at all rows (R, ...)
                or, if ``mapped``, at (S, B, ...), further tensors, and what else is given. It
                returns tensors (R, ...), or (S, B, ...).
            points: Leaves (S, B, ...).
            batching: How copies become one call.
            *others: Further arguments.
            more: Further leaves (S, B, ...).
            functions: Further model functions.

        Returns:
            The tensors (S, B, ...) in the structure that the function returns.
        """
        n, mapped = points[0].shape[0], batching == "vmap"
        copies = units.copies(n, self.batch, lambda: self._takes(padded(points, n + 1)))
        points, *more = [padded(leaves, copies) for leaves in (points, *more)]
        model, chosen = self.model, unread(self.chosen)
        sizes: tuple[int, ...] = (copies, self.batch)
        if not mapped:
            model, *functions = [repeat_bound(f, self.batch, copies) for f in (model, *functions)]
            sizes = (copies * self.batch,)
            chosen = repeat_chosen(chosen, self.batch, copies)
            points, *more = [flat_rows(leaves) for leaves in (points, *more)]
        p = (model, self.rebuild(points), chosen, self.create_graph, self.name)
        args = (function, p, mapped, *more, *functions, *others)
        found = units.run(_unit, args, sizes, self.create_graph)

        def split(t: Tensor) -> Tensor:
            return (t if mapped else t.reshape(copies, self.batch, *t.shape[1:]))[:n]

        return pytree.tree_map_only(Tensor, split, found)

    def _takes(self, points: Leaves) -> bool:
        """Whether the model takes some copies of the batch at once."""
        try:
            with torch.no_grad():
                self.values(flat_rows(points), points[0].shape[0])
        except Exception:  # which the copies one by one may not raise
            return False
        return True

    def at_rows(self, index: Tensor) -> Explained:
        """The same function for a batch of these examples, each any number of times."""
        return self._replace(
            model=pick_bound(self.model, self.batch, index),
            batch=len(index),
            chosen=pick_chosen(self.chosen, self.batch, index),
        )

    def result(self, leaves: Sequence[Tensor]) -> Tree:
        """The inputs' tree in the inputs' dtypes, without a graph unless one is wanted."""
        leaves = [t.to(x.dtype) for t, x in zip(leaves, self.x, strict=True)]
        if not (self.create_graph or transforming()):
            leaves = [t.detach() for t in leaves]
        return self.rebuild(marked(leaves, "divided"))


def _unit(function: Callable[..., Any], given: tuple[Any, ...], mapped: bool, *args: Any) -> Any:
    model, inputs, chosen, create_graph, name = given
    x, rebuild = flatten(inputs)
    batch = x[0].shape[1 if mapped else 0]
    p = Explained(model, x, rebuild, batch, chosen, create_graph, not create_graph, name)
    return function(p, mapped, *args)


def _gradients(p: Explained, mapped: bool) -> tuple[Tensor, Leaves]:
    f = vmapped(p.values) if mapped else lambda *z: p.values(z)
    return values_and_gradients(f, p.x, create_graph=p.create_graph)


def unread(chosen: Chosen) -> Chosen:
    """The same target without the range of its values, which a graph must not depend on."""
    if isinstance(chosen, IndexPerExample):
        return IndexPerExample(chosen.rows, None, None)
    return chosen


def vmapped(f: Callable[[Leaves], Any]) -> Callable[..., Any]:
    """A function of the leaves of one copy of the batch as one of S copies, (S, B, ...) each."""
    one = current()
    if one is not None and one.draws:

        def loop(*points: Tensor) -> Any:
            found = [f(tuple([t[i] for t in points])) for i in range(len(points[0]))]
            return optree.tree_map(lambda *t: torch.stack(t), found[0], *found[1:])

        return loop  # each copy gets the same numbers, which vmap can give to some operations only
    return torch.func.vmap(lambda *rows: f(rows), randomness="different")


def explain(
    model_fn: ModelFn,
    inputs: Tree,
    target: Target,
    *,
    create_graph: bool | None = False,
    name: str = "target",
    differentiated: bool = True,
    forward_only: bool = False,
) -> Explained:
    """Check the arguments that every gradient method has in common.

    With ``create_graph=None`` the caller promises not to differentiate the result of compiled code.

    Raises:
        TypeError: An input is not a floating tensor, or the target is of an unknown kind.
        ValueError: The batch sizes disagree.
    """
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    if differentiated:
        require_floating(x)
    if not (create_graph or transforming()):
        # Inputs that require a gradient would otherwise have every run record a graph for them.
        x = tuple([t.detach() for t in x])
    model = bind(model_fn, frozen=not keeps_graph(create_graph), forward_only=forward_only)
    undifferentiated = create_graph is None and is_compiling()
    chosen = choose(target, batch, name)
    found = model, x, rebuild, batch, chosen, bool(create_graph), undifferentiated, name
    return Explained(*found, (model, model_fn))


def repeat_chosen(chosen: Chosen, batch: int, copies: int) -> Chosen:
    """The target of ``copies`` copies of the batch, one after the other."""
    if copies == 1:
        return chosen
    if isinstance(chosen, IndexPerExample):
        return chosen._replace(rows=chosen.rows.repeat(copies, 1))
    if chosen is None or isinstance(chosen, tuple):
        return chosen
    if isinstance(chosen, list):
        return chosen * copies
    repeated: Chosen = repeat_bound(chosen, batch, copies)
    return repeated


def pick_chosen(chosen: Chosen, batch: int, index: Tensor) -> Chosen:
    """The target of some of the examples."""
    if isinstance(chosen, IndexPerExample):
        return chosen._replace(rows=chosen.rows[index.to(chosen.rows.device)])
    if chosen is None or isinstance(chosen, tuple):
        return chosen
    if isinstance(chosen, list):
        return [chosen[i] for i in index.tolist()]
    picked: Chosen = pick_bound(chosen, batch, index)
    return picked
