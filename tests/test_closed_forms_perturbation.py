"""Perturbation methods: values against formulas worked out by hand and against brute force.

The oracles below use no attrfn: they take one example at a time (or one batch, for models that
return one value for it), evaluate one coalition after the other, and go through all orderings,
subsets, windows or channels in Python loops. Everything is float64 and holds to 1e-10, unless a
test says why not.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import optree
import oracles
import pytest
import torch
import torch.nn.functional as F
import zoo
from oracles import as_tuple, close, quadrature, randn
from torch import nn

import attrfn

# ---------------------------------------------------------------------------------------------
# oracles: games


def ids_of(mask, xs):
    """The feature of each element, per leaf (B, ...); without a mask each element is one."""
    if mask is None:
        sizes = [x[0].numel() for x in xs]
        starts = [sum(sizes[:i]) for i in range(len(xs))]
        parts = zip(starts, sizes, xs, strict=True)
        return [torch.arange(a, a + n).reshape(x.shape[1:]).expand(x.shape) for a, n, x in parts]
    masks = mask if isinstance(mask, tuple) else [mask] * len(xs)
    return [m.expand(x.shape) for m, x in zip(masks, xs, strict=True)]


def players_of(ids):
    return sorted({int(k) for leaf in ids for k in leaf.flatten()})


def game(f, xs, starts, ids, i=None):
    """v(S) = f(x where S, else x0) of example i, or of the batch."""
    rows = slice(None) if i is None else slice(i, i + 1)

    @functools.cache
    def v(present):
        point = []
        for x, start, leaf in zip(xs, starts, ids, strict=True):
            z = start.clone()
            for k in present:
                z[leaf == k] = x[leaf == k]
            point.append(z[rows])
        out = torch.as_tensor(f(*point))
        return out if i is None else out[0]

    return v


def by_rule(rule, f, x, x0=0.0, mask=None):
    """Scores of the players by ``rule(v, players)``, put on the elements of each example."""
    xs = as_tuple(x)
    starts = [start_of(t, b) for t, b in zip(xs, spread(x0, xs), strict=True)]
    ids = ids_of(mask, xs)
    rows = []
    for i in range(len(xs[0])):
        scores = rule(game(f, xs, starts, ids, i), players_of(ids))
        rows.append([elements(scores, leaf[i]) for leaf in ids])
    result = tuple(torch.stack(leaf) for leaf in zip(*rows, strict=True))
    return result if isinstance(x, tuple) else result[0]


def start_of(x, x0):
    return (torch.zeros_like(x) + x0).to(x.dtype)


def spread(x0, xs):
    return x0 if isinstance(x0, tuple) else (x0,) * len(xs)


def elements(scores, ids):
    """Each element's score, (K..., *feature)."""
    first = next(iter(scores.values()))
    out = first.new_zeros((*first.shape, *ids.shape))
    for k, score in scores.items():
        out[..., ids == k] = score[..., None]
    return out


def ablation(v, players):
    everyone = frozenset(players)
    return {k: v(everyone) - v(everyone - {k}) for k in players}


def marginals(v, order):
    """What each player adds when the players join in this order."""
    return {k: v(frozenset(order[: i + 1])) - v(frozenset(order[:i])) for i, k in enumerate(order)}


def shapley(v, players):
    """The mean over all n! orderings (Shapley, 1953, the last formula of section 3)."""
    found = [marginals(v, order) for order in itertools.permutations(players)]
    return {k: sum(m[k] for m in found) / len(found) for k in players}


def subsets(players):
    sizes = range(len(players) + 1)
    return (frozenset(s) for size in sizes for s in itertools.combinations(players, size))


def difference(v, s, i, j):
    """The second difference of Grabisch and Roubens."""
    return v(s | {i, j}) - v(s | {i}) - v(s | {j}) + v(s)


def shapley_taylor(v, players):
    """Sundararajan, Dhamdhere and Agarwal (2020), Theorem 1 with k = 2, as {(i, j): value}."""
    n, out = len(players), {}
    for i, j in itertools.product(players, repeat=2):
        if i == j:
            out[i, j] = v(frozenset([i])) - v(frozenset())
            continue
        others = [k for k in players if k not in (i, j)]
        out[i, j] = sum(
            2 / n * difference(v, s, i, j) / math.comb(n - 1, len(s)) for s in subsets(others)
        )
    return out


def shapley_taylor_of(v, order):
    """The same for one ordering (their section 2): S is what comes before the first of the pair."""
    out = {}
    for a, i in enumerate(order):
        out[i, i] = v(frozenset([i])) - v(frozenset())
        for j in order[a + 1 :]:
            out[i, j] = out[j, i] = difference(v, frozenset(order[:a]), i, j)
    return out


def shapley_interaction(v, players):
    """Grabisch and Roubens (1999), eq. 3; the diagonal is the Shapley value."""
    n, out = len(players), {}
    for k, value in shapley(v, players).items():
        out[k, k] = value
    for i, j in itertools.permutations(players, 2):
        others = [k for k in players if k not in (i, j)]
        out[i, j] = sum(
            math.factorial(len(s))
            * math.factorial(n - len(s) - 2)
            / math.factorial(n - 1)
            * difference(v, s, i, j)
            for s in subsets(others)
        )
    return out


PAIRS = {"shapley_taylor": shapley_taylor, "shapley": shapley_interaction}


def matrix(pairs, players):
    """(K..., n, n)."""
    rows = [torch.stack([pairs[i, j] for j in players], -1) for i in players]
    return torch.stack(rows, -2)


def matrices(rule, f, x, x0=0.0, mask=None):
    """(B, K..., n, n) by ``rule(v, players)``."""
    xs = as_tuple(x)
    starts = [start_of(t, b) for t, b in zip(xs, spread(x0, xs), strict=True)]
    ids = ids_of(mask, xs)
    players = players_of(ids)
    return torch.stack(
        [matrix(rule(game(f, xs, starts, ids, i), players), players) for i in range(len(xs[0]))]
    )


def table_game(table):
    """A model of n numbers, each 0 or 1, whose values are a table (2^n, K...)."""
    n = int(math.log2(len(table)))

    def f(z):
        return table[(z.long() * 2 ** torch.arange(n)).sum(1)]

    return f


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------
# models and masks


def wavy(*xs):
    """A smooth function without symmetries, in which all elements interact."""
    z = torch.cat([x.reshape(len(x), x[0].numel()) for x in xs], 1).double()
    w = randn(77, 3, z.shape[1])
    a, b, c = (z @ w.T).unbind(1)
    return torch.tanh(a) * b + (c + 0.5 * z[:, 0]).sin() + z[:, -1] ** 2 * a


def wavy_pair(*xs):
    """(B, 2) of them."""
    return torch.stack([wavy(*xs), wavy(*[x + 0.3 for x in xs])], 1)


PAIR = (randn(1, 2, 2), randn(2, 2, 2, 1))

CASES = {
    "elements": (randn(0, 3, 4), 0.0, None),
    "one_feature": (randn(0, 3, 1), 0.0, None),
    "two_features": (randn(0, 3, 2), randn(5, 1, 2), None),
    "numbers": (randn(0, 3), 0.4, None),
    "groups": (randn(0, 2, 5), 0.5, torch.tensor([0, 1, 1, 2, 0])),
    "gaps": (randn(0, 2, 4), randn(3, 2, 4), torch.tensor([[70, -3, 70, 9]])),
    "channels": (randn(0, 2, 3, 2), randn(3, 3, 2), torch.tensor([[2], [0], [1]])),
    "fewer_dims": (randn(0, 2, 3, 2), randn(3, 2, 1, 1), torch.tensor([1, 0])),
    "rows": (randn(0, 3, 4), randn(3, 3, 4), torch.tensor([[0, 0, 1, 2], [2, 1, 0, 1], [3] * 4])),
    "rows_of_channels": (
        randn(0, 2, 3, 2),
        0.0,
        torch.tensor([[[0], [1], [1]], [[1], [0], [2]]]),
    ),
    "two_tensors": (PAIR, (randn(6, 2, 2), 0.2), None),
    "across_tensors": (PAIR, (0.1, 0.2), (torch.tensor([0, 1]), torch.tensor([[[2], [0]]]))),
    "one_mask_for_both": ((randn(1, 2, 3), randn(2, 2, 3)), (0.0, 0.0), torch.tensor([0, 4, 4])),
    "rows_of_one_tensor": (PAIR, 0.3, (torch.tensor([[0, 1], [5, 0]]), torch.tensor([[5], [1]]))),
    "five": (randn(0, 1, 5), randn(4, 1, 5), None),
}
cases = pytest.mark.parametrize("case", CASES)


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

W = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)


def linear(x):
    return x @ W + 3


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


# ---------------------------------------------------------------------------------------------
# occlusion


def occlusion(f, x, x0, windows, strides):
    """Each leaf on its own; a loop over examples, windows and the elements of a window."""
    xs = as_tuple(x)
    starts = [start_of(t, b) for t, b in zip(xs, spread(x0, xs), strict=True)]
    results = []
    for leaf, (t, window, stride) in enumerate(zip(xs, windows, strides, strict=True)):
        total, count = torch.zeros_like(t), torch.zeros_like(t)
        corners = []
        for size, w, step in zip(t.shape[1:], window, stride, strict=True):
            corners.append([k * step for k in range(1 + math.ceil((size - w) / step))])
        for i, corner in itertools.product(range(len(t)), itertools.product(*corners)):
            inside = (i, *[slice(c, c + w) for c, w in zip(corner, window, strict=True)])
            point = [z.clone() for z in xs]
            point[leaf][inside] = starts[leaf][inside]
            lost = (f(*xs)[i] - f(*point)[i]).to(t)
            total[inside] += lost
            count[inside] += 1
        assert (count > 0).all()
        results.append(total / count)
    return tuple(results) if isinstance(x, tuple) else results[0]


WINDOWS = {
    # shape behind the batch, window, stride, both written out
    "1d": ((7,), 3, None, (3,), (1,)),
    "1d_cut_off": ((7,), (3,), 3, (3,), (3,)),
    "1d_overlap_cut_off": ((8,), 3, (2,), (3,), (2,)),
    "1d_all": ((4,), 4, None, (4,), (1,)),
    "1d_all_and_any_stride": ((4,), 4, 9, (4,), (9,)),
    "1d_single": ((4,), 1, None, (1,), (1,)),
    "2d": ((3, 4), 2, None, (2, 2), (1, 1)),
    "2d_rectangles": ((3, 5), (1, 3), (1, 2), (1, 3), (1, 2)),
    "2d_cut_off": ((5, 4), (2, 3), (2, 3), (2, 3), (2, 3)),
    "2d_cut_off_to_one": ((5, 5), 4, 4, (4, 4), (4, 4)),
    "3d_channels": ((2, 3, 3), (2, 2, 2), (2, 1, 1), (2, 2, 2), (2, 1, 1)),
    "3d_cut_off": ((2, 5, 3), (1, 3, 2), (1, 2, 2), (1, 3, 2), (1, 2, 2)),
    "3d_whole_dim": ((3, 2, 4), (3, 1, 2), (5, 1, 1), (3, 1, 2), (5, 1, 1)),
}


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("f", [wavy, lambda x: x.flatten(1) @ randn(3, x[0].numel())])
def test_occlusion_is_the_loop_over_windows(case, f):
    shape, window, stride, *full = WINDOWS[case]
    x, x0 = randn(0, 2, *shape), randn(1, *shape)
    got = attrfn.occlusion(f, x, window=window, stride=stride, baselines=x0)
    close(got, occlusion(f, x, x0, full[:1], full[1:]))


def test_occlusion_by_hand():
    """f = sum: windows of 2 over (1, 2, 4) lose 3 and 6; the middle has their mean."""
    got = attrfn.occlusion(lambda x: x.sum(1), row(1, 2, 4), window=2)
    close(got, row(3, 4.5, 6))
    # steps of 2: the second window is cut off at the border and holds the 4 alone
    got = attrfn.occlusion(lambda x: x.sum(1), row(1, 2, 4), window=2, stride=2)
    close(got, row(3, 3, 4))


@pytest.mark.parametrize(
    ("window", "stride", "full", "steps"),
    [
        (2, None, [(2,), (2, 2)], [(1,), (1, 1)]),
        (((2,), (1, 2)), None, [(2,), (1, 2)], [(1,), (1, 1)]),
        ((3, (2, 1)), ((2,), (1, 1)), [(3,), (2, 1)], [(2,), (1, 1)]),
        (((2,), (2, 3)), (2, (1, 2)), [(2,), (2, 3)], [(2,), (1, 2)]),
        ((2, 1), (None, 1), [(2,), (1, 1)], [(1,), (1, 1)]),
    ],
    ids=["int", "tuples", "int_and_tuple", "strides", "none"],
)
def test_occlusion_of_two_inputs_takes_each_on_its_own(window, stride, full, steps):
    x, x0 = (randn(0, 2, 5), randn(1, 2, 2, 4)), (0.2, randn(2, 2, 4))
    if window == (2, 1):  # all ints: sizes of a window, not one for each input
        window = ((2,), (1, 1))
    got = attrfn.occlusion(wavy, x, window=window, stride=stride, baselines=x0)
    close(got, occlusion(wavy, x, x0, full, steps))


def test_occlusion_of_a_dict():
    x = {"a": randn(0, 2, 3), "b": [randn(1, 2, 2, 3)]}
    got = attrfn.occlusion(
        lambda t: wavy(t["a"], t["b"][0]), x, window={"a": 2, "b": [(1, 2)]}, stride=1
    )
    a, b = occlusion(wavy, (x["a"], x["b"][0]), 0.0, [(2,), (1, 2)], [(1,), (1, 1)])
    close(got, {"a": a, "b": [b]})


def test_occlusion_of_several_outputs():
    x = randn(0, 2, 3, 4)
    options = {"window": (2, 3), "stride": (1, 2)}
    got = attrfn.occlusion(wavy_pair, x, **options)
    want = [
        occlusion(lambda x, k=k: wavy_pair(x)[:, k], x, 0.0, [(2, 3)], [(1, 2)]) for k in (0, 1)
    ]
    close(got, torch.stack(want, 1))
    close(attrfn.occlusion(wavy_pair, x, target=1, **options), want[1])


def test_windows_of_one_element_are_feature_ablation():
    x, x0 = randn(0, 2, 3, 2), randn(1, 2, 3, 2)
    got = attrfn.occlusion(wavy, x, window=1, baselines=x0)
    close(got, attrfn.feature_ablation(wavy, x, baselines=x0))


# ---------------------------------------------------------------------------------------------
# permutation


def rolled(keys, batch):
    """Row b takes from row b - 1."""
    return torch.arange(batch).roll(1).expand(len(keys), batch)


def permutation(f, x, order, mask=None):
    """A loop over the features, all permuted by one order."""
    xs = as_tuple(x)
    ids = [leaf[:1].expand(t.shape) for leaf, t in zip(ids_of(mask, xs), xs, strict=True)]
    full = f(*xs)
    lost = {}
    for k in players_of(ids):
        moved = [torch.where(leaf == k, t[order], t) for leaf, t in zip(ids, xs, strict=True)]
        lost[k] = full - f(*moved)
    per_row = [
        [elements({k: v[i] for k, v in lost.items()}, leaf[i]) for leaf in ids]
        for i in range(len(xs[0]))
    ]
    result = tuple(torch.stack(leaf) for leaf in zip(*per_row, strict=True))
    return result if isinstance(x, tuple) else result[0]


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
        assert len(inner) == len(set(inner)) == min(n_samples // 2 * 2, 62)


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
    miss = ((got - attrfn.shapley_values(wavy, x)) ** 2).mean()
    ratio = float(miss / (error**2).mean())
    assert ratio < 1.5
    assert n_samples < 24 or ratio > 0.2  # of 200 out of 254 too: there are few others


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


# ---------------------------------------------------------------------------------------------
# integrated Hessians


def double_integral(f, x, x0, n=24):
    """Janizek et al., eq. 4 and 5: Gauss-Legendre in alpha and beta, Hessians row by row."""
    nodes, weights = quadrature("gauss_legendre", n)
    square = list(itertools.product(zip(nodes, weights, strict=True), repeat=2))
    t = torch.tensor([s * t for (s, _), (t, _) in square])[:, None]
    w = torch.tensor([u * w for (_, u), (_, w) in square])[:, None]
    results = []
    for z, b in zip(x, x0, strict=True):
        d = z - b
        points = (b + t * d).requires_grad_()
        slopes = torch.autograd.grad(f(points).sum(), points, create_graph=True)[0]
        total = torch.diag((w * slopes).sum(0).detach() * d)
        for i in range(len(z)):
            curve = torch.autograd.grad(slopes[:, i].sum(), points, retain_graph=True)[0]
            total[i] += d[i] * d * (w * t * curve).sum(0)
        results.append(total)
    return torch.stack(results)


def test_integrated_hessians_are_the_double_integral():
    """24^2 nodes in the plane against 50 on a line leave 1e-9 of this analytic function."""
    x, x0 = randn(0, 2, 3), 0.5 * randn(1, 2, 3)
    got = attrfn.integrated_hessians(wavy, x, baselines=x0)
    close(got, double_integral(wavy, x, x0), 1e-8)


def test_integrated_hessians_of_a_quadratic_form():
    """f = x'Qx/2 + b'x, Q symmetric: the integral of alpha beta is 1/4, so off the diagonal
    Q_ij d_i d_j / 4; on it also d_i (b_i + Q_i (x0 + d/4))."""
    q, b, x, x0 = randn(0, 4, 4), randn(1, 4), randn(2, 3, 4), randn(3, 3, 4)
    q, d = q + q.T, x - x0
    got = attrfn.integrated_hessians(lambda x: ((x @ q) * x).sum(1) / 2 + x @ b, x, baselines=x0)
    want = q * d[:, :, None] * d[:, None] / 4 + torch.diag_embed(d * (b + (x0 + d / 4) @ q))
    close(got, want)


def test_integrated_hessians_of_a_bilinear_function():
    """f = xy from 0: all four entries are xy / 4."""
    x = randn(0, 3, 2)
    got = attrfn.integrated_hessians(lambda x: x.prod(1), x, n_steps=8)
    close(got, (x.prod(1) / 4)[:, None, None].expand(3, 2, 2), 1e-8)


def test_integrated_hessians_of_a_product_of_three():
    """f = xyz from 0: the integral of (alpha beta)^2 is 1/9, so all nine entries are xyz / 9."""
    x = randn(0, 3, 3)
    got = attrfn.integrated_hessians(lambda x: x.prod(1), x)
    close(got, (x.prod(1) / 9)[:, None, None].expand(3, 3, 3))


def test_integrated_hessians_of_a_product_of_three_from_a_baseline():
    """f_12 = b_3 + t d_3 with t = alpha beta: I_12 = d_1 d_2 (b_3/4 + d_3/9), and on the diagonal
    I_11 = d_1 (b_2 b_3 + (b_2 d_3 + b_3 d_2)/4 + d_2 d_3/9)."""
    x, b = randn(0, 4, 3), randn(1, 4, 3)
    d = x - b
    want = torch.zeros(4, 3, 3, dtype=torch.float64)
    for i, j in itertools.permutations(range(3), 2):
        k = 3 - i - j
        want[:, i, j] = d[:, i] * d[:, j] * (b[:, k] / 4 + d[:, k] / 9)
    for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        mixed = b[:, j] * d[:, k] + b[:, k] * d[:, j]
        want[:, i, i] = d[:, i] * (b[:, j] * b[:, k] + mixed / 4 + d[:, j] * d[:, k] / 9)
    close(attrfn.integrated_hessians(lambda x: x.prod(1), x, baselines=b), want)


@pytest.mark.parametrize("target", [1, [3, 0]])
def test_integrated_hessians_sum_to_the_change_by_integrated_gradients(target):
    model = oracles.seeded(oracles.TwoInputs)
    x, x0 = (randn(0, 2, 3), randn(1, 2, 2, 2)), (0.1, 0.3 * randn(2, 2, 2, 2))
    got = attrfn.integrated_hessians(model, x, target=target, baselines=x0)
    assert got.shape == (2, 7, 7)
    starts = (torch.full_like(x[0], 0.1), x0[1])
    change = oracles.values(model, x, target) - oracles.values(model, starts, target)
    close(got.sum((1, 2)), change, 1e-8)
    rows = oracles.integrated_gradients(model, x, starts, n=40, target=target)
    close(got.sum(2), torch.cat([r.flatten(1) for r in rows], 1), 1e-8)
    close(got, got.mT)


def test_integrated_hessians_of_features_sum_those_of_their_elements():
    """Features in two tensors, with gaps in the ids, and one mask per example."""
    x = (randn(0, 2, 2), randn(1, 2, 2, 1))
    single = attrfn.integrated_hessians(wavy, x)
    for mask in (
        (torch.tensor([8, 2]), torch.tensor([[[2], [5]]])),
        (torch.tensor([[1, 1], [0, 2]]), torch.tensor([[2], [0]])),
    ):
        ids = torch.cat([leaf.flatten(1) for leaf in ids_of(mask, x)], 1)
        players = players_of([ids])
        want = torch.stack(
            [
                torch.stack(
                    [torch.stack([s[i == a][:, i == b].sum() for b in players]) for a in players]
                )
                for s, i in zip(single, ids, strict=True)
            ]
        )
        close(attrfn.integrated_hessians(wavy, x, feature_mask=mask), want)


def test_integrated_hessians_of_relus_warn():
    """Piecewise linear functions have no curvature, so the entries miss the change."""
    model = oracles.seeded(lambda: nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 1)))
    x = randn(0, 4, 3)
    with pytest.warns(UserWarning, match="integrated_hessians"):
        attrfn.integrated_hessians(model, x, baselines=randn(1, 4, 3))


# ---------------------------------------------------------------------------------------------
# RISE


def masks_of(shape, **options):
    """The masks (N, B, ...) that rise draws: ones seen through them."""
    seen = []

    def f(x):
        seen.append(x.clone())
        return x.flatten(1).sum(1)

    x = ones(*shape)
    attrfn.rise(f, x, chunk_size=1, **options)
    seen = [z for z in seen if z.shape == x.shape]
    n = options["n_samples"]
    return torch.stack(seen[-n:])


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 1, 6, 8), (1, 2, 4, 3, 5)])
@pytest.mark.parametrize("p", [0.5, 0.2])
def test_rise_is_the_mean_of_its_masks_by_the_output(shape, p):
    x, x0, options = randn(0, *shape), randn(1, *shape), {"n_samples": 7, "grid": 3, "p": p}
    m = masks_of(shape, key=4, **options)
    assert ((m >= 0) & (m <= 1)).all()
    close(m, m[:, :1, :1].expand_as(m))  # one for all channels, and for all examples
    assert len({tuple(one.flatten().tolist()) for one in m}) > 1
    want = torch.zeros_like(x)
    for one in m:
        value = wavy(x0 + one * (x - x0))
        want += value.reshape(-1, *[1] * (x.ndim - 1)) * one / (7 * p)
    close(attrfn.rise(wavy, x, baselines=x0, key=4, **options), want)


def test_rise_of_two_inputs_and_outputs():
    """Each input has masks of its own; several outputs give (B, K, ...)."""
    x = (randn(0, 2, 1, 4), randn(1, 2, 2, 3, 3))
    seen = []

    def f(a, b):
        seen.append((a / x[0], b / x[1]))
        return wavy_pair(a, b)

    got = attrfn.rise(f, x, n_samples=5, grid=2, chunk_size=1)
    assert [g.shape for g in got] == [(2, 2, 1, 4), (2, 2, 2, 3, 3)]
    want = [torch.zeros_like(g) for g in got]
    for masks in seen[-5:]:
        value = wavy_pair(*[m * t for m, t in zip(masks, x, strict=True)])
        for total, m in zip(want, masks, strict=True):
            total += value.reshape(2, 2, *[1] * (m.ndim - 1)) * m[:, None] / (5 * 0.5)
    close(got, tuple(want))


def test_masks_have_mean_p():
    """At every place, over 4000 keys; a value between 0 and 1 has at most the spread of a coin."""
    keys = attrfn.random.split(0, 4000)
    for p in (0.5, 0.15):
        m = masks_of((4000, 1, 5, 6), n_samples=1, grid=4, p=p, key=keys)[0]
        assert m.std(0).max() <= math.sqrt(p * (1 - p)) + 0.01
        oracles.within_sigmas(m.mean(0), p * torch.ones(1, 5, 6).double(), m.std(0), 4000)


def spline(t):
    """The cubic B-spline: the hat function's correlation with itself."""
    t = abs(t)
    if t < 1:
        return 2 / 3 - t**2 + t**3 / 2
    return max(2 - t, 0) ** 3 / 6


@pytest.mark.parametrize(("shape", "grid", "p"), [((8,), 3, 0.5), ((4, 6), 2, 0.3)])
def test_rise_of_a_linear_function_in_expectation(shape, grid, p):
    """A_j = 1/p sum_k w_k x_k E[m_j m_k] with E[m_j m_k] = p^2 + p (1 - p) prod_d B((j - k)_d).

    The cells are independent coins, interpolated linearly, and a uniform shift makes the
    correlation of two places that of the hat function with itself at their distance in cells.
    """
    keys, w, x = attrfn.random.split(1, 400), randn(2, *shape), randn(3, 1, *shape)
    many = x.expand(400, 1, *shape)
    got = attrfn.rise(
        lambda x: (x[:, 0] * w).flatten(1).sum(1),
        many,
        n_samples=50,
        grid=grid,
        p=p,
        key=keys,
        chunk_size=25,
    )
    want = torch.zeros(shape, dtype=torch.float64)
    places = list(itertools.product(*map(range, shape)))
    for j, k in itertools.product(places, repeat=2):
        near = math.prod(
            spline((a - b) * grid / size) for a, b, size in zip(j, k, shape, strict=True)
        )
        want[j] += float(w[k] * x[0][k]) * (p + (1 - p) * near)
    oracles.within_sigmas(got.mean(0)[0], want, got.std(0)[0], 400)


def test_rise_with_p_of_one_keeps_everything():
    """Every mask is 1, so that A = f(x) everywhere."""
    x = randn(0, 3, 2, 4, 4)
    got = attrfn.rise(wavy, x, n_samples=3, p=1.0)
    close(got, wavy(x)[:, None, None, None].expand_as(x))


# ---------------------------------------------------------------------------------------------
# layers and neurons

X = randn(0, 4, 3)


def net():
    """Linear, Tanh, Linear: (B, 3) to (B, 5) to (B, 2)."""
    return oracles.seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))


def tail_of(model):
    return lambda a: model[2](a.tanh())


@pytest.mark.parametrize("at", ["output", "input"])
@pytest.mark.parametrize(
    ("baselines", "mask"),
    [
        (None, None),
        (0.3, torch.tensor([0, 1, 1, 4, 0])),
        (randn(6, 5), None),
        (randn(6, 4, 5), torch.tensor([[0, 1, 0, 1, 2], [0] * 5, [1] * 5, [2, 2, 2, 0, 0]])),
    ],
    ids=["zeros", "number_and_groups", "row", "rows"],
)
def test_layer_feature_ablation_is_ablation_of_the_tail(at, baselines, mask):
    """The output of module 0 is the input of module 1; the baselines are activations."""
    model = net()
    a = model[0](X).detach()
    got = attrfn.layer_feature_ablation(
        model,
        X,
        layer="0" if at == "output" else "1",
        at=at,
        target=1,
        layer_baselines=baselines,
        layer_mask=mask,
    )
    x0 = 0.0 if baselines is None else baselines
    with torch.no_grad():
        want = by_rule(ablation, lambda a: tail_of(model)(a)[:, 1], a, x0, mask)
    close(got, want)


def test_layer_feature_ablation_of_a_linear_tail():
    """f = v'a + d: A = a v, without a target for each output."""
    model = net()
    a, v = model[1](model[0](X)).detach(), model[2].weight.detach()
    close(attrfn.layer_feature_ablation(model, X, layer="1", target=0), a * v[0])
    close(attrfn.layer_feature_ablation(model, X, layer=model[1]), a[:, None] * v)


def test_layer_feature_ablation_of_channels():
    """Planted by hooks, channel by channel, in each example on its own."""
    model, x = oracles.seeded(oracles.Cnn), randn(3, 2, 2, 8, 8)
    a = oracles.layer_value(model, "conv2", x).detach()
    got = attrfn.layer_feature_ablation(
        model, x, layer="conv2", target=[4, 2], layer_mask=torch.arange(6)[:, None, None]
    )
    want = torch.zeros_like(a)
    for i, c in itertools.product(range(2), range(6)):
        less = a[i : i + 1].clone()
        less[:, c] = 0
        one = oracles.row(x, i)
        with torch.no_grad():
            lost = model(*one) - oracles.model_behind(model, "conv2", one)(less)
        want[i, c] = lost[0, [4, 2][i]]
    close(got, want)


def test_layer_feature_ablation_of_a_layer_that_returns_two_tensors():
    """A feature may reach across them."""
    model, x = zoo.structured("tuple"), randn(2, 2, 4)
    with torch.no_grad():
        a, b = model.parts(x)
    mask = (torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 2, 0, 3, 3]))
    got = attrfn.layer_feature_ablation(
        model, x, layer="parts", target=2, layer_mask=mask, layer_baselines=(0.1, None)
    )

    def tail(a, b):
        with torch.no_grad():
            return model.join((a.clone(), b))[:, 2]

    close(got, by_rule(ablation, tail, (a, b), (0.1, 0.0), mask))


def test_layer_feature_ablation_of_one_of_several_calls():
    """f = act(act(x)) with one module: the second call's output is the model's."""
    model = nn.Sequential(act := nn.Tanh(), act, nn.Flatten())
    second = X.tanh().tanh()
    got = attrfn.layer_feature_ablation(model, X, layer=act, call=1, target=0)
    want = torch.zeros_like(X)
    want[:, 0] = second[:, 0]
    close(got, want)
    got = attrfn.layer_feature_ablation(model, X, layer=act, call=0, target=0)
    close(got, want)  # tanh(0) = 0


@pytest.mark.parametrize("neuron", [2, (2,), -1], ids=str)
@pytest.mark.parametrize("mask", [None, torch.tensor([5, 0, 5])], ids=["elements", "groups"])
def test_neuron_feature_ablation_is_ablation_of_the_head(neuron, mask):
    model, x0 = net(), randn(5, 4, 3)
    index = neuron[0] if isinstance(neuron, tuple) else neuron
    got = attrfn.neuron_feature_ablation(
        model, X, layer="1", neuron=neuron, baselines=x0, feature_mask=mask
    )
    with torch.no_grad():
        want = by_rule(ablation, lambda x: model[0](x).tanh()[:, index], X, x0, mask)
    close(got, want)
    got = attrfn.neuron_feature_ablation(
        model, X, layer="2", at="input", neuron=neuron, baselines=x0, feature_mask=mask
    )
    close(got, want)


def test_neuron_feature_ablation_in_a_map():
    """The neuron (channel, row, column) of a convolution; two inputs make one neuron."""
    model, x = oracles.seeded(oracles.Cnn), randn(3, 2, 2, 8, 8)
    mask = torch.arange(4).reshape(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    got = attrfn.neuron_feature_ablation(
        model, x, layer="act1", neuron=(1, 2, 3), feature_mask=mask
    )
    with torch.no_grad():
        want = by_rule(ablation, lambda x: model.conv1(x).relu()[:, 1, 2, 3], x, 0.0, mask)
    close(got, want)
    model, pair = oracles.seeded(oracles.TwoInputs), (randn(0, 2, 3), randn(1, 2, 2, 2))

    def head(x, y):
        with torch.no_grad():
            return model.act(model.meet(model.left(x), model.right(y.flatten(1))))[:, 4]

    got = attrfn.neuron_feature_ablation(model, pair, layer="act", neuron=4)
    close(got, by_rule(ablation, head, pair))


@pytest.mark.parametrize("target", [1, None])
@pytest.mark.parametrize("mask", [None, torch.tensor([0, 7, 7, 0, 2])], ids=["elements", "groups"])
def test_layer_feature_permutation_is_permutation_of_the_tail(target, mask):
    """An int target on (B, 2) outputs; the copies of the batch have rows of their own."""
    model = net()
    a = model[0](X).detach()
    got = attrfn.layer_feature_permutation(
        model, X, layer="0", target=target, layer_mask=mask, permute=rolled
    )

    def tail(a):
        with torch.no_grad():
            out = tail_of(model)(a)
        return out if target is None else out[:, target]

    close(got, permutation(tail, a, torch.arange(4).roll(1), mask))


class Total(nn.Module):
    """One value for the whole batch behind a layer."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return (self.body(x)[:, 1] ** 2).mean()


def test_layer_methods_of_one_value_for_the_whole_batch():
    """The mean over the examples, in all of which a part is ablated or permuted: (1, ...)."""
    model = Total()
    a, mask = model.body[0](X).detach(), torch.tensor([0, 1, 1, 4, 0])

    def tail(a):
        with torch.no_grad():
            return (tail_of(model.body)(a)[:, 1] ** 2).mean()

    scores = whole_batch(ablation, tail, a, mask)
    want = torch.stack([scores[int(k)] for k in mask])[None]
    got = attrfn.layer_feature_ablation(model, X, layer="body.0", layer_mask=mask)
    close(got, want)
    got = attrfn.layer_feature_permutation(
        model, X, layer="body.0", layer_mask=mask, permute=rolled, chunk_size=1
    )
    moved = [tail(torch.where(mask == k, a.roll(1, 0), a)) for k in mask]
    close(got, (tail(a) - torch.stack(moved))[None])


def test_layer_feature_permutation_draws():
    """v'a with digits as above: A = v (a - a moved), moved by a permutation in each column."""
    model = net()
    a, v = model[1](model[0](X)).detach(), model[2].weight.detach()[1]
    moved = a - attrfn.layer_feature_permutation(model, X, layer="1", target=1, key=3) / v
    close(moved.sort(0).values, a.sort(0).values)
    assert (moved - a).abs().max() > 0.1


# ---------------------------------------------------------------------------------------------
# class activation maps


def channel_loop(weigh, model, x, layer, target, at="output"):
    """sum_c w_c a_c, with ``weigh(i, a, c)`` for channel c of example i."""
    a = oracles.layer_value(model, layer, x, at).detach()
    maps = []
    for i in range(len(a)):
        w = weigh(i, a[i : i + 1])
        maps.append(sum(w[c] * a[i, c] for c in range(a.shape[1])))
    return torch.stack(maps)[:, None]


def output(model, x, i, target):
    with torch.no_grad():
        return oracles.pick(model(*as_tuple(x)), target, i)


def ablation_cam(model, x, layer, target=None, at="output"):
    """Desai and Ramaswamy, eq. 3 and 4 (before the ReLU)."""

    def weigh(i, a):
        one = oracles.row(x, i)
        whole, w = output(model, one, i, target), []
        for c in range(a.shape[1]):
            less = a.clone()
            less[:, c] = 0
            with torch.no_grad():
                rest = oracles.model_behind(model, layer, one, at)(less)
            w.append((whole - oracles.pick(rest, target, i)) / whole)
        return w

    return channel_loop(weigh, model, x, layer, target, at)


SMOOTH = {3: "linear", 4: "bilinear", 5: "trilinear"}


def score_cam(model, x, layer, target=None, at="output", x0=0.0):
    """Wang et al., Definition 1 and Algorithm 1 (before the ReLU), one input."""
    start = torch.zeros_like(x) + x0

    def weigh(i, a):
        one, base = x[i : i + 1], start[i : i + 1]
        gains = []
        for c in range(a.shape[1]):
            h = F.interpolate(a[:, c : c + 1], size=x.shape[2:], mode=SMOOTH[x.ndim])
            h = (h - h.min()) / (h.max() - h.min())
            seen = output(model, base + h * (one - base), i, target)
            gains.append(seen - output(model, base, i, target))
        return torch.stack(gains).softmax(0)

    return channel_loop(weigh, model, x, layer, target, at)


CAMS = {attrfn.ablation_cam: ablation_cam, attrfn.score_cam: score_cam}
cams = pytest.mark.parametrize("method", CAMS, ids=lambda m: m.__name__)
IMAGES = randn(0, 3, 2, 8, 8)


@cams
@pytest.mark.parametrize(
    ("layer", "at"),
    [("conv1", "output"), ("act1", "output"), ("conv2", "input"), ("conv2", "output")],
)
@pytest.mark.parametrize("target", [2, [4, 0, 2]], ids=str)
def test_maps_by_loops_over_channels(method, layer, at, target):
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    want = CAMS[method](model, IMAGES, layer, target, at)
    got = method(model, IMAGES, layer=layer, at=at, target=target)
    assert got.shape == (3, 1, *want.shape[2:])
    close(got, want)


@cams
def test_maps_of_models_with_one_output(method):
    model = oracles.seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh()))

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            return (self.body(x) ** 2).flatten(1).sum(1)

    want = CAMS[method](One(), IMAGES, "body.0")
    close(method(One(), IMAGES, layer="body.0"), want)


@cams
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("upsample", [None, "nearest", "bilinear"])
def test_maps_rectified_and_resized(method, relu, upsample):
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    with torch.no_grad():  # activations around 0, so that the maps have both signs
        model.conv1.bias.zero_()
        model.conv2.bias.zero_()
    small = CAMS[method](model, IMAGES, "conv2", 1)
    assert (small < 0).any()
    want = small.clamp(min=0) if relu else small
    if upsample:
        want = F.interpolate(want, size=(8, 8), mode=upsample)
    got = method(model, IMAGES, layer="conv2", target=1, relu=relu, upsample=upsample)
    close(got, want)


@cams
def test_maps_of_time_series_and_volumes(method):
    for conv, x in ((nn.Conv1d, randn(1, 3, 2, 9)), (nn.Conv3d, randn(2, 2, 2, 4, 3, 5))):

        def build(conv=conv, x=x):
            places = math.prod(s - 1 for s in x.shape[2:])
            return nn.Sequential(conv(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3 * places, 2))

        model = oracles.seeded(build)
        close(method(model, x, layer="1", target=1), CAMS[method](model, x, "1", 1))


@cams
def test_maps_of_a_list_of_layers(method):
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    got = method(model, IMAGES, target=1, layer=["act1", model.conv2])
    close(got, [CAMS[method](model, IMAGES, layer, 1) for layer in ("act1", "conv2")])


def test_score_cam_from_baselines():
    """Behind a channel is x0 + H (x - x0), as in all methods; the paper has x0 = 0."""
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    for x0 in (0.7, randn(5, 2, 8, 8), randn(6, 3, 2, 8, 8)):
        got = attrfn.score_cam(model, IMAGES, layer="conv1", target=1, baselines=x0)
        close(got, score_cam(model, IMAGES, "conv1", 1, x0=x0))


def test_score_cam_with_a_dead_channel_is_finite():
    """A constant channel cannot be scaled to [0, 1]."""
    model = oracles.seeded(oracles.Cnn)
    with torch.no_grad():
        model.conv2.bias[2] = -1e3
    got = attrfn.score_cam(model, IMAGES, layer="act2", target=1)
    assert torch.isfinite(got).all()
    assert (got != 0).any()


class Tokens(nn.Module):
    """Patches of 2 x 2 of a 6 x 4 image as tokens (B, 6, 5)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 5, 2, stride=2)
        self.mix = nn.Linear(5, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        x = self.mix(self.embed(x).flatten(2).transpose(1, 2))
        return self.out((x.sum(2, keepdim=True).softmax(1) * x).sum(1))


@cams
def test_reshape_makes_a_map_of_tokens(method):
    """The twin returns the same activation as a map, and needs no reshape."""

    class Twin(Tokens):
        def __init__(self):
            super().__init__()
            self.here = nn.Identity()

        def forward(self, x):
            x = self.mix(self.embed(x).flatten(2).transpose(1, 2))
            x = self.here(x.transpose(1, 2).unflatten(2, (3, 2))).flatten(2).transpose(1, 2)
            return self.out((x.sum(2, keepdim=True).softmax(1) * x).sum(1))

    model, twin, x = oracles.seeded(Tokens), oracles.seeded(Twin), randn(4, 3, 1, 6, 4)
    got = method(
        model, x, layer="mix", target=2, reshape=lambda t: t.transpose(1, 2).unflatten(2, (3, 2))
    )
    close(got, CAMS[method](twin, x, "here", 2))


# ---------------------------------------------------------------------------------------------
# what the model returns

SMALL = randn(0, 3, 2, 2) * 2  # three examples of four elements, (B, C, L) for rise


def stepped(x):
    """Whole numbers, so that models of integers can return them as they are."""
    return (3 * wavy(x)).floor()


def stepped_table(x):
    """(B, 2, 3)."""
    shifts = torch.arange(6).double()
    return torch.stack([stepped(x + s / 7) for s in shifts], 1).unflatten(1, (2, 3))


def even(inputs, perturbed, z):
    """All samples weigh the same."""
    return torch.ones(len(z), 3, dtype=torch.float64)


FAMILY = {
    "feature_ablation": attrfn.feature_ablation,
    "occlusion": functools.partial(attrfn.occlusion, window=(1, 2)),
    "feature_permutation": functools.partial(attrfn.feature_permutation, n_samples=2),
    "shapley_values": attrfn.shapley_values,
    "shapley_value_sampling": functools.partial(attrfn.shapley_value_sampling, n_samples=3),
    "antithetic": functools.partial(attrfn.shapley_value_sampling, n_samples=2, antithetic=True),
    "kernel_shap": functools.partial(attrfn.kernel_shap, n_samples=14),
    "kernel_shap_some": functools.partial(attrfn.kernel_shap, n_samples=8),
    "kernel_shap_by_feature": functools.partial(
        attrfn.kernel_shap, n_samples=14, return_input_shape=False
    ),
    "lime": functools.partial(
        attrfn.lime, n_samples=12, surrogate=attrfn.surrogates.ridge(0.1), similarity=even
    ),
    "rise": functools.partial(attrfn.rise, n_samples=6, grid=2),
    "interactions": attrfn.interactions,
    "shapley_interactions": functools.partial(attrfn.interactions, index="shapley"),
    "sampled_interactions": functools.partial(attrfn.interactions, n_samples=3),
}
family = pytest.mark.parametrize("name", FAMILY)

ROWS = {
    "column": lambda x: stepped(x)[:, None],
    "numpy": lambda x: stepped(x).numpy(),
    "numpy_column": lambda x: stepped(x)[:, None].numpy(),
    "integers": lambda x: stepped(x).long(),
    "numpy_integers": lambda x: stepped(x).long().numpy(),
    "float32": lambda x: stepped(x).float(),
}
WHOLE = {
    "float": lambda x: float(stepped(x).sum()),
    "int": lambda x: int(stepped(x).sum()),
    "zero_d": lambda x: stepped(x).sum(),
    "one_element": lambda x: stepped(x).sum()[None],
    "one_by_one": lambda x: stepped(x).sum()[None, None],
    "zero_d_integer": lambda x: stepped(x).sum().long(),
    "numpy_number": lambda x: np.float64(stepped(x).sum()),
    "numpy_zero_d": lambda x: stepped(x).sum().numpy(),
    "numpy_one_element": lambda x: stepped(x).sum()[None].numpy(),
}
SEVERAL = {
    "matrix": (lambda x: stepped_table(x)[:, 0], lambda t: t[:, 0]),
    "numpy_matrix": (lambda x: stepped_table(x)[:, 0].numpy(), lambda t: t[:, 0]),
    "integer_matrix": (lambda x: stepped_table(x)[:, 0].long(), lambda t: t[:, 0]),
    "three_d": (stepped_table, lambda t: t),
    "numpy_three_d": (lambda x: stepped_table(x).numpy(), lambda t: t),
}


@family
def test_one_number_per_example(name):
    """(B,), (B, 1), tensors and arrays, floating and integers: the same attributions (B, ...)."""
    method = FAMILY[name]
    want = method(stepped, SMALL)
    assert want.shape[0] == 3
    assert (want != 0).any()
    for kind, f in ROWS.items():
        got = method(f, SMALL)
        assert got.dtype == torch.float64, kind
        close(got, want, 1e-5 if kind == "float32" else 1e-10)


@family
def test_one_value_for_the_whole_batch(name):
    """Of a model that sums over the examples the value is that of their sum: (1, ...)."""
    method = FAMILY[name]
    want = method(stepped, SMALL).sum(0, keepdim=True)
    for kind, f in WHOLE.items():
        for options in ({}, {"chunk_size": 1}, {"chunk_size": None}):
            got = method(f, SMALL, **options)
            assert got.dtype == torch.float64, kind
            close(got, want)


@family
def test_several_outputs_without_a_target(name):
    """(B, K) and (B, K, L): one after the other, stacked behind the batch."""
    method = FAMILY[name]
    each = [
        method(stepped_table, SMALL, target=(k, m))
        for k, m in itertools.product(*map(range, (2, 3)))
    ]
    table = torch.stack(each, 1).unflatten(1, (2, 3))
    for f, part in SEVERAL.values():
        close(method(f, SMALL), part(table))


@family
def test_a_batch_of_one(name):
    """One number for one example is both the example's and the batch's: (1, ...).

    Whether (1,) is one of the two cannot be told, so that copies come one by one.
    """
    if name == "feature_permutation":
        return
    method = FAMILY[name]
    if name == "lime":
        method = functools.partial(method, similarity=lambda x, p, z: torch.ones(len(z), 1))
    want = method(stepped, SMALL[:1])
    for f in (*ROWS.values(), *WHOLE.values()):
        close(method(f, SMALL[:1], chunk_size=1), want, 1e-5)
    for kind in ("float", "int", "zero_d", "numpy_number", "numpy_zero_d"):
        close(method(WHOLE[kind], SMALL[:1]), want, 1e-5)


@family
def test_copies_with_a_callable_target(name):
    """It sees what the model returns and may return one number per row or one for all."""
    method = FAMILY[name]
    want = method(lambda x: stepped_table(x)[:, 1, 2] - stepped_table(x)[:, 0, 0], SMALL)
    got = method(stepped_table, SMALL, target=lambda out: out[:, 1, 2] - out[:, 0, 0])
    close(got, want)
    got = method(
        stepped_table, SMALL, target=lambda out: (out[:, 1, 2] - out[:, 0, 0]).sum(), chunk_size=1
    )
    close(got, want.sum(0, keepdim=True))


def branching(x):
    """Another formula where the batch as a whole is positive: a Python number."""
    if x.sum() > 0.5:
        return float(x.max() * x[0].sum())
    if bool((x[:, 0] < 0).all()):
        return int((3 * x).sum())
    return -float((x**2).sum())


def branching_rows(x):
    """The same for numbers of examples that depend on the others."""
    return x.flatten(1).sum(1) * (2.0 if x.sum() > 0.5 else -1.0) + x.flatten(1).amax(1)


def whole_batch(rule, f, x, mask=None):
    """v(S) from the batch as a whole."""
    v = game(f, (x,), (torch.zeros_like(x),), ids_of(mask, (x,)))
    return rule(v, players_of(ids_of(mask, (x,))))


BATCH = randn(3, 3, 4)
ONE_BY_ONE = {
    "chunk_size": {"chunk_size": 1},
    "loop": {"batching": "loop"},
}


@pytest.mark.parametrize("how", ONE_BY_ONE)
def test_models_that_branch_on_the_batch(how):
    """With chunk_size=1 the model sees one copy of the batch at a time, B rows of it."""
    options, shapes = ONE_BY_ONE[how], set()

    def watched(f):
        def g(x):
            shapes.add(tuple(x.shape))
            return f(x)

        return g

    for f in (branching, branching_rows):
        for method, rule in (
            (attrfn.feature_ablation, ablation),
            (attrfn.shapley_values, shapley),
            (functools.partial(attrfn.kernel_shap, n_samples=14), shapley),
        ):
            scores = whole_batch(rule, f, BATCH)
            want = torch.stack([scores[k].double() for k in range(4)], -1).reshape(-1, 4)
            close(method(watched(f), BATCH, **options), want, 1e-6)
        for index, rule in PAIRS.items():
            pairs = {k: v.double() for k, v in whole_batch(rule, f, BATCH).items()}
            want = matrix(pairs, range(4)).reshape(-1, 4, 4)
            close(attrfn.interactions(watched(f), BATCH, index=index, **options), want, 1e-6)
        got = attrfn.shapley_value_sampling(watched(f), BATCH, n_samples=2, **options)
        change = torch.as_tensor(f(BATCH)) - torch.as_tensor(f(0 * BATCH))
        close(got.sum(1), change.double().reshape(-1), 1e-6)
        lost = [f(BATCH) - f(BATCH.clone().index_fill_(1, torch.tensor([k]), 0)) for k in range(4)]
        lost = torch.stack([torch.as_tensor(v).double() for v in lost], -1).reshape(-1, 4)
        close(attrfn.occlusion(watched(f), BATCH, window=1, **options), lost, 1e-6)
        attrfn.feature_permutation(watched(f), BATCH, **options)
        attrfn.lime(watched(f), BATCH, **options)
    assert shapes == {(3, 4)}


# ---------------------------------------------------------------------------------------------
# dtypes, integers, empty tensors

TABLE = randn(5, 7, 3)


def embedded(ids):
    """Token ids (B, T) to (B,), through a table of embeddings."""
    e = TABLE[ids.long()]
    return torch.tanh(e.sum((1, 2))) + e.prod(1).sum(1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("x0", [None, 6, torch.tensor([1, 2, 3, 0])], ids=["zero", "int", "row"])
def test_inputs_of_integers(dtype, x0):
    """Token ids, replaced by a padding id; the attributions have the dtype of the output."""
    ids = torch.tensor([[3, 1, 4, 1], [5, 2, 6, 5]]).to(dtype)
    start = 0 if x0 is None else x0
    mask = torch.tensor([0, 1, 1, 2])
    with_mask = {"baselines": x0, "feature_mask": mask}
    close(attrfn.feature_ablation(embedded, ids, **with_mask), by_ids(ablation, ids, start, mask))
    want = by_ids(shapley, ids, start, mask)
    close(attrfn.shapley_values(embedded, ids, **with_mask), want)
    close(attrfn.kernel_shap(embedded, ids, n_samples=6, **with_mask), want, 1e-8)
    got = attrfn.shapley_value_sampling(embedded, ids, n_samples=300, key=1, **with_mask)
    assert got.dtype == torch.float64
    assert (got - want).abs().max() < 0.3
    for index, rule in PAIRS.items():
        got = attrfn.interactions(embedded, ids, index=index, **with_mask)
        close(got, matrices(rule, embedded, ids, start, mask))
    got = attrfn.occlusion(embedded, ids, window=2, baselines=x0)
    assert got.dtype == torch.float64
    full = embedded(ids)
    first = torch.cat(
        [torch.zeros_like(ids[:, :2]) + torch.as_tensor(start).expand(4)[:2].to(ids), ids[:, 2:]], 1
    )
    close(got[:, 0], full - embedded(first))
    attrfn.lime(embedded, ids, baselines=x0)
    moved = attrfn.feature_permutation(embedded, ids, permute=rolled)
    close(moved, permutation(embedded, ids, torch.arange(2).roll(1)))


def by_ids(rule, ids, start, mask):
    return by_rule(rule, embedded, ids, start, mask)


def test_inputs_of_booleans():
    """Present or absent; with a baseline of True the features are those that are False."""
    x = torch.tensor([[True, False, True], [False, True, True]])

    def f(x):
        assert x.dtype == torch.bool
        return (x.double() * torch.tensor([1.0, 2, 4]).double()).sum(1) + x.all(1)

    for x0, options in ((False, {}), (True, {"baselines": torch.tensor(True)})):
        close(attrfn.feature_ablation(f, x, **options), by_rule(ablation, f, x, x0))
        close(attrfn.shapley_values(f, x, **options), by_rule(shapley, f, x, x0))
        close(attrfn.kernel_shap(f, x, n_samples=6, **options), by_rule(shapley, f, x, x0), 1e-8)
        got = attrfn.interactions(f, x, **options)
        close(got, matrices(shapley_taylor, f, x, x0))
    close(attrfn.occlusion(f, x, window=1), by_rule(ablation, f, x, False))


GENERAL = {k: m for k, m in FAMILY.items() if k not in ("rise", "lime")}


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_dtype_of_floating_inputs(name, dtype):
    """Whatever the dtype of the output."""
    x = SMALL.to(dtype)
    for out in (torch.float32, torch.float64, torch.int64):
        got = GENERAL[name](lambda x, out=out: x.double().flatten(1).sum(1).to(out), x)
        assert got.dtype == dtype


@pytest.mark.parametrize("name", GENERAL)
def test_results_of_integer_inputs_have_the_dtype_of_the_output(name):
    x = (3 * SMALL).long()
    for out in (torch.float32, torch.float64):
        got = GENERAL[name](lambda x, out=out: x.flatten(1).sum(1).to(out), x)
        assert got.dtype == out
    assert GENERAL[name](lambda x: x.flatten(1).sum(1), x).dtype == torch.get_default_dtype()


def test_large_integer_outputs_lose_no_units():
    """2^30 and 2^30 + 1 are one number in float32, the default dtype."""
    x = torch.tensor([[1, 2, 3]])
    want = torch.tensor([[1.0, 2, 3]])
    for f in (lambda x: x.sum(1) + 2**30, lambda x: (x.sum(1) + 2**30).numpy()):
        close(attrfn.feature_ablation(f, x), want)
        close(attrfn.shapley_values(f, x), want)
        close(attrfn.kernel_shap(f, x, n_samples=6), want, 1e-6)


def test_each_leaf_has_its_own_dtype():
    x = (randn(0, 2, 2).float(), torch.tensor([[1, 2], [3, 4]]), randn(1, 2, 1).bfloat16())

    def f(a, b, c):
        return (a.sum(1) + b.sum(1) + c.sum(1)).double()

    want = [torch.float32, torch.float64, torch.bfloat16]
    found = [
        attrfn.feature_ablation(f, x),
        attrfn.occlusion(f, x, window=1),
        attrfn.feature_permutation(f, x),
        attrfn.shapley_values(f, x),
        *attrfn.shapley_value_sampling(f, x, n_samples=2, return_stderr=True),
        *attrfn.kernel_shap(f, x, return_stderr=True),
        attrfn.lime(f, x),
    ]
    for got in found:
        assert [g.dtype for g in got] == want


def test_float32_is_good_to_float32():
    """The sums cancel: they are taken so that nothing is lost against float64."""
    x, w = randn(0, 3, 6), randn(1, 6)

    def f(x):
        return torch.tanh(x * w.to(x)).sum(1) + 1000

    want = attrfn.shapley_values(f, x)
    assert (attrfn.shapley_values(f, x.float()) - want).abs().max() < 2e-4  # ulp of 1000: 6e-5
    assert (attrfn.kernel_shap(f, x.float(), n_samples=62) - want).abs().max() < 2e-4
    assert (attrfn.feature_ablation(f, x.float()) - want).abs().max() < 2e-4


@family
def test_empty_batches_give_empty_attributions(name):
    x = SMALL[:0]
    method = FAMILY[name]
    if name == "lime":
        method = functools.partial(method, similarity=lambda x, p, z: torch.ones(len(z), 0))
    full = method(lambda x: x.flatten(1).sum(1), SMALL) if name != "lime" else SMALL
    got = method(lambda x: x.flatten(1).sum(1), x)
    assert got.shape == (0, *full.shape[1:])
    assert got.dtype == torch.float64


@family
def test_no_features_give_empty_attributions(name):
    """(B, 2, 0): f is a constant."""
    x = SMALL[:, :, :0]
    method = FAMILY[name]
    if name == "occlusion":
        method = functools.partial(attrfn.occlusion, window=1)
    got = method(lambda x: x.flatten(1).sum(1), x)
    if "interactions" in name:
        assert got.shape == (3, 0, 0)
    elif name == "kernel_shap_by_feature":
        assert got.shape == (3, 0)
    else:
        assert got.shape == x.shape
    assert got.dtype == torch.float64


def test_one_empty_leaf_among_others():
    x = (randn(0, 2, 3), randn(1, 2, 0))

    def f(a, b):
        return a.prod(1) + b.sum(1)

    want = by_rule(shapley, f, x)
    assert want[1].shape == (2, 0)
    close(attrfn.shapley_values(f, x), want)
    close(attrfn.kernel_shap(f, x, n_samples=6), want, 1e-8)
    close(attrfn.feature_ablation(f, x), by_rule(ablation, f, x))
    close(attrfn.occlusion(f, x, window=1), by_rule(ablation, f, x))
    mask = (torch.tensor([0, 1, 1]), torch.zeros(0, dtype=torch.long))
    want = by_rule(shapley, f, x, mask=mask)
    close(attrfn.shapley_values(f, x, feature_mask=mask), want)
