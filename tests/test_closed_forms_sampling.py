"""Sampled Shapley values, KernelSHAP and interactions against all orderings and subsets."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from games import (
    CASES,
    PAIRS,
    by_rule,
    cases,
    game,
    ids_of,
    marginals,
    matrices,
    ones,
    players_of,
    shapley,
    shapley_taylor,
    shapley_taylor_of,
    subsets,
    table_game,
    wavy,
    wavy_pair,
)
from oracles import as_tuple, close, randn

import attrfn

# ---------------------------------------------------------------------------------------------
# sampled Shapley values


def rows_of_marginals(f, x, n):
    """The contributions by each of the n! orderings: (n!, n), and the orderings."""
    v = game(f, (x,), (torch.zeros_like(x),), ids_of(None, (x,)), 0)
    orders = list(itertools.permutations(range(n)))
    found = [marginals(v, order) for order in orders]
    return torch.stack([torch.stack([m[k] for k in range(n)]) for m in found]), orders


GAME = table_game(randn(8, 16))


EACH, ORDERS = rows_of_marginals(GAME, ones(1, 4), 4)


BACK = torch.tensor([ORDERS.index(order[::-1]) for order in ORDERS])


VALUE = EACH.mean(0)


def nearest_of(got, candidates):
    """Which of the candidates (N, n) each row (R, n) is; it has to be one of them."""
    gaps = (got[:, None] - candidates).abs().amax(2)
    assert gaps.amin(1).max() < 1e-12
    return gaps.argmin(1)


@pytest.mark.parametrize("key", range(5))
def test_one_ordering_gives_its_marginal_contributions(key):
    """All examples by the same ordering."""
    x, x0 = randn(0, 3, 4), randn(1, 3, 4)
    got = attrfn.shapley_value_sampling(wavy, x, baselines=x0, n_samples=1, key=key)
    matching = [
        order
        for order in itertools.permutations(range(4))
        if (got - by_rule(lambda v, _, o=order: marginals(v, o), wavy, x, x0)).abs().max() < 1e-12
    ]
    assert len(matching) == 1
    close(got.sum(1), wavy(x) - wavy(x0))


@cases
def test_one_ordering_of_every_kind_of_features(case):
    x, x0, mask = CASES[case]
    players = players_of(ids_of(mask, as_tuple(x)))
    got = as_tuple(
        attrfn.shapley_value_sampling(wavy, x, baselines=x0, feature_mask=mask, n_samples=1, key=7)
    )

    def gap(order):
        want = by_rule(lambda v, _: marginals(v, order), wavy, x, x0, mask)
        return max(float((a - b).abs().max()) for a, b in zip(got, as_tuple(want), strict=True))

    assert min(gap(order) for order in itertools.permutations(players)) < 1e-12


def test_orderings_are_drawn_alike():
    """24 orderings, 2400 keys: chi squared of 23 degrees of freedom below its 99.9 %, 49.7."""
    keys = attrfn.random.split(1, 2400)
    got = attrfn.shapley_value_sampling(GAME, ones(2400, 4), n_samples=1, key=keys)
    counts = torch.bincount(nearest_of(got, EACH), minlength=24).double()
    assert ((counts - 100) ** 2 / 100).sum() < 49.7


def test_two_orderings_give_their_mean_and_its_error():
    """Of two numbers the standard error of the mean is half their difference."""
    pairs = torch.tensor(list(itertools.product(range(24), repeat=2)))
    got, error = attrfn.shapley_value_sampling(
        GAME, ones(40, 4), n_samples=2, key=attrfn.random.split(2, 40), return_stderr=True
    )
    which = pairs[nearest_of(got, EACH[pairs].mean(1))]
    close(got, EACH[which].mean(1))
    assert (which[:, 0] != which[:, 1]).sum() > 30  # two independent orderings
    close(error, (EACH[which[:, 0]] - EACH[which[:, 1]]).abs() / 2)


@pytest.mark.parametrize("n_samples", [2, 3])
def test_antithetic_orderings_come_with_their_reverse(n_samples):
    """An odd number leaves the last one alone."""
    got = attrfn.shapley_value_sampling(
        GAME, ones(30, 4), n_samples=n_samples, key=attrfn.random.split(3, 30), antithetic=True
    )
    mirrored = EACH + EACH[BACK]
    if n_samples == 2:
        nearest_of(got, mirrored / 2)
    else:
        nearest_of(got, ((mirrored[:, None] + EACH) / 3).flatten(0, 1))


@pytest.mark.parametrize("antithetic", [False, True])
def test_sampled_values_scatter_by_their_standard_errors(antithetic):
    """300 keys, 20 independent draws each: z is Student's t of 19 degrees, E z^2 = 19/17."""
    table = randn(9, 32)
    f, keys = table_game(table), attrfn.random.split(4, 300)
    got, error = attrfn.shapley_value_sampling(
        f,
        ones(300, 5),
        n_samples=40 if antithetic else 20,
        key=keys,
        antithetic=antithetic,
        return_stderr=True,
    )
    z = (got - by_rule(shapley, f, ones(1, 5))) / error
    assert 0.95 < float((z**2).mean()) * 17 / 19 < 1.05 + 0.15
    # no bias: the mean of 300 standardized values, five of their standard deviations
    assert z.mean(0).abs().max() < 5 * math.sqrt(19 / 17 / 300)


def test_more_orderings_come_closer():
    f, keys = table_game(randn(9, 32)), attrfn.random.split(5, 50)
    want = by_rule(shapley, f, ones(1, 5))

    def miss(n_samples, **options):
        got = attrfn.shapley_value_sampling(
            f, ones(50, 5), n_samples=n_samples, key=keys, **options
        )
        return float(((got - want) ** 2).mean())

    # the variance falls as 1/n; the sum of 250 squares is good to about 10 %
    assert 0.7 < 16 * miss(64) / miss(4) < 1.4
    assert 0.7 < 16 * miss(64, antithetic=True) / miss(4, antithetic=True) < 1.4


@pytest.mark.parametrize("antithetic", [False, True])
def test_standard_errors_come_in_the_form_of_the_attributions(antithetic):
    options = {"feature_mask": torch.tensor([0, 1]), "n_samples": 6, "antithetic": antithetic}
    x = (randn(0, 3, 2), randn(1, 3, 2, 2))
    plain = attrfn.shapley_value_sampling(wavy_pair, x, **options)
    got, error = attrfn.shapley_value_sampling(wavy_pair, x, return_stderr=True, **options)
    close(got, plain)
    assert isinstance(error, tuple)
    assert [e.shape for e in error] == [(3, 2, 2), (3, 2, 2, 2)]
    close(error[0], error[1][:, :, 0])  # the same features


def test_one_feature_has_one_ordering():
    x = randn(0, 3, 1)
    got, error = attrfn.shapley_value_sampling(wavy, x, n_samples=4, return_stderr=True)
    close(got, (wavy(x) - wavy(0 * x))[:, None])
    close(error, torch.zeros(3, 1, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------
# KernelSHAP from some of the coalitions


def test_kernel_shap_of_all_coalitions_with_a_key_for_each_example():
    """The order in which they come does not matter."""
    x, x0 = randn(0, 3, 4), randn(1, 3, 4)
    got = attrfn.kernel_shap(
        wavy, x, baselines=x0, n_samples=14, key=attrfn.random.split(0, 3), return_stderr=True
    )
    close(got[0], by_rule(shapley, wavy, x, x0), 1e-8)
    close(got[1], torch.zeros_like(x), 0)


@pytest.mark.parametrize("n_samples", [10, 17, 25, 40])
def test_kernel_shap_is_efficient_with_few_samples(n_samples):
    x, x0 = randn(0, 3, 6), randn(1, 3, 6)
    got = attrfn.kernel_shap(wavy, x, baselines=x0, n_samples=n_samples, key=2)
    close(got.sum(1), wavy(x) - wavy(x0))


def test_kernel_shap_evaluates_what_it_says():
    """At most n_samples coalitions, besides the empty and the full one, whatever the chunks."""
    for n_samples in (10, 20, 61, 62, 500):
        seen = []

        def f(z, seen=seen):
            seen.extend(tuple(row) for row in z.tolist())
            return z.sum(1)

        attrfn.kernel_shap(f, ones(1, 6), n_samples=n_samples, chunk_size=7)
        inner = [z for z in seen if 0 < sum(z) < 6]
        assert len(set(inner)) == min(n_samples // 2 * 2, 62)
        # The first call with a function evaluates four copies more: do its rows depend on others?
        assert len(inner) - len(set(inner)) <= (4 if n_samples == 10 else 0)


def test_kernel_shap_comes_close():
    """No bias to see over 200 keys, and less of an error than orderings of as many evaluations."""
    f, keys, x = table_game(randn(9, 256)), attrfn.random.split(6, 200), ones(200, 8)
    want = attrfn.shapley_values(f, x[:1])
    close(want, by_rule(lambda v, p: shapley_by_subsets(v, p), f, x[:1]))
    rms = []
    for n_samples in (28, 84, 168):
        got = attrfn.kernel_shap(f, x, n_samples=n_samples, key=keys)
        rms.append(float(((got - want) ** 2).mean().sqrt()))
        spread = got.std(0) / math.sqrt(200)
        assert ((got.mean(0) - want) / spread).abs().max() < 6
    assert rms[0] > rms[1] > rms[2]
    orderings = attrfn.shapley_value_sampling(f, x, n_samples=12, key=keys)  # 84 evaluations
    assert rms[1] < float(((orderings - want) ** 2).mean().sqrt())


def shapley_by_subsets(v, players):
    """The sum over subsets, where there are too many orderings."""
    n, out = len(players), {}
    for k in players:
        others = [j for j in players if j != k]
        out[k] = sum((v(s | {k}) - v(s)) / (n * math.comb(n - 1, len(s))) for s in subsets(others))
    return out


@pytest.mark.parametrize("n_samples", [14, 16, 20, 22, 24, 25, 40, 100, 200])
def test_kernel_shaps_standard_errors_are_not_too_small(n_samples):
    """Mean squared error over mean squared standard error: 1 for random coalitions, less for those
    that are spread out. Eight features; below 24 samples nobody can tell, and they are infinite."""
    x, keys = randn(3, 1, 8), attrfn.random.split(7, 300)
    got, error = attrfn.kernel_shap(
        wavy, x.expand(300, 8), n_samples=n_samples, key=keys, return_stderr=True
    )
    assert (error > 0).all()
    assert torch.isfinite(got).all()
    miss = (got - attrfn.shapley_values(wavy, x)).abs()
    ratio = float((miss**2).mean() / (error**2).mean())
    assert ratio < 1
    assert n_samples < 24 or ratio > 0.2  # of 200 out of 254 too: there are few others
    for of_one_feature in (miss > 3 * error).double().mean(0):  # 0.3 % of normal numbers
        assert of_one_feature <= (0.05 if n_samples < 40 else 0.01)


def test_kernel_shaps_standard_errors_are_zero_only_where_all_is_enumerated():
    """Twelve features and the default 25 samples are far from all of the 4094 coalitions."""
    x = randn(0, 1, 12)
    got, error = attrfn.kernel_shap(wavy, x, return_stderr=True)
    assert (got - attrfn.shapley_values(wavy, x)).abs().max() > 1e-3
    assert (error > 0).all()
    for n in range(2, 7):
        for n_samples, zero in ((2**n - 2, True), (2**n - 4, False)):
            if n_samples >= 2 * n - 2:
                _, error = attrfn.kernel_shap(
                    wavy, x[:, :n], n_samples=n_samples, return_stderr=True
                )
                assert ((error == 0) if zero else (error > 0)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 9, 12])
def test_two_coalitions_a_feature_determine_the_fit(n):
    """2 n - 2 samples or more: an additive game is fitted exactly by every key, without warning."""
    x, w = randn(0, 1, n).expand(20, n), randn(1, n)
    for n_samples in {max(2 * n + extra, 2) for extra in (-2, -1, 0, 1, 4)}:
        got = attrfn.kernel_shap(
            lambda x: x @ w, x, n_samples=n_samples, key=attrfn.random.split(0, 20)
        )
        close(got, x * w, 1e-8)


def test_kernel_shap_warns_where_the_coalitions_do_not_suffice():
    """Two coalitions, four features: the fit of least norm, which is efficient still."""
    x = randn(0, 3, 4)
    with pytest.warns(UserWarning, match="n_samples=2 cannot determine 4 features"):
        got = attrfn.kernel_shap(wavy, x, n_samples=2)
    close(got.sum(1), wavy(x) - wavy(0 * x))
    # of one group of features the scores are equal, those of its complement too
    assert all(len({round(a, 9) for a in r}) == 2 for r in got.tolist())


# ---------------------------------------------------------------------------------------------
# interactions from orderings


@pytest.mark.parametrize("key", range(4))
def test_shapley_taylor_of_one_ordering(key):
    """The same ordering in all rows; every one is efficient: i <= j sum to f(x) - f(x0)."""
    x, x0 = randn(0, 2, 4), randn(1, 2, 4)
    got = attrfn.interactions(wavy, x, baselines=x0, n_samples=1, key=key)
    gaps = [
        (got - matrices(lambda v, _, o=o: shapley_taylor_of(v, o), wavy, x, x0)).abs().max()
        for o in itertools.permutations(range(4))
    ]
    assert min(gaps) < 1e-12
    close(got.triu().sum((1, 2)), wavy(x) - wavy(x0))


def test_orderings_of_shapley_taylor_average_to_the_subsets():
    """The two oracles agree (Sundararajan et al., Theorem 1)."""
    f, x = table_game(randn(4, 16)), ones(1, 4)
    orders = itertools.permutations(range(4))
    found = [matrices(lambda v, _, o=o: shapley_taylor_of(v, o), f, x) for o in orders]
    close(sum(found) / len(found), matrices(shapley_taylor, f, x))


@pytest.mark.parametrize("index", PAIRS)
def test_sampled_interactions_scatter_by_their_standard_errors(index):
    """No bias, and E z^2 = 19/17 as above; entries that never vary have no error at all."""
    f, keys = table_game(randn(4, 16)), attrfn.random.split(8, 300)
    got, error = attrfn.interactions(
        f, ones(300, 4), index=index, n_samples=20, key=keys, return_stderr=True
    )
    close(got, got.mT)
    close(error, error.mT)
    want = matrices(PAIRS[index], f, ones(1, 4))
    varies = error[0] > 1e-9
    if index == "shapley_taylor":
        assert (varies == ~torch.eye(4, dtype=torch.bool)).all()
        close(got.diagonal(dim1=1, dim2=2), want.diagonal(dim1=1, dim2=2).expand(300, 4))
    z = ((got - want) / error)[:, varies]
    # each S is one of few, so that z is no Student's t in detail
    assert 0.85 < float((z**2).mean()) * 17 / 19 < 1.3
    gap = (got.mean(0) - want[0])[varies] / (got.std(0)[varies] / math.sqrt(300))
    assert gap.abs().max() < 5


@pytest.mark.parametrize("index", PAIRS)
@pytest.mark.parametrize("n", [1, 2])
def test_sampled_interactions_of_one_or_two_features_are_exact(index, n):
    """Two features: the pair has one S only; the diagonal of "shapley" needs both orderings."""
    x, x0 = randn(0, 3, n), randn(1, 3, n)
    got = attrfn.interactions(wavy, x, index=index, baselines=x0, n_samples=3)
    want = matrices(PAIRS[index], wavy, x, x0)
    if index == "shapley" and n == 2:
        off = ~torch.eye(2, dtype=torch.bool)
        close(got[:, off], want[:, off])
    else:
        close(got, want)


@pytest.mark.parametrize("index", PAIRS)
def test_sampled_interactions_of_many_features(index):
    """30 features: f = x_0 x_1 + x_2 has one pair, whatever the orderings (with Shapley-Taylor)."""
    x = randn(0, 2, 30)

    def f(x):
        return x[:, 0] * x[:, 1] + x[:, 2]

    got = attrfn.interactions(f, x, index=index, n_samples=2)
    assert got.shape == (2, 30, 30)
    if index == "shapley_taylor":
        want = torch.zeros(2, 30, 30, dtype=torch.float64)
        want[:, 0, 1] = want[:, 1, 0] = x[:, 0] * x[:, 1]
        want[:, 2, 2] = x[:, 2]
        close(got, want)
