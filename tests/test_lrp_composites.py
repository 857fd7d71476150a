"""LRP on whole models: fixed values, AttnLRP, conservation, batch norm, and rules by name."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from helpers import takes_apart
from hypothesis import given
from hypothesis import strategies as st
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


def filled(model):
    """The i-th parameter is 0.5 sin(0.37 k + 1 + i), k = 0, 1, 2 ..."""
    model = model.double().eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            k = torch.arange(p.numel(), dtype=torch.float64)
            p.copy_((0.5 * torch.sin(0.37 * k + 1 + i)).reshape(p.shape))
    return model


def picture():
    return torch.cos(0.7 * torch.arange(16, dtype=torch.float64)).reshape(1, 1, 4, 4)


def conv_net():
    return filled(
        nn.Sequential(
            *(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 3, 2)),
            *(nn.ReLU(), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        )
    )


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
# fixed values by hand


def dense(*weights, between=nn.ReLU):
    """Linear layers without biases."""
    layers = []
    for w in weights:
        layer = nn.Linear(len(w[0]), len(w), bias=False).double()
        layer.weight.data = torch.tensor(w, dtype=torch.float64)
        layers += [layer, between()]
    return nn.Sequential(*layers[:-1])


TWOS, THREES = [[2.0] * 3] * 3, [[3.0] * 3]
ONE_NEGATIVE = [[-2.0, 2.0, 2.0], [2.0] * 3, [2.0] * 3]
X = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("first", "second", "weights", "want"),
    [
        (rules.epsilon(), rules.epsilon(), TWOS, [18, 36, 54]),
        (rules.gamma(1), rules.gamma(0.25), ONE_NEGATIVE, [28 / 3, 104 / 3, 52]),
        (rules.alpha_beta(1, 0), rules.alpha_beta(1, 0), ONE_NEGATIVE, [12, 33.6, 50.4]),
        (rules.identity(), rules.epsilon(), ONE_NEGATIVE, [24, 36, 36]),
    ],
    ids=["epsilon", "gamma", "alpha1 beta0", "identity"],
)
def test_two_layers_by_hand(first, second, weights, want):
    """[1, 2, 3] -> (weights, ReLU) -> 3s, the values that Captum's tests have, too."""
    by_name = rules.composite(names={"0": first, "2": second})
    got = attrfn.lrp(dense(weights, THREES), X, rules=by_name, target=0)
    close(got, torch.tensor([want], dtype=torch.float64), 1e-5)


def test_tanh_by_hand():
    """Tanh(0.6) * 0.3 is shared as 1 : 2 : 3."""
    model = dense([[0.1] * 3] * 3, [[0.1] * 3], between=nn.Tanh)
    got = attrfn.lrp(model, X, rules=rules.epsilon(0), target=0)
    close(got, X * (0.3 * math.tanh(0.6) / 6))
    close(got, torch.tensor([[0.0269, 0.0537, 0.0806]], dtype=torch.float64), 1e-4)


@pytest.mark.parametrize("rule", [rules.epsilon(), rules.gamma(), rules.z_plus()])
def test_a_skip_connection_by_hand(rule):
    layer = dense([[5.0, 5.0], [5.0, 5.0]])
    x = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    got = attrfn.lrp(lambda x: layer(x) + x, x, target=1, rules=rule)
    close(got, torch.tensor([[10.0, 18.0]], dtype=torch.float64), 1e-6)


def test_max_pooling_gives_all_to_the_greatest():
    x = torch.tensor([[[1.0, 5.0, 2.0, 3.0]]], dtype=torch.float64)
    w = torch.tensor([2.0, 4.0], dtype=torch.float64)
    got = attrfn.lrp(lambda x: F.max_pool1d(x, 2)[:, 0] @ w, x)
    close(got, torch.tensor([[[0.0, 10.0, 0.0, 12.0]]], dtype=torch.float64), 1e-5)


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu tanh": functools.partial(F.gelu, approximate="tanh"),
    **{
        f.__name__: f
        for f in (
            *(F.silu, F.elu, F.selu, F.mish, torch.tanh, F.hardswish, F.softsign, F.relu),
            *(F.leaky_relu, F.relu6, torch.sin, torch.erf),
        )
    },
}


@pytest.mark.parametrize("f", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_pass_relevance_on(f):
    """R_in = R = f(x) c, also at x = 0."""
    x, c = randn(0, 3, 5), randn(1, 3, 5)
    x[0, 0] = 0
    for create_graph in (False, True):
        got = attrfn.lrp(lambda x: (f(x) * c).sum(1), x, create_graph=create_graph)
        close(got, f(x) * c)


# ---------------------------------------------------------------------------------------------
# formulas of AttnLRP; c is the gradient of the output, so that its relevance is output * c

ATTN = rules.attn_lrp(0)


def both(f, x, **options):
    """In one pass, and in two."""
    got = attrfn.lrp(f, x, **options)
    close(attrfn.lrp(f, x, create_graph=True, **options), got)
    return got


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_softmax_is_expanded_at_x(dim):
    """R_i = x_i (R_out_i - s_i sum_j R_out_j)."""
    x, c = randn(0, 3, 4, 5), randn(1, 3, 4, 5)
    got = both(lambda x: (x.softmax(dim) * c).sum((1, 2)), x, rules=ATTN)
    s = x.softmax(dim)
    close(got, x * (s * c - s * (s * c).sum(dim, keepdim=True)))


def test_products_of_two_are_shared_equally():
    a, b, c = randn(0, 3, 4, 5), randn(1, 3, 5, 2), randn(2, 3, 4, 2)
    got = both(lambda a, b: ((a @ b) * c).sum((1, 2)), (a, b), rules=ATTN)
    close(got, (a * (c @ b.mT) / 2, b * (a.mT @ c) / 2))
    a, b, c = randn(0, 3, 4), randn(1, 3, 4), randn(2, 3, 4)
    got = both(lambda a, b: (a * b * c).sum(1), (a, b), rules=ATTN)
    close(got, (a * b * c / 2, a * b * c / 2))


def test_a_product_of_three_is_shared_by_three():
    a, b, d = randn(0, 3, 4, 5), randn(1, 3, 5, 2), randn(2, 3, 2)
    got = both(lambda a, b, d: torch.einsum("nij,njk,nk->n", a, b, d), (a, b, d), rules=ATTN)
    for part, t in zip(got, (a, b, d), strict=True):
        close(part.flatten(1).sum(1), torch.einsum("nij,njk,nk->n", a, b, d) / 3)
        assert part.shape == t.shape


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_with_its_divisor_as_a_constant(bias):
    norm, x, c = seeded(lambda: nn.LayerNorm(5)), randn(0, 3, 4, 5), randn(1, 3, 4, 5)
    norm.bias = norm.bias if bias else None
    got = both(lambda x: (norm(x) * c).sum((1, 2)), x, rules=ATTN)
    g = c * norm.weight * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + norm.eps)
    close(got, (x * (g - g.mean(-1, keepdim=True))).detach(), 1e-9)


has_rms_norm = pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="torch has it since 2.4")


@has_rms_norm
def test_rms_norm_passes_relevance_on():
    norm, x, c = seeded(lambda: nn.RMSNorm(5, eps=1e-3)), randn(0, 3, 4, 5), randn(1, 3, 4, 5)
    got = both(lambda x: (norm(x) * c).sum((1, 2)), x, rules=ATTN)
    close(got, (norm(x) * c).detach(), 1e-9)


@pytest.mark.parametrize(
    "written",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3),
        lambda x: x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-3),
        lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-3),
        lambda x: F.normalize(x, dim=-1),
    ],
    ids=["rsqrt", "division", "norm", "normalize"],
)
def test_written_out_norms_have_a_constant_divisor_too(written):
    x, c = randn(0, 3, 4, 5), randn(1, 3, 4, 5)
    got = both(lambda x: (written(x) * c).sum((1, 2)), x, rules=ATTN)
    close(got, written(x) * c, 1e-9)


def test_a_gated_unit():
    """silu(g) u: half to each, and all of it through SiLU."""
    u, v, x, c = randn(0, 5, 6), randn(1, 5, 6), randn(2, 3, 5), randn(3, 3, 6)
    got = both(lambda x: (F.silu(x @ u) * (x @ v) * c).sum(1), x, rules=ATTN)
    g, h = x @ u, x @ v
    r = F.silu(g) * h * c
    close(got, x * ((r / g / 2) @ u.T + (r / h / 2) @ v.T), 1e-9)


def attention_by_hand(q, k, v, c, mask=None, constant=False):
    """Relevances at q, k and v, where o has the relevance o c."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    s = scores.softmax(-1)
    if constant:
        return torch.zeros_like(q), torch.zeros_like(k), v * (s.mT @ c)
    to_s = (c @ v.mT) / 2
    to_scores = s * (to_s - (s * to_s).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1]) / 2
    return q * (to_scores @ k), k * (to_scores.mT @ q), v * (s.mT @ c) / 2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("composite", ["attn_lrp", "cp_lrp"])
@pytest.mark.parametrize("fused", [True, False])
def test_attention(fused, composite, masked):
    q, k, v, c = (randn(i, 3, 2, 4, 5) for i in range(4))
    mask = torch.ones(4, 4, dtype=torch.bool).tril() if masked else None

    def f(q, k, v):
        if fused:
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.mT / math.sqrt(5)
            if masked:
                scores = scores.masked_fill(~mask, -1e9)
            o = scores.softmax(-1) @ v
        return (o * c).sum((1, 2, 3))

    got = both(f, (q, k, v), rules=getattr(rules, composite)(0))
    close(got, attention_by_hand(q, k, v, c, mask, composite == "cp_lrp"), 1e-9)


@takes_apart
def test_multihead_attention_module():
    """One head of nn.MultiheadAttention, by hand."""
    layer = seeded(lambda: nn.MultiheadAttention(4, 1, bias=False, batch_first=True))
    x, c = randn(0, 3, 5, 4), randn(1, 3, 5, 4)
    wq, wk, wv = (w.detach() for w in layer.in_proj_weight.chunk(3))
    q, k, v = x @ wq.T, x @ wk.T, x @ wv.T
    parts = attention_by_hand(q, k, v, c @ layer.out_proj.weight.detach())
    want = sum(x * ((r / t) @ w) for r, t, w in zip(parts, (q, k, v), (wq, wk, wv), strict=True))
    got = attrfn.lrp(lambda x: (layer(x, x, x)[0] * c).sum((1, 2)), x, rules=ATTN)
    close(got, want, 1e-9)


# ---------------------------------------------------------------------------------------------
# conservation


def mlp(act=nn.ReLU):
    layers = [nn.Linear(12, 16, bias=False), act(), nn.Linear(16, 14, bias=False), act()]
    return nn.Sequential(*layers, nn.Linear(14, 3, bias=False))


def cnn(act=nn.ReLU):
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), act(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, stride=2, bias=False), act(), nn.AvgPool2d(2), nn.Flatten()),
        nn.Linear(8, 3, bias=False),
    )


class Residual(nn.Module):
    """Two blocks with one ReLU, reused and in place."""

    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.inp = nn.Linear(12, 10, bias=False)
        self.one, self.two = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
        self.act = act(inplace=True)
        self.out = nn.Linear(10, 3, bias=False)

    def forward(self, x):
        x = self.act(self.inp(x))
        for layer in (self.one, self.two):
            x = self.act(layer(x)) + x
        return self.out(x)


BIAS_FREE = {
    "mlp": (mlp, (12,)),
    "cnn": (cnn, (3, 10, 10)),
    "residual": (Residual, (12,)),
}
CONSERVING = {
    "epsilon": rules.epsilon(0),
    "z_plus": rules.z_plus(0),
    "gamma": rules.gamma(0.25, 0),
    "alpha_beta(1, 0)": rules.alpha_beta(1, 0, 0),
}
seeds = st.integers(0, 2**31)
few = hypothesis.settings(max_examples=5)


@pytest.mark.parametrize("rule", CONSERVING)
@pytest.mark.parametrize("name", BIAS_FREE)
@given(seed=seeds)
@few
def test_relevance_is_conserved(name, rule, seed):
    """Without biases and epsilon, sum(R) = f(x)."""
    make, shape = BIAS_FREE[name]
    model, x = seeded(make, seed), randn(seed + 1, 4, *shape)
    got = attrfn.lrp(model, x, target=[0, 1, 2, 0], rules=CONSERVING[rule])
    f = model(x)[range(4), [0, 1, 2, 0]].detach()
    close(got.flatten(1).sum(1), f, 1e-10)


@pytest.mark.parametrize("conv", [False, True])
@given(seed=seeds)
@few
def test_alpha_beta_conserves_where_both_parts_exist(conv, seed):
    """Leaky ReLUs leave no activation at zero, and sums of 48 terms have both signs in them."""
    layers = [nn.Conv1d(16, 48, 3), nn.Flatten()] if conv else [nn.Linear(48, 96)]
    layers += [nn.LeakyReLU(0.3), nn.Linear(96, 48), nn.LeakyReLU(0.3), nn.Linear(48, 3)]
    model = seeded(lambda: nn.Sequential(*layers), seed)
    for m in model:
        m.bias = None
    x = randn(seed + 1, 4, *((16, 4) if conv else (48,)))
    got = attrfn.lrp(model, x, target=1, rules=rules.alpha_beta(2, 1, 0))
    scale = got.abs().flatten(1).sum(1)
    assert ((got.flatten(1).sum(1) - model(x)[:, 1]).abs() < 1e-10 * scale).all()


@given(seed=seeds)
@few
def test_epsilon_zero_is_input_x_gradient_on_relu_nets(seed):
    """Also with biases."""
    model = seeded(
        lambda: nn.Sequential(
            *(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        ),
        seed,
    )
    x = randn(seed + 1, 3, 5)
    want = attrfn.input_x_gradient(model, x, target=1)
    close(attrfn.lrp(model, x, target=1, rules=rules.epsilon(0)), want)


class AttentionBlock(nn.Module):
    """Residual attention with two heads, RMS norm and a gated unit; nothing has a bias."""

    def __init__(self, width=8):
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 3, bias=False)

    def forward(self, x):
        parts = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.o(o.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(x.mean(1))


class Last(nn.Module):
    """The last output of a recurrent module without biases."""

    def __init__(self, cell):
        super().__init__()
        self.rnn = cell(4, 5, 2, bias=False, batch_first=True, bidirectional=True)
        self.out = nn.Linear(10, 3, bias=False)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@given(seed=seeds)
@few
def test_recurrent_nets_conserve(cell, seed):
    """Gates are constants, and tanh passes relevance on."""
    model, x = seeded(functools.partial(Last, cell), seed), randn(seed + 1, 2, 4, 4)
    got = attrfn.lrp(model, x, target=0, rules=rules.epsilon(0))
    scale = got.abs().flatten(1).sum(1)
    assert ((got.flatten(1).sum(1) - model(x)[:, 0]).abs() < 1e-10 * scale).all()


def test_an_lstm_cell_by_hand():
    """One step from zero: h = o tanh(i g), the relevance of h goes to g = tanh(w x) alone."""
    cell, x, c = seeded(lambda: nn.LSTMCell(4, 3, bias=False)), randn(0, 5, 4), randn(1, 5, 3)
    got = attrfn.lrp(lambda x: (cell(x)[0] * c).sum(1), x, rules=rules.epsilon(0))
    w = cell.weight_ih[6:9].detach()
    r = (cell(x)[0] * c).detach()
    close(got, x * ((r / (x @ w.T)) @ w), 1e-9)


@has_rms_norm
@given(seed=seeds)
@few
def test_cp_lrp_conserves_on_an_attention_block(seed):
    model, x = seeded(AttentionBlock, seed), randn(seed + 1, 2, 4, 8)
    got = attrfn.lrp(model, x, target=0, rules=rules.cp_lrp(0))
    scale = got.abs().flatten(1).sum(1)
    gap = got.flatten(1).sum(1) - model(x)[:, 0]
    assert (gap.abs() < 1e-10 * scale).all()


@has_rms_norm
@given(seed=seeds)
@few
def test_attn_lrp_loses_on_an_attention_block_only_at_softmax(seed):
    """Softmax does not conserve (its expansion has an offset); everything else does."""
    model, x = seeded(AttentionBlock, seed), randn(seed + 1, 2, 4, 8)
    leaks = rules.conservation(model, x, target=0, rules=rules.attn_lrp(0))
    whole = abs(leaks[-1].received)
    lossy = {leak.op for leak in leaks if abs(leak.lost) > 1e-10 * max(whole, 1)}
    assert lossy <= {"torch.nn.functional.scaled_dot_product_attention"}
    got = attrfn.lrp(model, x, target=0, rules=rules.attn_lrp(0)).sum()
    lost = sum(leak.lost for leak in leaks)
    close(got, model(x)[:, 0].sum().detach() - lost, 1e-9)


def test_conservation_names_what_loses_relevance():
    layer, x = seeded(lambda: nn.Linear(4, 3)), randn(0, 2, 4)

    def f(x):
        h = layer(x)
        h = h + 1.5
        return torch.sigmoid(h).sum(1)

    leaks = rules.conservation(f, x, rules=rules.epsilon(0))
    assert all(Path(__file__).name in leak.where for leak in leaks)
    own = ("torch.Tensor.clone", "torch.Tensor.reshape")  # of inputs and outputs, by the library
    leaks = [leak for leak in leaks if leak.op not in own]
    assert [leak.op for leak in leaks] == [
        "torch.nn.functional.linear",
        "torch.Tensor.add",
        "torch.sigmoid",
        "torch.Tensor.sum",
    ]
    linear, add, sigmoid, total = leaks
    assert "Linear" in linear.where
    h = layer(x).detach()
    r = torch.sigmoid(h + 1.5)
    assert total.received == pytest.approx(float(r.sum()))
    assert total.lost == pytest.approx(0, abs=1e-12)
    assert sigmoid.lost == pytest.approx(0, abs=1e-5)  # not zero at zero, so with an epsilon
    assert add.lost == pytest.approx(float((r * 1.5 / (h + 1.5)).sum()), rel=1e-4)
    shares = r / (h + 1.5)
    assert linear.lost == pytest.approx(float((shares * layer.bias.detach()).sum()), rel=1e-4)


@pytest.mark.parametrize("name", BIAS_FREE)
def test_conservation_finds_nothing_in_nets_without_biases(name):
    make, shape = BIAS_FREE[name]
    for leak in rules.conservation(
        seeded(make), randn(0, 4, *shape), target=0, rules=rules.gamma(0.25, 0)
    ):
        assert abs(leak.lost) < 1e-10


@pytest.mark.parametrize("rule", CONSERVING)
def test_layers_have_the_same_sum(rule):
    model, x = seeded(cnn), randn(0, 4, 3, 10, 10)
    layers = [str(i) for i in range(len(model))]
    found = attrfn.layer_lrp(model, x, layer=layers, target=2, rules=CONSERVING[rule])
    f = model(x)[:, 2].detach()
    for relevance in found:
        close(relevance.flatten(1).sum(1), f, 1e-10)
    at_input = attrfn.layer_lrp(model, x, layer="0", at="input", target=2, rules=CONSERVING[rule])
    close(at_input, attrfn.lrp(model, x, target=2, rules=CONSERVING[rule]))


def test_a_layer_is_the_model_behind_it():
    """The relevance at a layer is that at the inputs of the rest of the model."""
    model, x = conv_net(), picture()
    behind = model[4:]
    got = attrfn.layer_lrp(model, x, layer="3", target=0, rules=rules.epsilon_plus())
    close(got, attrfn.lrp(behind, model[:4](x).detach(), target=0, rules=rules.epsilon_plus()))
    # a rule for where the inputs are read has nothing to do at a layer
    flat = attrfn.layer_lrp(model, x, layer="3", target=0, rules=rules.epsilon_plus_flat())
    close(flat, got)


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
    with pytest.raises(ValueError, match=r"'bn0' is registered directly behind.*give pairs="):
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
