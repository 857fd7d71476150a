"""What the papers promise, for inputs and models drawn by hypothesis."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, take
from hypothesis import given, settings
from hypothesis import strategies as st
from models import NETS, Net, targets
from registry import Row, explain, rows, rows_and_nets
from torch import Tensor, nn
from torch.func import functional_call
from zoo import make, randn

import attrfn

D = torch.float64

# Examples are drawn by a seed: every failure can be repeated, and shrinking means a smaller seed.
seeds = st.integers(0, 2**16)
few = settings(max_examples=4)

# Completeness by quadrature: the nets are analytic, and 24 Gauss-Legendre nodes leave about 1e-9;
# LayerNorm, which has a pole near the path where its variance is small, needs more of them.
EXACT = {"n_steps": 24}
EXACT_ATTENTION = {"n_steps": 300}
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def drawn(net: Net, seed: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs and baselines."""
    return randn(batch, *net.shape, seed=seed), 0.5 * randn(batch, *net.shape, seed=seed + 1)


def total(a: Tensor) -> Tensor:
    return a.flatten(1).sum(1)


# --- completeness --------------------------------------------------------------------------------


@rows_and_nets(lambda r, net: r.complete and (net.smooth or r.rules))
@given(seed=seeds)
@few
def test_complete_methods_sum_to_the_change(r: Row, net: Net, seed: int) -> None:
    """Of the output; of the neuron for neuron methods."""
    model, (x, x0), t = net.build(), drawn(net, seed), targets(2)
    many = net is NETS["attention"] or r.name == "layer_conductance"  # an error of order 4
    steps = EXACT_ATTENTION if many else EXACT
    options = {} if r.rules else steps
    a = explain(r, net, model, x, target=t, baselines=x0, **options)
    if r.neuron:
        head = attrfn.split(model, "mid").head
        index = net.neuron if isinstance(net.neuron, tuple) else (net.neuron,)
        values = [head(z)[(slice(None), *index)].reshape(2, -1).sum(1) for z in (x, x0)]
    else:
        values = [model(z.clone()).gather(1, t[:, None])[:, 0] for z in (x, x0)]
        delta = attrfn.completeness_delta(model, x, a, target=t, baselines=x0)
        assert_close(delta, torch.zeros_like(delta), **CLOSE)
    assert_close(total(a), (values[0] - values[1]).detach(), **CLOSE)


@rows(lambda r: r.rules and r.baselines == "pool" and r.name != "layer_deep_lift_shap")
@given(seed=seeds)
@few
def test_deep_shap_sums_to_the_change_from_the_mean(r: Row, seed: int) -> None:
    """f(x) - 1/K sum_k f(b_k), of the neuron for neuron methods."""
    for net in NETS.values():
        model, x, t = net.build(), randn(2, *net.shape, seed=seed), targets(2)
        a = explain(r, net, model, x, target=t)
        if r.neuron:
            head = attrfn.split(model, "mid").head
            index = net.neuron if isinstance(net.neuron, tuple) else (net.neuron,)
            value, base = (
                head(z)[(slice(None), *index)].flatten(1).sum(1)
                if any(isinstance(i, slice) for i in index)
                else head(z)[(slice(None), *index)]
                for z in (x, net.pool)
            )
            mean = base.mean().expand(2)
        else:
            value = model(x.clone()).gather(1, t[:, None])[:, 0]
            mean = model(net.pool.clone()).mean(0)[t]
        assert_close(total(a), (value - mean).detach(), **CLOSE)


@given(seed=seeds)
@few
def test_sums_agree_in_every_layer_that_cuts_the_network(seed: int) -> None:
    """Conductance is conserved from layer to layer (Dhamdhere et al., 2018, section 2)."""
    net = NETS["mlp"]
    model, (x, x0) = net.build(), drawn(net, seed)
    options = {"target": 1, "baselines": x0, "quadrature": "gauss_legendre", **EXACT}
    through = [
        total(attrfn.layer_conductance(model, x, layer=layer, **options))
        for layer in ("inp", "mid", "hid", "act")
    ]
    of_inputs = total(attrfn.integrated_gradients(model, x, **options))
    for one in through:
        assert_close(one, of_inputs, **CLOSE)


@given(seed=seeds)
@few
def test_gradient_shap_is_complete_in_the_mean_over_samples(seed: int) -> None:
    """One sample is (x - b) * gradient at a uniform point: for affine f it sums to f(x) - f(b)."""
    w, x = randn(4, seed=seed), randn(2, 4, seed=seed + 1)
    pool = randn(1, 4, seed=seed + 2)

    def f(x: Tensor) -> Tensor:
        return x @ w + 3.0

    a = attrfn.gradient_shap(f, x, baselines=pool, n_samples=3, key=seed)
    assert_close(a, (x - pool) * w)
    assert_close(total(a), f(x) - f(pool))


@given(seed=seeds, n=st.integers(1, 12))
@settings(max_examples=25)
def test_quadrature_is_exact_on_polynomials(seed: int, n: int) -> None:
    """Gauss-Legendre of n steps: exact for gradients of degree < 2n, so outputs of degree 2n."""
    c = randn(2 * n, seed=seed) / torch.arange(1, 2 * n + 1, dtype=D)
    x, x0 = randn(3, 1, seed=seed + 1).clamp(-1.5, 1.5), randn(3, 1, seed=seed + 2).clamp(-1.5, 1.5)

    def f(x: Tensor) -> Tensor:
        return sum(c[k] * x[:, 0] ** (k + 1) for k in range(2 * n))  # type: ignore[return-value]

    a = attrfn.integrated_gradients(f, x, baselines=x0, n_steps=n)
    size = f(x.abs()).abs().max() + f(-x0.abs()).abs().max() + c.abs().sum() * 1.5 ** (2 * n)
    assert_close(a[:, 0], f(x) - f(x0), rtol=0, atol=1e-13 * float(size))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_quadrature_is_not_exact_beyond(n: int) -> None:
    """The error for x^(2n+1) from 0 to 1 is known (Davis and Rabinowitz, formula 2.7.12)."""
    x = torch.ones(1, 1, dtype=D)
    a = attrfn.integrated_gradients(lambda x: x[:, 0] ** (2 * n + 1), x, n_steps=n)
    factorial = torch.lgamma(torch.tensor([n + 1.0, 2 * n + 1.0], dtype=D)).exp()
    # Of an integrand g the rule misses g^(2n) n!^4 / ((2n + 1) (2n)!^3); here g = (2n + 1) x^(2n).
    error = factorial[0] ** 4 / factorial[1] ** 2
    assert_close(1 - a[0, 0], error, rtol=1e-9)


@given(seed=seeds, tolerance=st.sampled_from([1e-2, 1e-5, 1e-8]))
@settings(max_examples=10)
def test_tolerance_is_met(seed: int, tolerance: float) -> None:
    """From one step on, with the values of 256 steps."""
    net = NETS["cnn"]
    model, (x, x0) = net.build(), drawn(net, seed)
    options = {"target": 2, "baselines": x0}
    a = attrfn.integrated_gradients(model, 3 * x, n_steps=1, tolerance=tolerance, **options)
    gap = attrfn.completeness_delta(model, 3 * x, a, **options).abs().max()
    assert gap <= 1.001 * tolerance
    expected = attrfn.integrated_gradients(model, 3 * x, n_steps=256, **options)
    assert_close(a, expected, rtol=0, atol=10 * tolerance)


@rows(lambda r: "tolerance" in inspect.signature(r.method).parameters)
def test_tolerance_of_every_method_that_has_it(r: Row) -> None:
    """More steps than asked for, where these are not enough."""
    net = r.net
    x = 4 * net.inputs()
    coarse = explain(r, net, inputs=x, n_steps=1)
    fine = explain(r, net, inputs=x, n_steps=1, tolerance=1e-9)
    exact = explain(r, net, inputs=x, n_steps=256)
    assert not torch.allclose(coarse, exact, rtol=1e-3)
    assert_close(fine, exact, rtol=1e-7, atol=1e-9)


def test_missed_tolerance_warns() -> None:
    """A jump along the path is never resolved."""
    x = torch.ones(1, 2, dtype=D)

    def f(x: Tensor) -> Tensor:
        return (x.sum(1) > 0.7).to(x) + 0 * x.sum(1)

    with pytest.warns(UserWarning, match=r"missed tolerance=0\.01.*gap is 1"):
        a = attrfn.integrated_gradients(f, x, n_steps=1, tolerance=0.01)
    assert (a == 0).all()


# --- linearity, dummy, symmetry, implementation invariance ----------------------------------------


def linear_rows(r: Row) -> bool:
    """Methods that are linear in the model's output (no absolute value, square or weight)."""
    squares = {"saliency", "smoothgrad_sq", "vargrad", "completeness_delta", "lime_lasso"}
    squares |= {"guided_backprop", "deconvolution", "chained"}
    return r.explains == "input" and r.target and not (r.layer or r.images or r.name in squares)


@rows(linear_rows)
@given(seed=seeds, a=st.floats(-3, 3), b=st.floats(-3, 3))
@few
def test_linear_in_the_model(r: Row, seed: int, a: float, b: float) -> None:
    """A(a f + b g) = a A(f) + b A(g)."""
    net = NETS["mlp"]
    x, x0 = drawn(net, seed)
    f, g = net.build(), make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)))
    options = {"target": targets(2)}
    if r.baselines == "point":
        options["baselines"] = x0
    both = explain(r, net, lambda x: a * f(x) + b * g(x), x, **options)
    parts = [explain(r, net, h, x, **options) for h in (f, g)]
    assert_close(both, a * parts[0] + b * parts[1], rtol=1e-9, atol=1e-10)


class Interaction(nn.Module):
    """Reads features 0, 1 and 2 of four, the first two in the same way; feature 3 is a dummy."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(3, 5)
        self.mid = nn.Tanh()
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([x[:, 0] * x[:, 1], x[:, 0] + x[:, 1], x[:, 2]], 1)
        return self.out(self.mid(self.inp(y)))


def input_rows(r: Row) -> bool:
    """Those whose axioms are in test_axioms_perturbation.py are left out."""
    return r.explains == "input" and r.gradient and not r.images


@rows(input_rows)
@given(seed=seeds)
@few
def test_dummy_features_get_nothing(r: Row, seed: int) -> None:
    """Also neuron methods: no neuron of the model sees feature 3. Nothing is exactly 0."""
    net = NETS["mlp"]
    x, x0 = drawn(net, seed)
    options = {"baselines": x0} if r.baselines == "point" else {}
    a = explain(r, net, make(Interaction), x, target=targets(2), **options)
    dummy, rest = a[..., 3], a[..., :3]
    assert (dummy == 0).all()
    assert (rest != 0).any()


@rows(lambda r: input_rows(r) and not r.keyed)
@given(seed=seeds)
@few
def test_symmetric_features_get_the_same(r: Row, seed: int) -> None:
    """Equal values and baselines in two places that the model treats alike."""
    net = NETS["mlp"]
    x, x0 = drawn(net, seed)
    x[:, 1], x0[:, 1] = x[:, 0], x0[:, 0]
    options = {"baselines": x0} if r.baselines == "point" else {}
    if r.baselines == "pool":
        options["baselines"] = alike(net.pool)
    a = explain(r, net, make(Interaction), x, target=targets(2), **options)
    assert_close(a[:, 1], a[:, 0])


def alike(pool: Tensor) -> Tensor:
    """Baselines with the same values in features 0 and 1."""
    return torch.cat([pool[:, :1], pool[:, :1], pool[:, 2:]], 1)


@rows(lambda r: input_rows(r) and r.keyed)
@given(seed=seeds)
@few
def test_exchanged_features_exchange_their_attributions(r: Row, seed: int) -> None:
    """Without noise, whose draws are no symmetric ones; with baselines that are."""
    net = NETS["mlp"]
    x, _ = drawn(net, seed)
    x[:, 1] = x[:, 0]
    options: dict[str, Any] = {"stdevs": 0.0}
    if r.baselines == "pool":
        options["baselines"] = alike(net.pool)
    a = explain(r, net, make(Interaction), x, target=targets(2), **options)
    assert_close(a[..., 1], a[..., 0])


class Written(nn.Module):
    """The function of ``models._cnn``, in functions, products and other names."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(
            {k.replace(".", "_"): p for k, p in twin.named_parameters()}
        )
        self.mid = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        w = self.weights
        patches = F.unfold(x, 3, padding=1)
        h = (w["inp_weight"].flatten(1) @ patches + w["inp_bias"][:, None]).unflatten(2, (4, 4))
        h = torch.logaddexp(h, torch.zeros_like(h))
        h = self.mid(h.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)))
        h = 1 - 2 / (1 + (2 * h).exp())
        return torch.einsum("bi,oi->bo", h.reshape(h.shape[0], -1), w["out_weight"]) + w["out_bias"]


@rows(lambda r: not r.rules)
@given(seed=seeds)
@few
def test_implementation_does_not_matter(r: Row, seed: int) -> None:
    """Equal functions written in different operations (Sundararajan et al., 2017, section 3)."""
    net = NETS["cnn"]
    x, _ = drawn(net, seed)
    twin = net.build()
    written = Written(twin)
    assert_close(written(x), twin(x))
    if r.explains == "layer input":  # the two layers receive different things
        twin, written = nn.Sequential(), nn.Sequential()
        for model, inner in ((twin, net.build()), (written, Written(net.build()))):
            model.add_module("mid", inner)
    one, other = (explain(r, net, model, x) for model in (twin, written))
    assert_close(one, other, rtol=1e-9, atol=1e-12)


# --- layers and neurons ---------------------------------------------------------------------------


@given(seed=seeds)
@few
def test_neuron_conductance_sums_to_the_neurons_layer_conductance(seed: int) -> None:
    for net in (NETS["mlp"], NETS["cnn"], NETS["attention"]):
        model, (x, x0), t = net.build(), drawn(net, seed), targets(2)
        options = {"layer": "mid", "target": t, "baselines": x0, "n_steps": 5}
        options["quadrature"] = "gauss_legendre"  # equal nodes
        whole = attrfn.layer_conductance(model, x, **options)
        neurons = [tuple(i) for i in (whole[0] == whole[0]).nonzero().tolist()][:6]
        for n in neurons:
            part = attrfn.neuron_conductance(model, x, neuron=n, **options)
            assert_close(total(part), whole[(slice(None), *n)])


@given(seed=seeds)
@few
def test_neuron_conductances_add_up_to_integrated_gradients(seed: int) -> None:
    """All that reaches the output flows through the neurons of a layer that cuts the network."""
    net = NETS["mlp"]
    model, (x, x0) = net.build(), drawn(net, seed)
    options = {"target": 1, "baselines": x0, "n_steps": 5}
    parts = [
        attrfn.neuron_conductance(model, x, layer="mid", neuron=n, **options) for n in range(5)
    ]
    assert_close(sum(parts), attrfn.integrated_gradients(model, x, **options))
    at_once = attrfn.neuron_conductance(model, x, layer="mid", neuron=(slice(None),), **options)
    assert_close(at_once, sum(parts))


@given(seed=seeds)
@few
def test_layer_methods_are_the_methods_on_the_tail(seed: int) -> None:
    """layer X = X on a -> tail(a, x) at a = head(x)."""
    net = NETS["cnn"]
    model, (x, x0) = net.build(), drawn(net, seed)
    head, tail = attrfn.split(model, "mid")
    a, a0 = head(x).detach(), head(x0).detach()

    def f(a: Tensor) -> Tensor:
        return tail(a, x)

    cases: list[tuple[Callable[..., Tensor], dict[str, Any]]] = [
        (attrfn.gradient, {}),
        (attrfn.saliency, {}),
        (attrfn.input_x_gradient, {"baselines": (x0, a0)}),
        (attrfn.integrated_gradients, {"baselines": (x0, a0), "n_steps": 3}),
        (attrfn.gradient_shap, {"baselines": (x0, a0), "stdevs": 0.1, "key": seed}),
        (attrfn.noise_tunnel(attrfn.gradient, stdevs=0.1, key=seed), {}),
    ]
    for method, options in cases:
        there, here = dict(options), dict(options)
        if "baselines" in options:
            there["baselines"], here["baselines"] = options["baselines"]
        moved = attrfn.at_layer(method, "mid")(model, x, target=1, **there)
        assert_close(moved, method(f, a, target=1, **here))


@rows(lambda r: r.neuron and r.name != "neuron_conductance")
@given(seed=seeds)
@few
def test_neuron_methods_are_the_methods_on_the_head(r: Row, seed: int) -> None:
    """neuron X = X on head with the neuron as target; a callable or an index says the same."""
    net = NETS["cnn"]
    x, _ = drawn(net, seed)
    model = net.build()
    by_index = explain(r, net, model, x)
    channel, row, columns = net.neuron  # type: ignore[misc]
    by_callable = explain(r, net, model, x, neuron=lambda a: a[:, channel, row, columns].sum(1))
    assert_close(by_callable, by_index)


@given(seed=seeds)
@few
def test_internal_influence_is_the_mean_gradient_at_the_layer(seed: int) -> None:
    """Against an explicit loop over the nodes of the midpoint rule."""
    net = NETS["mlp"]
    model, (x, x0) = net.build(), drawn(net, seed)
    n = 4
    expected = sum(
        attrfn.layer_gradient_x_activation(
            model, x0 + (k + 0.5) / n * (x - x0), layer="mid", target=1, multiply_by_inputs=False
        )
        for k in range(n)
    )
    found = attrfn.internal_influence(
        model, x, layer="mid", target=1, baselines=x0, n_steps=n, quadrature="riemann_middle"
    )
    assert_close(found, expected / n)


# --- what else the formulas say ------------------------------------------------------------------


NO_DIFFERENCE = {"internal_influence", "score_cam", "multipliers", "with_rescale"}


def with_difference_to_baseline(r: Row) -> bool:
    """Methods with the factor x - x0 (of an input without noise), or the layer's change."""
    without = r.keyed or r.explains == "example" or r.name in NO_DIFFERENCE
    return r.baselines == "point" and not without


@rows(with_difference_to_baseline)
def test_nothing_changes_from_the_baseline_nothing_is_attributed(r: Row) -> None:
    """x = x0: every method with the factor (x - x0) gives 0."""
    x = r.net.inputs()
    found = explain(r, r.net, inputs=x, baselines=x.clone())
    # Shapley values weigh equal numbers with weights that cancel up to rounding
    assert found.abs().max() <= (0 if r.gradient else 1e-15)


@given(seed=seeds, scale=st.floats(0.1, 10))
@few
def test_rescaled_units_change_gradients_and_no_products(seed: int, scale: float) -> None:
    """f(x) = g(s x): gradients scale by s, integrated gradients and input x gradient do not."""
    model, (x, _) = NETS["mlp"].build(), drawn(NETS["mlp"], seed)

    def g(x: Tensor) -> Tensor:
        return model(scale * x)

    by = {"target": 1}
    assert_close(attrfn.gradient(g, x / scale, **by), scale * attrfn.gradient(model, x, **by))
    for method in (
        attrfn.input_x_gradient,
        functools.partial(attrfn.integrated_gradients, n_steps=3),
    ):
        assert_close(method(g, x / scale, **by), method(model, x, **by))


@rows_and_nets(lambda r, net: net is NETS["mlp"] and not r.mixes)
@given(seed=seeds, batch=st.integers(1, 4))
@few
def test_rows_do_not_depend_on_the_batch(r: Row, net: Net, seed: int, batch: int) -> None:
    model, x, t = net.build(), randn(batch, *net.shape, seed=seed), targets(batch)
    together = explain(r, net, model, x, target=t)
    i = seed % batch
    alone = explain(r, net, model, x[i : i + 1], target=t[i : i + 1])
    assert_close(take(together, slice(i, i + 1), r.batch_dim), alone)


@rows(lambda r: r.layer)
@given(seed=seeds)
@few
def test_models_with_other_parameters_are_other_models(r: Row, seed: int) -> None:
    """functional_call with drawn parameters equals a module that holds them."""
    net = r.net
    model = net.build()
    params = {
        k: randn(*p.shape, seed=seed + i) for i, (k, p) in enumerate(model.named_parameters())
    }
    holder = net.build()
    holder.load_state_dict({**holder.state_dict(), **params})
    f = functools.partial(functional_call, model, params)
    assert_close(explain(r, net, f), explain(r, net, holder))


def test_vargrad_is_the_variance_of_the_samples() -> None:
    net = NETS["mlp"]
    model, x = net.build(), net.inputs()
    options = {"n_samples": 6, "stdevs": 0.3, "key": 5}
    kinds = {
        kind: attrfn.noise_tunnel(attrfn.gradient, kind=kind, **options)(model, x, target=1)
        for kind in ("samples", "smoothgrad", "smoothgrad_sq", "vargrad")
    }
    samples = kinds["samples"]
    assert samples.shape == (6, *x.shape)
    assert_close(kinds["smoothgrad"], samples.mean(0))
    assert_close(kinds["smoothgrad_sq"], (samples**2).mean(0))
    assert_close(kinds["vargrad"], samples.var(0, correction=0))
