"""The pass of perturbation methods over the rows of a chunk, as a compiled unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attrfn._copies.batch import flat_rows, repeat_bound, split_rows, wide
from attrfn._explain.explain import repeat_chosen, unread, vmapped
from attrfn._explain.output import Outcome, outcome
from attrfn._explain.target import Chosen
from attrfn._explain.tree import call_model, flatten
from attrfn._torch.autodiff import twice_differentiable
from attrfn._torch.typing import Leaves, ModelFn, Tree
from attrfn._torch.units import Units, padded, using


def outcome_in_unit(
    p: Any, units: Units, points: Leaves, evaluate: Callable[[Leaves], Outcome]
) -> Outcome:
    """Values (S, R, K...) at copies (S, B, ...) of the batch of a ``Masked``, p.

    Args:
        p: The model function and its inputs.
        units: What runs the unit.
        points: The copies.
        evaluate: The same in eager mode.
    """

    def fits() -> bool:
        try:
            with using(None):
                return not evaluate(padded(points, n + 1)).per_batch
        except ValueError:  # one value for two copies
            return False

    n, mapped = points[0].shape[0], p.chunks.batching == "vmap"
    alone = p.per_batch or p.chunks.size == 1 or p.chunks.batching == "loop"
    copies = n if alone else units.copies(n, p.batch, fits)
    points = padded(points, copies)
    model, chosen = p.model, unread(p.chosen)
    sizes: tuple[int, ...] = (copies, p.batch)
    if not mapped:
        model, sizes = repeat_bound(model, p.batch, copies), (copies * p.batch,)
        chosen = repeat_chosen(chosen, p.batch, copies)
        points = flat_rows(points)
    given = (model, p.rebuild(points), chosen, p.create_graph, mapped)
    values, *others = units.run(_values, given, sizes, p.create_graph)
    if others[0] and copies > 1 and not mapped:
        with using(None):
            return evaluate(split_rows(points, copies))  # raises: one value for several copies
    if not mapped:
        values = values.reshape(copies, len(values) // copies, *values.shape[1:])
    return Outcome(values[:n], *others)


def _values(
    model: ModelFn, inputs: Tree, chosen: Chosen, create_graph: bool, mapped: bool
) -> tuple[Any, ...]:
    x, rebuild = flatten(inputs)
    others: list[Any] = []

    def rows(leaves: Leaves) -> torch.Tensor:
        outputs = call_model(model, rebuild(leaves), fresh=True)
        found = outcome(outputs, chosen, leaves[0].shape[0], 1, "target")
        others[:] = found[1:]  # not returned: vmap passes tensors only
        return found.values

    with twice_differentiable(create_graph):
        values = vmapped(rows)(*x) if mapped else rows(x)
    per_batch, dtype, integers = others
    # What is selected is copied: as a view it would keep all outputs of each chunk.
    values = values.to(wide(values.dtype), copy=chosen is not None)
    return values, per_batch, wide(dtype), integers
