"""Coalitions: sets of present features, as rows of booleans."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attrfn import random
from attrfn._core.keys import sample_keys


def subsets(i: slice, n: int, device: torch.device) -> Tensor:
    """The subsets with the numbers i of n features, (S, 1, n): feature k is bit k of the number."""
    numbers = torch.arange(i.start, i.stop, device=device)
    bits = torch.arange(n, device=device)
    return ((numbers[:, None] >> bits) & 1).bool()[:, None]


def shapley_weights(n: int, device: torch.device) -> Tensor:
    """``|S|! (n - |S| - 1)! / n!`` for |S| = 0 to n - 1, (n,)."""
    weights = [1 / (n * math.comb(n - 1, size)) for size in range(n)]
    return torch.tensor(weights, dtype=exact(device), device=device)


def taylor_weights(n: int, device: torch.device) -> Tensor:
    """``2 / (n C(n - 1, |S|))`` for |S| = 0 to n - 2, (n - 1,)."""
    weights = [2 / (n * math.comb(n - 1, size)) for size in range(n - 1)]
    return torch.tensor(weights, dtype=exact(device), device=device)


def orderings(keys: Tensor, count: int, n: int, antithetic: bool = False) -> Tensor:
    """The place of each feature in random orderings, (count, 1 or B, n).

    With ``antithetic`` every second one is the reverse of the one before.
    """
    draws = (count + 1) // 2 if antithetic else count
    place = random.permutation(sample_keys(keys, slice(0, draws), 0), n)
    if not antithetic:
        return place
    return torch.stack([place, n - 1 - place], 1).flatten(0, 1)[:count]


def exact(device: torch.device) -> torch.dtype:
    """The widest type of a device, for sums that cancel."""
    return torch.float32 if device.type == "mps" else torch.float64
