"""Splits of torch's own fused modules: transformers, recurrent nets, attention."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
import zoo
from splits import check, equal, tensors
from torch import Tensor, nn
from zoo import make, randn

import attrfn

# --- torch's own fused modules -------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        "inp",
        "enc",
        "enc.layers.0",
        "enc.layers.1.linear1",
        "enc.layers.1.self_attn",
        "enc.layers.0.norm2",
    ],
)
@pytest.mark.parametrize("padded", [False, True])
# Nested tensors announce that they are a prototype where the user's model takes the fused path.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_transformer_encoder(layer, padded):
    """Results are those of the model run with a graph, also under no_grad and frozen."""
    model, x = zoo.make(zoo.Transformer), randn(3, 5, 4)
    mask = torch.arange(5) >= torch.tensor([5, 4, 2])[:, None] if padded else None
    bound = functools.partial(model, mask=mask)
    expected = bound(x)
    assert expected.requires_grad
    for frozen in (False, True):
        head, tail = attrfn.split(bound, layer, frozen=frozen)
        with torch.set_grad_enabled(not frozen):
            activation = head(x)
            assert not any(t.is_nested for t in tensors(activation))
            equal(tail(activation, x), expected, rtol=1e-12, atol=1e-12)
    check_complete_after(model, bound, x, layer)


def check_complete_after(model, bound, x, layer) -> None:
    """Conductance at a layer through which everything passes sums to f(x) - f(x0)."""
    x0 = randn(*x.shape, seed=8)
    got = attrfn.layer_conductance(bound, x, layer=layer, target=1, baselines=x0, n_steps=30)
    assert all(g.shape[0] == 3 for g in tensors(got))
    if layer in ("inp", "enc", "enc.layers.0", "enc.layers.0.norm2"):
        change = (bound(x) - bound(x0))[:, 1].detach()
        torch.testing.assert_close(got.flatten(1).sum(1), change, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_transformer_encoder_completeness_with_padding():
    """Values and gradients come from one and the same model, though torch's fast path differs."""
    model, x, x0 = zoo.make(zoo.Transformer), randn(3, 5, 4), randn(3, 5, 4, seed=8)
    mask = torch.arange(5) >= torch.tensor([5, 4, 2])[:, None]
    bound = functools.partial(model, mask=mask)
    a = attrfn.integrated_gradients(bound, x, target=1, n_steps=80, baselines=x0)
    gap = attrfn.completeness_delta(bound, x, a, target=1, baselines=x0)
    torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-6)
    # a padded place has no influence
    assert float(a[2, 2:].abs().max()) == 0
    for i in range(3):
        alone = attrfn.integrated_gradients(
            functools.partial(model, mask=mask[i : i + 1]),
            x[i : i + 1],
            target=1,
            n_steps=80,
            baselines=x0[i : i + 1],
        )
        torch.testing.assert_close(alone[0], a[i])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_nets(cell, last, layers):
    model = zoo.make(zoo.Recurrent, cell, last, layers)
    x = randn(3, 6, 4)
    a = check(model, "rnn", x)
    assert isinstance(a, tuple)
    assert a[0].shape == (3, 6, 5)
    assert len(a[1]) == 2 if cell is nn.LSTM else a[1].shape == (layers, 3, 5)
    check(model, "rnn", x, at="input")
    got = attrfn.layer_integrated_gradients(
        model, x, layer="rnn", target=1, at="input", n_steps=30, chunk_size=11
    )
    change = (model(x) - model(0 * x))[:, 1].detach()
    torch.testing.assert_close(got.sum((1, 2)), change, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_output_is_complete(cell):
    """The sequence is the layer's value; the final state, with another batch axis, is left."""
    model = zoo.make(zoo.Recurrent, cell)
    x = randn(3, 6, 4)
    got = attrfn.layer_integrated_gradients(model, x, layer="rnn", target=1, n_steps=30)
    change = (model(x) - model(0 * x))[:, 1].detach()
    torch.testing.assert_close(got[0].sum((1, 2)), change)
    assert got[1] == (None, None) if cell is nn.LSTM else got[1] is None
    neuron = attrfn.neuron_gradient(model, x, layer="rnn", neuron=lambda v: v[0][:, -1, 2])
    z = x.clone().requires_grad_()
    equal(
        neuron, torch.autograd.grad(model.rnn(z)[0][:, -1, 2].sum(), z)[0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_recurrent_state_that_looks_like_a_batch(last, batch):
    """(layers, B, H) with as many layers as examples is no batch: as in a larger batch."""
    model = zoo.make(zoo.Recurrent, nn.LSTM, last, batch)
    x = randn(4, 6, 4)
    for method in (
        attrfn.layer_gradient_x_activation,
        functools.partial(attrfn.layer_integrated_gradients, n_steps=4),
        functools.partial(attrfn.layer_conductance, n_steps=4),
    ):
        with warnings.catch_warnings():
            # with last=True the output does not depend on the sequence at all
            warnings.filterwarnings("ignore", "the explained output does not depend")
            whole = method(model, x, layer="rnn", target=1)
            alone = method(model, x[:batch], layer="rnn", target=1)
        torch.testing.assert_close(alone[0], whole[0][:batch])


@pytest.mark.parametrize(
    ("need_weights", "use_weights"), [(False, False), (True, False), (True, True)]
)
def test_multihead_attention(need_weights, use_weights):
    model, x = zoo.make(zoo.Attends, need_weights, use_weights), randn(3, 5, 4)
    a = check(model, "attn", x, rtol=1e-12)
    assert isinstance(a, tuple)
    assert a[0].shape == (3, 5, 6)
    assert (a[1] is not None) == need_weights
    check(model, "attn", x, rtol=1e-12, at="input")
    check(model, "inp", x, rtol=1e-12)
    with torch.no_grad():
        fused = model(x)
        equal(
            attrfn.split(model, "inp", frozen=True).tail(model.inp(x), x),
            fused,
            rtol=1e-12,
            atol=1e-12,
        )
    got = attrfn.layer_conductance(model, x, layer="inp", target=1, n_steps=25)
    change = (model(x) - model(0 * x))[:, 1].detach()
    torch.testing.assert_close(got.sum((1, 2)), change, rtol=1e-6, atol=1e-8)
    at_attention = attrfn.layer_integrated_gradients(model, x, layer="attn", target=1, n_steps=25)
    assert at_attention[0].shape == (3, 5, 6)
    if not use_weights:
        torch.testing.assert_close(at_attention[0].sum((1, 2)), change)
    if need_weights:
        assert at_attention[1].shape == (3, 5, 5)
        assert bool(at_attention[1].any()) == use_weights
    else:
        assert at_attention[1] is None


def test_attention_is_differentiated_twice():
    """Second derivatives and forward mode through fused attention, by finite differences."""
    model, x = zoo.make(zoo.Attends, False), randn(2, 5, 4)
    step = randn(2, 5, 4, seed=3)

    def total(x: Tensor, **options: Any) -> Tensor:
        return (
            attrfn.layer_conductance(model, x, layer="attn", target=1, n_steps=3, **options)[0] ** 2
        ).sum()

    eps = 1e-5
    expected = (total(x + eps * step) - total(x - eps * step)) / (2 * eps)
    torch.testing.assert_close(
        (torch.func.grad(total)(x) * step).sum(), expected, rtol=1e-5, atol=1e-9
    )
    z = x.clone().requires_grad_()
    total(z, create_graph=True).backward()
    torch.testing.assert_close((z.grad * step).sum(), expected, rtol=1e-5, atol=1e-9)
    slope = torch.func.jvp(total, (x,), (step,))[1]
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-9)


NORMS = [nn.LayerNorm, lambda n: nn.GroupNorm(2, n)]
NORMS += [nn.RMSNorm] if hasattr(nn, "RMSNorm") else []  # since torch 2.4


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("form", ["layer", "neuron"])
def test_norms_are_differentiated_three_times(norm, form):
    """Gradients of a conductance hold third derivatives; torch's own of layer_norm is wrong."""
    model = zoo.make(
        lambda: nn.Sequential(nn.Linear(4, 6), norm(6), nn.Tanh(), nn.Linear(6, 6), norm(6), Cube())
    )
    check_third(model, form)


@pytest.mark.parametrize("act", [nn.GLU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softmax])
def test_activations_are_differentiated_three_times(act):
    last = 3 if act is nn.GLU else 6
    act = functools.partial(act, dim=-1) if act in (nn.Softmax, nn.GLU) else act
    check_third(
        zoo.make(lambda: nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(last, 6), act(), Cube())),
        "layer",
    )


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3 + x


def check_third(model: nn.Module, form: str) -> None:
    x, step = randn(3, 4), randn(3, 4, seed=3)
    at = {"layer": "1", "target": 1, "baselines": randn(3, 4, seed=2), "n_steps": 2}
    method = attrfn.layer_conductance
    if form == "neuron":
        method, at["neuron"] = attrfn.neuron_conductance, 2

    def total(x: Tensor, **options: Any) -> Tensor:
        return (method(model, x, **at, **options) ** 2).sum()

    eps = 1e-5
    expected = (total(x + eps * step) - total(x - eps * step)) / (2 * eps)
    z = x.clone().requires_grad_()
    total(z, create_graph=True).backward()
    torch.testing.assert_close((z.grad * step).sum(), expected, rtol=1e-6, atol=1e-8)
    slope = torch.func.grad(total)(x)
    torch.testing.assert_close((slope * step).sum(), expected, rtol=1e-6, atol=1e-8)


# --- under torch.compile -------------------------------------------------------------------------


class Cell(nn.Module):
    """Its steps, and the groups that it makes, depend on all examples."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.cell, self.last, self.groups = nn.LSTMCell(3, 4), nn.Linear(4, 2), groups

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(len(x), 4), x.new_zeros(len(x), 4)
        for t in range(int(x[:, :, 0].sum(1).max())):
            h, c = self.cell(x[:, t % 2].view(-1, self.groups, 3).flatten(0, 1), (h, c))
        return self.last(h)


def test_a_layer_with_several_tensors_needs_all_examples():
    """Two examples would be enough to see where the batch is, but not for these models."""
    x = randn(8, 2, 3)
    x[:, :, 0] = torch.arange(8)[:, None] / 2
    x0 = torch.cat([x[:, :, :1], torch.zeros(8, 2, 2)], 2)  # with as many steps
    conductance = functools.partial(attrfn.layer_conductance, baselines=x0)
    for groups in (1, 4):
        for method in (attrfn.layer_gradient_x_activation, conductance):
            h, c = method(make(Cell, groups), x, layer="cell", call=5, target=1)
            assert h.shape == c.shape == (8, 4)
            assert (h != 0).any()
