"""Perturbation methods: integers, booleans, floating types, empty tensors."""

from __future__ import annotations

import functools

import pytest
import torch
from games import (
    FAMILY,
    PAIRS,
    SMALL,
    ablation,
    by_rule,
    family,
    matrices,
    permutation,
    rolled,
    shapley,
    shapley_taylor,
)
from oracles import close, randn

import attrfn

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
    assert GENERAL[name](lambda x: x.flatten(1).sum(1), x).dtype == torch.float64


def test_large_integer_outputs_lose_no_units():
    """2^30 and 2^30 + 1 are one number in float32, the default dtype."""
    x = torch.tensor([[1, 2, 3]])
    want = torch.tensor([[1.0, 2, 3]]).double()
    for f in (lambda x: x.sum(1) + 2**30, lambda x: (x.sum(1) + 2**30).numpy()):
        close(attrfn.feature_ablation(f, x), want)
        close(attrfn.shapley_values(f, x), want)
        close(attrfn.kernel_shap(f, x, n_samples=6), want, 1e-6)


@pytest.mark.parametrize(
    "name", ["feature_ablation", "occlusion", "shapley_values", "interactions"]
)
def test_large_attributions_of_integers_are_exact(name):
    """Above 2^24, where float32 would round."""
    big = 2**24 + 1
    got = GENERAL[name](lambda x: big * x.flatten(1).sum(1), (SMALL != 0).long())
    assert got.dtype == torch.float64
    ratio = got.abs().amax() / big
    assert ratio >= 1
    assert abs(ratio - ratio.round()) < 1e-12


def test_rounded_integers_are_not_silent():
    ids, big = torch.tensor([[1, 0]]), 2**24 + 1
    with pytest.warns(UserWarning, match="rounded to the inputs' torch.float32"):
        attrfn.feature_ablation(lambda x: big * x.long().sum(1), ids.float())
    for f in (lambda x: 2**60 + x.sum(1), lambda x: 2**60 + int(x.sum())):
        with pytest.warns(UserWarning, match="integers that floating numbers cannot hold"):
            attrfn.feature_ablation(f, ids)
    assert attrfn.feature_ablation(lambda x: big * x.long().sum(1), ids.double())[0, 0] == big


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
