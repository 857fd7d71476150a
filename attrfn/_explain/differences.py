"""Integrals of g da along a path, from values of a and g at nodes that panels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._explain.explain import Explained
from attrfn._explain.lobatto import DIFFERENCES, FIRST, Table, first_panel
from attrfn._explain.path import points_on
from attrfn._explain.quadrature import quadrature_rule
from attrfn._explain.tree import each
from attrfn._torch.typing import Leaves

# A panel gives sum_jk (a_{j+1} - a_j) L_jk g_k: its rule, applied to g times the derivative of the
# polynomial through the values of a, written as a sum over its steps. The entries of a row of L add
# up to 1, so that with one g for all nodes the panels give g times the change of a, whatever a does
# in between.


class _Sum(NamedTuple):
    """A part of the integral, and the nodes from which it goes on.

    Attributes:
        total: Over the panels so far, (B, ...) each; empty before the first.
        a: Values at the nodes that follow them, (S, B, ...).
        g: The same of g.
        start: The number of the first of these nodes; that of x0 is 0.
    """

    total: Leaves
    a: Leaves
    g: Leaves
    start: int


def over_differences(
    p: Explained,
    x0: Leaves,
    at_start: Leaves,
    values: Callable[[Leaves], tuple[Leaves, Leaves]],
    n_steps: int,
    chunks: Chunks,
) -> Leaves:
    """The integral of ``g da`` over the path from x0 to x, by ``n_steps`` nodes.

    Args:
        p: The explained function at x.
        x0: The other end of the path, like ``p.x``.
        at_start: The value of a at x0, (B, ...) each.
        values: From points of S copies of the batch, (S, B, ...), to a and g, (S, B, ...) each.
        n_steps: The number of steps between nodes, at least 1.
        chunks: How many nodes are evaluated at once.
    """
    points = points_on(p.x, x0, quadrature_rule("lobatto", n_steps)[0])

    def part(i: slice) -> _Sum:
        a, g = values(points(i))
        if i.start:
            return _Sum((), a, g, i.start + 1)
        a = each(lambda a0, a: torch.cat([a0[None], a]), at_start, a)
        g = each(lambda g: torch.cat([g[:1], g]), g)  # the first one has no weight
        return _summed(_Sum((), a, g, 0), n_steps)

    def merge(done: _Sum, new: _Sum) -> _Sum:
        # Chunks end where memory says, and a panel may begin in one and end in another.
        a, g = (
            tuple([torch.cat(both) for both in zip(old, more, strict=True)])
            for old, more in ((done.a, new.a), (done.g, new.g))
        )
        return _summed(_Sum(done.total, a, g, done.start), n_steps)

    return over_chunks(part, merge, n_steps, chunks, p.x[0].device, x=p.x).total


def _summed(s: _Sum, n_steps: int) -> _Sum:
    """The same with all panels added that are complete."""
    first = first_panel(n_steps)
    if s.start == 0:
        if len(s.a[0]) <= first:
            return s
        s = _added(s, first, 1, FIRST[first])
    panels = (len(s.a[0]) - 1) // 2
    return _added(s, 2, panels, DIFFERENCES) if panels else s


def _added(s: _Sum, size: int, count: int, table: Table) -> _Sum:
    """The same with ``count`` panels of ``size`` steps added."""
    end = size * count
    more = each(lambda a, g: _panels(a[: end + 1], g[: end + 1], table), s.a, s.g)
    total = each(torch.add, s.total, more) if s.total else more
    # Copied, because views would keep the values of the whole chunk.
    a, g = (tuple([t[end:].clone() for t in leaves]) for leaves in (s.a, s.g))
    return _Sum(total, a, g, s.start + end)


def _panels(a: Tensor, g: Tensor, table: Table) -> Tensor:
    """Panels that share their ends: values (S, B, ...) to the sum over the panels, (B, ...)."""
    a, g = a.to(wide(a.dtype)), g.to(wide(g.dtype))
    size, last = len(table), len(a) - len(table)
    steps = a[1:] - a[:-1]
    parts = []
    for j, row in enumerate(table):
        # A node without a weight may have a gradient that is not finite.
        terms = [(g[k : last + k : size], w) for k, w in enumerate(row) if w]
        mean = terms[0][0] * terms[0][1]
        for values, w in terms[1:]:
            mean = torch.add(mean, values, alpha=w)
        parts.append((steps[j::size] * mean).sum(0))
    return sum(parts[1:], parts[0])
