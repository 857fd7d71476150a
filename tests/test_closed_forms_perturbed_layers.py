"""Ablation and permutation of layers and for neurons against the tail and the head."""

from __future__ import annotations

import itertools

import oracles
import pytest
import torch
import zoo
from games import ablation, by_rule, permutation, rolled, whole_batch
from oracles import close, randn
from torch import nn

import attrfn

X = randn(0, 4, 3)


def net():
    """Linear, Tanh, Linear: (B, 3) to (B, 5) to (B, 2)."""
    return oracles.seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))


def tail_of(model):
    return lambda a: model[2](a.tanh())


@pytest.mark.parametrize("at", ["output", "input"])
@pytest.mark.parametrize(
    ("baselines", "mask"),
    [
        (None, None),
        (0.3, torch.tensor([0, 1, 1, 4, 0])),
        (randn(6, 5), None),
        (randn(6, 4, 5), torch.tensor([[0, 1, 0, 1, 2], [0] * 5, [1] * 5, [2, 2, 2, 0, 0]])),
    ],
    ids=["zeros", "number_and_groups", "row", "rows"],
)
def test_layer_feature_ablation_is_ablation_of_the_tail(at, baselines, mask):
    """The output of module 0 is the input of module 1; the baselines are activations."""
    model = net()
    a = model[0](X).detach()
    got = attrfn.layer_feature_ablation(
        model,
        X,
        layer="0" if at == "output" else "1",
        at=at,
        target=1,
        layer_baselines=baselines,
        layer_mask=mask,
    )
    x0 = 0.0 if baselines is None else baselines
    with torch.no_grad():
        want = by_rule(ablation, lambda a: tail_of(model)(a)[:, 1], a, x0, mask)
    close(got, want)


def test_layer_feature_ablation_of_a_linear_tail():
    """f = v'a + d: A = a v, without a target for each output."""
    model = net()
    a, v = model[1](model[0](X)).detach(), model[2].weight.detach()
    close(attrfn.layer_feature_ablation(model, X, layer="1", target=0), a * v[0])
    close(attrfn.layer_feature_ablation(model, X, layer=model[1]), a[:, None] * v)


def test_layer_feature_ablation_of_channels():
    """Planted by hooks, channel by channel, in each example on its own."""
    model, x = oracles.seeded(oracles.Cnn), randn(3, 2, 2, 8, 8)
    a = oracles.layer_value(model, "conv2", x).detach()
    got = attrfn.layer_feature_ablation(
        model, x, layer="conv2", target=[4, 2], layer_mask=torch.arange(6)[:, None, None]
    )
    want = torch.zeros_like(a)
    for i, c in itertools.product(range(2), range(6)):
        less = a[i : i + 1].clone()
        less[:, c] = 0
        one = oracles.row(x, i)
        with torch.no_grad():
            lost = model(*one) - oracles.model_behind(model, "conv2", one)(less)
        want[i, c] = lost[0, [4, 2][i]]
    close(got, want)


def test_layer_feature_ablation_of_a_layer_that_returns_two_tensors():
    """A feature may reach across them."""
    model, x = zoo.structured("tuple"), randn(2, 2, 4)
    with torch.no_grad():
        a, b = model.parts(x)
    mask = (torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 2, 0, 3, 3]))
    got = attrfn.layer_feature_ablation(
        model, x, layer="parts", target=2, layer_mask=mask, layer_baselines=(0.1, None)
    )

    def tail(a, b):
        with torch.no_grad():
            return model.join((a.clone(), b))[:, 2]

    close(got, by_rule(ablation, tail, (a, b), (0.1, 0.0), mask))


def test_layer_feature_ablation_of_one_of_several_calls():
    """f = act(act(x)) with one module: the second call's output is the model's."""
    model = nn.Sequential(act := nn.Tanh(), act, nn.Flatten())
    second = X.tanh().tanh()
    got = attrfn.layer_feature_ablation(model, X, layer=act, call=1, target=0)
    want = torch.zeros_like(X)
    want[:, 0] = second[:, 0]
    close(got, want)
    got = attrfn.layer_feature_ablation(model, X, layer=act, call=0, target=0)
    close(got, want)  # tanh(0) = 0


@pytest.mark.parametrize("neuron", [2, (2,), -1], ids=str)
@pytest.mark.parametrize("mask", [None, torch.tensor([5, 0, 5])], ids=["elements", "groups"])
def test_neuron_feature_ablation_is_ablation_of_the_head(neuron, mask):
    model, x0 = net(), randn(5, 4, 3)
    index = neuron[0] if isinstance(neuron, tuple) else neuron
    got = attrfn.neuron_feature_ablation(
        model, X, layer="1", neuron=neuron, baselines=x0, feature_mask=mask
    )
    with torch.no_grad():
        want = by_rule(ablation, lambda x: model[0](x).tanh()[:, index], X, x0, mask)
    close(got, want)
    got = attrfn.neuron_feature_ablation(
        model, X, layer="2", at="input", neuron=neuron, baselines=x0, feature_mask=mask
    )
    close(got, want)


def test_neuron_feature_ablation_in_a_map():
    """The neuron (channel, row, column) of a convolution; two inputs make one neuron."""
    model, x = oracles.seeded(oracles.Cnn), randn(3, 2, 2, 8, 8)
    mask = torch.arange(4).reshape(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    got = attrfn.neuron_feature_ablation(
        model, x, layer="act1", neuron=(1, 2, 3), feature_mask=mask
    )
    with torch.no_grad():
        want = by_rule(ablation, lambda x: model.conv1(x).relu()[:, 1, 2, 3], x, 0.0, mask)
    close(got, want)
    model, pair = oracles.seeded(oracles.TwoInputs), (randn(0, 2, 3), randn(1, 2, 2, 2))

    def head(x, y):
        with torch.no_grad():
            return model.act(model.meet(model.left(x), model.right(y.flatten(1))))[:, 4]

    got = attrfn.neuron_feature_ablation(model, pair, layer="act", neuron=4)
    close(got, by_rule(ablation, head, pair))


@pytest.mark.parametrize("target", [1, None])
@pytest.mark.parametrize("mask", [None, torch.tensor([0, 7, 7, 0, 2])], ids=["elements", "groups"])
def test_layer_feature_permutation_is_permutation_of_the_tail(target, mask):
    """An int target on (B, 2) outputs; the copies of the batch have rows of their own."""
    model = net()
    a = model[0](X).detach()
    got = attrfn.layer_feature_permutation(
        model, X, layer="0", target=target, layer_mask=mask, permute=rolled
    )

    def tail(a):
        with torch.no_grad():
            out = tail_of(model)(a)
        return out if target is None else out[:, target]

    close(got, permutation(tail, a, torch.arange(4).roll(1), mask))


class Total(nn.Module):
    """One value for the whole batch behind a layer."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return (self.body(x)[:, 1] ** 2).mean()


def test_layer_methods_of_one_value_for_the_whole_batch():
    """The mean over the examples, in all of which a part is ablated or permuted: (1, ...)."""
    model = Total()
    a, mask = model.body[0](X).detach(), torch.tensor([0, 1, 1, 4, 0])

    def tail(a):
        with torch.no_grad():
            return (tail_of(model.body)(a)[:, 1] ** 2).mean()

    scores = whole_batch(ablation, tail, a, mask)
    want = torch.stack([scores[int(k)] for k in mask])[None]
    got = attrfn.layer_feature_ablation(model, X, layer="body.0", layer_mask=mask)
    close(got, want)
    got = attrfn.layer_feature_permutation(
        model, X, layer="body.0", layer_mask=mask, permute=rolled, chunk_size=1
    )
    moved = [tail(torch.where(mask == k, a.roll(1, 0), a)) for k in mask]
    close(got, (tail(a) - torch.stack(moved))[None])


def test_layer_feature_permutation_draws():
    """v'a with digits as above: A = v (a - a moved), moved by a permutation in each column."""
    model = net()
    a, v = model[1](model[0](X)).detach(), model[2].weight.detach()[1]
    moved = a - attrfn.layer_feature_permutation(model, X, layer="1", target=1, key=3) / v
    close(moved.sort(0).values, a.sort(0).values)
    assert (moved - a).abs().max() > 0.1
