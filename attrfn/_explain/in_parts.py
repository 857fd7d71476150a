"""Gradients of a large batch, some rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows
from attrfn._copies.memory import out_of_memory
from attrfn._copies.rows import agree
from attrfn._torch.explanation import Explanation
from attrfn._torch.typing import Leaves


def in_parts(p: Any, one: Explanation, points: Leaves) -> tuple[Tensor, Leaves]:
    """``p.gradients(points)`` of a single copy of the batch, ``one.rows`` rows at a time.

    The first parts are compared with a forward pass of the whole batch. Where the model needs that,
    or its rows depend on each other, this copy and the others run as a whole.

    Args:
        p: The explained function (:class:`attrfn._explain.explain.Explained`).
        one: The call of a method.
        points: One copy of the batch, (1, B, ...).
    """
    rows, one.rows = one.rows or p.batch, None
    parts = [torch.arange(i, min(i + rows, p.batch)) for i in range(0, p.batch, rows)]
    try:
        found = [
            p.at_rows(i).gradients(tuple([t[:, i[0] : i[-1] + 1] for t in points])) for i in parts
        ]
        values, grads = zip(*found, strict=True)
        if not one.rows_agree:
            with torch.no_grad():
                whole = p.values(flat_rows(points))
            one.rows_agree = agree(whole, torch.cat(values[:-1], 1)[0], values[-1][0])
    except Exception as error:
        # A model may take the whole batch alone. If it fails with that too, that run says so.
        if out_of_memory(error):
            raise
        one.rows_agree = False
    if not one.rows_agree:
        gradients: tuple[Tensor, Leaves] = p.gradients(points)
        return gradients
    one.rows = rows
    return torch.cat(values, 1), tuple([torch.cat(t, 1) for t in zip(*grads, strict=True)])
