"""Gradient SHAP and noise tunnels: values against formulas, and moments of their draws."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import oracles
import pytest
import torch
from oracles import close, quadrature, randn, within_sigmas
from torch import nn

import attrfn


def mlp(activation=nn.Tanh, bias=True):
    return oracles.seeded(
        lambda: nn.Sequential(nn.Linear(3, 7, bias=bias), activation(), nn.Linear(7, 4, bias=bias)),
        seed=1,
    )


# ---------------------------------------------------------------------------------------------
# gradient_shap

W = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def linear(x):
    return x @ W


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize(("n_samples", "key"), [(1, 0), (5, 1), (64, 2)])
def test_gradient_shap_of_a_linear_function_from_one_baseline(n_samples, key, multiply):
    """Every draw gives (x - b) w."""
    x, b = randn(0, 5, 3), randn(1, 1, 3)
    got = attrfn.gradient_shap(
        linear, x, baselines=b, n_samples=n_samples, key=key, multiply_by_inputs=multiply
    )
    close(got, ((x - b) if multiply else torch.ones_like(x)) * W)


def test_gradient_shap_draws_whole_baselines_from_the_pool():
    """Linear: one sample gives (x - b_k) w for one k of the pool, three the mean of three."""
    x, pool = randn(0, 5, 3), randn(1, 4, 3)
    used = set()
    for key in range(30):
        drawn = x - attrfn.gradient_shap(linear, x, baselines=pool, n_samples=1, key=key) / W
        gaps = (drawn - pool[:, None]).abs().amax((1, 2))
        assert gaps.min() < 1e-12
        used.add(int(gaps.argmin()))
    assert used == {0, 1, 2, 3}
    drawn = x - attrfn.gradient_shap(linear, x, baselines=pool, n_samples=3) / W
    means = torch.stack(
        [sum(c) / 3 for c in itertools.combinations_with_replacement(pool.unbind(), 3)]
    )
    assert (drawn - means[:, None]).abs().amax((1, 2)).min() < 1e-12


def test_gradient_shap_draws_the_baselines_of_several_inputs_together():
    """With pools (k, 10k) the difference of the two drawn baselines tells the same k."""
    pool = (torch.arange(4.0)[:, None], 10 * torch.arange(4.0)[:, None])
    x = (torch.zeros(2, 1), torch.zeros(2, 1))
    for key in range(10):
        a, b = attrfn.gradient_shap(
            lambda x, y: (x + y)[:, 0], x, baselines=pool, n_samples=1, key=key
        )
        close(10 * a, b, 1e-6)


def test_gradient_shap_from_a_pool_for_each_example():
    """(K, B, ...): each example draws the same k from its own baselines."""
    x, pool = randn(0, 5, 3), randn(1, 4, 5, 3)
    used = set()
    for key in range(20):
        drawn = x - attrfn.gradient_shap(linear, x, baselines=pool, n_samples=1, key=key) / W
        gaps = (drawn - pool).abs().amax((1, 2))
        assert gaps.min() < 1e-12
        used.add(int(gaps.argmin()))
    assert used == {0, 1, 2, 3}


def test_gradient_shap_of_a_linear_function_has_the_mean_and_the_spread_of_its_draws():
    """Mean (x - mean b) w; variance w^2 (s^2 + var b) for one draw (population variance)."""
    n, s = 20_000, 0.7
    x, pool = randn(0, 2, 3), randn(1, 6, 3)
    got = attrfn.gradient_shap(
        linear, x, baselines=pool, n_samples=n, stdevs=s, key=3, chunk_size=5000
    )
    spread = W.abs() * (s**2 + pool.var(0, correction=0)).sqrt()
    within_sigmas(got, (x - pool.mean(0)) * W, spread, n)
    keys = attrfn.random.split(3, 8000)
    singles = attrfn.gradient_shap(
        linear, x[:1].expand(8000, 3), baselines=pool, n_samples=1, stdevs=s, key=keys
    )
    close(singles.std(0), spread, 0.04)  # a standard error is 1 / sqrt(2 * 8000) = 0.8 %


@pytest.mark.parametrize("multiply", [True, False])
def test_gradient_shap_of_a_quadratic(multiply):
    """f = sum c x^2, x' = x + s n: A = E[(x' - b) 2c (b + a (x' - b))] = c (x^2 + s^2 - E b^2).

    Without the factor: E[2c (b + a (x' - b))] = c (x + E b). The spread of one draw comes from an
    independent simulation with numpy.
    """
    n, s, c = 40_000, 0.9, torch.tensor([1.0, 0.3], dtype=torch.float64)
    x, pool = randn(0, 3, 2), randn(1, 5, 2)
    got = attrfn.gradient_shap(
        lambda x: (x**2) @ c,
        x,
        baselines=pool,
        n_samples=n,
        stdevs=s,
        key=1,
        multiply_by_inputs=multiply,
    )
    want = c * (x**2 + s**2 - (pool**2).mean(0)) if multiply else c * (x + pool.mean(0))
    rng = np.random.default_rng(0)
    ends = x.numpy() + s * rng.standard_normal((20_000, 3, 2))
    starts = pool.numpy()[rng.integers(0, 5, 20_000)][:, None]
    draws = 2 * c.numpy() * (starts + rng.random((20_000, 1, 1)) * (ends - starts))
    spread = torch.as_tensor((draws * (ends - starts) if multiply else draws).std(0))
    within_sigmas(got, want, spread, n)
    assert (c * s**2 > 10 * spread.amax(0) / math.sqrt(n)).all()  # the s^2 would be missed


@pytest.mark.parametrize("multiply", [True, False])
def test_gradient_shap_from_one_baseline_converges_to_integrated_gradients(multiply):
    """The Monte Carlo form of the same integral; its spread by quadrature of the squares."""
    model, x, b, n = mlp(), randn(0, 3, 3), randn(1, 1, 3), 4000
    got = attrfn.gradient_shap(
        model, x, target=1, baselines=b, n_samples=n, key=5, multiply_by_inputs=multiply
    )
    factor = x - b if multiply else torch.ones_like(x)
    nodes, weights = quadrature("gauss_legendre", 40)
    grads = torch.stack([oracles.gradients(model, b + a * (x - b), 1) for a in nodes])
    w = torch.as_tensor(weights)[:, None, None]
    mean = (w * grads).sum(0)
    spread = ((w * grads**2).sum(0) - mean**2).sqrt()
    within_sigmas(got, factor * mean, factor.abs() * spread, n)


def test_gradient_shap_noise_per_input():
    """stdevs=(0, s): the first input is not moved, the second by noise of spread s."""
    x, n = (torch.ones(1, 2).double(), torch.ones(1, 2).double()), 4000
    pool = (torch.zeros(1, 2).double(), torch.zeros(1, 2).double())
    a, b = attrfn.gradient_shap(
        lambda x, y: (x + y).sum(1), x, baselines=pool, n_samples=n, stdevs=(0.0, 2.0), key=1
    )
    close(a, x[0])
    assert (b - 1).abs().min() > 1e-6
    within_sigmas(b, x[1], 2.0, n)


def test_noise_per_feature():
    """A tensor of stdevs: x' - x is the noise of stdevs 1 times it."""
    x, s = randn(0, 2, 3), torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    options = {"n_samples": 4, "key": 1}
    unit = samples_of(x, stdevs=1.0, **options) - x
    close(samples_of(x, stdevs=s, **options), x + s * unit)
    close(samples_of((x, x), stdevs=(s, 0.0), **options), (x + s * unit, x.expand(4, 2, 3)))


def test_gradient_shap_draws_once_for_all_examples_or_for_each_by_a_key_of_its_own():
    """Linear: x - A / w is the mean of the drawn baselines less the noise."""
    x, pool, n = randn(0, 3, 3), randn(1, 6, 3), 5
    run = functools.partial(attrfn.gradient_shap, linear, baselines=pool, n_samples=n, stdevs=0.5)
    shared = x - run(x, key=4) / W
    close(shared, shared[:1].expand(3, 3))
    keys = attrfn.random.split(4, 3)
    own = x - run(x, key=keys) / W
    assert (own[0] - own[1]).abs().min() > 1e-3
    for i in range(3):
        close(run(x[i : i + 1], key=keys[i]), run(x, key=keys)[i : i + 1])


def test_expected_sum_of_gradient_shap_is_the_output_over_the_mean_output_of_the_pool():
    """E sum A = f(x) - E f(b) with stdevs=0, the docstring's claim, on a network."""
    model, x, pool, n = mlp(), randn(0, 3, 3), randn(1, 8, 3), 4000
    run = functools.partial(attrfn.gradient_shap, model, target=2, baselines=pool)
    got = run(x, n_samples=n, key=9).sum(1)
    want = oracles.values(model, x, 2) - oracles.values(model, pool, 2).mean()
    for i in range(3):
        singles = run(x[i].expand(2000, 3), n_samples=1, key=attrfn.random.split(9, 2000)).sum(1)
        assert singles.std() < 3
        within_sigmas(got[i], want[i], singles.std(), n)


# ---------------------------------------------------------------------------------------------
# noise_tunnel


def identity(model_fn, inputs):
    """A method whose attributions are the inputs that it was given."""
    return inputs


def samples_of(x, **options):
    """The noisy inputs that a noise tunnel explains."""
    return attrfn.noise_tunnel(identity, kind="samples", **options)(None, x)


def test_noise_is_standard_normal_times_stdevs_around_the_inputs():
    x, s, n = randn(0, 2, 500), 0.3, 40
    noise = (samples_of(x, n_samples=n, stdevs=s, key=2) - x) / s
    assert noise.shape == (n, 2, 500)
    close(noise[:, 0], noise[:, 1], 1e-12)  # one draw for all the examples
    noise = noise[:, 0].flatten()
    within_sigmas(noise.mean(), 0.0, 1.0, noise.numel())
    within_sigmas((noise**2).mean(), 1.0, math.sqrt(2), noise.numel())
    within_sigmas((noise**4).mean(), 3.0, math.sqrt(96), noise.numel())
    assert noise.unique().numel() == noise.numel()


def test_noise_of_several_inputs_is_independent():
    """The correlation of 20000 pairs is 0 up to 1 / sqrt(20000)."""
    x, n = (torch.zeros(1, 500).double(), torch.zeros(1, 500).double()), 40
    a, b = samples_of(x, n_samples=n, stdevs=1.0, key=2)
    within_sigmas((a * b).mean(), 0.0, 1.0, 500 * n)
    pools = (torch.zeros(1, 500).double(), torch.zeros(1, 500).double())
    a, b = attrfn.gradient_shap(
        lambda x, y: (x + y).sum(1), x, baselines=pools, n_samples=1, stdevs=1.0, key=2
    )
    within_sigmas((a * b).mean(), 0.0, 1.0, 500)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize(
    ("kind", "reduce"),
    [
        ("samples", lambda a: a),
        ("smoothgrad", lambda a: a.mean(0)),
        ("smoothgrad_sq", lambda a: (a**2).mean(0)),
        ("vargrad", lambda a: a.var(0, correction=0)),
    ],
)
def test_noise_tunnel_reduces_the_gradients_at_the_noisy_inputs(kind, reduce, chunk_size):
    """The noisy inputs come from an identity method with the same key, the rest is a naive loop."""
    model, x = oracles.seeded(oracles.TwoInputs), (randn(0, 3, 3), randn(1, 3, 2, 2))
    options = {"n_samples": 7, "stdevs": (0.5, 0.2), "key": 11}
    noisy = samples_of(x, **options)
    target = torch.tensor([0, 3, 1])
    grads = [oracles.gradients(model, (a, b), target) for a, b in zip(*noisy, strict=True)]
    want = tuple(reduce(torch.stack(g)) for g in zip(*grads, strict=True))
    method = attrfn.noise_tunnel(attrfn.gradient, kind=kind, chunk_size=chunk_size, **options)
    close(method(model, x, target=target), want)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_on_a_quadratic(kind):
    """f = sum c x^2, so A = 2c(x + s n): mean 2cx, square 4c^2(x^2 + s^2), variance 4c^2s^2.

    The spread of one draw: 2cs, 4c^2 sqrt(4x^2s^2 + 2s^4) and 4c^2s^2 sqrt(2).
    """
    n, s, c = 40_000, 0.8, torch.tensor([1.0, -0.4, 2.0], dtype=torch.float64)
    x = randn(0, 2, 3)
    want, spread = {
        "smoothgrad": (2 * c * x, 2 * c.abs() * s),
        "smoothgrad_sq": (
            4 * c**2 * (x**2 + s**2),
            4 * c**2 * (4 * x**2 * s**2 + 2 * s**4).sqrt(),
        ),
        "vargrad": ((4 * c**2 * s**2).expand(2, 3), 4 * c**2 * s**2 * math.sqrt(2)),
    }[kind]
    method = attrfn.noise_tunnel(attrfn.gradient, kind=kind, n_samples=n, stdevs=s, key=6)
    within_sigmas(method(lambda x: (x**2) @ c, x), want, spread, n)


def test_noise_tunnel_smooths_a_step():
    """f = relu(x): the mean gradient is the normal distribution function at x / s."""
    n, s = 20_000, 0.5
    x = torch.tensor([[-0.6], [0.0], [0.4]], dtype=torch.float64)
    want = torch.special.ndtr(x / s)
    method = attrfn.noise_tunnel(attrfn.gradient, n_samples=n, stdevs=s, key=1)
    got = method(lambda x: x.relu()[:, 0], x)
    within_sigmas(got, want, (want * (1 - want)).sqrt(), n)


def test_noise_tunnel_without_noise_is_the_method():
    model, x, b = mlp(), randn(0, 5, 3), randn(1, 5, 3)
    method = attrfn.noise_tunnel(attrfn.integrated_gradients, n_samples=3, stdevs=0.0)
    got = method(model, x, target=[0, 1, 2, 3, 0], baselines=b, n_steps=4)
    close(got, oracles.integrated_gradients(model, x, b, n=4, target=[0, 1, 2, 3, 0]))


def test_noise_tunnel_of_one_sample_moves_the_inputs_and_keeps_the_baselines():
    model, x, b = mlp(), randn(0, 5, 3), randn(1, 5, 3)
    noisy = samples_of(x, n_samples=1, stdevs=0.4, key=8)[0]
    method = attrfn.noise_tunnel(attrfn.integrated_gradients, n_samples=1, stdevs=0.4, key=8)
    got = method(model, x, target=1, baselines=b, n_steps=4)
    close(got, oracles.integrated_gradients(model, noisy, b, n=4, target=1))


@pytest.mark.parametrize("chunk_size", [None, 900])
def test_noise_tunnel_draws_baselines(chunk_size):
    """f = w'x: each sample is (x - b_k) w for a baseline of the pool, and each k is as frequent."""
    x, pool, n = randn(0, 2, 3), randn(1, 4, 3), 4000
    method = attrfn.noise_tunnel(
        attrfn.integrated_gradients,
        kind="samples",
        n_samples=n,
        stdevs=0.0,
        key=3,
        draw_baselines=True,
        chunk_size=chunk_size,
    )
    drawn = x - method(linear, x, baselines=pool, n_steps=1) / W
    gaps = (drawn[:, :, None] - pool).abs().amax(3)
    assert gaps.min(2).values.max() < 1e-12
    index = gaps.argmin(2)
    assert torch.equal(index[:, 0], index[:, 1])  # one draw for all the examples
    assert (index[:900, 0] != index[900:1800, 0]).any()  # chunks draw on, not anew
    counts = torch.bincount(index[:, 0], minlength=4)
    within_sigmas(counts / n, torch.full((4,), 0.25), math.sqrt(0.25 * 0.75), n)


def test_noise_tunnel_with_drawn_baselines_and_noise():
    """The mean over noise and baselines of f = sum x^2: E[x'^2 - b^2] = x^2 + s^2 - E b^2."""
    x, pool, n, s = randn(0, 2, 3), randn(1, 4, 3), 20_000, 0.6
    method = attrfn.noise_tunnel(
        attrfn.integrated_gradients, n_samples=n, stdevs=s, key=3, draw_baselines=True
    )
    got = method(lambda x: (x**2).sum(1), x, baselines=pool, n_steps=1)
    spread = (4 * x**2 * s**2 + 2 * s**4 + (pool**2).var(0, correction=0)).sqrt()
    within_sigmas(got, x**2 + s**2 - (pool**2).mean(0), spread, n)


def test_noise_tunnel_inside_a_noise_tunnel():
    """Independent noise of is_arguments s and t adds up: E (2x')^2 = 4(x^2 + s^2 + t^2)."""
    x, s, t, n = torch.ones(1, 400).double(), 0.5, 0.8, 30
    inner = attrfn.noise_tunnel(attrfn.gradient, kind="smoothgrad_sq", n_samples=n, stdevs=s, key=1)
    outer = attrfn.noise_tunnel(inner, n_samples=n, stdevs=t, key=2)
    got = outer(lambda x: (x**2).sum(1), x).mean()
    variance = s**2 + t**2
    spread = 4 * math.sqrt(4 * variance + 2 * variance**2)
    within_sigmas(got, 4 * (1 + variance), spread, 400 * n)


def test_noise_tunnel_gives_the_completeness_gap_of_every_sample():
    """Input x gradient of sum x^2 is 2x^2, so the gap at a noisy input x' is sum x'^2."""
    x = randn(0, 3, 4)

    def f(x):
        return (x**2).sum(1)

    def gaps(model_fn, inputs):
        found = attrfn.input_x_gradient(model_fn, inputs)
        return attrfn.completeness_delta(model_fn, inputs, found)

    options = {"n_samples": 6, "stdevs": 0.3, "key": 5}
    got = attrfn.noise_tunnel(gaps, kind="samples", **options)(f, x)
    assert got.shape == (6, 3)
    close(got, (samples_of(x, **options) ** 2).sum(2))
