"""LRP conserves relevance where it should, and ``conservation`` names what loses it."""

from __future__ import annotations

import functools
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lrp_nets import conv_net, has_rms_norm, picture
from oracles import close, randn, seeded
from torch import nn

import attrfn
from attrfn import rules

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
    """Without biases and epsilon, sum(R) = f(x).

    A rule of positive contributions needs one: a ReLU that is not zero has one, an output may not.
    """
    make, shape = BIAS_FREE[name]
    model, x, target = seeded(make, seed), randn(seed + 1, 4, *shape), [0, 1, 2, 0]
    got = attrfn.lrp(model, x, target=target, rules=CONSERVING[rule])
    f = model(x)[range(4), target].detach()
    if rule in ("z_plus", "alpha_beta(1, 0)"):
        last = "out" if name == "residual" else str(len(model) - 1)
        hidden = attrfn.layer_activation(model, x, layer=last, at="input")
        shares = hidden * model.get_submodule(last).weight[target]
        f = f * (shares > 0).any(1)
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
