"""Integrals along the straight path from the baselines to the inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._copies.batch import along, flat_rows, split_rows, wide
from attrfn._copies.chunks import Chunks, add, over_chunks
from attrfn._explain.explain import Explained
from attrfn._explain.quadrature import Rule, quadrature_rule
from attrfn._torch.precision import full_precision
from attrfn._torch.typing import Batching, ChunkSize, Leaves


def over_path(
    p: Explained,
    x0: Leaves,
    integrand: Callable[[Leaves], Leaves],
    *,
    n_steps: int,
    quadrature: str | Rule,
    chunk_size: ChunkSize,
    batching: Batching,
    progress: bool,
    label: str,
) -> Leaves:
    """``sum_k w_k integrand(x0 + s_k (x - x0))``, the integral over s from 0 to 1.

    Args:
        p: The explained function at x.
        x0: The other end of the path, like ``p.x``.
        integrand: From points of S copies of the batch, (S, B, ...), to leaves (S, B, ...).
        n_steps: The number of nodes s_k.
        quadrature: See :func:`attrfn._explain.quadrature.quadrature_rule`.
        chunk_size: Steps at once, see :class:`attrfn._copies.chunks.Chunks`.
        batching: See :class:`attrfn._copies.chunks.Chunks`.
        progress: Show a bar.
        label: What the bar says.
    """
    nodes, weights = quadrature_rule(quadrature, n_steps)
    lengths = [x - b for x, b in zip(p.x, x0, strict=True)]
    places = [along(nodes, x) for x in p.x]

    def part(i: slice) -> Leaves:
        points = [_point(b, s[i], d) for b, s, d in zip(x0, places, lengths, strict=True)]
        return tuple([_weighted(weights[i], v) for v in integrand(tuple(points))])

    chunks = Chunks(chunk_size, batching, progress, label)
    return over_chunks(part, add, len(nodes), chunks, p.x[0].device, x=p.x)


def _point(start: Tensor, s: Tensor, length: Tensor) -> Tensor:
    """``start + s * length`` in one pass, (S, B, ...)."""
    if s.dtype == start.dtype:
        return torch.addcmul(start, s, length)
    return (start + s * length).to(start.dtype)


@full_precision
def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """``sum_k w_k v_k`` without a temporary of the values' size."""
    values = values.to(wide(values.dtype))
    total: Tensor = torch.tensordot(weights.to(values.device, values.dtype), values, 1)
    return total


def on_copies(f: Callable[[Leaves, int], Leaves], points: Leaves, batching: Batching) -> Leaves:
    """Apply ``f(rows, copies)`` to S copies of the batch, folded or under vmap: (S, B, ...)."""
    if batching == "vmap":
        return torch.func.vmap(lambda *rows: f(rows, 1), randomness="different")(*points)
    copies = points[0].shape[0]
    return split_rows(f(flat_rows(points), copies), copies)
