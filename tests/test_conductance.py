"""The default of layer conductance: panels over differences, and passes that layers share."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from helpers import assert_close, assert_informative
from test_one_pass import Counted, counted_runs
from torch import Tensor, nn
from zoo import make, randn

import attrfn
from attrfn._explain.quadrature import quadrature_rule as rule

X, X0 = randn(3, 4), 0.3 * randn(3, 4, seed=1)


def smooth() -> nn.Module:
    layers = [("0", nn.Linear(4, 6)), ("1", nn.Tanh()), ("2", nn.Linear(6, 5)), ("3", nn.Tanh())]
    return make(lambda: nn.Sequential(OrderedDict([*layers, ("4", nn.Linear(5, 2))])))


def radau(p: int) -> np.ndarray:
    """The nodes with the right end on [0, 1]: 1 - t for the roots of (P_{p-1} + P_p)(2 t - 1)."""
    roots = np.polynomial.legendre.legroots([0.0] * (p - 1) + [1.0, 1.0])
    return np.sort((1 - roots) / 2)


def interpolatory(s: np.ndarray, kept: slice) -> np.ndarray:
    """M with sum_kl g_k M_kl a_l: the rule on the kept nodes times differentiation through all."""
    k = np.arange(len(s))
    slopes = np.zeros((len(s), len(s)))
    powers = np.vander(s, increasing=True)  # powers[i, k] = s_i^k
    slopes[:, 1:] = powers[:, :-1] * k[1:]
    t = s[kept]
    j = np.arange(len(t))
    moments = (s[-1] ** (j + 1) - s[0] ** (j + 1)) / (j + 1)
    weights = np.zeros(len(s))
    weights[kept] = np.linalg.solve(np.vander(t, increasing=True).T, moments)
    return weights[:, None] * (slopes @ np.linalg.inv(powers))


def dense_rule(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The baseline and n nodes, and the dense matrix of all panels."""
    first = n if n < 3 else 4 - n % 2
    nodes = np.concatenate([[0.0], radau(first) * first, np.arange(first + 1.0, n + 1)]) / n
    found = np.zeros((n + 1, n + 1))
    found[: first + 1, : first + 1] += interpolatory(nodes[: first + 1], slice(1, None))
    for i in range(first, n, 2):
        found[i : i + 3, i : i + 3] += interpolatory(nodes[i : i + 3], slice(None))
    return nodes, found


def dense(model: nn.Module, layer: str, n: int) -> Tensor:
    nodes, matrix = dense_rule(n)
    points = list(oracles.path_points(X, X0, nodes))
    a = torch.stack([oracles.layer_value(model, layer, z).detach() for z in points])
    g = torch.stack([oracles.layer_gradients(model, layer, z, None, 1) for z in points])
    return torch.einsum("kbf,kl,lbf->bf", g, torch.tensor(matrix), a)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("layer", ["0", "3"])
def test_the_default_is_the_dense_sum(layer: str, n: int) -> None:
    """Expected values from a dense matrix over all nodes, whatever the chunks."""
    model = smooth()
    expected = dense(model, layer, n)
    assert_informative(expected)
    for size in ("auto", None, 1, 2, 3, 5):
        found = attrfn.layer_conductance(
            model, X, layer=layer, target=1, baselines=X0, n_steps=n, chunk_size=size
        )
        assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_other_batching_is_the_same_sum(batching: str) -> None:
    model = smooth()
    found = attrfn.layer_conductance(
        model, X, layer="1", target=1, baselines=X0, n_steps=5, batching=batching
    )
    assert_close(found, dense(model, "1", 5), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_the_error_falls_with_the_fourth_power(layer: str) -> None:
    """Against the exact integrand at 60 nodes of Gauss."""
    model = smooth()
    options = {"layer": layer, "target": 1, "baselines": X0}
    exact = attrfn.layer_conductance(model, X, **options, n_steps=60, quadrature="gauss_legendre")
    errors = [
        float((attrfn.layer_conductance(model, X, **options, n_steps=n) - exact).norm())
        for n in (16, 32, 64)
    ]
    assert all(8 < a / b < 32 for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-5 * float(exact.norm())


class Steps(nn.Module):
    """Before the layer a function that jumps, and behind it a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(torch.floor(3 * self.first(x)) + self.first(x)))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_a_linear_tail_makes_it_exact_over_jumps(n: int) -> None:
    """w (a - a0): the sum telescopes, also where a has no derivative."""
    model = make(Steps)
    found = attrfn.layer_conductance(model, X, layer="layer", target=1, baselines=X0, n_steps=n)
    a, a0 = (oracles.layer_value(model, "layer", z).detach() for z in (X, X0))
    assert_close(found, model.last.weight[1].detach() * (a - a0), rtol=1e-10, atol=1e-12)


def test_without_an_end_there_is_no_sum() -> None:
    with pytest.raises(ValueError, match=r"n_steps is 0, expected an int of at least 1"):
        attrfn.layer_conductance(smooth(), X, layer="1", target=1, n_steps=0)


def test_lobatto_is_a_rule_of_all_paths() -> None:
    """Its panels are exact for cubics: x^4 has the gradient 4 x^3."""
    x = randn(3, 4)
    for n in (3, 4, 5, 8, 9):
        nodes, weights = rule("lobatto", n)
        assert len(nodes) == len(weights) == n
        assert_close(nodes, torch.tensor(dense_rule(n)[0][1:]))
        found = attrfn.integrated_gradients(
            lambda z: (z**4).sum(1), x, n_steps=n, quadrature="lobatto"
        )
        assert_close(found, x**4)


class Norm(nn.Module):
    """Behind the layer a norm that divides by the length, which has no slope at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.layer(x)
        return self.last(a / (a.square().sum(1, keepdim=True)).sqrt())


@pytest.mark.parametrize("n", [2, 5, 50])
def test_the_gradient_at_the_baseline_is_not_used(n: int) -> None:
    """It is nan here; off zero f is constant on the path, so g da is zero in every unit's sum."""
    found = attrfn.layer_conductance(make(Norm), X, layer="layer", target=1, n_steps=n)
    assert bool(found.isfinite().all())
    assert float(found.sum(1).abs().max()) < 1e-10


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_rectifiers_without_biases_are_exact_from_zero(n: int) -> None:
    """There f is linear along the path: the conductance is a df/da, whatever the steps."""
    model = make(
        lambda: nn.Sequential(
            nn.Linear(4, 9, bias=False),
            nn.ReLU(),
            nn.Linear(9, 5, bias=False),
            nn.ReLU(),
            nn.Linear(5, 2, bias=False),
        )
    )
    found = attrfn.layer_conductance(model, X, layer="1", target=1, n_steps=n)
    assert_close(found, attrfn.layer_gradient_x_activation(model, X, layer="1", target=1))


PASSES = {
    "conductance": (attrfn.layer_conductance, {}),
    "exact conductance": (attrfn.layer_conductance, {"quadrature": "riemann_middle"}),
    "influence": (attrfn.internal_influence, {}),
}
LAYERS: dict[str, list[Any]] = {
    "two": ["1", "3"],
    "one behind the other": ["3", "0", "2"],
    "the same twice": ["1", "3", "1"],
    "one": ["2"],
}


@pytest.mark.parametrize("at", ["output", "input"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", PASSES)
def test_layers_of_a_list_get_what_they_get_alone(name: str, layers: str, at: Any) -> None:
    method, options = PASSES[name]
    model, given = smooth(), {"target": 1, "baselines": X0, "n_steps": 4, "at": at, **options}
    alone = [method(model, X, layer=one, **given) for one in LAYERS[layers]]
    for together in (
        method(model, X, layer=LAYERS[layers], **given),
        method(model, X, layer=LAYERS[layers], **given, create_graph=True),
        method(model, X, layer=LAYERS[layers], **given, batching="vmap"),
    ):
        assert isinstance(together, list)
        for a, b in zip(together, alone, strict=True):
            assert_informative(b)
            assert_close(a, b)


class Branches(nn.Module):
    """Layers side by side, one behind them, and one inside another."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.both, self.last = nn.Identity(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        c = self.both(a.tanh() * b)
        a.mul_(0)  # a later write changes no layer's value
        return self.last(torch.tanh(c + b.relu()))


@pytest.mark.parametrize("name", PASSES)
def test_layers_in_branches_get_what_they_get_alone(name: str) -> None:
    method, options = PASSES[name]
    model, given = make(Branches), {"target": 1, "baselines": X0, "n_steps": 4, **options}
    layers = ["right", "both", "left", "right.0"]
    together = method(model, X, layer=layers, **given)
    for layer, found in zip(layers, together, strict=True):
        expected = method(model, X, layer=layer, **given, create_graph=True).detach()
        assert_informative(expected)
        assert_close(found, expected)


@pytest.mark.usefixtures("independent_rows")
@pytest.mark.parametrize("name", ["conductance", "influence"])
def test_layers_share_the_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run for all nodes, beside one of the heads at the inputs and one at the baseline."""
    method, layers = PASSES[name][0], ["1", "2", "3"]
    runs = counted_runs(
        monkeypatch, lambda m: method(m, randn(5, 3), layer=layers, target=1, n_steps=4)
    )
    assert runs == (2 if name == "conductance" else 1) + 1


@pytest.mark.usefixtures("independent_rows")
def test_a_neuron_takes_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = counted_runs(
        monkeypatch,
        lambda m: attrfn.neuron_conductance(m, randn(5, 3), layer="2", neuron=1, target=1),
    )
    assert runs == 2
    assert Counted.runs[0] == 2


class Skips(nn.Module):
    """A part of the output goes past the layer, and the layer's value is overwritten later."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 5), nn.Identity(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        a = self.layer(h)
        out = self.last(a * a + h.cos())
        h.mul_(0)
        return out


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("neuron", [2, (slice(None),), lambda a: (a**2).sum(1)])
def test_a_neuron_in_one_pass_is_that_of_two_halves(neuron: Any, multiply: bool) -> None:
    """With create_graph=True the head runs twice, as the formula says."""
    model = make(Skips)
    given = {"layer": "layer", "neuron": neuron, "target": 1, "multiply_by_inputs": multiply}
    found = attrfn.neuron_conductance(model, X, **given, n_steps=5)
    expected = attrfn.neuron_conductance(model, X, **given, n_steps=5, create_graph=True).detach()
    assert_informative(expected)
    assert_close(found, expected)


def test_a_neuron_sums_to_its_layer() -> None:
    """By equal quadrature exactly, by the defaults up to what both leave."""
    model = smooth()
    given = {"layer": "1", "target": 1, "baselines": X0}
    part = attrfn.neuron_conductance(model, X, **given, neuron=2).sum(1)
    assert_close(part, attrfn.layer_conductance(model, X, **given)[:, 2], rtol=1e-5)
    exact = attrfn.layer_conductance(model, X, **given, quadrature="gauss_legendre")
    assert_close(part, exact[:, 2], rtol=1e-10)
