"""Permutation against loops over features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from games import CASES, W, linear, permutation, rolled, wavy, wavy_pair
from oracles import as_tuple, close, randn

import attrfn


@pytest.mark.parametrize(
    "case", [c for c in CASES if "rows" not in c and len(as_tuple(CASES[c][0])[0]) > 1]
)
def test_feature_permutation_is_the_loop_over_features(case):
    x, _, mask = CASES[case]
    order = torch.arange(len(as_tuple(x)[0])).roll(1)
    got = attrfn.feature_permutation(wavy_pair, x, feature_mask=mask, permute=rolled)
    close(got, permutation(wavy_pair, x, order, mask))
    one = attrfn.feature_permutation(wavy_pair, x, feature_mask=mask, permute=rolled, target=1)
    close(one, permutation(lambda *xs: wavy_pair(*xs)[:, 1], x, order, mask))


def test_feature_permutation_of_an_affine_function():
    """A_k = w_k (x_k - x_pi(k)) with a permutation pi of the rows for each feature."""
    x = randn(0, 6, 4)
    moved = x - attrfn.feature_permutation(linear, x, key=3) / W
    gaps = (moved[:, None] - x).abs()  # (taker, giver, feature)
    assert gaps.amin(1).max() < 1e-12
    takes = gaps.argmin(1)
    for k in range(4):
        assert sorted(takes[:, k].tolist()) == list(range(6))
    assert len({tuple(takes[:, k].tolist()) for k in range(4)}) > 1


def test_feature_permutation_is_the_mean_over_samples():
    """f = x with digits for rows: three draws for each row are three digits, each drawn thrice."""
    x = torch.tensor([[1.0, 1.0], [10.0, 10.0], [100.0, 100.0]], dtype=torch.float64)
    got = attrfn.feature_permutation(lambda x: x, x, n_samples=3, key=5)
    for k in range(2):
        close(got[:, 1 - k, k], torch.zeros(3, dtype=torch.float64))
        sums = (3 * (x[:, k] - got[:, k, k])).round().long()
        digits = [[int(d) for d in f"{s:03d}"] for s in sums.tolist()]
        assert [sum(d) for d in digits] == [3, 3, 3]
        assert np.sum(digits, 0).tolist() == [3, 3, 3]


def test_feature_permutation_draws_all_permutations_alike():
    """3! = 6 permutations of 600 features: chi squared of 5 degrees below its 99.9 %, 20.5."""
    x = torch.tensor([[0.0], [1.0], [2.0]]).expand(3, 600)
    moved = x - attrfn.feature_permutation(lambda x: x.sum(1), x)
    orders, counts = moved.round().unique(dim=1, return_counts=True)
    assert orders.shape == (3, 6)
    assert ((counts - 100) ** 2 / 100).sum() < 20.5


def test_permute_is_called_with_keys_and_the_batch():
    """One key for each copy; other keys give other draws."""
    x, seen = randn(0, 5, 3), []

    def permute(keys, batch):
        assert batch == 5
        assert keys.ndim == 2
        assert keys.shape[1] == 2
        seen.extend(tuple(k) for k in keys.tolist())
        return rolled(keys, batch)

    attrfn.feature_permutation(wavy, x, n_samples=4, permute=permute, chunk_size=5)
    assert len(seen) == len(set(seen)) == 12


def test_feature_permutation_of_a_loss_is_permutation_importance():
    """-A = loss(permuted) - loss (Fisher, Rudin and Dominici, 2019, eq. 3): one for the batch."""
    x, w = randn(0, 6, 3), randn(1, 3)
    y = x @ w

    def loss(x):
        return ((x @ w - y) ** 2).mean()

    got = attrfn.feature_permutation(loss, x, permute=rolled, chunk_size=1)
    want = (w * (x - x.roll(1, 0))) ** 2
    close(-got, want.mean(0, keepdim=True))
