"""Copies of a large batch with replaced features, evaluated some rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import pick_bound
from attrfn._copies.chunks import copies_that_fit
from attrfn._copies.memory import budget, most_on_cpu
from attrfn._copies.rows import agree
from attrfn._copies.sizes import rows_on_cpu
from attrfn._explain.explain import pick_chosen
from attrfn._explain.output import Outcome
from attrfn._torch.compiling import makes_fakes
from attrfn._torch.explanation import current
from attrfn._torch.typing import Leaves
from attrfn._torch.units import active_units

# The comparison is one more pass; fewer copies than this do not pay for it.
_PAYS = 8


def rows_at_once(p: Any, n: int) -> int | None:
    """How many rows of a copy run at once, where that changes nothing; None: all of them.

    The values at the inputs are compared with those of the whole batch. A model that needs the
    whole batch, or whose rows depend on each other, gets it.

    Args:
        p: The model function and its inputs (:class:`attrfn._explain.masked.Masked`).
        n: The number of copies.
    """
    one = current()
    if one is None or one.one_by_one or n < _PAYS or not _may(p) or makes_fakes():
        return None
    room = budget(p.device)
    if copies_that_fit(p.one_copy, room, p.device, p.x) > 1:
        return None
    rows = rows_on_cpu(p.one_copy, room, p.batch, most_on_cpu())
    if rows is None:
        return None
    try:
        found = [v[0] for v in _each(p._replace(rows=rows), tuple([t.clone()[None] for t in p.x]))]
        same = agree(p.full, torch.cat(found[:-1]), found[-1])
    except Exception:  # a model that takes this number of rows only
        return None
    return rows if same else None


def in_rows(p: Any, points: Leaves) -> Outcome:
    """``p.values(points)`` of a single copy of the batch (1, B, ...), ``p.rows`` rows at a time."""
    return Outcome(torch.cat(_each(p, points), 1), False, p.dtype, p.integers)


def _each(p: Any, points: Leaves) -> list[Tensor]:
    """Values (1, r, K...) of r rows after the other."""
    found = []
    for i in range(0, p.batch, p.rows):
        index = torch.arange(i, min(i + p.rows, p.batch))
        part = p._replace(
            model=pick_bound(p.model, p.batch, index),
            chosen=pick_chosen(p.chosen, p.batch, index),
            batch=len(index),
            rows=None,
        )
        found.append(part.values(tuple([t[:, i : i + p.rows] for t in points])))
    return found


def _may(p: Any) -> bool:
    """Whether the batch is measured, and runs as it is."""
    folded = p.chunks.batching == "fold" and not (p.per_batch or p.create_graph or p.whole)
    return folded and p.one_copy is not None and p.device.type == "cpu" and active_units() is None
