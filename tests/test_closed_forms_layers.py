"""Layers and neurons: values against formulas worked out by hand and against loops with hooks.

The oracles of ``oracles.py`` read and overwrite layers with plain forward hooks, one example at a
time. Everything is float64 and holds to 1e-10, unless a test says why not.
"""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from closed_forms_nets import IMAGES, IMAGES0, X0, T, X, cnn, parts, quadratic
from oracles import close, randn, within_sigmas
from torch import nn

import attrfn

# ---------------------------------------------------------------------------------------------
# by hand: f = v'a^2 + d at the layer a = Wx + c


def test_layer_activation_by_hand():
    model = quadratic()
    _, _, a, _ = parts(model)
    close(attrfn.layer_activation(model, X, layer="0"), a)
    close(attrfn.layer_activation(model, X, layer="1"), a**2)
    close(attrfn.layer_activation(model, X, layer="1", at="input"), a)
    close(attrfn.layer_activation(model, X, layer="0", at="input"), X)


@pytest.mark.parametrize("multiply", [True, False])
def test_layer_gradient_x_activation_by_hand(multiply):
    """df/da = 2va; at the input of the last layer it is v."""
    model = quadratic()
    _, v, a, _ = parts(model)
    options = {"target": T, "multiply_by_inputs": multiply}
    got = attrfn.layer_gradient_x_activation(model, X, layer="0", **options)
    close(got, 2 * v * a * (a if multiply else 1))
    got = attrfn.layer_gradient_x_activation(model, X, layer="2", at="input", **options)
    close(got, v * (a**2 if multiply else torch.ones_like(a)))


@pytest.mark.parametrize("multiply", [True, False])
def test_layer_integrated_gradients_by_hand(multiply):
    """(a - a0) times the mean of 2va: v(a^2 - a0^2)."""
    model = quadratic()
    _, v, a, a0 = parts(model)
    got = attrfn.layer_integrated_gradients(
        model, X, layer="0", target=T, baselines=X0, n_steps=1, multiply_by_inputs=multiply
    )
    close(got, v * (a + a0) * (a - a0 if multiply else 1))


@pytest.mark.parametrize("layer", ["0", "1"])
def test_layer_conductance_by_hand(layer):
    """The integral of d(v a^2)/ds is v(a^2 - a0^2) in each unit, before and behind the square."""
    model = quadratic()
    _, v, a, a0 = parts(model)
    # A panel of two steps is exact for squares; one step has the gradient at its end alone.
    got = attrfn.layer_conductance(model, X, layer=layer, target=T, baselines=X0, n_steps=2)
    close(got, v * (a**2 - a0**2))


def test_layer_conductance_of_the_inputs_is_integrated_gradients():
    model = cnn()
    got = attrfn.layer_conductance(
        model,
        IMAGES,
        layer="conv1",
        at="input",
        target=T,
        baselines=IMAGES0,
        n_steps=4,
        quadrature="gauss_legendre",
    )
    close(got, oracles.integrated_gradients(model, IMAGES, IMAGES0, n=4, target=T))


def test_internal_influence_by_hand():
    """The mean of 2va on the path is v(a + a0); behind the square it is v."""
    model = quadratic()
    _, v, a, a0 = parts(model)
    got = attrfn.internal_influence(model, X, layer="0", target=T, baselines=X0, n_steps=1)
    close(got, v * (a + a0))
    got = attrfn.internal_influence(model, X, layer="1", target=T, baselines=X0, n_steps=3)
    close(got, v.expand(5, 4))


def test_layer_gradient_shap_by_hand():
    """E = v(a^2 + s^2 - E c^2) for noise s at the layer and c = head(b); spread by simulation."""
    model, pool, s, n = quadratic(), randn(8, 6, 3), 0.7, 40_000
    _, v, a, _ = parts(model)
    with torch.no_grad():
        c = model[0](pool)
    got = attrfn.layer_gradient_shap(
        model, X, layer="0", target=T, baselines=pool, n_samples=n, stdevs=s, key=2
    )
    rng = np.random.default_rng(0)
    ends = a.numpy() + s * rng.standard_normal((10_000, 5, 4))
    starts = c.numpy()[rng.integers(0, 6, 10_000)][:, None]
    mean_gradient = 2 * v.numpy() * (starts + rng.random((10_000, 1, 1)) * (ends - starts))
    spread = torch.as_tensor(((ends - starts) * mean_gradient).std(0))
    within_sigmas(got, v * (a**2 + s**2 - (c**2).mean(0)), spread, n)


@pytest.mark.parametrize("multiply", [True, False])
def test_layer_gradient_shap_before_a_linear_layer(multiply):
    """From one baseline every draw gives v(a^2 - c^2) behind the square, v without the factor."""
    model = quadratic()
    _, v, a, a0 = parts(model)
    got = attrfn.layer_gradient_shap(
        model,
        X,
        layer="1",
        target=T,
        baselines=X0[:1],
        n_samples=4,
        multiply_by_inputs=multiply,
    )
    close(got, v * (a**2 - a0[:1] ** 2 if multiply else torch.ones_like(a)))


NEURONS = {
    "int": (2, [2]),
    "tuple": ((2,), [2]),
    "negative": (-1, [3]),
    "slice": ((slice(1, 3),), [1, 2]),
    "callable": (lambda a: a[:, 0] + a[:, 3], [0, 3]),
}
"""What is given as ``neuron`` of a layer (B, 4), and the units whose sum it is."""


@pytest.mark.parametrize("given", NEURONS)
def test_neuron_methods_by_hand(given):
    """n = sum_j a_j^2: the gradient is sum_j 2 a_j W_j, its mean on the path (a_j + a0_j) W_j.

    The flow through the neurons to f is weighted with v_j.
    """
    model, (neuron, units) = quadratic(), NEURONS[given]
    w, v, a, a0 = parts(model)
    w, v, a, a0 = w[units], v[units], a[:, units], a0[:, units]
    options = {"layer": "1", "neuron": neuron}
    close(attrfn.neuron_gradient(model, X, **options), 2 * a @ w)
    path = {**options, "baselines": X0, "n_steps": 1}
    mean = (a + a0) @ w
    close(attrfn.neuron_integrated_gradients(model, X, **path), (X - X0) * mean)
    got = attrfn.neuron_integrated_gradients(model, X, **path, multiply_by_inputs=False)
    close(got, mean)
    weighted = ((a + a0) * v) @ w
    close(attrfn.neuron_conductance(model, X, target=T, **path), (X - X0) * weighted)
    got = attrfn.neuron_conductance(model, X, target=T, **path, multiply_by_inputs=False)
    close(got, weighted)


@pytest.mark.parametrize("neuron", [[0, 3, 1, 1, 2], torch.tensor([0, 3, 1, 1, 2])], ids=type)
def test_a_neuron_for_each_example(neuron):
    model, i, units = quadratic(), torch.arange(5), torch.tensor([0, 3, 1, 1, 2])
    w, v, a, a0 = parts(model)
    w, v, a, a0 = w[units], v[units, None], a[i, units][:, None], a0[i, units][:, None]
    options = {"layer": "1", "neuron": neuron}
    close(attrfn.neuron_gradient(model, X, **options), 2 * a * w)
    path = {**options, "baselines": X0, "n_steps": 1}
    got = attrfn.neuron_integrated_gradients(model, X, **path)
    close(got, (X - X0) * (a + a0) * w)
    got = attrfn.neuron_conductance(model, X, target=T, **path)
    close(got, (X - X0) * (a + a0) * w * v)


@pytest.mark.parametrize("multiply", [True, False])
def test_neuron_gradient_shap_of_a_linear_neuron(multiply):
    """From one baseline every draw gives (x - b) W_j."""
    model = quadratic()
    got = attrfn.neuron_gradient_shap(
        model,
        X,
        layer="0",
        neuron=2,
        baselines=X0[:1],
        n_samples=3,
        multiply_by_inputs=multiply,
    )
    close(got, (X - X0[:1] if multiply else torch.ones_like(X)) * parts(model)[0][2])


def test_neuron_gradient_shap_by_hand():
    """n = (w'x + c)^2 from one baseline b: the mean is integrated gradients, (x - b) w (a + a0).

    One draw is (x - b) w 2(a0 + u (a - a0)), u uniform, of spread |(x - b) w (a - a0)| / sqrt 3.
    """
    model, n = quadratic(), 20_000
    w, _, a, a0 = parts(model)
    w, a, a0 = w[2], a[:, 2:3], a0[:1, 2:3]
    got = attrfn.neuron_gradient_shap(
        model, X, layer="1", neuron=2, baselines=X0[:1], n_samples=n, key=4
    )
    factor = (X - X0[:1]) * w
    within_sigmas(got, factor * (a + a0), (factor * (a - a0)).abs() / math.sqrt(3), n)


def test_neuron_gradient_shap_draws_from_the_pool_and_adds_noise():
    """n = (w'x + c)^2, x' = x + s N: E[(x' - b) w (a' + a_b)] = (x - b) w (a + a_b) + s^2 w^2.

    That is averaged over the pool; the spread of one draw by simulation.
    """
    model, pool, s, n = quadratic(), randn(8, 6, 3), 0.7, 40_000
    w, _, a, _ = parts(model)
    w, c, a = w[1], model[0].bias.detach()[1], a[:, 1:2]
    got = attrfn.neuron_gradient_shap(
        model, X, layer="1", neuron=1, baselines=pool, n_samples=n, stdevs=s, key=5
    )
    ends = (X[:, None] - pool) * w * (a + pool @ w + c)[:, :, None]
    want = ends.mean(1) + s**2 * w**2
    rng = np.random.default_rng(0)
    starts = pool.numpy()[rng.integers(0, 6, 10_000)][:, None]
    change = X.numpy() + s * rng.standard_normal((10_000, 5, 3)) - starts
    point = starts + rng.random((10_000, 1, 1)) * change
    draws = change * w.numpy() * 2 * (point @ w.numpy() + c.numpy())[:, :, None]
    spread = torch.as_tensor(draws.std(0))
    within_sigmas(got, want, spread, n)
    assert (s**2 * w**2 > 10 * spread / math.sqrt(n)).any()  # the noise would be missed


# ---------------------------------------------------------------------------------------------
# at_layer and at_neuron with methods that have no named form


def test_plain_methods_at_a_layer():
    """Their formulas at a = head(x), with baselines carried to the layer by the head."""
    model, layer = cnn(), "conv2"
    a, a0 = (oracles.layer_value(model, layer, z).detach() for z in (IMAGES, IMAGES0))
    grads = oracles.layer_gradients(model, layer, IMAGES, target=2)
    close(attrfn.at_layer(attrfn.gradient, layer)(model, IMAGES, target=2), grads)
    close(attrfn.at_layer(attrfn.saliency, layer)(model, IMAGES, target=2), grads.abs())
    got = attrfn.at_layer(attrfn.input_x_gradient, layer)(
        model, IMAGES, target=2, baselines=IMAGES0
    )
    close(got, (a - a0) * grads)
    got = attrfn.at_layer(attrfn.integrated_gradients, layer)(
        model, IMAGES, target=2, baselines=IMAGES0, n_steps=3
    )
    want = oracles.layer_integrated_gradients(model, layer, IMAGES, IMAGES0, n=3, target=2)
    close(got, want)


def test_noise_at_a_layer_and_noise_in_front_of_it():
    """f = v'a^2: noise s at the layer gives a variance of 4v^2s^2 of the gradient 2va; noise at
    the inputs is carried there by W: 4v^2 s^2 |W_j|^2.
    """
    model, n, s = quadratic(), 20_000, 0.5
    w, v, _, _ = parts(model)
    smooth = attrfn.noise_tunnel(attrfn.gradient, kind="vargrad", n_samples=n, stdevs=s, key=1)
    at_the_layer = attrfn.at_layer(smooth, "0")(model, X, target=T)
    want = (4 * v**2 * s**2).expand(5, 4)
    within_sigmas(at_the_layer, want, want * math.sqrt(2), n)
    behind = attrfn.noise_tunnel(
        attrfn.at_layer(attrfn.gradient, "0"), kind="vargrad", n_samples=n, stdevs=s, key=1
    )
    want = want * (w**2).sum(1)
    within_sigmas(behind(model, X, target=T), want, want * math.sqrt(2), n)


def test_completeness_gaps_at_a_layer():
    """The layer's attributions may be given whole, or from the tail as a model of its own."""
    model = cnn()
    a = attrfn.layer_integrated_gradients(
        model, IMAGES, layer="pool", target=1, baselines=IMAGES0, n_steps=3
    )
    want = a.flatten(1).sum(1) - oracles.values(model, IMAGES, 1)
    want = want + oracles.values(model, IMAGES0, 1)
    assert want.abs().max() > 1e-9
    close(attrfn.completeness_delta(model, IMAGES, a, target=1, baselines=IMAGES0), want)


def test_plain_methods_at_a_neuron():
    model, layer, neuron = cnn(), "act1", (0, 4, slice(2, 5))

    def head(x):
        return oracles.layer_value(model, layer, x)

    grads = oracles.gradients(head, IMAGES, neuron)
    close(attrfn.at_neuron(attrfn.saliency, layer, neuron)(model, IMAGES), grads.abs())
    got = attrfn.at_neuron(attrfn.input_x_gradient, layer, neuron)(model, IMAGES, baselines=0.5)
    close(got, (IMAGES - 0.5) * grads)


def test_noise_at_a_neuron():
    """n = (w'x + c)^2: the mean of the squared gradient is 4w^2(a^2 + s^2 |w|^2)."""
    model, n, s = quadratic(), 20_000, 0.5
    w, _, a, _ = parts(model)
    w, a = w[3], a[:, 3:]
    method = attrfn.noise_tunnel(
        attrfn.gradient, kind="smoothgrad_sq", n_samples=n, stdevs=s, key=1
    )
    got = attrfn.at_neuron(method, "1", 3)(model, X)
    t = s * w.norm()
    spread = 4 * w**2 * (4 * a**2 * t**2 + 2 * t**4).sqrt()
    within_sigmas(got, 4 * w**2 * (a**2 + t**2), spread, n)


def test_a_neuron_of_a_neuron_is_a_head_of_a_head():
    """Conductance at the first layer for a unit of the second, by at_layer on the head alone."""
    model = quadratic()
    _, _, a, a0 = parts(model)
    head = nn.Sequential(model[0], model[1])
    got = attrfn.layer_conductance(head, X, layer="0", target=2, baselines=X0, n_steps=2)
    want = torch.zeros(5, 4, dtype=torch.float64)
    want[:, 2] = (a**2 - a0**2)[:, 2]
    close(got, want)


def test_a_layer_with_a_callable_quadrature():
    """Nodes (0, 1) with weights (1/2, 1/2) are exact for the quadratic network."""
    model = quadratic()
    _, v, a, a0 = parts(model)
    options = {"target": T, "baselines": X0, "quadrature": lambda n: ([0.0, 1.0], [0.5, 0.5])}
    for name in ("layer_integrated_gradients", "layer_conductance"):
        close(getattr(attrfn, name)(model, X, layer="0", **options), v * (a**2 - a0**2))
    close(attrfn.internal_influence(model, X, layer="0", **options), v * (a + a0))


def test_a_layers_tolerance_is_that_of_its_own_path():
    """Expected values from 64 nodes at the layer."""
    model = cnn()
    change = oracles.values(model, IMAGES, 1) - oracles.values(model, IMAGES0, 1)
    want = oracles.layer_integrated_gradients(model, "conv1", IMAGES, IMAGES0, n=64, target=1)
    got = attrfn.layer_integrated_gradients(
        model, IMAGES, layer="conv1", target=1, baselines=IMAGES0, n_steps=1, tolerance=1e-6
    )
    assert (got.flatten(1).sum(1) - change).abs().max() <= 1e-6
    close(got, want, 1e-6)
