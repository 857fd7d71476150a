"""Integrated gradients to a tolerance: one rule while the slope is smooth, and panels where not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import row_sums, wide
from attrfn._copies.chunks import Chunks
from attrfn._explain.adaptive import refine
from attrfn._explain.explain import Explained
from attrfn._explain.panels import NODES, Sampler, mixes_rows, takes_any_rows
from attrfn._explain.path import over_path
from attrfn._explain.quadrature import LONGEST_RULE, Rule, legendre_coefficients
from attrfn._explain.tree import each, row_total
from attrfn._torch.typing import Leaves
from attrfn._torch.warn import warn

# The most gradients for an example: this many times those of the first round. A gap that is still
# open is mostly that of a jump in the model, which more nodes do not close.
_MOST = 1024
# The last quarter of the Legendre coefficients of the slope over the second quarter, below which
# twice as many nodes of one rule are better than panels. They fall like a power of the degree where
# the slope has kinks or poles, and geometrically where it has not.
_SMOOTH = 0.1
# Fewer nodes do not tell, and twice as many cost little.
_FEW = 16
# The first round of panels cuts the path into this many equal parts.
_FIRST_PANELS = 8


class _Found(NamedTuple):
    """What one rule tells of some examples."""

    total: Leaves  # the integrals, (B, ...)
    gap: Tensor  # their sums minus the change of the output, (B,)
    smooth: Tensor  # whether the slope is, (B,)


def to_tolerance(
    p: Explained,
    x0: Leaves,
    n_steps: int,
    quadrature: str | Rule,
    tolerance: float,
    chunks: Chunks,
) -> Leaves:
    """The integral of the gradient over s from 0 to 1, with every example's gap below a number.

    Args:
        p: The explained function at x.
        x0: The other end of the path, like ``p.x``.
        n_steps: The nodes of the first round.
        quadrature: The rule of the first round.
        tolerance: The largest gap, in units of the output.
        chunks: How many copies of the batch are evaluated at once.
    """
    with torch.no_grad():
        ends = p.values(x0), p.values(p.x)
    found = _by_one_rule(p, x0, ends, n_steps, quadrature, chunks)
    total, gap, taken = found.total, found.gap, n_steps
    apart = takes_any_rows(chunks)
    smooth, n = found.smooth, n_steps
    while bool((left := _left(gap, tolerance, apart)).any()):
        index = left.nonzero()[:, 0]
        doubled = bool(smooth[left].all()) if not apart else bool(smooth[left].any())
        if doubled and 2 * n <= LONGEST_RULE:
            n *= 2
            index = index[smooth[index]]
            q, start, both = _some(p, x0, ends, index)
            found = _by_one_rule(q, start, both, n, "gauss_legendre", chunks)
            total, gap = _put(total, found.total, index), gap.index_copy(0, index, found.gap)
            smooth = torch.zeros_like(smooth).index_copy(0, index, found.smooth)
            taken += n
            continue
        q, start, both = _some(p, x0, ends, index)
        sampler = Sampler(q, start, chunks)
        most = _MOST * max(n_steps, NODES)
        fine, gaps, most = refine(q, start, both, sampler, tolerance, _FIRST_PANELS, most)
        total = _put(total, fine, index)
        gap = gap.index_copy(0, index, gaps.to(gap.device, gap.dtype))
        taken += most
        break
    _warn_if_missed(gap, tolerance, taken)
    return total


def _left(gap: Tensor, tolerance: float, apart: bool) -> Tensor:
    """The examples that miss the tolerance, or all if one does where they share their nodes."""
    missed = gap.abs() > tolerance
    # A gradient that is nan or infinite stays so.
    missed &= gap.isfinite()
    return missed if apart else missed.any().expand_as(missed)


def _by_one_rule(
    p: Explained,
    x0: Leaves,
    ends: tuple[Tensor, Tensor],
    n: int,
    quadrature: str | Rule,
    chunks: Chunks,
) -> _Found:
    lengths = each(torch.sub, p.x, x0)
    slopes: list[Tensor] = []

    def gradients(points: Leaves) -> Leaves:
        grads = p.gradients(points, chunks.batching)[1]
        parts = [
            row_sums((g.detach() * d).flatten(0, 1), wide(d.dtype)).reshape(g.shape[:2])
            for g, d in zip(grads, lengths, strict=True)
        ]
        slopes.append(torch.stack(parts).sum(0))
        return grads

    total = over_path(p, x0, gradients, n_steps=n, quadrature=quadrature, chunks=chunks)
    with torch.no_grad():
        gap = row_total(each(torch.mul, lengths, total)) - (ends[1] - ends[0])
        gap = gap.sum().expand_as(gap) if mixes_rows() else gap
    # Runs that look whether rows depend on each other come before those of the path.
    at_nodes = torch.cat(slopes)[-n:]
    return _Found(total, gap, _is_smooth(at_nodes, quadrature))


def _is_smooth(slopes: Tensor, quadrature: str | Rule) -> Tensor:
    """From slopes at the nodes of one rule, (n, B), whether more nodes of it pay, (B,)."""
    n = len(slopes)
    if n < _FEW:
        return slopes.new_ones(slopes.shape[1], dtype=torch.bool)
    if quadrature != "gauss_legendre" or n > LONGEST_RULE:
        return slopes.new_zeros(slopes.shape[1], dtype=torch.bool)
    to_series = legendre_coefficients(n).to(slopes.device, slopes.dtype)
    size = (to_series @ slopes).abs()
    return size[3 * n // 4 :].amax(0) < _SMOOTH * size[n // 4 : n // 2].amax(0)


def _some(
    p: Explained, x0: Leaves, ends: tuple[Tensor, Tensor], index: Tensor
) -> tuple[Explained, Leaves, tuple[Tensor, Tensor]]:
    """The same for some of the examples."""
    if len(index) == p.batch:
        return p, x0, ends
    picked = p.at_rows(index)._replace(x=tuple([t[index] for t in p.x]))
    return picked, tuple([t[index] for t in x0]), (ends[0][index], ends[1][index])


def _put(total: Leaves, new: Leaves, index: Tensor) -> Leaves:
    return each(lambda t, s: t.index_copy(0, index, s.to(t.dtype)), total, new)


def _warn_if_missed(gap: Tensor, tolerance: float, taken: int) -> None:
    largest = gap.abs().nan_to_num(torch.inf)
    if gap.numel() and float(largest.max()) > tolerance:
        warn(
            f"integrated_gradients missed tolerance={tolerance} with {taken} gradients, the "
            f"largest gap is {float(gap.abs().max()):.3g}: the model may jump along the path, or "
            "the tolerance is below the rounding of the output"
        )
