"""Splits: ``tail(head(x), x) == model(x)`` on awkward models, and nothing of the user's changes."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
import zoo
from splits import RESIDUAL_ACT, call, check, equal
from torch import Tensor, nn
from torch.func import functional_call
from zoo import randn

import attrfn
from attrfn._torch import pytree

# --- plain networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [str(i) for i in range(8)] + [""])
@pytest.mark.parametrize("at", ["output", "input"])
def test_sequential(layer, at):
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    a = check(model, layer, x, at=at)
    index = 8 if layer == "" else int(layer) + 1
    index = index - 1 if at == "input" else index
    equal(a, x if (layer, at) == ("", "input") else model[:index](x))


def test_module_or_name():
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    equal(check(model, model[4], x), check(model, "4", x))
    equal(attrfn.split(model, model).head(x), model(x))


def test_the_pair_is_named():
    halves = attrfn.split(zoo.mlp(), "1")
    assert isinstance(halves, attrfn.Split)
    assert halves == (halves.head, halves.tail)
    assert halves._fields == ("head", "tail")


@pytest.mark.parametrize("layer", ["0", "2", "4", "6"])
def test_the_halves_can_be_differentiated(layer):
    """Chain rule: d tail/da * d head/dx is the model's gradient (the layers cut the network)."""
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    head, tail = attrfn.split(model, layer)
    a, pull = torch.func.vjp(head, x)
    g = torch.func.grad(lambda a: tail(a, x)[:, 1].sum())(a)
    expected = torch.func.grad(lambda x: call(model, x)[:, 1].sum())(x)
    torch.testing.assert_close(pull(g)[0], expected)
    # rows one at a time, and parameters by autograd
    rows = torch.func.vmap(lambda x: head(x[None])[0])(x)
    torch.testing.assert_close(rows, a)
    tail(head(x), x).sum().backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x.clone()).sum().backward()
    equal(got, [p.grad for p in model.parameters()], rtol=1e-12, atol=1e-12)


def test_frozen_halves_record_no_graph():
    model, x = zoo.mlp(), randn(2, 4)
    head, tail = attrfn.split(model, "1", frozen=True)
    assert not head(x).requires_grad
    assert not tail(head(x), x).requires_grad
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("at", ["output", "input"])
@pytest.mark.parametrize("call_", [0, 1, None])
def test_reused_in_place_relu(call_, at):
    """Against a trace of the same net with functions instead of modules."""
    model, x = zoo.make(zoo.Residual), randn(3, 4)
    a = check(model, RESIDUAL_ACT, x, at=at, call=call_)
    h = model.blocks[0](model.stem(x))
    block = model.blocks[1]
    one = block.one(h)
    two = block.two(one.relu()) + h
    values = (one, two) if at == "input" else (one.relu(), two.relu())
    equal(a, values if call_ is None else values[call_])
    assert isinstance(a, tuple) == (call_ is None)


def test_reused_module_gradients():
    """GradCAM's weight at the second call: df/d(second output) is the row of the last layer."""
    model, x = zoo.make(zoo.Residual), randn(3, 4)
    got = attrfn.layer_gradient_x_activation(
        model, x, layer=RESIDUAL_ACT, target=2, call=1, multiply_by_inputs=False
    )
    equal(got, model.out.weight[2].expand(3, 5))
    h = model.blocks[0](model.stem(x)).detach()
    block = model.blocks[1]
    one = block.one(h).relu().detach().requires_grad_()
    out = model.out((block.two(one) + h).relu())[:, 2]
    expected = torch.autograd.grad(out.sum(), one)[0]
    got = attrfn.layer_gradient_x_activation(
        model, x, layer=RESIDUAL_ACT, target=2, call=0, multiply_by_inputs=False
    )
    torch.testing.assert_close(got, expected)
    # the calls lie behind each other, and each gets what it gets alone
    both = attrfn.layer_gradient_x_activation(
        model, x, layer=RESIDUAL_ACT, target=2, call=None, multiply_by_inputs=False
    )
    equal(both, (got, model.out.weight[2].expand(3, 5)))


def test_calls_beside_each_other_are_explained_together():
    """A siamese net: both calls of the shared tower at once, complete together."""

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = zoo.mlp(4, 5)
            self.out = nn.Linear(5, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.out(self.tower(x) * self.tower(y))

    model, x, y = zoo.make(Siamese), randn(3, 4, seed=1), randn(3, 4, seed=2)
    check(model, "tower", (x, y), call=None)
    for where in ({"call": None}, {"call": 1}, {"call": 0}):
        check(model, "tower", (x, y), **where)
    got = attrfn.layer_integrated_gradients(
        model, (x, y), layer="tower", target=1, call=None, n_steps=4
    )
    assert isinstance(got, tuple)
    change = (model(x, y) - model(0 * x, 0 * y))[:, 1].detach()
    torch.testing.assert_close(sum(g.sum(1) for g in got), change)


def test_activations_in_place_behind_the_layer():
    """What is read is the layer's value, not what an in-place operation makes of it later."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h.mul_(3).sub_(1)
            h[:, 0] = 0
            F.relu_(h)
            return self.last(h)

    model, x = zoo.make(Net), randn(3, 4)
    equal(check(model, "first", x), model.first(x))
    a = attrfn.layer_activation(model, x, layer="first")
    expected = torch.where(3 * a > 1, 3 * model.last.weight[1], 0).index_fill(
        1, torch.tensor([0]), 0
    )
    got = attrfn.layer_gradient_x_activation(
        model, x, layer="first", target=1, multiply_by_inputs=False
    )
    torch.testing.assert_close(got, expected.detach())


def test_model_that_writes_into_its_input():
    model, x = zoo.make(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))), randn(3, 4)
    kept = x.clone()
    head, tail = attrfn.split(model, "0")
    equal(tail(head(x), x), model(kept.clone()))
    attrfn.integrated_gradients(model, x, target=0)
    attrfn.layer_integrated_gradients(model, x, layer="0", target=0)
    assert torch.equal(x, kept)


# --- ties, lists of layers -----------------------------------------------------------------------


def test_tied_weights():
    model, ids = zoo.make(zoo.Tied), torch.tensor([[1, 2, 3], [4, 5, 6]])
    for layer in ("words", "places", "mix", "mix.1", "decoder"):
        check(model, layer, ids)
    head, tail = attrfn.split(model, "mix")
    out = tail(head(ids), ids)
    grads = torch.autograd.grad(out[:, 1].sum(), [model.words.weight])
    expected = torch.autograd.grad(model(ids)[:, 1].sum(), [model.words.weight])
    equal(grads, expected)


def test_tied_weights_functional():
    """New values for a tied weight, given under one of its names, arrive in both places."""
    model, ids = zoo.make(zoo.Tied), torch.tensor([[1, 2, 3], [4, 5, 6]])
    params = {k: p.detach() * 2 for k, p in model.named_parameters()}
    bound = functools.partial(functional_call, model, params)
    expected = functional_call(model, params, (ids,))
    head, tail = attrfn.split(bound, "mix")
    equal(tail(head(ids), ids), expected)
    equal(
        attrfn.layer_activation(bound, ids, layer="words"), F.embedding(ids, params["words.weight"])
    )


def test_parallel_embeddings_are_complete_together():
    model = zoo.make(zoo.Tied)
    ids, base = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.zeros(2, 3, dtype=torch.long)
    check(model, ["words", "places"], ids)
    change = (model(ids) - model(base))[:, 7].detach()
    got = attrfn.layer_integrated_gradients(
        model, ids, layer=["words", "places"], target=7, baselines=base, n_steps=60
    )
    assert isinstance(got, list)
    assert [g.shape for g in got] == [(2, 3, 6), (2, 3, 6)]
    # the places do not depend on the ids: all of the change is the words'
    torch.testing.assert_close(got[0].sum((1, 2)), change, rtol=1e-8, atol=1e-10)
    equal(got[1], torch.zeros(2, 3, 6, dtype=zoo.D))
    alone = attrfn.layer_integrated_gradients(
        model, ids, layer="words", target=7, baselines=base, n_steps=60
    )
    torch.testing.assert_close(got[0], alone)


class Branches(nn.Module):
    """Two towers that meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.c(self.a(x)) * self.b(x)))


def test_parallel_layers_of_branches():
    model, x = zoo.make(Branches), randn(3, 4)
    for layers in (["a", "b"], ["c", "b"], [model.b, "c"], ("a", "b")):
        check(model, list(layers), x)
        got = attrfn.layer_integrated_gradients(model, x, layer=layers, target=1, n_steps=40)
        change = (model(x) - model(0 * x))[:, 1].detach()
        torch.testing.assert_close(sum(g.sum(1) for g in got), change, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "method",
    [
        functools.partial(attrfn.layer_integrated_gradients, n_steps=3),
        lambda m, x, layer, target: attrfn.at_layer(attrfn.gradient, layer)(m, x, target=target),
        functools.partial(attrfn.layer_gradient_shap, baselines=randn(2, 4, seed=9)),
    ],
)
def test_layers_behind_each_other(method):
    """Together they are refused; what explains each on its own takes them."""
    model, x = zoo.make(Branches), randn(3, 4)
    with pytest.raises(ValueError, match=r"layer 'c' depends on what another layer .*one by one"):
        method(model, x, layer=["a", "c"], target=1)
    with pytest.raises(
        ValueError, match=r"layer Linear depends on what another layer .*one by one"
    ):
        method(model, x, layer=[model.c, model.a], target=1)


@pytest.mark.parametrize(
    "method",
    [
        attrfn.layer_gradient_x_activation,
        functools.partial(attrfn.layer_conductance, n_steps=3),
        functools.partial(attrfn.internal_influence, n_steps=3),
    ],
)
def test_layers_behind_each_other_on_their_own(method):
    model, x = zoo.make(Branches), randn(3, 4)
    got = method(model, x, layer=["a", "c", model.out], target=1)
    assert isinstance(got, list)
    for value, layer in zip(got, ["a", "c", "out"], strict=True):
        equal(value, method(model, x, layer=layer, target=1))
    assert not torch.equal(got[0], got[1])


def test_layer_activation_of_a_list():
    model, x = zoo.make(Branches), randn(3, 4)
    a, c = attrfn.layer_activation(model, x, layer=["a", "c"])
    equal([a, c], [model.a(x), model.c(model.a(x))])


# --- layers with structured values ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "ordered", "named", "nest", "mixed"])
@pytest.mark.parametrize("where", [("parts", "output"), ("join", "input")])
def test_structured_values(kind, where):
    model, x = zoo.structured(kind), randn(3, 4)
    layer, at = where
    a = check(model, layer, x, at=at)
    natural = model.parts(x)
    assert type(a) is type(natural)
    equal(a, natural)


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "ordered", "named", "nest", "mixed"])
def test_structured_values_explained(kind):
    """The attributions have the layer's structure, and with both parts they are complete."""
    model, x = zoo.structured(kind), randn(3, 4)
    got = attrfn.layer_integrated_gradients(model, x, layer="parts", target=1, n_steps=30)
    values = [g for g in pytree.tree_leaves(got) if isinstance(g, Tensor)]
    assert [g.shape for g in values] == [(3, 5), (3, 5)]
    change = (model(x) - model(0 * x))[:, 1].detach()
    torch.testing.assert_close(sum(g.sum(1) for g in values), change, rtol=1e-9, atol=1e-11)
    chunked = attrfn.layer_integrated_gradients(
        model, x, layer="parts", target=1, n_steps=30, chunk_size=7
    )
    equal(got, chunked, rtol=1e-10, atol=1e-12)
    conductance = attrfn.layer_conductance(
        model, x, layer="parts", target=1, n_steps=30, quadrature="gauss_legendre"
    )
    total = sum(g.sum(1) for g in pytree.tree_leaves(conductance) if isinstance(g, Tensor))
    torch.testing.assert_close(total, change, rtol=1e-9, atol=1e-11)
    if kind in ("dict", "ordered"):
        assert set(got) == {"a", "b"}
        a, b = got["a"], got["b"]
    elif kind == "nest":
        a, (b,) = got["x"]
    elif kind == "mixed":
        assert got[1] is None
        assert got[3] is None
        a, b = got[0], got[2]
    else:
        assert type(got) is type(model.parts(x))
        a, b = got
    assert not torch.equal(a, b)
    neuron = attrfn.neuron_gradient(model, x, layer="parts", neuron=lambda v: values_of(v)[0][:, 2])
    equal(
        neuron,
        (model.parts.b if kind in ("dict", "ordered") else model.parts.a).weight[2].expand(3, 4),
    )


def values_of(tree) -> list[Tensor]:
    """The tensors of a value: dict entries in the order of the model (b before a)."""
    if isinstance(tree, dict):
        tree = [tree["x"]] if "x" in tree else [tree["b"], tree["a"]]
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def test_keyword_arguments_only():
    model, x = zoo.make(zoo.Keywords), randn(3, 4)
    a = check(model, "lin", x, at="input")
    assert list(a) == ["input"]
    equal(a["input"], x)
    check(model, "lin", x)
    a = check(model, "gate", x, at="input")
    assert list(a) == ["value", "by"]
    h = model.lin(x)
    equal([a["value"], a["by"]], [h, h.sigmoid()])
    # the second call has one positional argument, which is its value, and a keyword besides
    second = check(model, "gate", x, at="input", call=1)
    equal(second, h * h.sigmoid())
    check(model, "gate", x, call=1)
    both = check(model, "gate", x, at="input", call=None)
    equal(both[1], second)


def test_keyword_arguments_explained():
    model, x = zoo.make(zoo.Keywords), randn(3, 4)
    got = attrfn.layer_integrated_gradients(
        model, x, layer="gate", at="input", target=1, n_steps=30, call=0
    )
    assert set(got) == {"value", "by"}
    change = (model(x) - model(0 * x))[:, 1].detach()
    # the two arguments of the first gate cut the network: complete
    torch.testing.assert_close(got["value"].sum(1) + got["by"].sum(1), change)


def test_several_positional_arguments():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gate, self.out = nn.Linear(4, 5), zoo.Gate(), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.out(self.gate(h, h.tanh()))

    model, x = zoo.make(Two), randn(3, 4)
    a = check(model, "gate", x, at="input")
    assert isinstance(a, tuple)
    equal(a, (model.a(x), model.a(x).tanh()))
    got = attrfn.layer_integrated_gradients(
        model, x, layer="gate", at="input", target=1, n_steps=10
    )
    assert isinstance(got, tuple)
    change = (model(x) - model(0 * x))[:, 1].detach()
    torch.testing.assert_close(got[0].sum(1) + got[1].sum(1), change)


def test_parts_left_out_are_computed():
    """None in an activation means: what the model computes there."""
    for kind in ("tuple", "dict", "nest", "named", "ordered"):
        model, x = zoo.structured(kind), randn(3, 4)
        head, tail = attrfn.split(model, "parts")
        only = {
            "tuple": lambda a: (None, a[1] * 2),
            "named": lambda a: zoo.Pair(None, a.right * 2),
            "dict": lambda a: {"b": a["b"] * 2, "a": None},
            "ordered": lambda a: {"b": a["b"] * 2},
            "nest": lambda a: {"x": (None, [a["x"][1][0] * 2])},
        }[kind](head(x))
        a, b = model.parts.a(x), model.parts.b(x)
        equal(tail(only, x), model.join.out(a.tanh() * b * 2))
        equal(tail(None, x), model(x))


def test_activation_of_the_wrong_form():
    model, x = zoo.make(Branches), randn(3, 4)
    tail = attrfn.split(model, ["a", "b"]).tail
    with pytest.raises(
        ValueError, match=r"activation holds 1 values, expected one for each of the 2"
    ):
        tail([randn(3, 5)], x)
    model = zoo.make(zoo.Residual)
    tail = attrfn.split(model, RESIDUAL_ACT, call=None).tail
    with pytest.raises(ValueError, match=r"activation holds 1 values, expected one for each call"):
        tail((randn(3, 5),), x)
