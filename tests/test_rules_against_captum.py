"""DeepLIFT, LRP and guided backpropagation against Captum.

Captum puts hooks on modules: it needs a module of its own for every activation, and does not see
functions. Where it applies, the two agree. The table ``BEYOND`` says, model by model, where it does
not: Captum raises, or its attributions do not sum to the change of the output.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from oracles import close, randn, seeded
from torch import nn

import attrfn
from attrfn import rules

attr = pytest.importorskip("captum.attr")
lrp_rules = pytest.importorskip("captum.attr._utils.lrp_rules")


@pytest.fixture(autouse=True)
def _captum_speaks():
    """It warns that it sets hooks, and that inputs did not require gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def mlp(activation=nn.ReLU):
    layers = [nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)]
    return nn.Sequential(*layers)


def cnn():
    """No max pooling together with activations, see ``BEYOND``."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ELU()),
        *(nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(64, 5), nn.Softplus(), nn.Linear(5, 3)),
    )


def pooled():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2)),
        *(nn.Flatten(), nn.Linear(16, 3)),
    )


class Skip(nn.Module):
    """Two branches that are added."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        self.act, self.last = nn.ReLU(), nn.Sigmoid()

    def forward(self, x):
        return self.out(self.last(self.act(self.a(x)) + self.b(x)))


def normed():
    norm = nn.BatchNorm1d(6)
    norm.running_mean.copy_(randn(1, 6))
    norm.running_var.copy_(randn(2, 6).abs() + 0.3)
    return nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3))


SAME = {
    "relu": (mlp, (4,)),
    "tanh": (lambda: mlp(nn.Tanh), (4,)),
    "sigmoid": (lambda: mlp(nn.Sigmoid), (4,)),
    "leaky relu": (lambda: mlp(nn.LeakyReLU), (4,)),
    "convolutions": (cnn, (2, 6, 6)),
    "max pooling": (pooled, (2, 6, 6)),
    "two branches": (Skip, (4,)),
    "batch norm": (normed, (4,)),
}
each = pytest.mark.parametrize("name", SAME)


def built(name):
    make, shape = SAME[name]
    return seeded(make), randn(0, 3, *shape), randn(1, 3, *shape)


@each
@pytest.mark.parametrize("multiply", [True, False])
def test_deep_lift(name, multiply):
    model, x, x0 = built(name)
    want = attr.DeepLift(model, multiply_by_inputs=multiply).attribute(
        x.clone(), baselines=x0, target=[0, 2, 1]
    )
    got = attrfn.deep_lift(model, x, baselines=x0, target=[0, 2, 1], multiply_by_inputs=multiply)
    close(got, want.detach(), 1e-8)


@each
def test_deep_lift_shap(name):
    model, x, _ = built(name)
    pool = randn(5, 4, *x.shape[1:])
    want = attr.DeepLiftShap(model).attribute(x.clone(), baselines=pool, target=1)
    got = attrfn.deep_lift_shap(model, x, baselines=pool, target=1)
    close(got, want.detach(), 1e-8)


@pytest.mark.parametrize("name", ["relu", "convolutions"])
def test_layers_and_neurons(name):
    model, x, x0 = built(name)
    options = {"baselines": x0, "target": 1}
    for layer in ("0", "1", "3"):
        want = attr.LayerDeepLift(model, model[int(layer)]).attribute(x.clone(), **options)
        got = attrfn.layer_deep_lift(model, x, layer=layer, **options)
        close(got, want.detach(), 1e-8)
    neuron = (1,) if name == "relu" else (1, 2, 0)
    want = attr.NeuronDeepLift(model, model[1]).attribute(x.clone(), neuron, baselines=x0)
    got = attrfn.neuron_deep_lift(model, x, layer="1", neuron=neuron, baselines=x0)
    close(got, want.detach(), 1e-8)


class Rectified(nn.Module):
    """What Captum's LRP knows: linear layers, convolutions, pooling and ReLU."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 2)
        self.three, self.four = nn.Linear(4, 5), nn.Linear(5, 3)
        self.acts = nn.ModuleList([nn.ReLU() for _ in range(3)])
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.acts[1](self.two(self.pool(self.acts[0](self.one(x)))))
        return self.four(self.acts[2](self.three(x.flatten(1))))


CAPTUM_RULES = {
    "epsilon": (lambda: lrp_rules.EpsilonRule(1e-9), rules.epsilon(1e-9)),
    "epsilon of 0.1": (lambda: lrp_rules.EpsilonRule(0.1), rules.epsilon(0.1)),
}


@pytest.mark.parametrize("rule", CAPTUM_RULES)
def test_lrp(rule):
    theirs, ours = CAPTUM_RULES[rule]
    x = randn(0, 3, 2, 6, 6)

    def ruled():
        """Captum's rules are used once."""
        model = seeded(Rectified)
        for layer in (model.one, model.two, model.three, model.four):
            layer.rule = theirs()
        return model

    want = attr.LRP(ruled()).attribute(x.clone(), target=1)
    close(attrfn.lrp(ruled(), x, target=1, rules=ours), want.detach(), 1e-7)
    for layer in ("one", "two", "three"):
        model = ruled()
        want = attr.LayerLRP(model, getattr(model, layer)).attribute(x.clone(), target=1)
        got = attrfn.layer_lrp(model, x, layer=layer, target=1, rules=ours)
        close(got, want.detach(), 1e-7)


@pytest.mark.parametrize("rule", ["gamma", "alpha1_beta0"])
def test_lrp_rules_of_nonnegative_inputs(rule):
    """Captum's gamma and alpha-beta are for inputs and scores of at least zero."""

    def make():
        layers = [nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)]
        return nn.Sequential(*layers)

    model, x = seeded(make), randn(0, 3, 4).abs()
    ours = rules.gamma(0.25, 1e-9) if rule == "gamma" else rules.alpha_beta(1, 0, 1e-9)
    theirs = lrp_rules.GammaRule if rule == "gamma" else lrp_rules.Alpha1_Beta0_Rule

    target = model(x).argmax(1)
    assert (model(x).amax(1) > 0).all()
    got = attrfn.lrp(model, x, target=target, rules=ours)
    for layer in (model[0], model[2]):
        layer.rule = theirs()
    want = attr.LRP(model).attribute(x.clone(), target=target)
    close(got, want.detach(), 1e-6)


@pytest.mark.parametrize("name", ["relu", "batch norm"])
def test_guided_backprop(name):
    model, x, _ = built(name)
    want = attr.GuidedBackprop(model).attribute(x.clone(), target=2)
    close(attrfn.guided_backprop(model, x, target=2), want.detach())


# ---------------------------------------------------------------------------------------------
# beyond hooks


class Net(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, between, modules=None):
        super().__init__()
        self.inp, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.between = between
        self.parts = modules

    def forward(self, x):
        return self.out(self.between(self.parts, self.inp(x)))


def attention(m, h):
    tokens = h.unflatten(1, (3, 2))
    return m(tokens, tokens, tokens, need_weights=False)[0].flatten(1)


BEYOND = {
    # what is between the layers, its module, what Captum does
    "nn.ReLU": (lambda m, h: m(h), nn.ReLU, "complete"),
    "nn.MaxPool1d": (
        lambda m, h: torch.cat([m(h[:, None])[:, 0], h[:, :3]], 1),
        lambda: nn.MaxPool1d(2),
        "complete",
    ),
    "nn.MaxPool1d behind nn.ReLU": (
        lambda m, h: torch.cat([m(h[:, None])[:, 0], h[:, :3]], 1),
        lambda: nn.Sequential(nn.ReLU(), nn.MaxPool1d(2)),
        "incomplete",
    ),
    "nn.MaxPool1d before nn.Tanh": (
        lambda m, h: torch.cat([m(h[:, None])[:, 0], h[:, :3]], 1),
        lambda: nn.Sequential(nn.MaxPool1d(2), nn.Tanh()),
        "incomplete",
    ),
    "nn.MaxPool1d, overlapping": (
        lambda m, h: m(h[:, None])[:, 0],
        lambda: nn.MaxPool1d(3, 1, 1),
        "incomplete",
    ),
    "F.relu": (lambda m, h: F.relu(h), None, "incomplete"),
    "Tensor.tanh": (lambda m, h: h.tanh(), None, "incomplete"),
    "F.max_pool1d": (lambda m, h: F.max_pool1d(h[:, None], 3, 1, 1)[:, 0], None, "incomplete"),
    "one nn.ReLU twice": (lambda m, h: m(m(h) - 0.3), nn.ReLU, "raises"),
    "nn.GELU": (lambda m, h: m(h), nn.GELU, "incomplete"),
    "nn.SiLU": (lambda m, h: m(h), nn.SiLU, "incomplete"),
    "nn.Softmax": (lambda m, h: m(h), lambda: nn.Softmax(1), "incomplete"),
    "nn.LayerNorm": (lambda m, h: m(h), lambda: nn.LayerNorm(6), "incomplete"),
    "nn.GroupNorm": (lambda m, h: m(h), lambda: nn.GroupNorm(2, 6), "incomplete"),
    "multiplication": (lambda m, h: h * h.flip(1), None, "incomplete"),
    "division": (lambda m, h: h / (1 + h.square()), None, "incomplete"),
    "a gate": (lambda m, h: m(h) * h, nn.Sigmoid, "incomplete"),
    "nn.GLU": (lambda m, h: torch.cat([m(h), m(-h)], 1), lambda: nn.GLU(1), "incomplete"),
    "nn.MultiheadAttention": (
        attention,
        lambda: nn.MultiheadAttention(2, 1, batch_first=True),
        "incomplete",
    ),
    "nn.LSTM": (
        lambda m, h: m(h.unflatten(1, (3, 2)))[0].flatten(1),
        lambda: nn.LSTM(2, 2, batch_first=True),
        "incomplete",
    ),
}


def captum_does(model, x, x0):
    """Whether Captum raises, or sums to the change of the output."""
    try:
        a = attr.DeepLift(model).attribute(x.clone(), baselines=x0, target=1)
    except (RuntimeError, AssertionError):
        return "raises"
    change = (model(x) - model(x0))[:, 1]
    gap = (a.sum(1) - change).abs().max() / change.abs().max()
    return "complete" if gap < 1e-6 else "incomplete"


@pytest.mark.parametrize("name", BEYOND)
def test_beyond_captum(name):
    """The table says what Captum does; attrfn is complete in every row of it."""
    between, make, theirs = BEYOND[name]
    model = seeded(lambda: Net(between, make() if make is not None else None), seed=4)
    x, x0 = randn(0, 3, 4), randn(1, 3, 4)
    for rule in ("rescale", "reveal_cancel"):
        a = attrfn.deep_lift(model, x, baselines=x0, target=1, rule=rule)
        change = (model(x) - model(x0))[:, 1].detach()
        assert (a.sum(1) - change).abs().max() < 1e-10 * change.abs().max()
    assert captum_does(model, x, x0) == theirs


def test_batch_mates():
    """Captum's rule of softmax subtracts a mean over the batch, so that rows depend on others."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)))
    x, x0 = randn(0, 3, 4), randn(1, 3, 4)

    def ours(x, x0):
        return attrfn.deep_lift(model, x, baselines=x0, target=1)

    def theirs(x, x0):
        return attr.DeepLift(model).attribute(x.clone(), baselines=x0, target=1).detach()

    close(ours(x, x0)[:1], ours(x[:1], x0[:1]))
    assert (theirs(x, x0)[:1] - theirs(x[:1], x0[:1])).abs().max() > 1e-3


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.LayerNorm])
def test_lrp_beyond_captum(activation):
    """Captum's LRP raises where it has no rule for a module."""
    act = nn.LayerNorm(6) if activation is nn.LayerNorm else activation()
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 3)))
    x = randn(0, 3, 4)
    with pytest.raises(TypeError, match=r"no ?default ?rule"):
        attr.LRP(model).attribute(x.clone(), target=1)
    assert attrfn.lrp(model, x, target=1).shape == x.shape
