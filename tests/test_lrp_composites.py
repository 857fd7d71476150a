"""LRP by composites: fixed values of another library, batch norm, and which rule is where."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from lrp_nets import conv_net, filled, picture
from oracles import close, randn, seeded
from torch import nn
from torch.func import functional_call

import attrfn
from attrfn import rules

# ---------------------------------------------------------------------------------------------
# fixed values of another library

# Computed by running zennit, unmodified.
FIXED = json.loads((Path(__file__).parent / "data" / "lrp_reference_values.json").read_text())
COMPOSITES = FIXED["composites"]


def value(name):
    return torch.tensor(COMPOSITES[name], dtype=torch.float64).reshape(1, 1, 4, 4)


NAMED = {
    "EpsilonPlus": rules.epsilon_plus(),
    "EpsilonAlpha2Beta1": rules.epsilon_alpha2_beta1(),
    "EpsilonPlusFlat": rules.epsilon_plus_flat(),
    "EpsilonAlpha2Beta1Flat": rules.epsilon_alpha2_beta1_flat(),
    "EpsilonGammaBox(-3,3)": rules.epsilon_gamma_box(-3, 3),
}
POOLING = 1e-5
"""Zennit divides by the output of average pooling plus 1e-6, attrfn does not divide at all."""


def test_the_model_of_the_fixed_values():
    close(conv_net()(picture()), torch.tensor(COMPOSITES["logits"], dtype=torch.float64))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_composites(name, create_graph):
    got = attrfn.lrp(conv_net(), picture(), target=0, rules=NAMED[name], create_graph=create_graph)
    want = value(name)
    assert (got - want).abs().max() < POOLING * want.abs().max()


def test_epsilon_plus_is_the_default():
    model = conv_net()
    got = attrfn.lrp(model, picture(), target=1)
    assert torch.equal(got, attrfn.lrp(model, picture(), target=1, rules=rules.epsilon_plus()))


@pytest.mark.parametrize(
    ("name", "method"),
    [("GuidedBackprop", attrfn.guided_backprop), ("DeconvNet", attrfn.deconvolution)],
)
def test_rules_for_relu(name, method):
    close(method(conv_net(), picture(), target=0), value(f"{name} (grad_output=onehot)"), 1e-9)


def test_excitation_backprop_is_z_plus_from_a_one_at_the_output():
    model, x = conv_net(), picture()
    logit = COMPOSITES["logits"][0][0]
    got = attrfn.lrp(lambda x: model(x)[:, 0] / logit, x, rules=rules.z_plus())
    want = value("ExcitationBackprop (grad_output=onehot)")
    assert (got - want).abs().max() < POOLING * want.abs().max()


def test_batch_norm_of_the_fixed_values():
    fixed = COMPOSITES["EpsilonPlus + merged BatchNorm"]
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 2)),
    )
    model = filled(model)
    model[1].running_mean.copy_(torch.tensor([0.1, -0.2]))
    model[1].running_var.copy_(torch.tensor([0.5, 2.0]))
    close(model(picture()), torch.tensor(fixed["logits"], dtype=torch.float64))
    want = torch.tensor(fixed["R"], dtype=torch.float64).reshape(1, 1, 4, 4)
    close(attrfn.lrp(model, picture(), target=0), want, 1e-9)


# ---------------------------------------------------------------------------------------------
# batch norm


def statistics_of(model, seed=5):
    """Random statistics and weights for every batch norm."""
    for i, m in enumerate(model.modules()):
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.copy_(randn(seed + i, m.num_features))
            m.running_var.copy_(randn(seed + 10 + i, m.num_features).abs() + 0.2)
            if m.affine:
                m.weight.data.copy_(randn(seed + 20 + i, m.num_features))
                m.bias.data.copy_(randn(seed + 30 + i, m.num_features))
    return model


NORMED = {
    "linear": (lambda: (nn.Linear(5, 4), nn.BatchNorm1d(4)), (5,)),
    "linear without bias": (lambda: (nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)), (5,)),
    "conv1d": (lambda: (nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4)), (2, 5)),
    "conv2d": (lambda: (nn.Conv2d(2, 4, 2, groups=2), nn.BatchNorm2d(4)), (2, 4, 4)),
    "conv2d, plain norm": (
        lambda: (nn.Conv2d(2, 4, 2, bias=False), nn.BatchNorm2d(4, affine=False, eps=0.1)),
        (2, 4, 4),
    ),
    "conv3d": (lambda: (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 3, 3, 3)),
    "transposed": (lambda: (nn.ConvTranspose2d(2, 4, 2, stride=2), nn.BatchNorm2d(4)), (2, 3, 3)),
}


def merged(layer, norm):
    """A copy of the layer with the norm in its weights, written out."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    options = {"stride": layer.stride, "groups": layer.groups} if hasattr(layer, "stride") else {}
    sizes = (
        (layer.in_features, layer.out_features)
        if isinstance(layer, nn.Linear)
        else (layer.in_channels, layer.out_channels, layer.kernel_size)
    )
    both = type(layer)(*sizes, **options).double()
    g = 1.0 if norm.weight is None else norm.weight
    scale = g / torch.sqrt(norm.running_var + norm.eps)
    shape = [1] * layer.weight.ndim
    shape[1 if transposed else 0] = -1
    bias = 0.0 if layer.bias is None else layer.bias
    shift = 0.0 if norm.bias is None else norm.bias
    both.weight.data = (layer.weight * scale.reshape(shape)).detach()
    both.bias.data = ((bias - norm.running_mean) * scale + shift).detach()
    return both


RULES = {
    "epsilon": rules.epsilon(),
    "z_plus": rules.z_plus(),
    "alpha_beta": rules.alpha_beta(),
    "gamma": rules.gamma(),
    "flat": rules.epsilon_plus_flat(),
    "w_square": rules.composite(first=rules.w_square()),
    "box": rules.epsilon_gamma_box(-4, 4),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NORMED)
def test_batch_norm_is_folded_into_the_layer_before_it(name, rule):
    make, shape = NORMED[name]
    model = statistics_of(seeded(lambda: nn.Sequential(*make(), nn.ReLU(), nn.Flatten())))
    model.append(seeded(lambda: nn.Linear(model(randn(0, 1, *shape)).shape[1], 3)))
    plain = nn.Sequential(merged(model[0], model[1]), *model[2:])
    x = randn(0, 3, *shape)
    close(plain(x), model(x))
    want = attrfn.lrp(plain, x, target=1, rules=RULES[rule])
    assert (want != 0).any()
    for create_graph in (False, True):
        got = attrfn.lrp(model, x, target=1, rules=RULES[rule], create_graph=create_graph)
        close(got, want, 1e-9)
    params = rules.fold_batch_norm(model)
    folded = functools.partial(functional_call, model, params)
    close(folded(x), model(x))
    close(attrfn.lrp(folded, x, target=1, rules=RULES[rule]), want, 1e-9)


def test_folding_leaves_the_model_alone():
    make, shape = NORMED["conv2d"]
    model = statistics_of(seeded(lambda: nn.Sequential(*make())))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    params = rules.fold_batch_norm(model)
    assert set(params) == set(before)
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])
    close(functional_call(model, params, randn(0, 3, *shape)), model(randn(0, 3, *shape)))


class Elsewhere(nn.Module):
    """The batch norms are registered far from their layers."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm1d(3)])
        self.out = nn.Linear(4, 3)
        self.inp = nn.Linear(5, 4)

    def forward(self, x):
        return self.norms[1](self.out(self.norms[0](self.inp(x)).relu()))


def test_pairs_by_name():
    model, x = statistics_of(seeded(Elsewhere)), randn(0, 3, 5)
    params = rules.fold_batch_norm(model, [("inp", "norms.0"), ("out", "norms.1")])
    assert not torch.equal(params["inp.weight"], model.inp.weight)
    folded = functools.partial(functional_call, model, params)
    close(folded(x), model(x))
    want = attrfn.lrp(model, x, target=0, rules=rules.gamma())
    close(attrfn.lrp(folded, x, target=0, rules=rules.gamma()), want, 1e-9)
    assert rules.fold_batch_norm(model).keys() == params.keys()
    with pytest.raises(ValueError, match=r"pairs has \('inp', 'norms.1'\)"):
        rules.fold_batch_norm(model, [("inp", "norms.1")])


class Ordered(nn.Module):
    """Modules in the order in which they are registered."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def ordered(layers, norms, *, between):
    """Layers and norms by width, one behind the other, or first all layers and then all norms."""
    pairs = [(f"fc{i}", nn.Linear(4, n)) for i, n in enumerate(layers)]
    others = [(f"bn{i}", nn.BatchNorm1d(n)) for i, n in enumerate(norms)]
    mixed = [m for pair in zip(pairs, others, strict=True) for m in pair]
    return Ordered(**dict(mixed if between else pairs + others)).eval()


@pytest.mark.parametrize("widths", [(4, 4), (4, 5), (5, 4, 4)])
def test_registration_that_is_not_the_order_of_the_calls_is_refused(widths):
    model = ordered(widths, widths, between=False)
    with pytest.raises(ValueError, match=r"'bn0' is registered directly after.*give pairs="):
        rules.fold_batch_norm(model)
    named = [(f"fc{i}", f"bn{i}") for i in range(len(widths))]
    got = rules.fold_batch_norm(model, named)
    want = rules.fold_batch_norm(Ordered(**dict(ordered_by(model, named))))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in got)


def ordered_by(model, pairs):
    return [(name, getattr(model, name)) for pair in pairs for name in pair]


def test_what_is_used_twice_is_not_folded():
    tied = ordered((4, 4), (4, 4), between=True)
    tied.fc1.weight = tied.fc0.weight
    reused = ordered((4, 4), (4, 4), between=True)
    reused.again = reused.bn1
    for model, name in ((tied, "fc0"), (reused, "bn1")):
        with pytest.raises(ValueError, match=rf"'{name}' is in several pairs, or shares"):
            rules.fold_batch_norm(model)
    model = ordered((4, 4), (4, 4), between=True)
    with pytest.raises(ValueError, match=r"'fc0' is in several pairs"):
        rules.fold_batch_norm(model, [("fc0", "bn0"), ("fc0", "bn1")])
    rules.fold_batch_norm(tied, [])


def test_a_batch_norm_behind_no_layer_scales():
    """R_in = x * slope * R / y: its shift takes a share."""
    norm, x, c = statistics_of(nn.BatchNorm1d(4).double().eval()), randn(0, 3, 4), randn(1, 3, 4)
    got = attrfn.lrp(lambda x: (norm(x) * c).sum(1), x)
    slope = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    close(got, (x * slope * c).detach(), 1e-9)


# ---------------------------------------------------------------------------------------------
# which rule is where


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Conv1d(2, 2, 2), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.features(x[:, None]).flatten(1))


def by_steps(model, x, first, second, last):
    """LRP with a rule for each of the three layers, one layer of relevance after the other."""
    conv, _, conv2, _ = model.features
    a = conv(x[:, None]).relu().detach()
    b = conv2(a).relu().detach()

    def through(f, at, relevance, rule):
        y = f(at).detach()
        c = torch.where(y == 0, 0.0, relevance / torch.where(y == 0, 1.0, y))
        return attrfn.lrp(lambda t: (f(t) * c).flatten(1).sum(1), at, rules=rule)

    r = torch.zeros(len(x), 3, dtype=x.dtype)
    r[:, 1] = model(x)[:, 1].detach()
    r = through(lambda t: model.head(t.flatten(1)), b, r, last)
    r = through(conv2, a, r, second)
    return through(lambda t: conv(t[:, None]), x, r, first)


G, E, Z, A = rules.gamma(1), rules.epsilon(0.1), rules.z_plus(), rules.alpha_beta()


@pytest.mark.parametrize(
    ("composite", "placed"),
    [
        (rules.composite(E), (E, E, E)),
        (rules.composite(E, G), (G, G, E)),
        (rules.composite(E, G, names={"head": Z}), (G, G, Z)),
        (rules.composite(E, G, names={"features.2": Z}), (G, Z, E)),
        (rules.composite(E, G, names={"features.*": Z}), (Z, Z, E)),
        (rules.composite(E, G, names={"features": Z}), (Z, Z, E)),
        (rules.composite(E, G, names={"features.*": Z, "features.0": A}), (A, Z, E)),
        (rules.composite(E, G, names={"features.0": A, "features.*": Z}), (Z, Z, E)),
        (rules.composite(E, G, names={"features.0": A, "features": Z}), (A, Z, E)),
        (rules.composite(E, G, names={"*": Z}), (Z, Z, Z)),
        (rules.composite(names={"*.2": Z, "head": A}), (rules.epsilon(), Z, A)),
    ],
)
def test_rules_by_kind_and_name(composite, placed):
    model, x = seeded(Nested), randn(0, 4, 5)
    want = by_steps(model, x, *placed)
    close(attrfn.lrp(model, x, target=1, rules=composite), want, 1e-9)
    close(attrfn.lrp(model, x, target=1, rules=composite, create_graph=True), want, 1e-9)


@pytest.mark.parametrize("first", [rules.flat(), rules.w_square(), rules.z_box(-4, 4), A])
def test_the_rule_of_the_first_layer(first):
    model, x = seeded(Nested), randn(0, 4, 5)
    alone = rules.composite(E, first=first)
    want = by_steps(model, x, alone, G, E)
    composite = rules.composite(E, G, first=first, names={"features.0": Z})
    close(attrfn.lrp(model, x, target=1, rules=composite), want, 1e-9)


IN_FRONT = {
    "dropout": nn.Dropout(0.3),
    "alpha dropout": nn.AlphaDropout(0.3),
    "dropout in place": nn.Sequential(nn.Identity(), nn.Dropout(0.3, inplace=True)),
    "batch norm": nn.BatchNorm1d(5),
    "batch norm without weights": nn.BatchNorm1d(5, affine=False),
    "both": nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.3), nn.BatchNorm1d(5)),
}


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("name", IN_FRONT)
def test_the_first_layer_behind_what_scales_the_inputs(name, exported):
    """What shifts and scales the inputs passes relevance on as it is; the rule stands behind it."""
    front = copy.deepcopy(IN_FRONT[name]).double().eval()
    for i, m in enumerate(front.modules()):
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.copy_(randn(i, 5))
            m.running_var.copy_(randn(10 + i, 5).abs() + 0.3)
            if m.affine:
                nn.init.normal_(m.weight, generator=torch.Generator().manual_seed(i))
    rest, x = seeded(Nested), randn(0, 4, 5)
    model = nn.Sequential(front, rest)
    if exported:
        model = torch.export.export(model, (x,), strict=False).module()
    for rule in (rules.flat(), rules.w_square(), rules.z_box(-9, 9)):
        composite = rules.composite(E, G, first=rule)
        want = attrfn.lrp(rest, front(x).detach(), target=1, rules=composite)
        for create_graph in (False, True):
            got = attrfn.lrp(model, x, target=1, rules=composite, create_graph=create_graph)
            close(got.detach(), want, 1e-9)
    assert not torch.equal(want, attrfn.lrp(rest, front(x).detach(), target=1))


def test_no_layer_that_reads_the_inputs():
    """A rule for the first layer that has no place to stand is not dropped without a word."""
    layers = [nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)]
    model, x = seeded(lambda: nn.Sequential(*layers)), randn(0, 4, 5)
    with pytest.warns(UserWarning, match=r"composite met no linear .* rule first= has no effect"):
        got = attrfn.lrp(model, x, target=1, rules=rules.composite(E, first=rules.flat()))
    close(got, attrfn.lrp(model, x, target=1, rules=E))
