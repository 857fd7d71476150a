"""The Shapley kernel: coalitions whose weighted least squares fit is the Shapley value."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attrfn import random
from attrfn._random.keys import sample_keys
from attrfn._torch.compiling import constant_result, untraced

# Which coalitions? KernelSHAP is a weighted least squares fit, and all its error comes from the
# coalitions that it does not evaluate. Three choices reduce it, measured by
# benchmarks/shapley_error_per_evaluation.py:
#
# 1. Coalitions come in pairs of complements. The error of a pair has no part from interactions of
#    two features: those of a coalition and of its complement cancel.
# 2. A size of which the budget covers all coalitions is enumerated, the extreme ones first: they
#    are few and have large weights. What is left is shared among the other sizes, in strata, so
#    that the number of coalitions of each size is not left to chance.
# 3. Within these, coalitions are chosen that are least alike, which counts more than how many there
#    are of each size. As directions z - mean(z) they are points on a sphere. The sum of cos^4 over
#    all pairs of points is least for a spherical design, a set of points that gives polynomials of
#    degree 4 the same mean as the whole sphere. A greedy search takes the point of least energy to
#    those taken so far, out of random candidates.
#
# Nothing of this depends on the model, so that the table is made once for (n, samples). The key
# decides which feature is which column: that keeps every coalition of a size equally likely, and so
# the estimate as symmetric as a random one.

# The steps of the greedy search, pairs^2 times n times candidates: about a second. Above it the
# candidates themselves, random ones, are taken.
_MOST_WORK = 1e9
# Coalitions of a size up to this number are numbered, and numbers drawn without repetition. Of more
# coalitions random ones practically never repeat.
_MOST_NUMBERED = 2**31

Weighted = tuple[Tensor, Tensor]


class Stratum(NamedTuple):
    """Pairs of coalitions and their complements, drawn from the coalitions of some sizes.

    Attributes:
        sizes: The sizes l of the smaller half of each pair.
        pairs: How many pairs there are among the coalitions.
        of: How many there are in all.
    """

    sizes: tuple[int, ...]
    pairs: int
    of: int


class Design(NamedTuple):
    """Weighted coalitions, in pairs of complements: the rows 2 i and 2 i + 1.

    Attributes:
        z: Which features each coalition holds, (S, R, n); R is 1 or B.
        w: Its weight, (S, 1).
        strata: Where the coalitions come from, in order.
    """

    z: Tensor
    w: Tensor
    strata: tuple[Stratum, ...]

    @property
    def complete(self) -> bool:
        """Whether no coalition is missing."""
        n = self.z.shape[-1]
        return n < 2 or len(self.z) == 2**n - 2


def design(n: int, n_samples: int, keys: Tensor, dtype: torch.dtype) -> Design:
    """At most ``n_samples`` coalitions for n features: all there are, if there are fewer.

    A size l has the weight ``(n - 1) / (l (n - l))``. Sizes share the coalitions in proportion to
    its square root; a size with no more coalitions than its share is enumerated.

    Args:
        n: The number of features.
        n_samples: At least 2.
        keys: One key or one for each row, (R, 2).
        dtype: Of the weights.
    """
    n = len([0 for _ in range(n)])  # a number that torch.compile takes for a constant
    pairs = n_samples // 2
    table = _table(n, pairs).to(keys.device)
    names = random.permutation(keys, n)
    z = (table[:, :n] > 0)[:, names]  # (pairs, R, n)
    w = table[:, n:].to(dtype).repeat_interleave(2, 0)
    return Design(torch.stack([z, ~z], 1).flatten(0, 1), w, tuple(shares(n, pairs)))


@constant_result
def _table(n: int, pairs: int) -> Tensor:
    return pair_table(n, pairs)


@functools.lru_cache(16)
def pair_table(n: int, pairs: int) -> Tensor:
    """One of each pair of coalitions, and in the last column its weight, (P, n + 1) in float64.

    Reference:
        Delsarte, Goethals and Seidel, Spherical Codes and Designs, 1977.
    """
    # The first call may come from a transform or from inference mode, and later ones get its table.
    with untraced(), torch.inference_mode(False), torch.no_grad():
        strata = shares(n, pairs)
        complete = [s for s in strata if s.pairs == s.of]
        sampled = [s for s in strata if s.pairs < s.of]
        groups = [_candidates(s, n, 1) for s in complete]
        # Eight candidates a place were not tuned: more spread better, and cost in proportion.
        times = min(8, int(_MOST_WORK / (max(pairs, 1) ** 2 * max(n, 1))))
        pools = [_candidates(s, n, max(times, 1)) for s in sampled]
        groups += _least_alike(groups, sampled, pools) if sampled and times > 1 else pools
        if not groups:
            return torch.zeros(0, n + 1, dtype=torch.float64)
        z, w = (torch.cat(column) for column in zip(*groups, strict=True))
        return torch.cat([z.to(w), w[:, None]], 1)


def _least_alike(
    enumerated: list[Weighted], strata: list[Stratum], pools: list[Weighted]
) -> list[Weighted]:
    """As many of each stratum's candidates as it has pairs, those that are least alike.

    A candidate z has the energy ``sum_j w_j |S_j| (n - |S_j|) cos(z, z_j)^4``, over the coalitions
    z_j taken so far, each less its mean.
    """

    def direction(z: Tensor) -> Tensor:
        return F.normalize(z.double() - z.double().mean(1, keepdim=True))

    z, w = (torch.cat(column) for column in zip(*pools, strict=True))
    label = torch.cat([torch.full_like(pool[1], k) for k, pool in enumerate(pools)])
    size, n = z.sum(1), z.shape[1]
    u, mass = direction(z), w * size * (n - size)
    energy = torch.zeros_like(w)
    for taken, weight in enumerated:
        count = taken.sum(1)
        energy += (u @ direction(taken).mT) ** 4 @ (weight * count * (n - count))
    # The strata take turns at random: one that came last would find the sphere occupied.
    places = [k for k, s in enumerate(strata) for _ in range(s.pairs)]
    order = random.permutation(0, len(places)).tolist()
    chosen: list[list[int]] = [[] for _ in pools]
    for k in (places[i] for i in order):
        best = int(torch.where(label == k, energy, torch.inf).argmin())
        chosen[k].append(best)
        energy += mass[best] * (u @ u[best]) ** 4
        energy[best] = torch.inf
    return [(z[c], w[c]) for c in chosen]


def _candidates(stratum: Stratum, n: int, times: int) -> Weighted:
    """Coalitions (m, n) to choose from, and the weight of each if it is taken, (m,)."""
    sizes, pairs, of = stratum
    m = min(of, times * pairs)
    keys = random.as_key(0)[None]
    if len(sizes) == 1 and of <= _MOST_NUMBERED:
        # One number from each of m equal intervals: distinct coalitions, evenly distributed.
        start = torch.tensor([j * of // m for j in range(m)])
        width = torch.tensor([(j + 1) * of // m for j in range(m)]) - start
        u = random.uniform(keys[0], (m,), dtype=torch.float64)
        z = subsets_of_size(start + torch.minimum((u * width).long(), width - 1), n, sizes[0])
        return z, torch.full((m,), _weight(n, sizes[0]) / pairs, dtype=torch.float64)
    share = torch.tensor([_share(n, s) for s in sizes], dtype=torch.float64)
    share = share / share.sum()
    at = (torch.arange(m) + 0.5) / m
    k = torch.searchsorted(share.cumsum(0), at.double()).clamp(max=len(sizes) - 1)
    weights = torch.tensor([_weight(n, s) for s in sizes], dtype=torch.float64)
    ranks = random.permutation(sample_keys(keys, slice(0, m), sizes[0]), n)[:, 0]
    return ranks < torch.tensor(sizes)[k][:, None], (weights / share)[k] / pairs


def shares(n: int, pairs: int) -> list[Stratum]:
    """How many pairs of coalitions each size gets."""
    enumerated: list[Stratum] = []
    left = {size: _share(n, size) for size in range(1, n // 2 + 1)}
    # n - 1 pairs only just determine the fit. Where there are few more, shares of all sizes would
    # leave it undetermined or nearly so; the single features and their complements are one fit.
    if n - 1 <= pairs < 1.5 * n and n > 2:
        enumerated, pairs = [Stratum((1,), min(pairs, n), n)], max(pairs - n, 0)
        del left[1]
    while left:
        total = sum(left.values())
        fits = [s for s in left if pairs * left[s] >= total * _count(n, s)]
        if not fits:
            break
        for s in fits:  # what an enumerated size does not use goes to the others: look again
            enumerated.append(Stratum((s,), _count(n, s), _count(n, s)))
            pairs -= _count(n, s)
            del left[s]
    if not left or pairs <= 0:
        return enumerated
    want = {s: pairs * share / sum(left.values()) for s, share in left.items()}
    counts = {s: int(want[s]) for s in left if want[s] >= 1}
    rare = [s for s in left if want[s] < 1]
    spare = pairs - sum(counts.values())
    if rare:  # sizes with less than one pair each share a stratum
        pooled = [Stratum(tuple(rare), spare, sum(_count(n, s) for s in rare))]
    else:
        pooled = []
        for s in sorted(counts, key=lambda s: counts[s] - want[s])[:spare]:
            counts[s] += 1
    return enumerated + [Stratum((s,), m, _count(n, s)) for s, m in counts.items()] + pooled


def _count(n: int, size: int) -> int:
    """The number of pairs of complements with a coalition of this size."""
    return math.comb(n, size) // (2 if 2 * size == n else 1)


def _weight(n: int, size: int) -> float:
    """The kernel's weight of the smaller halves of those pairs."""
    return (n - 1) / (size * (n - size)) / (2 if 2 * size == n else 1)


def _share(n: int, size: int) -> float:
    return 1 / math.sqrt(size * (n - size)) / (2 if 2 * size == n else 1)


def subsets_of_size(number: Tensor, n: int, size: int) -> Tensor:
    """The subsets of a size with these numbers in lexicographic order, (S,) to (S, n).

    Reference:
        Kreher and Stinson, Combinatorial Algorithms, 1998.
    """
    left = torch.full_like(number, size)
    inside = []
    for k in range(n):
        with_k = [0] + [math.comb(n - k - 1, s - 1) for s in range(1, size + 1)]
        count = torch.tensor(with_k)[left]
        here = number < count
        number = torch.where(here, number, number - count)
        left = left - here.long()
        inside.append(here)
    return torch.stack(inside, -1)
