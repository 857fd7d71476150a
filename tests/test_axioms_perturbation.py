"""What the papers promise of Shapley values and interactions, for games drawn by hypothesis.

A game is a table of 2^n values: the model looks up the value of the features that are 1. Unless
said otherwise equations hold for each ordering and each choice of coalitions, not only in the mean.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, take
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from zoo import D, mlp, randn

import attrfn

seeds = st.integers(0, 2**16)
numbers = st.integers(1, 6)
few = settings(max_examples=6)

# name: method, whether it goes through all coalitions (so that a symmetric game is treated alike)
VALUES: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "shapley_values": (attrfn.shapley_values, True),
    "one_ordering": (functools.partial(attrfn.shapley_value_sampling, n_samples=1), False),
    "orderings": (functools.partial(attrfn.shapley_value_sampling, n_samples=5), False),
    "antithetic": (
        functools.partial(attrfn.shapley_value_sampling, n_samples=4, antithetic=True),
        False,
    ),
    "kernel_shap_of_all": (functools.partial(attrfn.kernel_shap, n_samples=62), True),
    "kernel_shap_of_some": (functools.partial(attrfn.kernel_shap, n_samples=20), False),
}
PAIRS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "shapley_taylor": (attrfn.interactions, True),
    "shapley_taylor_of_one_ordering": (functools.partial(attrfn.interactions, n_samples=1), False),
    "shapley_taylor_of_orderings": (functools.partial(attrfn.interactions, n_samples=4), False),
    "shapley": (functools.partial(attrfn.interactions, index="shapley"), True),
    "shapley_of_orderings": (
        functools.partial(attrfn.interactions, index="shapley", n_samples=4),
        False,
    ),
}
ALL = VALUES | PAIRS
values = pytest.mark.parametrize("name", VALUES)
pairs = pytest.mark.parametrize("name", PAIRS)
everything = pytest.mark.parametrize("name", ALL)

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def explain(name: str, f: Callable[[Tensor], Any], x: Tensor, seed: int = 0, **options: Any) -> Any:
    """The method by its name; methods that draw get the seed as key."""
    method = ALL[name][0]
    if name not in ("shapley_values", "shapley_taylor", "shapley"):
        options["key"] = seed
    return method(f, x, **options)


def table(n: int, seed: int, *shape: int) -> Tensor:
    """The values of all coalitions of a random game, bit k of the index for feature k."""
    return randn(2**n, *shape, seed=seed)


def game(v: Tensor) -> Callable[[Tensor], Tensor]:
    n = v.shape[0].bit_length() - 1

    def f(z: Tensor) -> Tensor:
        return v[(z.long() * 2 ** torch.arange(n)).sum(1)]

    return f


def everyone(n: int, batch: int = 1) -> Tensor:
    return torch.ones(batch, n, dtype=D)


def renamed(v: Tensor, order: list[int]) -> Tensor:
    """The game in which feature k plays the part of feature order[k]."""
    n = len(order)
    bits = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
    return v[(bits * 2 ** torch.tensor(order)).sum(1)]


def drop(v: Tensor, k: int) -> Tensor:
    """The game in which feature k does nothing."""
    return v[torch.arange(len(v)) & ~(1 << k)]


# --- efficiency ----------------------------------------------------------------------------------


@values
@given(seed=seeds, n=numbers)
def test_values_sum_to_the_worth_of_all(name: str, seed: int, n: int) -> None:
    """Several games at once, as outputs (1, 3, n)."""
    if name == "kernel_shap_of_some" and n == 1:
        n = 2
    v = table(n, seed, 3)
    a = explain(name, game(v), everyone(n), seed)
    assert a.shape == (1, 3, n)
    assert_close(a.sum(2)[0], v[-1] - v[0], **CLOSE)


@values
@given(seed=seeds)
@few
def test_values_sum_to_the_change_of_a_net(name: str, seed: int) -> None:
    """Each example from its own baseline, with features of several elements."""
    f, x, x0 = mlp(6, 3), randn(3, 6, seed=seed), randn(3, 6, seed=seed + 1)
    mask = torch.tensor([0, 3, 3, 7, 9, 0])
    a = explain(name, f, x, seed, target=1, baselines=x0, feature_mask=mask)
    one_of_each = a[:, [0, 1, 3, 4]]
    assert_close(one_of_each.sum(1), (f(x) - f(x0))[:, 1].detach(), **CLOSE)


@pytest.mark.parametrize("name", [p for p in PAIRS if "taylor" in p])
@given(seed=seeds, n=numbers)
def test_shapley_taylor_sums_to_the_worth_of_all(name: str, seed: int, n: int) -> None:
    """Pairs once and features alone, for each ordering (Sundararajan et al., 2020, axiom 4)."""
    v = table(n, seed, 2)
    a = explain(name, game(v), everyone(n), seed)
    assert_close(a.triu().sum((2, 3))[0], v[-1] - v[0], **CLOSE)


@given(seed=seeds, n=numbers)
def test_the_diagonal_of_the_shapley_index_is_the_shapley_value(seed: int, n: int) -> None:
    f, x = game(table(n, seed, 2)), everyone(n)
    a = attrfn.interactions(f, x, index="shapley")
    assert_close(a.diagonal(dim1=2, dim2=3), attrfn.shapley_values(f, x), **CLOSE)


@given(seed=seeds, n=numbers)
def test_the_diagonal_of_shapley_taylor_is_what_each_feature_is_worth_alone(
    seed: int, n: int
) -> None:
    v = table(n, seed)
    a = attrfn.interactions(game(v), everyone(n), n_samples=1, key=seed)
    assert_close(a.diagonal(dim1=1, dim2=2)[0], v[2 ** torch.arange(n)] - v[0], **CLOSE)


# --- dummy ---------------------------------------------------------------------------------------


@everything
@given(seed=seeds, n=st.integers(2, 6), data=st.data())
def test_a_feature_that_does_nothing_gets_nothing(
    name: str, seed: int, n: int, data: st.DataObject
) -> None:
    """Of KernelSHAP's fits only the one to all coalitions promises it."""
    k = data.draw(st.integers(0, n - 1))
    a = explain(name, game(drop(table(n, seed), k)), everyone(n), seed)
    if name == "kernel_shap_of_some" and n > 4:
        return
    assert_close(a[..., k], torch.zeros_like(a[..., k]), **CLOSE)
    if n > 2:
        assert (a.abs() > 1e-6).any()


@everything
@given(seed=seeds, n=st.integers(2, 5), worth=st.floats(-3, 3))
def test_a_feature_that_adds_the_same_to_all_gets_that(
    name: str, seed: int, n: int, worth: float
) -> None:
    """The dummy of cooperative games: v(S + k) = v(S) + c gives c, and interacts with nobody."""
    if name == "kernel_shap_of_some":
        n = min(n, 4)
    inside = (torch.arange(2**n) & 1).to(D)
    a = explain(name, game(drop(table(n, seed), 0) + worth * inside), everyone(n), seed)
    if name in VALUES:
        assert_close(a[0, 0], torch.tensor(worth, dtype=D), **CLOSE)
    else:
        want = torch.zeros(n, dtype=D)
        want[0] = worth
        assert_close(a[0, 0], want, **CLOSE)


@values
@given(seed=seeds, n=st.integers(1, 7))
def test_additive_games_are_exact(name: str, seed: int, n: int) -> None:
    """Whatever is drawn; KernelSHAP's coalitions determine the fit."""
    w, x, x0 = randn(n, seed=seed), randn(2, n, seed=seed + 1), randn(2, n, seed=seed + 2)
    a = explain(name, lambda x: (x * w).sin().sum(1), x, seed, baselines=x0)
    assert_close(a, (x * w).sin() - (x0 * w).sin(), **CLOSE)


# --- symmetry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [m for m in ALL if ALL[m][1]])
@given(seed=seeds, n=st.integers(2, 6), data=st.data())
def test_features_that_can_be_exchanged_get_the_same(
    name: str, seed: int, n: int, data: st.DataObject
) -> None:
    i, j = data.draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2, unique=True))
    swap = list(range(n))
    swap[i], swap[j] = j, i
    v = table(n, seed)
    a = explain(name, game(v + renamed(v, swap)), everyone(n), seed)
    exchanged = a[:, swap] if name in VALUES else a[:, swap][:, :, swap]
    assert_close(exchanged, a, **CLOSE)


@pytest.mark.parametrize("name", [m for m in ALL if ALL[m][1]])
@given(seed=seeds, data=st.data())
def test_renamed_features_take_their_values_along(
    name: str, seed: int, data: st.DataObject
) -> None:
    """Anonymity: what a feature gets depends on the part that it plays alone."""
    order = data.draw(st.permutations(range(5)))
    v = table(5, seed)
    a = explain(name, game(v), everyone(5))
    b = explain(name, game(renamed(v, order)), everyone(5))
    a = a[:, order] if name in VALUES else a[:, order][:, :, order]
    assert_close(b, a, **CLOSE)


@pairs
@given(seed=seeds, n=numbers)
@few
def test_interactions_are_symmetric(name: str, seed: int, n: int) -> None:
    a = explain(name, game(table(n, seed)), everyone(n), seed)
    assert_close(a, a.mT, rtol=0, atol=0)


# --- linearity -----------------------------------------------------------------------------------


@everything
@given(seed=seeds, n=numbers, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_linear_in_the_game(name: str, seed: int, n: int, a: float, b: float) -> None:
    """A(a v + b w) = a A(v) + b A(w), with the same draws."""
    if name == "kernel_shap_of_some":
        n = max(n, 2)
    v, w = table(n, seed), table(n, seed + 1)
    one, other = (explain(name, game(g), everyone(n), seed) for g in (v, w))
    both = explain(name, game(a * v + b * w), everyone(n), seed)
    assert_close(both, a * one + b * other, **CLOSE)


@everything
@given(seed=seeds, n=numbers, c=st.floats(-100, 100))
@few
def test_a_constant_changes_nothing(name: str, seed: int, n: int, c: float) -> None:
    v = table(n, seed)
    one, other = (explain(name, game(g), everyone(n), seed) for g in (v, v + c))
    assert_close(one, other, rtol=1e-9, atol=1e-9)


# --- interactions of low order -------------------------------------------------------------------


def pairwise(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The game sum_i b_i z_i + sum_{i<j} q_ij z_i z_j, b and q."""
    b, q = randn(n, seed=seed), randn(n, n, seed=seed + 1).triu(1)
    z = ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).to(D)
    return z @ b + ((z @ q) * z).sum(1), b, q + q.T


@given(seed=seeds, n=st.integers(1, 7))
def test_a_pair_of_antithetic_orderings_is_exact_for_pairs_of_features(seed: int, n: int) -> None:
    """In one of the two i joins before j, in the other behind it: half of q_ij each."""
    v, b, q = pairwise(n, seed)
    a = attrfn.shapley_value_sampling(game(v), everyone(n), n_samples=2, antithetic=True, key=seed)
    assert_close(a[0], b + q.sum(1) / 2, **CLOSE)
    a, error = attrfn.shapley_value_sampling(
        game(v), everyone(n), n_samples=4, antithetic=True, key=seed, return_stderr=True
    )
    assert_close(a[0], b + q.sum(1) / 2, **CLOSE)
    assert error.max() < 1e-9


@given(seed=seeds)
@few
def test_a_single_ordering_is_not(seed: int) -> None:
    v, b, q = pairwise(5, seed)
    a = attrfn.shapley_value_sampling(game(v), everyone(5), n_samples=1, key=seed)
    assert (a[0] - b - q.sum(1) / 2).abs().max() > 1e-3


@given(seed=seeds, n=st.integers(2, 8), extra=st.integers(2, 12))
def test_kernel_shap_in_complements_is_exact_for_pairs_of_features(
    seed: int, n: int, extra: int
) -> None:
    """Of complements the products of two cancel, and what is left of them is additive."""
    v, b, q = pairwise(n, seed)
    a = attrfn.kernel_shap(game(v), everyone(n), n_samples=2 * n + extra, key=seed)
    assert_close(a[0], b + q.sum(1) / 2, **CLOSE)


@given(seed=seeds, n=st.integers(1, 6))
def test_interactions_of_pairs_are_their_coefficients(seed: int, n: int) -> None:
    """d_ij is q_ij for every coalition: Shapley-Taylor by one ordering, and both by all."""
    v, b, q = pairwise(n, seed)
    for samples in (None, 1):
        a = attrfn.interactions(game(v), everyone(n), n_samples=samples, key=seed)
        assert_close(a[0], q + torch.diag(b), **CLOSE)
    a = attrfn.interactions(game(v), everyone(n), index="shapley")
    assert_close(a[0], q + torch.diag(b + q.sum(1) / 2), **CLOSE)


@given(seed=seeds, n=st.integers(1, 5))
@few
def test_integrated_hessians_of_pairs_sum_to_integrated_gradients(seed: int, n: int) -> None:
    """Of sum b_i x_i + sum q_ij x_i x_j they are Shapley's values: b_i x_i + half of the pairs."""
    _, b, q = pairwise(n, seed)
    x = randn(3, n, seed=seed)

    def f(x: Tensor) -> Tensor:
        return x @ b + ((x @ q) * x).sum(1) / 2

    a = attrfn.integrated_hessians(f, x)
    assert_close(a.sum(2), attrfn.shapley_values(f, x), rtol=1e-8, atol=1e-9)
    off = ~torch.eye(n, dtype=torch.bool)
    assert_close(a[:, off], attrfn.interactions(f, x)[:, off] / 4, rtol=1e-8, atol=1e-9)


# --- features ------------------------------------------------------------------------------------

FAMILY: dict[str, Callable[..., Any]] = {
    "feature_ablation": attrfn.feature_ablation,
    "occlusion": functools.partial(attrfn.occlusion, window=(2, 1)),
    "feature_permutation": functools.partial(attrfn.feature_permutation, n_samples=2, key=1),
    "lime": functools.partial(attrfn.lime, n_samples=15, key=1),
    "rise": functools.partial(attrfn.rise, n_samples=9, grid=2, key=1),
    **{name: functools.partial(explain, name, seed=1) for name in ALL},
}
MASKED = [name for name in FAMILY if name not in ("occlusion", "rise")]


W, V = randn(4, seed=50), randn(4, seed=51)


def wavy(x: Tensor) -> Tensor:
    """(B, 2, 2) to (B,), with interactions of all orders."""
    z = x.flatten(1)
    return (z @ W).tanh() * z[:, 0] + (z @ V).sin() * z[:, 3]


@pytest.mark.parametrize("name", MASKED)
@given(seed=seeds, data=st.data())
@few
def test_ids_say_no_more_than_their_order(name: str, seed: int, data: st.DataObject) -> None:
    """Gaps do not matter: the same draws, the same numbers."""
    ids = sorted(data.draw(st.lists(st.integers(0, 90), min_size=3, max_size=3, unique=True)))
    mask, x = torch.tensor([[0, 1], [2, 0]]), randn(2, 2, 2, seed=seed)
    one = FAMILY[name](wavy, x, feature_mask=mask)
    other = FAMILY[name](wavy, x, feature_mask=torch.tensor(ids)[mask])
    assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["feature_ablation", *[m for m in ALL if ALL[m][1]]])
@given(seed=seeds, order=st.permutations(range(3)))
@few
def test_relabelled_features_keep_their_values(name: str, seed: int, order: list[int]) -> None:
    """Where nothing is drawn; interactions come in the order of the ids."""
    mask, x = torch.tensor([[0, 1], [2, 0]]), randn(2, 2, 2, seed=seed)
    one = FAMILY[name](wavy, x, feature_mask=mask)
    other = FAMILY[name](wavy, x, feature_mask=torch.tensor(order)[mask])
    if name in PAIRS:
        other = other[:, order][:, :, order]
    assert_close(other, one, **CLOSE)


@pytest.mark.parametrize("name", MASKED)
@given(seed=seeds)
@few
def test_n_features_and_a_mask_of_each_element_change_nothing(name: str, seed: int) -> None:
    """Ways to say the same: no mask, ids written out, and with their number."""
    x, ids = randn(2, 2, 2, seed=seed), torch.arange(4).reshape(2, 2)
    one = FAMILY[name](wavy, x)
    for options in (
        {"feature_mask": ids},
        {"feature_mask": ids[None]},
        {"n_features": 4},
        {"feature_mask": ids, "n_features": 4},
        {"feature_mask": ids.int()},
    ):
        assert_close(FAMILY[name](wavy, x, **options), one, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", [m for m in MASKED if m != "feature_permutation"])
@given(seed=seeds)
@few
def test_a_mask_of_each_example_is_the_mask_of_all(name: str, seed: int) -> None:
    """Equal rows, and rows that are different one by one."""
    x, ids = randn(3, 2, 2, seed=seed), torch.tensor([[0, 1], [1, 2]])
    one = FAMILY[name](wavy, x, feature_mask=ids)
    assert_close(FAMILY[name](wavy, x, feature_mask=ids.repeat(3, 1, 1)), one, **CLOSE)
    own = torch.stack([ids, ids.T, 2 - ids])
    if name == "lime":  # the kernel's width, and the fit, are those of each example
        return
    together = FAMILY[name](wavy, x, feature_mask=own)
    for i in range(3):
        alone = FAMILY[name](wavy, x[i : i + 1], feature_mask=own[i])
        assert_close(take(together, slice(i, i + 1)), alone, **CLOSE)


@pytest.mark.parametrize("name", [*VALUES, "feature_ablation"])
@given(seed=seeds)
@few
def test_features_across_tensors_are_features_of_one(name: str, seed: int) -> None:
    """Tensors side by side, or in one: the elements get the same."""
    x, ids = randn(2, 4, seed=seed), torch.tensor([0, 1, 2, 1])

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return wavy(torch.cat([a, b], 1))

    one = FAMILY[name](wavy, x, feature_mask=ids)
    a, b = FAMILY[name](apart, (x[:, :3], x[:, 3:]), feature_mask=(ids[:3], ids[3:]))
    assert_close(torch.cat([a, b], 1), one, **CLOSE)


# --- chunks and rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
@given(seed=seeds, chunk_size=st.integers(1, 40))
@few
def test_chunks_do_not_matter(name: str, seed: int, chunk_size: int) -> None:
    x, x0 = randn(2, 2, 2, seed=seed), {"baselines": randn(2, 2, 2, seed=seed + 1)}
    options = {} if name == "feature_permutation" else x0
    whole = FAMILY[name](wavy, x, chunk_size=None, **options)
    for how in (
        {"chunk_size": chunk_size},
        {"chunk_size": "auto"},
        {},
        {"batching": "loop"},
        {"batching": "vmap"},
        {"batching": "vmap", "chunk_size": chunk_size},
    ):
        assert_close(FAMILY[name](wavy, x, **how, **options), whole, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", [m for m in FAMILY if m != "feature_permutation"])
@given(seed=seeds, batch=st.integers(1, 4))
@few
def test_rows_do_not_depend_on_the_other_rows(name: str, seed: int, batch: int) -> None:
    """Alone, or next to others: the draws are shared."""
    x, x0 = randn(batch, 2, 2, seed=seed), randn(batch, 2, 2, seed=seed + 1)
    together = FAMILY[name](wavy, x, baselines=x0)
    i = seed % batch
    alone = FAMILY[name](wavy, x[i : i + 1], baselines=x0[i : i + 1])
    assert_close(take(together, slice(i, i + 1)), alone, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["lime", "rise", *[m for m in ALL if not ALL[m][1]]])
@given(seed=seeds)
@few
def test_a_key_for_each_example_draws_for_it_alone(name: str, seed: int) -> None:
    """Row i with keys[i] is row i alone with that key."""
    x, keys = randn(3, 2, 2, seed=seed), attrfn.random.split(seed, 3)
    method = ALL[name][0] if name in ALL else FAMILY[name]
    together = method(wavy, x, key=keys)
    for i, key in itertools.product(range(3), (True, False)):
        one = keys[i] if key else keys[i : i + 1]
        alone = method(wavy, x[i : i + 1], key=one)
        assert_close(take(together, slice(i, i + 1)), alone, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["lime", "rise", *[m for m in ALL if not ALL[m][1]]])
def test_a_key_draws_the_same_again_and_another_key_something_else(name: str) -> None:
    x = randn(2, 2, 3)  # six features
    x = x if name == "rise" else x.flatten(1)
    method = ALL[name][0] if name in ALL else FAMILY[name]
    f = game(table(6, 3))

    def of_signs(x: Tensor) -> Tensor:
        return f(x.flatten(1) != 0) + (x**3).flatten(1).sum(1)

    one = method(of_signs, x, key=3)
    assert torch.equal(method(of_signs, x, key=3), one)
    assert torch.equal(method(of_signs, x, key=attrfn.random.key(3)), one)
    assert not torch.allclose(method(of_signs, x, key=4), one)


@pytest.mark.parametrize("name", FAMILY)
def test_inputs_at_their_baselines_get_nothing(name: str) -> None:
    """x = x0: exactly zero, except where f itself weighs the masks (RISE)."""
    if name in ("rise", "feature_permutation"):
        return
    x = randn(2, 2, 2)
    a = FAMILY[name](wavy, x, baselines=x.clone())
    assert a.abs().max() < 1e-12
