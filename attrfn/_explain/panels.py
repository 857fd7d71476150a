"""Values and gradients at any points of the paths of single examples."""

from __future__ import annotations

import functools
from typing import TypeAlias

import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, row_sums, wide
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._explain.explain import Explained, vmapped
from attrfn._explain.quadrature import quadrature_rule
from attrfn._explain.tree import each
from attrfn._torch.explanation import current
from attrfn._torch.typing import Leaves

NODES = 4
"""The nodes of Gauss and Legendre in a panel."""
_Parts: TypeAlias = list[tuple[int, Leaves]]


def takes_any_rows(chunks: Chunks) -> bool:
    """Whether rows of several examples, and several rows of one, may be evaluated together."""
    return chunks.batching == "fold" and chunks.size != 1 and not mixes_rows()


def mixes_rows() -> bool:
    """Whether the rows of the model depend on each other, as has been found."""
    one = current()
    return one is not None and one.one_by_one


class Sampler:
    """Evaluates the explained function at points of the paths from x0 to x.

    A unit is an example, whose points are rows of any batch. Where the model needs whole batches,
    or copies are not folded, the batch is a single unit, and its examples share their points.

    Args:
        p: The explained function at x.
        x0: The other ends of the paths.
        chunks: How many rows are evaluated at once, in units of the batch.
    """

    def __init__(self, p: Explained, x0: Leaves, chunks: Chunks) -> None:
        self.p = p
        self.x0 = x0
        self.lengths = each(torch.sub, p.x, x0)
        self.chunks = chunks
        self.apart = takes_any_rows(chunks)
        self.mixes = mixes_rows()
        self.units = p.batch if self.apart else 1
        self.group = 1 if self.apart else p.batch
        nodes, weights = quadrature_rule("gauss_legendre", NODES)
        self._nodes, self._weights = nodes, weights

    def values(self, unit: Tensor, s: Tensor) -> Tensor:
        """The output at M points, (M, G) in float64 on the CPU."""

        def part(i: slice) -> tuple[Tensor, ...]:
            p, points = self._at(i, unit, s)
            with torch.no_grad():
                if self.chunks.batching == "vmap":
                    found: Tensor = vmapped(p.values)(*points)
                else:
                    found = p.values(flat_rows(points), len(points[0]))
            return (self.gathered(found.reshape(-1, self.group).cpu().double()),)

        chunks = self.chunks._replace(backward=False)
        values: Tensor = self._over(part, _joined, len(s), chunks)[0]
        return values

    def integrals(self, unit: Tensor, start: Tensor, end: Tensor) -> tuple[Leaves, Tensor]:
        """Integrals of the gradient over panels, (N, G, ...), and of the slope, (N, G)."""
        lengths = end - start
        s = (start[:, None] + lengths[:, None] * self._nodes).flatten()
        weights = (lengths[:, None] * self._weights).flatten()
        unit = unit.repeat_interleave(NODES)

        def part(i: slice) -> _Parts:
            rows = self._rows(i, len(s))
            p, points = self._at(i, unit, s)
            grads = p.gradients(points, self.chunks.batching)[1]
            first = rows.start // NODES
            panel = torch.arange(rows.start, rows.stop) // NODES - first
            add = functools.partial(_added, panel, weights[rows])
            return [(first, each(lambda g: add(g.reshape(-1, self.group, *g.shape[2:])), grads))]

        parts = self._over(part, lambda a, b: a + b, len(s), self.chunks)
        found = []
        for j, t in enumerate(parts[0][1]):
            whole = t.new_zeros(len(start), *t.shape[1:])
            for first, leaves in parts:
                places = torch.arange(first, first + len(leaves[j]), device=t.device)
                whole = whole.index_add(0, places, leaves[j])
            found.append(whole)
        return tuple(found), self._slopes(tuple(found), unit[::NODES])

    def _slopes(self, integrals: Leaves, unit: Tensor) -> Tensor:
        """Integrals of the gradient times x - x0, (N, G) in float64 on the CPU."""
        found = torch.zeros(len(unit), self.group, dtype=torch.float64)
        for k, d in zip(integrals, self.lengths, strict=True):
            d = d[unit.to(d.device)][:, None] if self.apart else d[None]
            products = (k.detach() * d.detach()).flatten(0, 1)
            found += row_sums(products, products.dtype).reshape(found.shape).cpu()
        return self.gathered(found)

    def gathered(self, values: Tensor) -> Tensor:
        """Only the sum of rows that depend on each other is complete: (N, B) to (N, 1)."""
        return values.sum(1, keepdim=True) if self.mixes else values

    def _at(self, i: slice, unit: Tensor, s: Tensor) -> tuple[Explained, Leaves]:
        """The function and points, (S, B, ...) for the whole batch, or (1, R, ...) of examples."""
        rows = self._rows(i, len(s))
        if self.apart:
            index = unit[rows]
            p = self.p.at_rows(index)
            points = [
                _points(x0[index.to(x0.device)], s[rows], d[index.to(d.device)])[None]
                for x0, d in zip(self.x0, self.lengths, strict=True)
            ]
            return p, tuple(points)
        copies = [
            _points(x0.expand(len(s[rows]), *x0.shape), s[rows], d)
            for x0, d in zip(self.x0, self.lengths, strict=True)
        ]
        return self.p, tuple(copies)

    def _rows(self, i: slice, n: int) -> slice:
        size = self.p.batch if self.apart else 1
        return slice(i.start * size, min(i.stop * size, n))

    def _over(self, part, merge, n: int, chunks: Chunks):  # type: ignore[no-untyped-def]
        size = self.p.batch if self.apart else 1
        return over_chunks(part, merge, -(-n // size), chunks, self.p.x[0].device, x=self.p.x)


def _joined(a: Leaves, b: Leaves) -> Leaves:
    return each(lambda s, t: torch.cat([s, t]), a, b)


def _points(start: Tensor, s: Tensor, lengths: Tensor) -> Tensor:
    places = s.to(start.device, wide(start.dtype)).reshape(-1, *[1] * (start.ndim - 1))
    return (start + places * lengths).to(start.dtype)


def _added(panel: Tensor, weights: Tensor, g: Tensor) -> Tensor:
    """Weighted sums of the rows of each panel: (R, G, ...) to (N, G, ...)."""
    g = g.to(wide(g.dtype))
    weighted = g * weights.to(g.device, g.dtype).reshape(-1, *[1] * (g.ndim - 1))
    return g.new_zeros(int(panel[-1]) + 1, *g.shape[1:]).index_add(0, panel.to(g.device), weighted)
