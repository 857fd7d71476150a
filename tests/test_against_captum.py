"""The same quantities from Captum, float32, within 1e-5 (absolute plus relative).

Where the two libraries mean different things on purpose, the test's docstring says so and the test
asserts both sides: what Captum gives, and what this library gives in its place.
"""

from __future__ import annotations

import oracles
import pytest
import torch
from captum_cases import (
    F32,
    IMAGES,
    IMAGES0,
    PAIR,
    PAIR0,
    QUADRATURES,
    TABLE,
    TABLE0,
    captum_marks_inputs,
    cnn,
    each_target,
    same,
    two_inputs,
)
from oracles import randn
from torch import nn

import attrfn

attr = pytest.importorskip("captum.attr")


# ---------------------------------------------------------------------------------------------
# inputs


@captum_marks_inputs
@each_target
def test_saliency(make, target):
    model = make()
    same(
        attrfn.saliency(model, IMAGES, target=target),
        attr.Saliency(model).attribute(IMAGES, target=target),
    )
    signed = attr.Saliency(model).attribute(IMAGES, target=target, abs=False)
    assert (signed < 0).any()
    same(attrfn.saliency(model, IMAGES, target=target, absolute=False), signed)
    same(attrfn.gradient(model, IMAGES, target=target), signed)


@captum_marks_inputs
@each_target
def test_input_x_gradient(make, target):
    model = make()
    same(
        attrfn.input_x_gradient(model, IMAGES, target=target),
        attr.InputXGradient(model).attribute(IMAGES, target=target),
    )


@captum_marks_inputs
def test_gradients_of_two_inputs():
    model, target = two_inputs(), torch.tensor([0, 3, 1, 2])
    same(
        attrfn.saliency(model, PAIR, target=target),
        attr.Saliency(model).attribute(PAIR, target=target),
    )
    same(
        attrfn.input_x_gradient(model, PAIR, target=target),
        attr.InputXGradient(model).attribute(PAIR, target=target),
    )


@captum_marks_inputs
def test_gradients_of_a_model_without_a_target():
    def f(x):
        return (x**3).flatten(1).sum(1)

    same(attrfn.saliency(f, IMAGES), attr.Saliency(f).attribute(IMAGES))


@each_target
@pytest.mark.parametrize("rule", QUADRATURES)
def test_integrated_gradients(make, target, rule):
    model = make()
    want = attr.IntegratedGradients(model).attribute(
        IMAGES, IMAGES0, target=target, n_steps=12, method=QUADRATURES[rule]
    )
    got = attrfn.integrated_gradients(
        model, IMAGES, baselines=IMAGES0, target=target, n_steps=12, quadrature=rule
    )
    same(got, want)


def test_integrated_gradients_with_the_defaults_of_both():
    model = cnn()
    want = attr.IntegratedGradients(model).attribute(IMAGES, target=1)
    same(attrfn.integrated_gradients(model, IMAGES, target=1), want)


def test_integrated_gradients_by_trapezoids():
    """Captum weighs n nodes, n - 1 panels apart, with 1/n (1/2n at the ends): the weights sum to
    (n - 1)/n and its attributions are too small by that factor. Ours sum to 1.
    """
    model, n = cnn(), 10
    want = attr.IntegratedGradients(model).attribute(
        IMAGES, target=1, n_steps=n, method="riemann_trapezoid"
    )
    got = attrfn.integrated_gradients(
        model, IMAGES, target=1, n_steps=n, quadrature="riemann_trapezoid"
    )
    same(got * (n - 1) / n, want)
    constant = attrfn.integrated_gradients(
        lambda x: x[:, 0], torch.ones(1, 1), n_steps=n, quadrature="riemann_trapezoid"
    )
    same(constant, torch.ones(1, 1))


@pytest.mark.parametrize(
    "baselines",
    [None, 0.5, (0, 1.5), (PAIR0[0][:1], 0.25), PAIR0],
    ids=["none", "scalar", "scalars", "row_and_scalar", "tensors"],
)
@pytest.mark.parametrize("multiply", [True, False])
def test_integrated_gradients_of_two_inputs(baselines, multiply):
    """A lone scalar is one value for both inputs here; Captum wants a tuple of two."""
    model, target = two_inputs(), [(0,), (3,), (1,), (2,)]
    captum_baselines = (baselines,) * 2 if isinstance(baselines, float) else baselines
    want = attr.IntegratedGradients(model, multiply_by_inputs=multiply).attribute(
        PAIR, captum_baselines, target=target, n_steps=8
    )
    got = attrfn.integrated_gradients(
        model, PAIR, baselines=baselines, target=target, n_steps=8, multiply_by_inputs=multiply
    )
    same(got, want)


def test_completeness_delta_is_captums_convergence_delta():
    model, target = cnn(), [4, 0, 2]
    method = attr.IntegratedGradients(model)
    found, want = method.attribute(
        IMAGES, IMAGES0, target, n_steps=2, method="riemann_left", return_convergence_delta=True
    )
    assert want.abs().min() > 1e-3
    got = attrfn.completeness_delta(model, IMAGES, found, target=target, baselines=IMAGES0)
    same(got, want)


LINEAR = oracles.seeded(lambda: nn.Linear(3, 4), dtype=F32)


@pytest.mark.parametrize("multiply", [True, False])
def test_gradient_shap_of_a_linear_model_from_one_baseline(multiply):
    """The one case in which no draw matters: (x - b) w."""
    want = attr.GradientShap(LINEAR, multiply_by_inputs=multiply).attribute(
        TABLE, TABLE0, target=2, n_samples=4
    )
    got = attrfn.gradient_shap(
        LINEAR, TABLE, baselines=TABLE0, target=2, n_samples=4, multiply_by_inputs=multiply
    )
    same(got, want)


def test_gradient_shap_agrees_in_distribution():
    """20000 draws each on a quadratic with a pool and noise: two means with their standard errors.

    Captum draws for each example, this library once for all of them; the distribution is the same.
    """
    n, pool = 20_000, randn(8, 6, 3, dtype=F32)

    def f(x):
        return (x**2).sum(1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        want = attr.GradientShap(f).attribute(TABLE, pool, n_samples=n, stdevs=0.5)
    got = attrfn.gradient_shap(f, TABLE, baselines=pool, n_samples=n, stdevs=0.5, key=1)
    one_draw = {
        "baselines": pool,
        "n_samples": 1,
        "stdevs": 0.5,
        "key": attrfn.random.split(2, 4000),
    }
    for i, x in enumerate(TABLE):
        spread = attrfn.gradient_shap(f, x.expand(4000, 3), **one_draw).std(0)
        assert ((got - want)[i].abs() < 5 * spread * (2 / n) ** 0.5).all()


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_where_no_draw_matters(kind):
    """A linear model's gradient is the same at every noisy input."""
    want = attr.NoiseTunnel(attr.Saliency(LINEAR)).attribute(
        TABLE, nt_type=kind, nt_samples=6, stdevs=0.7, target=1
    )
    method = attrfn.noise_tunnel(attrfn.saliency, kind=kind, n_samples=6, stdevs=0.7)
    same(method(LINEAR, TABLE, target=1), want)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_agrees_in_distribution(kind):
    """20000 draws each on a cubic. Both take the variance over n, not n - 1."""
    n = 20_000

    def f(x):
        return (x**3).sum(1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        want = attr.NoiseTunnel(attr.InputXGradient(f)).attribute(
            TABLE, nt_type=kind, nt_samples=n, stdevs=0.3
        )
    options = {"n_samples": n, "stdevs": 0.3, "key": 1}
    got = attrfn.noise_tunnel(attrfn.input_x_gradient, kind=kind, **options)(f, TABLE)
    a = attrfn.noise_tunnel(attrfn.input_x_gradient, kind="samples", **options)(f, TABLE)
    a = {"smoothgrad": a, "smoothgrad_sq": a**2, "vargrad": (a - a.mean(0)) ** 2}[kind]
    gap = (got - want).abs() / (a.std(0) * (2 / n) ** 0.5)
    assert gap.max() < 5
