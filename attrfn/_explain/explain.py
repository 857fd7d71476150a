"""The explained function: from rows of any number of copies of a batch to one scalar each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, repeat_bound, split_rows
from attrfn._explain.shared import marked
from attrfn._explain.target import Chosen, PerExample, choose, select
from attrfn._explain.tree import batch_size, call_model, flatten, require_floating
from attrfn._model.bind import bind, prepare
from attrfn._torch.autodiff import refuse_tangents, transforming, values_and_gradients
from attrfn._torch.compiling import is_compiling
from attrfn._torch.typing import Batching, Leaves, ModelFn, Target, Tree


class Explained(NamedTuple):
    """A model function, its inputs and its target, checked and made flat.

    Attributes:
        model: The model function, bound to private objects.
        x: The leaves of the inputs, each (B, ...).
        rebuild: From leaves to the inputs' tree.
        batch: B.
        chosen: The checked target.
        create_graph: Whether ``.backward()`` shall reach through the result.
        undifferentiated: Whether nobody will differentiate the result of compiled code.
        name: How messages call the target.
    """

    model: ModelFn
    x: Leaves
    rebuild: Callable[[Sequence[Tensor]], Tree]
    batch: int
    chosen: Chosen
    create_graph: bool
    undifferentiated: bool
    name: str

    def values(
        self,
        rows: Leaves,
        copies: int = 1,
        mode: Any = None,
    ) -> Tensor:
        """The explained scalar of each row of ``copies`` copies of the batch, (copies * B,).

        The model, and a target that is a function, run under the mode, which sees the outputs.
        """
        if self.batch == 0:
            return torch.cat([r.flatten() for r in rows])[:0]
        model = repeat_bound(self.model, self.batch, copies)
        chosen = repeat_chosen(self.chosen, self.batch, copies)
        if mode is not None:
            prepare(model)
        with contextlib.nullcontext() if mode is None else mode:
            outputs = call_model(model, self.rebuild(rows))
            if mode is not None:
                mode.returned(outputs)
            if callable(chosen):
                return select(outputs, chosen, copies * self.batch, self.name)
        return select(outputs, chosen, copies * self.batch, self.name)

    def gradients(self, points: Leaves, batching: Batching = "fold") -> tuple[Tensor, Leaves]:
        """Values (S, B) and gradients (S, B, ...) at S copies of the batch, (S, B, ...)."""
        copies = points[0].shape[0]
        if batching == "vmap" and self.batch:
            return values_and_gradients(
                lambda *z: torch.func.vmap(lambda *row: self.values(row), randomness="different")(
                    *z
                ),
                points,
                create_graph=self.create_graph,
            )
        values, grads = values_and_gradients(
            lambda *z: self.values(z, copies), flat_rows(points), create_graph=self.create_graph
        )
        return values.reshape(copies, self.batch), split_rows(grads, copies)

    def result(self, leaves: Sequence[Tensor]) -> Tree:
        """The inputs' tree in the inputs' dtypes, without a graph unless one is wanted."""
        leaves = [t.to(x.dtype) for t, x in zip(leaves, self.x, strict=True)]
        keep = self.create_graph or transforming()
        leaves = leaves if keep else [t.detach() for t in leaves]
        return self.rebuild(marked(leaves, "divided"))


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

    With ``create_graph=None`` the caller promises that the result of compiled code, which could be
    differentiated otherwise, will not be.

    Raises:
        TypeError: The inputs have a leaf that is no floating tensor, or the target no known kind.
        ValueError: The batch sizes disagree.
    """
    refuse_tangents()
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    if differentiated:
        require_floating(x)
    if not (create_graph or transforming()):
        x = tuple([t.detach() for t in x])
    model = bind(model_fn, frozen=not create_graph, forward_only=forward_only)
    undifferentiated = create_graph is None and is_compiling()
    chosen = choose(target, batch, name)
    return Explained(model, x, rebuild, batch, chosen, bool(create_graph), undifferentiated, name)


def repeat_chosen(chosen: Chosen, batch: int, copies: int) -> Chosen:
    """The target of ``copies`` copies of the batch, one behind the other."""
    if copies == 1:
        return chosen
    if isinstance(chosen, PerExample):
        return chosen._replace(rows=chosen.rows.repeat(copies, 1))
    if chosen is None or isinstance(chosen, tuple):
        return chosen
    if isinstance(chosen, list):
        return chosen * copies
    repeated: Chosen = repeat_bound(chosen, batch, copies)
    return repeated
