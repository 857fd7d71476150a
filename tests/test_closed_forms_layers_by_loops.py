"""Layers and neurons of a convolutional network and awkward layers, against loops with hooks."""

from __future__ import annotations

import functools

import oracles
import pytest
import torch
from closed_forms_nets import IMAGES, IMAGES0, X0, T, X, cnn, parts, quadratic
from oracles import close, randn
from torch import nn

import attrfn

PLACES = [
    ("conv1", "output"),
    ("act1", "output"),
    ("conv2", "input"),
    ("conv2", "output"),
    ("flat", "output"),
    ("fc", "input"),
]
PAIR, PAIR0 = (randn(4, 4, 3), randn(5, 4, 2, 2)), (randn(6, 4, 3), randn(7, 4, 2, 2))


# ---------------------------------------------------------------------------------------------
# loops with hooks: a convolutional network, at outputs and at inputs


@pytest.mark.parametrize(("layer", "at"), PLACES)
def test_layer_activation_of_a_cnn(layer, at):
    model = cnn()
    want = oracles.layer_value(model, layer, IMAGES, at).detach()
    close(attrfn.layer_activation(model, IMAGES, layer=layer, at=at), want)


TARGETS = [3, [4, 0], torch.tensor([1, 2]), [(0,), (slice(1, 4),)], lambda out: out[:, 2].exp()]


@pytest.mark.parametrize("target", TARGETS, ids=["int", "list", "tensor", "tuples", "callable"])
@pytest.mark.parametrize(("layer", "at"), PLACES)
def test_layer_gradient_x_activation_of_a_cnn(layer, at, target):
    model = cnn()
    a = oracles.layer_value(model, layer, IMAGES, at).detach()
    grads = oracles.layer_gradients(model, layer, IMAGES, target=target, at=at)
    got = attrfn.layer_gradient_x_activation(model, IMAGES, layer=layer, at=at, target=target)
    close(got, a * grads)


@pytest.mark.parametrize(
    "name", ["layer_integrated_gradients", "layer_conductance", "internal_influence"]
)
@pytest.mark.parametrize(("layer", "at"), [("act1", "output"), ("conv2", "input"), ("fc", "input")])
@pytest.mark.parametrize("rule", ["gauss_legendre", "riemann_left", "riemann_trapezoid"])
def test_path_methods_at_a_layer_of_a_cnn(name, layer, at, rule):
    model, n, target = cnn(), 3, [1, 3]
    want = getattr(oracles, name)(model, layer, IMAGES, IMAGES0, rule, n, target, at)
    got = getattr(attrfn, name)(
        model,
        IMAGES,
        layer=layer,
        at=at,
        target=target,
        baselines=IMAGES0,
        n_steps=n,
        quadrature=rule,
    )
    close(got, want)


@pytest.mark.parametrize(
    "name", ["layer_integrated_gradients", "layer_conductance", "internal_influence"]
)
@pytest.mark.parametrize("layer", ["left", "right", "act"])
def test_path_methods_at_a_layer_behind_two_inputs(name, layer):
    """At ``left`` only the first input moves the layer, but the second moves what lies behind it.

    Layer integrated gradients keeps it at x, the other two walk both inputs along the path.
    """
    model = oracles.seeded(oracles.TwoInputs)
    want = getattr(oracles, name)(model, layer, PAIR, PAIR0, n=4, target=2)
    path = {"baselines": PAIR0, "n_steps": 4, "quadrature": "gauss_legendre"}
    got = getattr(attrfn, name)(model, PAIR, layer=layer, target=2, **path)
    close(got, want)


@pytest.mark.parametrize(
    ("baselines", "x0", "y0"),
    [(None, 0, 0), (0.5, 0.5, 0.5), ((None, 1), 0, 1), ((PAIR0[0][:1], None), PAIR0[0][:1], 0)],
    ids=["none", "scalar", "none_and_int", "tensor_and_none"],
)
@pytest.mark.parametrize(
    "name", ["layer_integrated_gradients", "layer_conductance", "internal_influence"]
)
def test_baselines_of_layer_methods_are_those_of_the_inputs(name, baselines, x0, y0):
    model = oracles.seeded(oracles.TwoInputs)
    start = (torch.zeros_like(PAIR[0]) + x0, torch.zeros_like(PAIR[1]) + y0)
    want = getattr(oracles, name)(model, "act", PAIR, start, n=3, target=2)
    path = {"baselines": baselines, "n_steps": 3, "quadrature": "gauss_legendre"}
    got = getattr(attrfn, name)(model, PAIR, layer="act", target=2, **path)
    close(got, want)


@pytest.mark.parametrize(
    ("layer", "at"), [("conv1", "output"), ("act2", "output"), ("fc", "input")]
)
def test_layer_conductance_against_differences_along_the_path(layer, at):
    """sum_k df/da(x_(k+1/2)) (a(x_(k+1)) - a(x_k)) has an error of order n^-2."""
    model = cnn()
    options = {"target": [1, 3], "at": at}
    coarse, fine = (
        oracles.layer_conductance_by_differences(model, layer, IMAGES, IMAGES0, n, **options)
        for n in (30, 60)
    )
    got = attrfn.layer_conductance(model, IMAGES, layer=layer, baselines=IMAGES0, **options)
    close(got, fine, 1e-2)
    close(got, (4 * fine - coarse) / 3, 1e-6)  # Richardson's extrapolation: order n^-4


def test_conductance_of_a_layer_that_cuts_the_network_is_complete():
    model = cnn()
    change = oracles.values(model, IMAGES, 2) - oracles.values(model, IMAGES0, 2)
    for layer in ("conv1", "pool", "act2", "flat"):
        got = attrfn.layer_conductance(
            model, IMAGES, layer=layer, target=2, baselines=IMAGES0, quadrature="gauss_legendre"
        )
        close(got.flatten(1).sum(1), change, 1e-9)


@pytest.mark.parametrize(("layer", "neuron"), [("act1", (1, 2, 3)), ("fc", 4), ("flat", (7,))])
def test_neuron_methods_of_a_cnn(layer, neuron):
    model = cnn()

    def head(x):
        return oracles.layer_value(model, layer, x)

    options = {"layer": layer, "neuron": neuron}
    close(attrfn.neuron_gradient(model, IMAGES, **options), oracles.gradients(head, IMAGES, neuron))
    path = {**options, "baselines": IMAGES0, "n_steps": 4, "quadrature": "riemann_right"}
    want = oracles.integrated_gradients(head, IMAGES, IMAGES0, "riemann_right", 4, neuron)
    close(attrfn.neuron_integrated_gradients(model, IMAGES, **path), want)
    want = oracles.neuron_conductance(
        model, layer, neuron, IMAGES, IMAGES0, "riemann_right", 4, [0, 3]
    )
    close(attrfn.neuron_conductance(model, IMAGES, target=[0, 3], **path), want)


def test_a_block_of_neurons_is_the_sum_of_its_neurons():
    """Slices pick channel 1 at rows 0 and 1: each neuron weighs with its own df/dn."""
    model, neuron = cnn(), (1, slice(0, 2), 3)
    for name in ("neuron_gradient", "neuron_integrated_gradients", "neuron_conductance"):
        method = getattr(attrfn, name)
        options = {} if name == "neuron_gradient" else {"n_steps": 3}
        options |= {"target": 1} if name == "neuron_conductance" else {}
        got = method(model, IMAGES, layer="act1", neuron=neuron, **options)
        singles = [
            method(model, IMAGES, layer="act1", neuron=(1, row, 3), **options) for row in (0, 1)
        ]
        close(got, singles[0] + singles[1])


def test_neuron_methods_of_two_inputs():
    model = oracles.seeded(oracles.TwoInputs)

    def head(x, y):
        return oracles.layer_value(model, "act", (x, y))

    options = {"layer": "act", "neuron": 3}
    close(attrfn.neuron_gradient(model, PAIR, **options), oracles.gradients(head, PAIR, 3))
    path = {**options, "baselines": PAIR0, "n_steps": 5}
    want = oracles.integrated_gradients(head, PAIR, PAIR0, n=5, target=3)
    close(attrfn.neuron_integrated_gradients(model, PAIR, **path), want)
    want = oracles.neuron_conductance(model, "act", 3, PAIR, PAIR0, n=5, target=1)
    close(attrfn.neuron_conductance(model, PAIR, target=1, **path), want)


def test_neuron_at_the_input_of_a_layer():
    """The input of the square is a = Wx + c: gradient W_j."""
    model = quadratic()
    w, v, a, a0 = parts(model)
    options = {"layer": "1", "at": "input", "neuron": 2}
    close(attrfn.neuron_gradient(model, X, **options), w[2].expand(5, 3))
    got = attrfn.neuron_integrated_gradients(model, X, baselines=X0, n_steps=1, **options)
    close(got, (X - X0) * w[2])
    got = attrfn.neuron_gradient_shap(model, X, baselines=X0[:1], **options)
    close(got, (X - X0[:1]) * w[2])
    got = attrfn.neuron_conductance(model, X, target=T, baselines=X0, n_steps=1, **options)
    close(got, (X - X0) * w[2] * (v * (a + a0))[:, 2:3])


def test_neuron_conductance_sums_to_the_layers_conductance():
    """Over the inputs to the unit's conductance, over the units to integrated gradients."""
    model = cnn()
    units = attrfn.layer_conductance(
        model,
        IMAGES,
        layer="fc",
        at="input",
        target=1,
        n_steps=4,
        quadrature="gauss_legendre",
    )
    each = torch.stack(
        [
            attrfn.neuron_conductance(
                model, IMAGES, layer="fc", at="input", neuron=j, target=1, n_steps=4
            )
            for j in range(0, 72, 9)
        ],
        1,
    )
    close(each.flatten(2).sum(2), units[:, ::9])
    model = quadratic()
    total = sum(
        attrfn.neuron_conductance(model, X, layer="0", neuron=j, target=T, n_steps=3)
        for j in range(4)
    )
    close(total, oracles.integrated_gradients(model, X, 0 * X, n=3, target=T))


# ---------------------------------------------------------------------------------------------
# awkward layers: tokens, tuples, lists, reused ones


def text():
    ids = torch.tensor([[1, 5, 3, 0, 2], [7, 7, 4, 10, 1], [2, 0, 9, 8, 6]])
    return oracles.seeded(oracles.Attention), (ids, torch.arange(5).expand(3, 5))


@pytest.mark.parametrize("layer", ["words", "places", "value", "norm"])
def test_layer_methods_behind_token_ids(layer):
    model, x = text()
    x0 = tuple(torch.zeros_like(t) for t in x)
    a = oracles.layer_value(model, layer, x).detach()
    close(attrfn.layer_activation(model, x, layer=layer), a)
    got = attrfn.layer_gradient_x_activation(model, x, layer=layer, target=2)
    close(got, a * oracles.layer_gradients(model, layer, x, target=2))
    got = attrfn.layer_integrated_gradients(model, x, layer=layer, target=2, n_steps=4)
    close(got, oracles.layer_integrated_gradients(model, layer, x, x0, n=4, target=2))


@pytest.mark.parametrize("k", [1, 3])
def test_layer_gradient_shap_carries_each_baseline_to_the_layer_with_each_examples_mask(k):
    """Behind ``norm`` the model is linear, A = (a - c) W_t / T, with c = head(b, mask of the row).

    One draw is that of one of the k baselines, the same for all the rows.
    """
    model, x = text()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
    pool = (torch.tensor([[0, 1, 2, 3, 4], [9, 9, 9, 9, 9], [5, 0, 5, 0, 5]])[:k], x[1][:k])
    with torch.no_grad():
        a = oracles.layer_value(model, "norm", (*x, mask))
        c = torch.stack(
            [
                torch.cat(
                    [
                        oracles.layer_value(model, "norm", (ids[None], places[None], one[None]))
                        for one in mask
                    ]
                )
                for ids, places in zip(*pool, strict=True)
            ]
        )
        want = (a - c) * model.out.weight[2] / 5
    masked = functools.partial(model, mask=mask)
    used = set()
    for key in range(12):
        got = attrfn.layer_gradient_shap(
            masked, x, layer="norm", baselines=pool, target=2, n_samples=1, key=key
        )
        gaps = (got - want).abs().amax((1, 2, 3))
        assert gaps.min() < 1e-10
        used.add(int(gaps.argmin()))
    assert used == set(range(k))


def test_layer_integrated_gradients_from_given_token_ids():
    model, x = text()
    x0 = (torch.full_like(x[0], 3), x[1])
    got = attrfn.layer_integrated_gradients(
        model, x, layer="words", target=0, baselines=(3, x[1]), n_steps=4
    )
    close(got, oracles.layer_integrated_gradients(model, "words", x, x0, n=4, target=0))


def test_layers_of_a_list_are_moved_together_by_layer_integrated_gradients():
    """One path for both: f(l, r) = out(act(l/2 + lr)), so neither is the layer's own result."""
    model = oracles.seeded(oracles.TwoInputs)

    def behind(left, right):
        return model.out(model.act(model.meet(left, right)))

    with torch.no_grad():
        ends, starts = (
            tuple(oracles.layer_value(model, layer, z) for layer in ("left", "right"))
            for z in (PAIR, PAIR0)
        )
    want = oracles.integrated_gradients(behind, ends, starts, n=5, target=1)
    options = {"target": 1, "baselines": PAIR0, "n_steps": 5}
    got = attrfn.layer_integrated_gradients(model, PAIR, layer=["left", "right"], **options)
    close(got, list(want))
    change = oracles.values(model, PAIR, 1) - oracles.values(model, PAIR0, 1)
    got = attrfn.layer_integrated_gradients(
        model, PAIR, layer=["left", "right"], target=1, baselines=PAIR0
    )
    close(got[0].sum(1) + got[1].sum(1), change, 1e-9)
    alone = attrfn.layer_integrated_gradients(model, PAIR, layer="left", **options)
    assert (alone - want[0]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name", ["layer_gradient_x_activation", "layer_conductance", "internal_influence"]
)
def test_layers_of_a_list_are_explained_one_by_one_by_the_other_methods(name):
    model, layers = cnn(), ["act1", "flat"]
    options = {"target": 1} | ({} if name == "layer_gradient_x_activation" else {"n_steps": 3})
    got = getattr(attrfn, name)(model, IMAGES, layer=layers, **options)
    assert isinstance(got, list)
    for one, layer in zip(got, layers, strict=True):
        close(one, getattr(attrfn, name)(model, IMAGES, layer=layer, **options))
    assert got[0].shape == (2, 4, 8, 8)
    assert got[1].shape == (2, 72)


def test_layer_activation_of_a_list():
    model = quadratic()
    _, _, a, _ = parts(model)
    close(attrfn.layer_activation(model, X, layer=["1", model[0]]), [a**2, a])


class Fork(nn.Module):
    """x -> (2x, x^2)"""

    def forward(self, x):
        return 2 * x, x**2


class Join(nn.Module):
    """(u, v) -> uv"""

    def forward(self, u, v):
        return u * v


class Forked(nn.Module):
    """f = sum 2x * x^2 through a layer that returns a pair and one that takes it."""

    def __init__(self):
        super().__init__()
        self.fork = Fork()
        self.join = Join()

    def forward(self, x):
        return self.join(*self.fork(x)).sum(1)


@pytest.mark.parametrize(("layer", "at"), [("fork", "output"), ("join", "input")])
def test_layers_with_two_tensors(layer, at):
    """u = 2x, v = x^2, f = uv: each method gives a pair.

    Integrated gradients shares by the straight path from (u0, v0): ((u - u0)(v + v0)/2, ...).
    Conductance walks the path of the inputs: from 0 the integrals of v du = 2x^3 s^2 ds and
    u dv = 4x^3 s^2 ds, so f = 2x^3 is shared as 2/3 and 4/3. Influence: means of v and u.
    """
    model, where = Forked(), {"layer": layer, "at": at}
    u, v, u0, v0 = 2 * X, X**2, 2 * X0, X0**2
    close(attrfn.layer_activation(model, X, **where), (u, v))
    close(attrfn.layer_gradient_x_activation(model, X, **where), (u * v, u * v))
    got = attrfn.layer_integrated_gradients(model, X, baselines=X0, n_steps=2, **where)
    close(got, ((u - u0) * (v + v0) / 2, (v - v0) * (u + u0) / 2))
    got = attrfn.layer_conductance(model, X, n_steps=2, **where)
    close(got, (2 / 3 * X**3, 4 / 3 * X**3))
    got = attrfn.internal_influence(model, X, n_steps=2, **where)
    close(got, (X**2 / 3, X))
    got = attrfn.layer_gradient_shap(model, X, baselines=X[:1], n_samples=1, **where)
    assert [t.shape for t in got] == [X.shape, X.shape]
    close([t[0] for t in got], [torch.zeros(3).double()] * 2)  # from its own baseline


def test_neurons_of_a_layer_with_two_tensors():
    """n = u_0 v_1 = 2 x_0 x_1^2 as a callable of the pair."""
    x0, x1 = X[:, 0], X[:, 1]
    got = attrfn.neuron_gradient(
        Forked(), X, layer="fork", neuron=lambda pair: pair[0][:, 0] * pair[1][:, 1]
    )
    close(got, torch.stack([2 * x1**2, 4 * x0 * x1, 0 * x0], 1))


class Reused(nn.Module):
    """One linear layer, twice in a row (chain) or side by side."""

    def __init__(self, chain):
        super().__init__()
        self.chain = chain
        self.shared = nn.Linear(3, 3)

    def forward(self, x):
        if self.chain:
            return (self.shared(self.shared(x) ** 2) ** 2).sum(1)
        return (self.shared(x) * self.shared(x.flip(1))).sum(1)


def test_the_calls_of_a_reused_layer():
    """a = Lx, f = sum (L a^2)^2: at call 1 the gradient is 2 L a^2, at call 0 4a W'(L a^2)."""
    model = oracles.seeded(lambda: Reused(chain=True))
    with torch.no_grad():
        a = model.shared(X)
        b = model.shared(a**2)
        want = 4 * a**2 * (b @ model.shared.weight)
    for call, value, product in ((0, a, want), (1, b, 2 * b**2)):
        where = {"layer": "shared", "call": call}
        close(attrfn.layer_activation(model, X, **where), value)
        close(attrfn.layer_gradient_x_activation(model, X, **where), product)


def test_all_calls_of_a_reused_layer_together():
    """f = sum ab with a = Lx and b = Lx': ((a - a0)(b + b0)/2, (b - b0)(a + a0)/2)."""
    model = oracles.seeded(lambda: Reused(chain=False))
    with torch.no_grad():
        (a, b), (a0, b0) = ((model.shared(z), model.shared(z.flip(1))) for z in (X, X0))
    where = {"layer": "shared", "call": None}
    close(attrfn.layer_activation(model, X, **where), (a, b))
    got = attrfn.layer_integrated_gradients(model, X, baselines=X0, n_steps=1, **where)
    close(got, ((a - a0) * (b + b0) / 2, (b - b0) * (a + a0) / 2))
