"""Integrals of gradients along a path to a tolerance: panels are split where the gap is.

Between two points of the path the integral of the slope is the change of the output, which two
forward passes tell. So the error of each panel is known, and only panels that miss their part are
split. The examples of a batch have panels of their own: values decide, and those of one example do
not reach another one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import row_sums
from attrfn._explain.explain import Explained
from attrfn._explain.panels import NODES, Sampler
from attrfn._explain.tree import each
from attrfn._torch.typing import Leaves

# A panel at the baseline whose gap did not halve with its length is split into halves of halves at
# once: the whole change of an RMSNorm is at a millionth of the path.
_GRADED = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
# Bytes of the integrals of panels that one example keeps, and the panels that it keeps in any case.
# With more panels, those with the smallest gaps are no longer split.
_KEPT_BYTES, _KEPT_PANELS = 2**27, 64
# Gaps below this many roundings of the output are noise, and so are those of panels below as many
# roundings of their points.
_NOISE, _NARROW = 4, 64
# How many times the gradients have to halve the gap. A pole is reached with fewer.
_PATIENCE = 8


class Panels(NamedTuple):
    """Parts of the paths of some units, which are examples, or the whole batch as one.

    Attributes:
        unit: Whose they are, (N,).
        start: Where they start, (N,) in float64.
        end: Where they end.
        low: The output at the start, (N, G) for the G examples of a unit.
        high: The output at the end.
        gap: Their integrals minus the changes of the output, (N, G).
        before: The gap of the panel that each is a part of, (N,).
        integrals: Of the gradient over s, leaves (N, G, ...).
    """

    unit: Tensor
    start: Tensor
    end: Tensor
    low: Tensor
    high: Tensor
    gap: Tensor
    before: Tensor
    integrals: Leaves

    def of(self, index: Tensor) -> Panels:
        """Some of them."""
        here = index.to(self.integrals[0].device)
        integrals = tuple([t[here] for t in self.integrals])
        return Panels._make([*[t[index] for t in self[:-1]], integrals])


def both(a: Panels, b: Panels) -> Panels:
    """Two sets as one."""
    integrals = each(lambda s, t: torch.cat([s, t]), a.integrals, b.integrals)
    return Panels._make(
        [*[torch.cat(pair) for pair in zip(a[:-1], b[:-1], strict=True)], integrals]
    )


class _Done(NamedTuple):
    """What has been summed for each unit and no longer needs panels."""

    total: Leaves  # (U, G, ...)
    gap: Tensor  # (U, G)
    squares: Tensor  # (U, G)
    panels: Tensor  # how many, (U,)

    def plus(self, p: Panels) -> _Done:
        """With some panels added."""
        unit = p.unit.to(p.integrals[0].device)
        return _Done(
            each(lambda t, k: t.index_add(0, unit, k), self.total, p.integrals),
            self.gap.index_add(0, p.unit, p.gap),
            self.squares.index_add(0, p.unit, p.gap**2),
            self.panels.index_add(0, p.unit, torch.ones_like(p.unit)),
        )


def refine(
    p: Explained,
    x0: Leaves,
    ends: tuple[Tensor, Tensor],
    sampler: Sampler,
    tolerance: float,
    parts: int,
    most: int,
) -> tuple[Leaves, Tensor, int]:
    """The integral of the gradient over s from 0 to 1, for every example.

    Args:
        p: The explained function at x.
        x0: The other end of the path.
        ends: The outputs at x0 and x, (B,) each.
        sampler: Evaluates nodes of panels.
        tolerance: The largest gap of an example.
        parts: The number of panels of the first round.
        most: The largest number of gradients for an example.

    Returns:
        Leaves (B, ...), the gaps, (B,), and the gradients of the example with the most.
    """
    units = sampler.units
    low, high = (sampler.gathered(t.detach().cpu().double().reshape(units, -1)) for t in ends)
    live = _first(sampler, low, high, parts)
    rows = torch.full((units,), NODES * parts)
    scale = torch.maximum(low.abs(), high.abs())
    done = _Done(
        tuple([t.new_zeros(units, *t.shape[1:]) for t in live.integrals]),
        torch.zeros_like(low),
        torch.zeros_like(low),
        torch.zeros(units, dtype=torch.int64),
    )
    floors, stalled = _floors(p, x0, sampler), _Stalled(units)
    kept = max(_KEPT_PANELS, _KEPT_BYTES // _bytes_of(live))
    while True:
        whole = done.plus(live._replace(integrals=each(torch.zeros_like, live.integrals)))
        scale = _largest_of(live.unit, live.low.abs(), scale)
        error = torch.maximum(whole.gap.abs(), whole.squares.sqrt()).amax(1)
        is_open = (error > tolerance) & (rows < most) & error.isfinite() & ~stalled.of(rows, error)
        split = _chosen(live, is_open, whole.panels, tolerance, scale, floors)
        if not bool(split.any()):
            break
        is_kept = ~split & _largest(live, kept) & is_open[live.unit]
        done = done.plus(live.of((~split & ~is_kept).nonzero()[:, 0]))
        new = _split(live.of(split.nonzero()[:, 0]), sampler)
        rows = rows.index_add(0, new.unit, torch.full_like(new.unit, NODES))
        live = both(live.of(is_kept.nonzero()[:, 0]), new)
    done = done.plus(live)
    total = each(lambda t: t.flatten(0, 1), done.total)
    return total, done.gap.expand(units, sampler.group).flatten(), int(rows.max())


class _Stalled:
    """The units whose gap many more gradients have not halved, as where a model detaches."""

    def __init__(self, units: int) -> None:
        self.rows = torch.zeros(units, dtype=torch.int64)
        self.error = torch.full((units,), torch.inf, dtype=torch.float64)
        self.found = torch.zeros(units, dtype=torch.bool)

    def of(self, rows: Tensor, error: Tensor) -> Tensor:
        """(U,), from the gradients so far and the gaps."""
        due = rows >= _PATIENCE * self.rows
        self.found |= due & (2 * error > self.error)
        self.rows = torch.where(due, rows, self.rows)
        self.error = torch.where(due, error, self.error)
        return self.found


def _first(sampler: Sampler, low: Tensor, high: Tensor, parts: int) -> Panels:
    units = len(low)
    unit = torch.arange(units).repeat_interleave(parts)
    start = (torch.arange(parts, dtype=torch.float64) / parts).repeat(units)
    inner = sampler.values(unit, start).reshape(units, parts, -1)
    knots = torch.cat([low[:, None], inner[:, 1:], high[:, None]], 1)
    whole = (high - low).abs().amax(1).repeat_interleave(parts)
    return _panels(
        sampler,
        unit,
        start,
        start + 1 / parts,
        knots[:, :-1].flatten(0, 1),
        knots[:, 1:].flatten(0, 1),
        whole,
    )


def _panels(
    sampler: Sampler,
    unit: Tensor,
    start: Tensor,
    end: Tensor,
    low: Tensor,
    high: Tensor,
    before: Tensor,
) -> Panels:
    integrals, sums = sampler.integrals(unit, start, end)
    return Panels(unit, start, end, low, high, sums - (high - low), before, integrals)


def _floors(p: Explained, x0: Leaves, sampler: Sampler) -> tuple[float, Tensor]:
    """The rounding of the points, and where on the path it is that of x0: |x0| / |x - x0|, (U,)."""
    eps = max(torch.finfo(t.dtype).eps for t in p.x)
    norms = []
    for leaves in (x0, each(torch.sub, p.x, x0)):
        squares = [row_sums(t.detach().square().double().cpu()) for t in leaves]
        norms.append(torch.stack(squares).sum(0).sqrt().reshape(sampler.units, -1))
    return eps, (norms[0] / norms[1]).nan_to_num(0, 0, 0).amax(1)


def _chosen(
    live: Panels,
    is_open: Tensor,
    count: Tensor,
    tolerance: float,
    scale: Tensor,
    floors: tuple[float, Tensor],
) -> Tensor:
    """The panels to split: all above their share, or all above half of the largest gap."""
    eps, offset = floors
    score = live.gap.abs().amax(1)
    noise = _NOISE * eps * scale.amax(1)[live.unit]
    width = _NARROW * eps * (offset[live.unit] + live.end)
    can = is_open[live.unit] & (score > noise) & (live.end - live.start > width)
    can &= score.isfinite()
    largest = _largest_of(live.unit, torch.where(can, score, 0.0), torch.zeros_like(scale[:, 0]))
    share = tolerance / (2 * count.double().sqrt())
    return can & (score >= torch.minimum(largest / 2, share)[live.unit])


def _largest(live: Panels, kept: int) -> Tensor:
    """Those of the panels of each unit that are among the ``kept`` with the largest gaps."""
    if len(live.unit) <= kept:
        return torch.ones_like(live.unit, dtype=torch.bool)
    order = live.gap.abs().amax(1).argsort(descending=True, stable=True)
    order = order[live.unit[order].argsort(stable=True)]
    counts = live.unit.bincount()
    first = (counts.cumsum(0) - counts)[live.unit[order]]
    found = torch.zeros_like(live.unit, dtype=torch.bool)
    found[order] = torch.arange(len(order)) - first < kept
    return found


def _largest_of(unit: Tensor, values: Tensor, start: Tensor) -> Tensor:
    """The largest values of each unit, (N, ...) to (U, ...), and of what they start from."""
    index = unit.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    return start.scatter_reduce(0, index, values, "amax")


def _split(parents: Panels, sampler: Sampler) -> Panels:
    score = parents.gap.abs().amax(1)
    graded = (parents.start == 0) & (2 * score > parents.before)
    sets = []
    for which, cuts in ((~graded, (0.0, 0.5, 1.0)), (graded, _GRADED)):
        some = parents.of(which.nonzero()[:, 0])
        if len(some.unit):
            sets.append(_cut(some, torch.tensor(cuts, dtype=torch.float64), sampler))
    return sets[0] if len(sets) == 1 else both(*sets)


def _cut(parents: Panels, cuts: Tensor, sampler: Sampler) -> Panels:
    n, parts = len(parents.unit), len(cuts) - 1
    knots = torch.lerp(parents.start[:, None], parents.end[:, None], cuts)  # (N, parts + 1)
    unit = parents.unit.repeat_interleave(parts - 1)
    inner = sampler.values(unit, knots[:, 1:-1].flatten()).reshape(n, parts - 1, -1)
    values = torch.cat([parents.low[:, None], inner, parents.high[:, None]], 1)
    return _panels(
        sampler,
        parents.unit.repeat_interleave(parts),
        knots[:, :-1].flatten(),
        knots[:, 1:].flatten(),
        values[:, :-1].flatten(0, 1),
        values[:, 1:].flatten(0, 1),
        parents.gap.abs().amax(1).repeat_interleave(parts),
    )


def _bytes_of(live: Panels) -> int:
    """The bytes of the integrals of one panel."""
    return max(1, sum(t.numel() * t.element_size() for t in live.integrals) // len(live.unit))
