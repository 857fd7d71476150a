"""Correlations and average ranks along the last dimension, for any batch of tables."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._torch.precision import full_precision, widest


@full_precision
def correlation(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Pearson's correlation of (..., N) and (..., N); nan where a side is constant.

    Args:
        a: One side.
        b: The other.
        eps: The rounding of the numbers, relative to their size.
    """
    kind = widest(a.device)
    constant = is_constant(a, eps) | is_constant(b, eps)
    a, b = centred(a.to(kind)), centred(b.to(kind))
    r = (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return r.masked_fill(constant, torch.nan)


def is_constant(t: Tensor, eps: float) -> Tensor:
    """Whether numbers differ by no more than their rounding, (..., N) to (...)."""
    return t.amax(-1) - t.amin(-1) <= 4 * eps * t.abs().amax(-1)


def centred(t: Tensor) -> Tensor:
    """Minus the mean."""
    return t - t.mean(-1, keepdim=True)


def average_ranks(t: Tensor) -> Tensor:
    """Ranks from 1 to N in ascending order, (..., N); equal numbers share the mean of theirs."""
    ordered, order = t.sort(dim=-1, stable=True)
    return torch.empty_like(ordered).scatter(-1, order, ranks_of_sorted(ordered))


def ranks_of_sorted(t: Tensor) -> Tensor:
    """Average ranks of numbers in ascending order, (..., N)."""
    # A run of equal numbers goes from the last place where one starts to the next where one ends.
    place = torch.arange(1, t.shape[-1] + 1, device=t.device).expand(t.shape)
    new = t[..., 1:] != t[..., :-1]
    edge = torch.ones_like(t[..., :1], dtype=torch.bool)
    starts, ends = torch.cat([edge, new], -1), torch.cat([new, edge], -1)
    first = torch.where(starts, place, 0).cummax(-1).values
    last = torch.where(ends, place, t.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return (first + last).to(t.dtype) / 2
