"""Integrals along the straight path from the baselines to the inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._copies.batch import along, flat_rows, split_rows, wide
from attrfn._copies.chunks import Chunks, add, over_chunks
from attrfn._explain.explain import Explained, vmapped
from attrfn._explain.quadrature import Rule, quadrature_rule
from attrfn._explain.tree import each
from attrfn._torch.precision import full_precision
from attrfn._torch.typing import Batching, Leaves
from attrfn._torch.units import active_units


def over_path(
    p: Explained,
    x0: Leaves,
    integrand: Callable[[Leaves], Leaves],
    *,
    n_steps: int,
    quadrature: str | Rule,
    chunks: Chunks,
    table: tuple[Tensor, Tensor] | None = None,
) -> Leaves:
    """``sum_k w_k integrand(x0 + s_k (x - x0))``, the integral over s from 0 to 1.

    Args:
        p: The explained function at x.
        x0: The other end of the path, like ``p.x``.
        integrand: From points of S copies of the batch, (S, B, ...), to leaves (S, B, ...).
        n_steps: The number of nodes s_k.
        quadrature: The name of a rule, or a callable ``n -> (nodes, weights)``.
        chunks: How many steps are evaluated at once, and how they become one call of the model.
        table: The nodes and weights of the rule, if they are known. With weights (n, 2) of two
            rules the leaves are (2, B, ...), by one pass over the integrand.
    """
    nodes, weights = table or quadrature_rule(quadrature, n_steps)
    points = points_on(p.x, x0, nodes)

    def part(i: slice) -> Leaves:
        return each(functools.partial(_weighted, weights[i]), integrand(points(i)))

    return over_chunks(part, add, len(nodes), chunks, p.x[0].device, x=p.x)


def points_on(x: Leaves, x0: Leaves, nodes: Tensor) -> Callable[[slice], Leaves]:
    """From a slice of the nodes to the points ``x0 + s_k (x - x0)``, (S, B, ...) each."""
    lengths = each(lambda x, x0: x - x0, x, x0)
    places = [along(nodes, t) for t in x]
    # Points are made for the chunk alone: those of all steps would take as much memory as the
    # chunks are there to save.
    return lambda i: each(_point, x0, tuple([s[i] for s in places]), lengths)


def _point(start: Tensor, s: Tensor, length: Tensor) -> Tensor:
    """``start + s * length``, (S, B, ...)."""
    # addcmul makes no temporary of the copies' size, but takes operands of one type only; nodes
    # are wider than inputs of half precision.
    if s.dtype == start.dtype:
        return torch.addcmul(start, s, length)
    return (start + s * length).to(start.dtype)


@full_precision
def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """``sum_k w_k v_k`` without a temporary of the values' size."""
    values = values.to(wide(values.dtype))
    total: Tensor = torch.tensordot(weights.to(values.device, values.dtype), values, ([0], [0]))
    return total


def on_copies(f: Callable[[Leaves, int], Leaves], points: Leaves, batching: Batching) -> Leaves:
    """Apply ``f(rows, copies)`` to S copies of the batch, folded or under vmap: (S, B, ...)."""
    # A unit takes no vmap around it.
    if batching == "loop" or (batching == "vmap" and active_units() is not None):
        found = [f(tuple([t[i] for t in points]), 1) for i in range(len(points[0]))]
        return tuple([torch.stack(parts) for parts in zip(*found, strict=True)])
    if batching == "vmap":
        return vmapped(lambda rows: f(rows, 1))(*points)  # type: ignore[no-any-return]
    copies = points[0].shape[0]
    return split_rows(f(flat_rows(points), copies), copies)
