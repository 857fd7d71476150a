"""Ablation, Shapley values and interactions: games with known values, and brute force."""

from __future__ import annotations

import functools

import optree
import pytest
import torch
from games import (
    CASES,
    PAIR,
    PAIRS,
    W,
    ablation,
    by_rule,
    cases,
    ids_of,
    linear,
    matrices,
    ones,
    players_of,
    row,
    shapley,
    table_game,
    wavy,
    wavy_pair,
)
from oracles import as_tuple, close, randn

import attrfn

# ---------------------------------------------------------------------------------------------
# models and masks


@cases
def test_feature_ablation_is_the_loop_over_features(case):
    x, x0, mask = CASES[case]
    got = attrfn.feature_ablation(wavy, x, baselines=x0, feature_mask=mask)
    close(got, by_rule(ablation, wavy, x, x0, mask))


@cases
def test_shapley_values_are_the_mean_over_all_orderings(case):
    x, x0, mask = CASES[case]
    got = attrfn.shapley_values(wavy, x, baselines=x0, feature_mask=mask)
    close(got, by_rule(shapley, wavy, x, x0, mask))


@cases
def test_kernel_shap_of_all_coalitions_is_exact(case):
    """Also with a larger budget than there are coalitions."""
    x, x0, mask = CASES[case]
    n = len(players_of(ids_of(mask, as_tuple(x))))
    want = by_rule(shapley, wavy, x, x0, mask)
    for n_samples in (max(2**n - 2, 2), 100):
        got, error = attrfn.kernel_shap(
            wavy, x, baselines=x0, feature_mask=mask, n_samples=n_samples, return_stderr=True
        )
        close(got, want, 1e-8)
        close(error, optree.tree_map(torch.zeros_like, want), 0)


@cases
@pytest.mark.parametrize("index", PAIRS)
def test_interactions_are_the_sums_over_subsets(case, index):
    x, x0, mask = CASES[case]
    got = attrfn.interactions(wavy, x, index=index, baselines=x0, feature_mask=mask)
    close(got, matrices(PAIRS[index], wavy, x, x0, mask))


@cases
def test_several_outputs_and_a_target_among_them(case):
    """(B, 2) outputs: (B, 2, *feature) without a target."""
    x, x0, mask = CASES[case]
    options = {"baselines": x0, "feature_mask": mask}
    for method, rule in ((attrfn.feature_ablation, ablation), (attrfn.shapley_values, shapley)):
        want = by_rule(rule, wavy_pair, x, x0, mask)
        close(method(wavy_pair, x, **options), want)
        one = method(wavy_pair, x, target=1, **options)
        close(one, optree.tree_map(lambda t: t[:, 1], want))


def test_n_features_takes_ids_as_they_are():
    """The ids 1 and 3 of five: nobody has the others, which are dummies."""
    x, mask = randn(0, 2, 3), torch.tensor([3, 1, 3])
    compact = {"feature_mask": mask}
    wide = {"feature_mask": mask, "n_features": 5}
    want = by_rule(shapley, wavy, x, mask=mask)
    close(attrfn.shapley_values(wavy, x, **wide), want)
    close(attrfn.kernel_shap(wavy, x, n_samples=30, **wide), want, 1e-8)
    close(attrfn.feature_ablation(wavy, x, **wide), by_rule(ablation, wavy, x, mask=mask))
    for index in PAIRS:
        small = attrfn.interactions(wavy, x, index=index, **compact)
        large = attrfn.interactions(wavy, x, index=index, **wide)
        assert large.shape == (2, 5, 5)
        close(large[:, [1, 3]][:, :, [1, 3]], small)
        large[:, [[1], [3]], [1, 3]] = 0
        close(large, torch.zeros_like(large))


def test_expanded_masks_and_baselines():
    """Views of one row; torch warns of some calls with them, once in a process if not told else."""
    x, mask, x0 = randn(0, 3, 4), torch.tensor([0, 1, 1, 2]), randn(1, 4)
    want = by_rule(shapley, wavy, x, x0, mask)
    torch.set_warn_always(True)
    try:
        views = {"feature_mask": mask.expand(3, 4), "baselines": x0.expand(3, 4)}
        close(attrfn.shapley_values(wavy, x, **views), want)
        close(attrfn.kernel_shap(wavy, x, n_samples=6, **views), want, 1e-8)
        views["feature_mask"] = torch.stack([mask, mask])[:, [0, 3, 1, 2]].T[:, 0][[0, 2, 3, 1]]
        close(attrfn.shapley_values(wavy, x, **views), want)
    finally:
        torch.set_warn_always(False)


def test_kernel_shap_by_feature():
    """In ascending order of the ids: (B, K..., n)."""
    x, mask = randn(0, 2, 4), torch.tensor([9, 2, 9, 5])
    by_element = by_rule(shapley, wavy_pair, x, mask=mask)
    want = by_element[..., [1, 3, 0]]
    got = attrfn.kernel_shap(wavy_pair, x, feature_mask=mask, n_samples=6, return_input_shape=False)
    close(got, want, 1e-8)
    got, error = attrfn.kernel_shap(
        wavy, x, feature_mask=mask, n_samples=6, return_input_shape=False, return_stderr=True
    )
    close(got, want[:, 0], 1e-8)
    close(error, torch.zeros(2, 3, dtype=torch.float64), 0)


@pytest.mark.parametrize(
    ("baselines", "x0", "y0"),
    [
        (None, 0.0, 0.0),
        (2, 2.0, 2.0),
        ((None, 0.5), 0.0, 0.5),
        ((torch.tensor(0.25), randn(7, 2, 1)), 0.25, randn(7, 2, 1)),
        ((randn(8, 2, 2), randn(9, 2, 2, 1)), randn(8, 2, 2), randn(9, 2, 2, 1)),
    ],
    ids=["none", "int", "none_and_float", "shapes", "one_per_example"],
)
def test_baselines_of_every_kind(baselines, x0, y0):
    want = by_rule(shapley, wavy, PAIR, (x0, y0))
    close(attrfn.shapley_values(wavy, PAIR, baselines=baselines), want)
    close(attrfn.kernel_shap(wavy, PAIR, baselines=baselines, n_samples=14), want, 1e-8)
    got = attrfn.feature_ablation(wavy, PAIR, baselines=baselines)
    close(got, by_rule(ablation, wavy, PAIR, (x0, y0)))


# ---------------------------------------------------------------------------------------------
# games with known values


EXACT = {
    "feature_ablation": attrfn.feature_ablation,
    "shapley_values": attrfn.shapley_values,
    "shapley_value_sampling": functools.partial(attrfn.shapley_value_sampling, n_samples=3),
    "kernel_shap": functools.partial(attrfn.kernel_shap, n_samples=6),
    "occlusion": functools.partial(attrfn.occlusion, window=1),
}


@pytest.mark.parametrize("name", EXACT)
def test_of_an_affine_function_all_give_each_term(name):
    """f = w'x + 3: A_k = w_k (x_k - x0_k), whatever the coalitions that are tried."""
    x, x0 = randn(0, 5, 4), randn(1, 5, 4)
    close(EXACT[name](linear, x, baselines=x0), (x - x0) * W)


@pytest.mark.parametrize("name", EXACT)
def test_of_an_additive_function_all_give_each_term(name):
    """f = sum_k g_k(x_k): A_k = g_k(x_k) - g_k(x0_k)."""
    x, x0 = randn(0, 5, 4), randn(1, 5, 4)

    def terms(x):
        return torch.stack([x[:, 0].sin(), x[:, 1].exp(), x[:, 2].abs(), x[:, 3] > 0], 1)

    got = EXACT[name](lambda x: terms(x).sum(1), x, baselines=x0)
    close(got, terms(x) - terms(x0))


@pytest.mark.parametrize("name", ["feature_ablation", "shapley_values", "kernel_shap"])
def test_groups_of_an_affine_function_share_no_score(name):
    """Every element of a feature has the feature's score, the sum of its terms."""
    x, mask = randn(0, 5, 4), torch.tensor([0, 1, 0, 0])
    terms = x * W
    group, single = terms[:, [0, 2, 3]].sum(1), terms[:, 1]
    want = torch.stack([group, single, group, group], 1)
    close(EXACT[name](linear, x, feature_mask=mask), want)


def glove(x):
    """One left glove and two right ones; a pair is worth 1."""
    return torch.minimum(x[:, 0], torch.maximum(x[:, 1], x[:, 2]))


def majority(x):
    """The game [3; 2, 1, 1, 1]: 1 where the weights reach 3."""
    return (x @ torch.tensor([2.0, 1, 1, 1], dtype=x.dtype) >= 3).to(x)


def either(x):
    return 1 - (1 - x).prod(1)


def exclusive(x):
    return x[:, 0] + x[:, 1] - 2 * x[:, 0] * x[:, 1]


def largest(x):
    return x.amax(1)


KNOWN = {
    # x, ablation, Shapley value
    "and": (lambda x: x.prod(1), (1, 1), (1, 1), (1 / 2, 1 / 2)),
    "and_of_three": (lambda x: x.prod(1), (1, 1, 1), (1, 1, 1), (1 / 3, 1 / 3, 1 / 3)),
    "or": (either, (1, 1), (0, 0), (1 / 2, 1 / 2)),
    # v of one of them is 1, of both 0
    "xor": (exclusive, (1, 1), (-1, -1), (0, 0)),
    "xor_of_one": (exclusive, (1, 0), (1, 0), (1, 0)),
    # Shapley's own example: the left glove is the scarce one
    "glove": (glove, (1, 1, 1), (1, 0, 0), (2 / 3, 1 / 6, 1 / 6)),
    # the large player is pivotal where it comes second or third: 2 of 4 places
    "majority": (majority, (1, 1, 1, 1), (0, 0, 0, 0), (1 / 2, 1 / 6, 1 / 6, 1 / 6)),
    # the airport game of Littlechild and Owen (1973): each stretch is shared by those who need it
    "airport": (largest, (3, 6, 14), (0, 0, 8), (1, 1 + 3 / 2, 1 + 3 / 2 + 8)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_games_with_known_values(name):
    f, x, ablated, value = KNOWN[name]
    close(attrfn.feature_ablation(f, row(*x)), row(*ablated))
    close(attrfn.shapley_values(f, row(*x)), row(*value))
    close(attrfn.kernel_shap(f, row(*x), n_samples=14), row(*value), 1e-8)


def unanimity(*members):
    return lambda x: x[:, list(members)].prod(1)


@pytest.mark.parametrize("members", [(1,), (0, 2), (0, 1, 3), (0, 1, 2, 3, 4)])
def test_unanimity_games(members):
    """u_T: Shapley 1/|T| for members of T; for its pairs Shapley-Taylor 2/(|T| (|T| - 1)) and
    Shapley interactions 1/(|T| - 1); all else 0 (Grabisch and Roubens, section 3)."""
    t, x = len(members), ones(1, 5)
    inside = torch.tensor([[float(k in members) for k in range(5)]], dtype=torch.float64)
    both = inside[:, :, None] * inside[:, None]
    eye = torch.eye(5, dtype=torch.float64)
    off, f = both * (1 - eye), unanimity(*members)
    close(attrfn.shapley_values(f, x), inside / t)
    want = off * 2 / (t * (t - 1)) if t > 1 else both * eye
    close(attrfn.interactions(f, x), want)
    want = inside[:, :, None] * eye / t + (off / (t - 1) if t > 1 else 0)
    close(attrfn.interactions(f, x, index="shapley"), want)


def test_interactions_of_two_features():
    """n = 2: both indices are v(12) - v(1) - v(2) + v(); XOR of ones gives -2, AND 1, OR -1."""
    x = ones(1, 2)
    for f, pair, alone, value in (
        (exclusive, -2, 1, 0),
        (lambda x: x.prod(1), 1, 0, 1 / 2),
        (either, -1, 1, 1 / 2),
    ):
        want = torch.tensor([[[alone, pair], [pair, alone]]], dtype=torch.float64)
        close(attrfn.interactions(f, x), want)
        want = torch.tensor([[[value, pair], [pair, value]]], dtype=torch.float64)
        close(attrfn.interactions(f, x, index="shapley"), want)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("index", PAIRS)
def test_interactions_of_random_games(index, n):
    """Three games at once, as outputs."""
    f = table_game(randn(n, 2**n, 3))
    got = attrfn.interactions(f, ones(1, n), index=index)
    assert got.shape == (1, 3, n, n)
    close(got, matrices(PAIRS[index], f, ones(1, n)))


def test_six_features_through_all_720_orderings():
    f = table_game(randn(6, 64, 2))
    close(attrfn.shapley_values(f, ones(1, 6)), by_rule(shapley, f, ones(1, 6)))


def test_twenty_features_are_possible():
    """2^20 coalitions of the game "at least one of the features": each gets 1/20."""
    got = attrfn.shapley_values(either, torch.ones(1, 20), chunk_size=2**17)
    close(got, torch.full((1, 20), 1 / 20), 1e-5)
