"""The coalitions of KernelSHAP: their number, weights and balance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import attrfn
from attrfn._methods.kernel_design import design, pair_table, shares, subsets_of_size


@pytest.mark.parametrize(("n", "size"), [(5, 1), (5, 2), (6, 3), (7, 6), (4, 4)])
def test_numbered_subsets_are_those_of_itertools(n: int, size: int) -> None:
    found = subsets_of_size(torch.arange(math.comb(n, size)), n, size)
    expected = [[k in c for k in range(n)] for c in itertools.combinations(range(n), size)]
    assert found.tolist() == expected


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 12, 40, 300])
@pytest.mark.parametrize("n_samples", [2, 3, 10, 25, 64, 200])
def test_number_and_weights_of_the_coalitions(n: int, n_samples: int) -> None:
    """As many as asked for, or all; in pairs of complements; weights sum to the kernel's."""
    d = design(n, n_samples, attrfn.random.split(3, 2), torch.float64)
    all_pairs = max(2 ** (n - 1) - 1, 0) if n else 0
    assert len(d.z) == 2 * min(n_samples // 2, all_pairs)
    assert sum(s.pairs for s in d.strata) == len(d.z) // 2
    assert (d.z[0::2] ^ d.z[1::2]).all()
    sizes = d.z.sum(-1)
    assert ((sizes > 0) & (sizes < n)).all()
    if all(len(s.sizes) == 1 for s in d.strata):
        # sum over all coalitions of (n - 1) / (C(n, s) s (n - s)), those of sizes that occur
        occurring = {s.sizes[0] for s in d.strata} | {n - s.sizes[0] for s in d.strata}
        kernel = sum((n - 1) / (s * (n - s)) for s in occurring)
        torch.testing.assert_close(d.w.sum(), torch.tensor(kernel, dtype=torch.float64))


@pytest.mark.parametrize(("n", "n_samples"), [(4, 14), (5, 30), (6, 100), (8, 254)])
def test_all_coalitions_once_where_the_budget_covers_them(n: int, n_samples: int) -> None:
    d = design(n, n_samples, attrfn.random.as_key(0)[None], torch.float64)
    bits = (d.z[:, 0] * 2 ** torch.arange(n)).sum(1)
    assert sorted(bits.tolist()) == list(range(1, 2**n - 1))
    size = d.z[:, 0].sum(1).double()
    count = torch.tensor([math.comb(n, int(s)) for s in size]).double()
    torch.testing.assert_close(d.w[:, 0], (n - 1) / (count * size * (n - size)))


def test_no_coalition_is_taken_twice() -> None:
    for n, n_samples in [(6, 40), (10, 200), (12, 600), (20, 300)]:
        d = design(n, n_samples, attrfn.random.as_key(1)[None], torch.float64)
        assert len({tuple(row) for row in d.z[:, 0].tolist()}) == len(d.z)


def test_every_feature_is_as_likely() -> None:
    """Over keys each feature is in a share |S| / n of the coalitions of each place."""
    n, keys = 6, attrfn.random.split(0, 4000)
    z = design(n, 20, keys, torch.float64).z.double()  # (S, keys, n)
    mean = z.mean(1)
    expected = z.sum(-1).mean(1, keepdim=True) / n
    # Bernoulli means of 4000 draws: five standard deviations are at most 0.04
    assert (mean - expected).abs().max() < 0.04


def test_spread_coalitions_are_balanced_better_than_random_ones() -> None:
    """The Gram matrix is nearer to the kernel's own, which is a multiple of 1 - 11'/n."""
    n, n_samples = 10, 120
    d = design(n, n_samples, attrfn.random.as_key(0)[None], torch.float64)
    z = d.z[:, 0].double()
    z = z - z.mean(1, keepdim=True)
    torch.manual_seed(0)
    rows = []
    for s in d.strata:
        for _ in range(s.pairs):
            rows += [torch.zeros(n).index_fill(0, torch.randperm(n)[: s.sizes[0]], 1.0)] * 1
    y = torch.stack(rows).double().repeat_interleave(2, 0)
    y[1::2] = 1 - y[1::2]
    y = y - y.mean(1, keepdim=True)

    def imbalance(z: torch.Tensor) -> float:
        gram = z.mT @ (d.w * z)
        ideal = (torch.eye(n) - 1 / n).double() * gram.trace() / (n - 1)
        return float((gram - ideal).norm())

    assert imbalance(z) < 0.5 * imbalance(y)


def test_large_numbers_of_features_and_samples_are_drawn_at_once() -> None:
    """Without the search for spread out coalitions, which would take minutes."""
    table = pair_table(900, 4000)
    assert table.shape == (4000, 901)
    assert torch.isfinite(table).all()


def test_strata_say_how_many_coalitions_there_are() -> None:
    for n, pairs in [(12, 12), (12, 50), (40, 12), (5, 100)]:
        for s in shares(n, pairs):
            halves = [math.comb(n, k) / (2 if 2 * k == n else 1) for k in s.sizes]
            assert s.of == sum(halves)
            assert 0 < s.pairs <= s.of
