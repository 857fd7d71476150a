"""The gap that the steps of an integral along a path leave, from what the steps know already."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from attrfn._copies.batch import row_sums, wide
from attrfn._explain.uncertain import MOST_ERROR, squares
from attrfn._torch.typing import Leaves
from attrfn._torch.warn import warn

# The steps know the values v of the model at their nodes s_1 to s_n without another run. Between
# s_1 and s_n the integral of the slopes is v_n - v_1, so that what the same nodes make of it shows
# how far they are from the integral. The ends of the path stay unknown.


def warn_of_gap(
    name: str,
    n_steps: int,
    n_nodes: int,
    lengths: Leaves,
    inner: Leaves,
    total: Leaves,
    values: list[Tensor],
) -> None:
    """Warn where the gap of an example is more than a quarter of its attributions.

    Args:
        name: The method.
        n_steps: Its number of steps.
        lengths: x - x0, each (B, ...).
        inner: The integral of the gradients from the first node to the last.
        total: That from 0 to 1.
        values: The model's values at the nodes, in chunks (S, B), and before them others.
    """
    # Runs that look whether rows depend on each other come before those of the path.
    first, last = torch.cat(values)[-n_nodes], values[-1][-1]
    with torch.no_grad():
        found = [row_sums(g * d, wide(d.dtype)) for g, d in zip(inner, lengths, strict=True)]
        part = functools.reduce(torch.add, found)
        # Numbers of Python take less time than the small operations that would compare tensors.
        ends = torch.stack([first.to(part.dtype), last.to(part.dtype), part]).tolist()
        if not any(abs(p - b + a) > MOST_ERROR * abs(b - a) for a, b, p in zip(*ends, strict=True)):
            return
        # Where parts cancel, the change says little about the size of the attributions.
        change = last - first
        norm = squares(tuple([(g * d)[None] for g, d in zip(total, lengths, strict=True)])).sqrt()
        size = torch.maximum(change.abs(), norm.to(change.dtype))
        gap = (part - change).abs()
        rounding = 64 * torch.finfo(change.dtype).eps * torch.maximum(first.abs(), last.abs())
        wrong = (gap > MOST_ERROR * size) & (gap > rounding)
        if bool(wrong.any()):
            share = float((gap / size)[wrong].max())
            warn(
                f"{name} with n_steps={n_steps} misses the change of the output by about "
                f"{share:.0%} of its attributions: raise n_steps, or give a tolerance"
            )
