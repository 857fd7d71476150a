"""Games and oracles for perturbation methods: coalitions, orderings, loops in plain Python.

The oracles use no attrfn: they take one example at a time (or one batch, for models that return
one value for it), evaluate one coalition after the other, and go through all orderings, subsets,
windows or channels in Python loops. Everything is float64 and holds to 1e-10, unless a test says
why not.
"""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from oracles import as_tuple, randn

import attrfn


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
    "gaps": (randn(0, 2, 4), randn(3, 2, 4), torch.tensor([[70, 3, 70, 9]])),
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


W = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)


def linear(x):
    return x @ W + 3


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


SMALL = randn(0, 3, 2, 2) * 2  # three examples of four elements, (B, C, L) for rise


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


def whole_batch(rule, f, x, mask=None):
    """v(S) from the batch as a whole."""
    v = game(f, (x,), (torch.zeros_like(x),), ids_of(mask, (x,)))
    return rule(v, players_of(ids_of(mask, (x,))))
