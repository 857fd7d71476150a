"""Shapley values against the package shap, with a single background row as the baseline."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from oracles import close
from torch import nn

import attrfn

with warnings.catch_warnings():
    # Its import calls what matplotlib and others have deprecated.
    warnings.simplefilter("ignore")
    shap = pytest.importorskip("shap")

datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def case():
    """An MLP (10 columns to 2) fitted to the diabetes data, rows of it and the mean row, float64.

    The second output is the square of the first, which has interactions of every order.
    """
    x, y = (torch.tensor(t) for t in datasets.load_diabetes(return_X_y=True))
    x, y = x / x.std(0), (y - y.mean()) / y.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 32), nn.SiLU(), nn.Linear(32, 1)).double()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        ((net(x)[:, 0] - y) ** 2).mean().backward()
        optimizer.step()

    def model(x):
        out = net(x)
        return torch.cat([out, out**2], 1)

    return model, x[:3], x.mean(0, keepdim=True)


def plain(model):
    """The model as shap calls it: numpy in, numpy out."""

    def f(rows):
        with torch.no_grad():
            return model(torch.from_numpy(np.asarray(rows, dtype=np.float64))).numpy()

    return f


def exact(model, x, x0):
    """shap's exact values, (B, n, K), as (B, K, n)."""
    explainer = shap.ExactExplainer(plain(model), shap.maskers.Independent(x0.numpy()))
    return torch.from_numpy(explainer(x.numpy()).values).transpose(1, 2)


@pytest.mark.slow
def test_the_exact_explainer(case):
    model, x, x0 = case
    want = exact(model, x, x0)
    close(attrfn.shapley_values(model, x, baselines=x0), want)
    close(attrfn.shapley_values(model, x, baselines=x0, target=1), want[:, 1])
    every = {"n_samples": 2**10 - 2, "baselines": x0}
    close(attrfn.kernel_shap(model, x, **every), want, tolerance=1e-9)
    close(attrfn.kernel_shap(model, x, target=1, **every), want[:, 1], tolerance=1e-9)


def test_the_kernel_explainer(case):
    """All coalitions for shap's KernelExplainer too, and no selection of features."""
    model, x, x0 = case
    explainer = shap.KernelExplainer(plain(model), x0.numpy())
    found = explainer.shap_values(x.numpy(), nsamples=2**10, l1_reg=False, silent=True)
    want = torch.from_numpy(np.asarray(found)).transpose(1, 2)
    got = attrfn.kernel_shap(model, x, baselines=x0, n_samples=2**10 - 2)
    close(got, want, tolerance=1e-6)


def test_the_kernel_explainers_selection_is_not_ours(case):
    """By default shap fits a lasso path first; with more than 10 features it keeps only 10."""
    model, x, x0 = case
    wide = torch.cat([x, x[:, :2]], 1), torch.cat([x0, x0[:, :2]], 1)

    def f(x):
        return model((x[:, :10] + torch.nn.functional.pad(x[:, 10:], (0, 8))) / 2)[:, 0]

    explainer = shap.KernelExplainer(plain(f), wide[1].numpy())
    found = explainer.shap_values(wide[0].numpy(), nsamples=400, silent=True)
    assert ((np.asarray(found) == 0).sum(1) >= 2).all()
    got = attrfn.kernel_shap(f, wide[0], baselines=wide[1], n_samples=400)
    assert (got != 0).all()
    close(got[:, 10:], got[:, :2], tolerance=0.05)


def test_the_permutation_explainer(case):
    """shap's orderings forward and backward are ``antithetic`` here; both are exact for a model
    with interactions of pairs, and both keep efficiency for any model.
    """
    model, x, x0 = case

    def pairs(x):
        return (x**2 + x * x.roll(1, 1) + x[:, :1] * x).sum(1)

    masker = shap.maskers.Independent(x0.numpy())
    explainer = shap.PermutationExplainer(plain(pairs), masker, seed=0)
    found = explainer(x.numpy(), max_evals=2 * 10 + 1, silent=True)
    want = torch.from_numpy(found.values)
    options = {"baselines": x0, "n_samples": 2, "antithetic": True}
    close(attrfn.shapley_value_sampling(pairs, x, **options), want)
    close(attrfn.shapley_values(pairs, x, baselines=x0), want)
    explainer = shap.PermutationExplainer(plain(lambda x: model(x)[:, 1]), masker, seed=0)
    found = torch.from_numpy(explainer(x.numpy(), max_evals=21, silent=True).values)
    got = attrfn.shapley_value_sampling(model, x, target=1, **options)
    close(got.sum(1), found.sum(1))


def test_groups_of_features_are_what_a_composite_model_sees(case):
    """shap groups columns with a hierarchy; here ``feature_mask`` does, and the explained game is
    that of a function of three switches.
    """
    model, x, x0 = case
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    got = attrfn.shapley_values(model, x, baselines=x0, target=1, feature_mask=groups)
    for i in range(len(x)):

        def f(on, i=i):
            return model(torch.where(on[:, groups] > 0.5, x[i], x0))[:, 1]

        masker = shap.maskers.Independent(np.zeros((1, 3)))
        values = shap.ExactExplainer(plain(f), masker)(np.ones((1, 3))).values
        close(got[i], torch.from_numpy(values)[0, groups])


@pytest.mark.parametrize("antithetic", [False, True])
def test_sampling_agrees_with_the_exact_explainer(case, antithetic):
    model, x, x0 = case
    want = exact(model, x, x0)
    got, error = attrfn.shapley_value_sampling(
        model, x, baselines=x0, n_samples=400, antithetic=antithetic, return_stderr=True
    )
    assert error.max() < 0.1
    assert ((got - want).abs() < 5 * error + 1e-9).all()


def test_fewer_coalitions_agree_with_the_exact_explainer(case):
    model, x, x0 = case
    want = exact(model, x, x0)
    got = attrfn.kernel_shap(model, x, baselines=x0, n_samples=200)
    assert ((got - want) ** 2).mean() < 1e-2 * (want**2).mean()


def test_interactions_are_effects_on_effects(case):
    """shap has interactions for trees only. The Shapley interaction index of i and j is the Shapley
    value of j in the game of what i adds.
    """
    model, x, x0 = case
    x, x0 = x[:2, :5], x0[:, :5]
    rest = case[1][:1, 5:]

    def f(x):
        return model(torch.cat([x, rest.expand(len(x), 5)], 1))[:, 1]

    got = attrfn.interactions(f, x, index="shapley", baselines=x0)
    values = attrfn.shapley_values(f, x, baselines=x0)
    close(got.diagonal(dim1=1, dim2=2), values)
    masker = shap.maskers.Independent(x0[:, 1:].numpy())
    for i in range(len(x)):

        def effect(others, i=i):
            n = len(others)
            on, off = (torch.cat([t[:, :1].expand(n, 1), others], 1) for t in (x[i : i + 1], x0))
            return f(on) - f(off)

        found = shap.ExactExplainer(plain(effect), masker)(x[i : i + 1, 1:].numpy()).values
        close(got[i, 0, 1:], torch.from_numpy(found)[0])
