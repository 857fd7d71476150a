"""Splits: ``tail(head(x), x) == model(x)`` on awkward models, and nothing of the user's changes."""

from __future__ import annotations

import collections
import functools
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from zoo import make, randn

import attrfn
from attrfn._torch import pytree


def check(model, layer, inputs, rtol: float = 0.0, **where) -> Any:
    """The identity of the split and the purity of both halves; returns the activation."""
    expected = call(model, inputs)
    owner = zoo.owner(model)
    before, rng = zoo.state(owner), torch.get_rng_state()
    held = pytree.tree_map_only(Tensor, torch.clone, inputs)
    head, tail = attrfn.split(model, layer, **where)
    activation = head(*inputs) if isinstance(inputs, tuple) else head(inputs)
    kept = pytree.tree_map_only(Tensor, torch.clone, activation)
    got = tail(activation, inputs)
    equal(got, expected, rtol=rtol, atol=rtol)
    equal(activation, kept)
    equal(inputs, held)
    assert zoo.same_state(owner, before)
    assert torch.equal(torch.get_rng_state(), rng)
    leaves = [t for t in pytree.tree_leaves(activation) if isinstance(t, Tensor)]
    assert leaves
    assert any(t.is_floating_point() for t in leaves)
    # the tail listens to the activation: another value there gives another output
    moved = pytree.tree_map_only(
        Tensor, lambda t: t * 1.5 + 0.25 if t.is_floating_point() else t, activation
    )
    assert not all(
        torch.equal(a, b)
        for a, b in zip(tensors(tail(moved, inputs)), tensors(expected), strict=True)
    )
    equal(activation, kept)
    assert zoo.same_state(owner, before)
    return activation


def call(model, inputs) -> Any:
    """The model run as the user runs it, on copies (in-place models write into their input)."""
    inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors(tree) -> list[Tensor]:
    return [t.detach() for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def equal(a, b, **tolerance) -> None:
    a, b = tensors(a), tensors(b)
    assert len(a) == len(b)
    for s, t in zip(a, b, strict=True):
        torch.testing.assert_close(s, t, **({"rtol": 0, "atol": 0} | tolerance))


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


RESIDUAL_ACT = "blocks.1.act"


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
    both = attrfn.layer_gradient_x_activation
    with pytest.raises(ValueError, match=r"layer 'blocks.1.act' depends on what another layer"):
        both(model, x, layer=RESIDUAL_ACT, target=2, call=None)


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
    conductance = attrfn.layer_conductance(model, x, layer="parts", target=1, n_steps=30)
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


# --- where modules hide --------------------------------------------------------------------------


def test_modules_in_plain_containers():
    model, x = zoo.make(zoo.Hidden), randn(3, 4)
    for layer in (
        model.plain[0],
        model.plain[1][0],
        model.table["mid"],
        model.table["deep"]["act"],
        model.secret,
    ):
        check(model, layer, x)
        check(model, layer, x, at="input")


def test_an_attribute_that_two_modules_share():
    """A dict through which one module hands another its value is one dict on the shells too."""

    class Putter(nn.Module):
        def __init__(self, box: dict) -> None:
            super().__init__()
            self.lin, self.box = nn.Linear(4, 5), box

        def forward(self, x: Tensor) -> Tensor:
            self.box["h"] = self.lin(x)
            return x

    class Taker(nn.Module):
        def __init__(self, box: dict) -> None:
            super().__init__()
            self.out, self.box = nn.Linear(5, 3), box

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.box["h"].tanh())

    box: dict[str, Tensor] = {}
    model = zoo.make(lambda: nn.Sequential(Putter(box), Taker(box)))
    x = randn(3, 4)
    expected = model.forward(x)
    box.clear()
    head, tail = attrfn.split(model, "0.lin")
    equal(tail(head(x), x), expected)
    equal(
        attrfn.gradient(model, x, target=1),
        attrfn.gradient(
            lambda x: torch.tanh(model[0].lin(x)) @ model[1].out.weight[1] + model[1].out.bias[1], x
        ),
    )
    assert not box


def test_module_that_refers_to_its_parent():
    """Circles in the attributes (a child that knows its parent) end."""

    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x) * self.parent[0].scale

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child, self.out = Child(), nn.Linear(5, 3)
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.child.parent = [self]

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.child(x))

    model, x = zoo.make(Parent), randn(3, 4)
    equal(check(model, "child", x), model.child.lin(x) * 2)


def test_bound_method():
    model, x = zoo.make(zoo.Encoder), randn(3, 4)
    a = check(model.encode, "body.1", x)
    equal(a, model.body[:2](x))
    equal(attrfn.split(model.encode, "body").head(x), model.body(x))
    bound = functools.partial(model.encode, scale=randn(3, 1))
    check(bound, "body.1", x)
    with pytest.raises(ValueError, match="layer 'out' was not called while the model ran"):
        attrfn.layer_activation(functools.partial(model.encode), x, layer="out")[0]
    got = attrfn.layer_integrated_gradients(bound, x, layer="body.0", target=1, n_steps=20)
    change = bound(x) - bound(0 * x)
    torch.testing.assert_close(got.sum(1), change[:, 1].detach())


def test_bound_method_kept_as_attribute():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
            self.step = self.first
            self.partial = functools.partial(self.second, by=2.0)

        def first(self, x: Tensor) -> Tensor:
            return self.lin(x)

        def second(self, x: Tensor, by: float) -> Tensor:
            return self.out(x * by)

        def forward(self, x: Tensor) -> Tensor:
            return self.partial(self.step(x))

    model, x = zoo.make(Net), randn(3, 4)
    check(model, "lin", x)
    check(model, "out", x)


def test_forward_replaced_on_the_instance():
    """What accelerate and others do: an instance attribute ``forward``."""
    model, x = zoo.mlp(), randn(3, 4)
    inner = model[1]
    plain = inner.forward
    inner.forward = lambda v: plain(v) * 2
    equal(check(model, "1", x), torch.tanh(model[0](x)) * 2)
    check(model, "0", x)


def test_partial_with_keywords_and_positions():
    model, x = zoo.make(zoo.Keywords), randn(3, 4)
    scale = randn(3, 5, seed=4)
    for bound in (
        functools.partial(model, scale=scale),
        functools.partial(functools.partial(model, shift=0.5), scale=scale),
        functools.partial(model.forward, scale=scale),
    ):
        check(bound, "gate", x)
        got = attrfn.layer_integrated_gradients(bound, x, layer="lin", target=1, n_steps=30)
        change = (bound(x) - bound(0 * x))[:, 1].detach()
        torch.testing.assert_close(got.sum(1), change)


def test_bound_tensor_follows_the_batch_at_layer_and_neuron():
    """One example at a time gives the same as the batch, in any chunk."""
    model, x, scale = zoo.make(zoo.Keywords), randn(3, 4), randn(3, 5, seed=4)
    bound = functools.partial(model, scale=scale)
    for method in (
        functools.partial(attrfn.layer_integrated_gradients, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.layer_conductance, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.internal_influence, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.neuron_conductance, layer="lin", neuron=2, target=1, n_steps=6),
        functools.partial(
            attrfn.layer_gradient_shap, layer="lin", target=1, baselines=randn(2, 4, seed=5)
        ),
    ):
        whole = method(bound, x)
        for i in range(3):
            alone = method(functools.partial(model, scale=scale[i : i + 1]), x[i : i + 1])
            torch.testing.assert_close(alone[0], whole[i])
        for chunk_size in (1, 2):
            torch.testing.assert_close(method(bound, x, chunk_size=chunk_size), whole)


def test_functional_call():
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    params = {k: p.detach() * 1.1 for k, p in model.named_parameters()}
    buffers = {k: b + 1 if b.is_floating_point() else b for k, b in model.named_buffers()}
    for given in (params, params | buffers, {"7.weight": params["7.weight"]}):
        bound = functools.partial(functional_call, model, given)
        check(bound, "4", x)
    # functions of the parameters: d/dp of an attribution by finite differences along one direction
    bias = params["0.bias"]
    step = randn(*bias.shape, seed=3)

    def total(b: Tensor) -> Tensor:
        new = functools.partial(functional_call, model, params | {"0.bias": b})
        return (attrfn.layer_gradient_x_activation(new, x, layer="4", target=1) ** 2).sum()

    slope = torch.func.grad(total)(bias) @ step
    eps = 1e-6
    expected = (total(bias + eps * step) - total(bias - eps * step)) / (2 * eps)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-10)


def test_functional_call_with_several_dicts():
    """torch takes a tuple of dicts as well."""
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    params = {k: p.detach() * 1.1 for k, p in model.named_parameters()}
    bound = functools.partial(functional_call, model, (params, dict(model.named_buffers())))
    check_functional = attrfn.split(bound, "4")
    equal(check_functional.tail(check_functional.head(x), x), bound((x.clone(),)))


def test_functional_call_with_keywords():
    model, x = zoo.make(zoo.Keywords), randn(3, 4)
    params = {k: p.detach() * 1.1 for k, p in model.named_parameters()}
    bound = functools.partial(functional_call, model, params, kwargs={"scale": randn(3, 5)})
    check(bound, "gate", x)
    got = attrfn.layer_integrated_gradients(bound, x, layer="lin", target=1, n_steps=20)
    change = (bound(x) - bound(0 * x))[:, 1]
    torch.testing.assert_close(got.sum(1), change)


# --- wrappers ------------------------------------------------------------------------------------


def test_compiled_model():
    """The eager model inside is what is split: nothing is compiled by a split."""
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    compiled = torch.compile(model, backend=never)
    head, tail = attrfn.split(compiled, "4")
    equal(tail(head(x), x), model(x.clone()))
    equal(attrfn.layer_activation(compiled, x, layer=model[4]), model[:5](x.clone()))
    equal(attrfn.layer_activation(compiled, x, layer="_orig_mod.4"), model[:5](x.clone()))
    equal(attrfn.layer_activation(compiled, x, layer=compiled), model(x.clone()))
    expected = attrfn.integrated_gradients(model, x, target=1, n_steps=3)
    equal(attrfn.integrated_gradients(compiled, x, target=1, n_steps=3), expected)


def never(graph: Any, inputs: Any) -> Any:
    raise AssertionError("a split compiled something")


def test_compiled_part():
    model, x = zoo.make(zoo.Residual), randn(3, 4)
    expected, value = model(x), model.blocks(model.stem(x))
    inside = model.blocks[0].act
    model.blocks = torch.compile(model.blocks, backend=never)
    for layer in ("blocks", "blocks.0.act", "out", inside, "blocks._orig_mod.0.act"):
        head, tail = attrfn.split(model, layer, call=0)
        equal(tail(head(x), x), expected)
    equal(attrfn.layer_activation(model, x, layer="blocks"), value)


def test_compiled_part_given_as_a_module():
    model, x = zoo.make(zoo.Residual), randn(3, 4)
    value = model.blocks(model.stem(x))
    model.blocks = torch.compile(model.blocks, backend=never)
    equal(attrfn.layer_activation(model, x, layer=model.blocks), value)


def test_module_compiled_in_place():
    model, x = zoo.mlp(), randn(3, 4)
    expected = model(x)
    model.compile(backend=never)
    model[1].compile(backend=never)
    head, tail = attrfn.split(model, "1")
    equal(tail(head(x), x), expected)
    assert model._compiled_call_impl is not None


def test_data_parallel():
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    wrapped = nn.DataParallel(model)
    check(wrapped, "module.4", x)
    equal(check(wrapped, model[4], x), model[:5](x.clone()))


has_weight_norm = pytest.mark.skipif(
    not hasattr(parametrizations, "weight_norm"), reason="torch has it since 2.1"
)


@pytest.mark.parametrize(
    "kind",
    [pytest.param("weight_norm", marks=has_weight_norm), "orthogonal", "spectral_norm", "own"],
)
def test_parametrizations(kind):
    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w.triu() + w.triu(1).mT

    def build() -> nn.Module:
        model = zoo.mlp(5, 3)
        model[0] = nn.Linear(5, 5)
        model[2] = nn.Linear(5, 3)
        if kind == "own":
            parametrize.register_parametrization(model[0], "weight", Symmetric())
        else:
            getattr(parametrizations, kind)(model[0])
        return model

    model, x = zoo.make(build), randn(3, 5)
    equal(check(model, "0", x), model[0](x))
    check(model, "1", x)
    head, tail = attrfn.split(model, "1")
    got = torch.autograd.grad(tail(head(x), x).sum(), list(model[0].parameters()))
    expected = torch.autograd.grad(model(x).sum(), list(model[0].parameters()))
    equal(got, expected, rtol=1e-12, atol=1e-12)


@has_weight_norm
def test_cached_parametrizations():
    """torch caches parametrized weights by the module's id: shells come and go, ids return."""
    models = [
        zoo.make(lambda: parametrizations.weight_norm(nn.Linear(5, 5)), seed=s) for s in (1, 2)
    ]
    x = randn(3, 5)
    expected = [m(x) for m in models]
    with parametrize.cached():
        for _ in range(5):
            for model, value in zip(models, expected, strict=True):
                got = attrfn.layer_activation(nn.Sequential(model), x, layer="0")
                equal(got, value)


# torch deprecates the old weight_norm; models in the wild have it.
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_old_weight_norm_and_spectral_norm():
    def build() -> nn.Module:
        return nn.Sequential(
            nn.utils.weight_norm(nn.Linear(4, 5)),
            nn.Tanh(),
            nn.utils.spectral_norm(nn.Linear(5, 3)),
        )

    model, x = zoo.make(build), randn(3, 4)
    model(x)
    for layer in ("0", "1", "2"):
        head, tail = attrfn.split(model, layer)
        before = zoo.state(model)
        equal(tail(head(x), x), model(x))
        model_again = zoo.state(model)
        assert before["2.training"] == model_again["2.training"]
    g = torch.autograd.grad(attrfn.split(model, "1").head(x).sum(), [model[0].weight_g])
    expected = torch.autograd.grad(model[:2](x).sum(), [model[0].weight_g])
    equal(g, expected, rtol=1e-12, atol=1e-12)


def test_spectral_norm_training_keeps_its_vectors():
    """In training mode a forward moves u and v; a split moves those of the clone only."""
    model = zoo.make(lambda: parametrizations.spectral_norm(nn.Linear(5, 5))).train()
    whole, x = nn.Sequential(model, nn.Tanh()), randn(3, 5)
    before = zoo.state(whole)
    attrfn.split(whole, "0").head(x)
    assert zoo.same_state(whole, before)


def test_users_hooks_run():
    """Hooks are part of the user's model: they run, on the head and on the tail."""
    model, x = zoo.mlp(), randn(3, 4)
    seen = []
    model[1].register_forward_hook(lambda m, args, out: seen.append("post") or out * 2)
    model[1].register_forward_pre_hook(lambda m, args: seen.append("pre") or (args[0] + 1,))
    model[2].register_forward_hook(
        lambda m, args, kwargs, out: seen.append("kw") or out - 1, with_kwargs=True
    )
    a = check(model, "0", x)
    equal(a, model[0](x))
    check(model, "1", x)
    check(model, "1", x, at="input")
    assert set(seen) == {"pre", "post", "kw"}
    equal(call(model, x), model[2](torch.tanh(model[0](x) + 1) * 2))


def test_users_hook_on_the_layer_itself():
    """The value of a layer is what its forward returns; its own hooks act on it behind the tap."""
    model, x = zoo.mlp(), randn(3, 4)
    model[1].register_forward_hook(lambda m, args, out: out * 2)
    head, tail = attrfn.split(model, "1")
    equal(tail(head(x), x), model(x))
    equal(tail(torch.ones(3, 6, dtype=zoo.D), x), model[2](2 * torch.ones(3, 6, dtype=zoo.D)))


def test_training_mode_of_parts():
    """Each shell has its module's own mode."""
    model, x = (
        zoo.make(lambda: nn.Sequential(nn.Linear(4, 5), nn.RReLU(), nn.Linear(5, 3))),
        randn(3, 4),
    )
    model[0].train()
    check(model, "1", x)
    assert model[0].training
    assert not model[1].training


# --- models that write ---------------------------------------------------------------------------


def test_model_that_writes_attributes_and_buffers():
    model, x = zoo.make(zoo.Writes), randn(3, 4)
    fresh = zoo.make(zoo.Writes)
    expected = fresh(x)
    before = zoo.state(model)
    for layer in ("lin", "out"):
        head, tail = attrfn.split(model, layer)
        equal(tail(head(x), x), expected)
    attrfn.gradient(model, x, target=1)
    attrfn.integrated_gradients(model, x, target=1, chunk_size=7, n_steps=20)
    attrfn.layer_conductance(model, x, layer="lin", target=1, n_steps=3)
    attrfn.noise_tunnel(attrfn.gradient)(model, x, target=1)
    attrfn.completeness_delta(model, x, x, target=1)
    assert zoo.same_state(model, before)
    assert model.log == []
    assert model.cache == {}
    assert model.calls == 0
    assert model.last is None


def test_model_that_writes_under_transforms():
    """In-place updates of buffers happen on copies made inside the transform."""
    model, x = zoo.make(Counts), randn(3, 4)
    before = zoo.state(model)
    expected = attrfn.gradient(model, x, target=1)
    equal(torch.func.vmap(lambda v: attrfn.gradient(model, v[None], target=1)[0])(x), expected)
    squared = torch.func.grad(lambda v: (attrfn.gradient(model, v, target=1) ** 2).sum())(x)
    assert squared.shape == x.shape
    attrfn.layer_conductance(model, x, layer="lin", target=1, n_steps=3)
    torch.func.vmap(
        lambda v: attrfn.layer_integrated_gradients(model, v[None], layer="lin", target=1)
    )(x)
    assert zoo.same_state(model, before)


class Counts(nn.Module):
    """Counts its calls in place, in a buffer and in an attribute that its output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        return self.out(self.lin(x).tanh()) * self.calls * self.count


def test_every_run_starts_from_the_users_state():
    """No state is carried from chunk to chunk, so the chunks do not matter."""
    model, x = zoo.make(Counts), randn(3, 4)
    for method in (
        functools.partial(attrfn.integrated_gradients, target=1, n_steps=6),
        functools.partial(attrfn.layer_integrated_gradients, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.layer_conductance, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.gradient_shap, target=1, baselines=randn(2, 4, seed=5)),
    ):
        whole = method(model, x)
        torch.testing.assert_close(method(model, x, chunk_size=2), whole)
        torch.testing.assert_close(method(model, x, batching="loop"), whole)


def test_model_that_writes_into_other_containers():
    """Sets, counters, deques and simple objects are state as well."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
            self.kinds: set[str] = set()
            self.recent: collections.deque[int] = collections.deque(maxlen=3)
            self.counts: collections.Counter[str] = collections.Counter()
            self.by_name: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
            self.free = SimpleNamespace(n=0)

        def forward(self, x: Tensor) -> Tensor:
            self.kinds.add("called")
            self.recent.append(x.shape[0])
            self.counts["calls"] += 1
            self.by_name["rows"].append(x.shape[0])
            self.free.n += 1
            return self.out(self.lin(x).tanh())

    model, x = zoo.make(Net), randn(3, 4)
    attrfn.layer_gradient_x_activation(model, x, layer="lin", target=1)
    attrfn.integrated_gradients(model, x, target=1, n_steps=3)
    assert not model.kinds
    assert not model.recent
    assert not model.counts
    assert not model.by_name
    assert model.free.n == 0


def test_batch_norm_in_training_keeps_its_statistics():
    model = zoo.cnn().train()
    x = randn(4, 2, 8, 8)
    before = zoo.state(model)
    with pytest.warns(UserWarning, match=r"training mode and holds BatchNorm2d.*call model\.eval"):
        attrfn.split(model, "2").head(x)
    assert zoo.same_state(model, before)


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("count", torch.zeros(()))
        self.fail = True
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        self.count += 1
        self.log.append(1)
        if self.fail:
            raise KeyError("the model's own error")
        return self.out(h)


def test_model_that_raises():
    """The user's error arrives as it is, and nothing is left behind."""
    model, x = zoo.make(Raises), randn(3, 4)
    before = zoo.state(model)
    for run in (
        lambda: attrfn.split(model, "out").head(x),
        lambda: attrfn.split(model, "lin").tail(randn(3, 5), x),
        lambda: attrfn.gradient(model, x, target=1),
        lambda: attrfn.layer_conductance(model, x, layer="lin", target=1),
        lambda: attrfn.grad_cam(model, x, layer="lin", target=1),
        lambda: torch.func.vmap(lambda v: attrfn.gradient(model, v[None], target=1))(x),
    ):
        with pytest.raises(KeyError, match="the model's own error"):
            run()
        assert zoo.same_state(model, before)
    assert torch._C._functorch.peek_interpreter_stack() is None
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
    model.fail = False
    attrfn.layer_conductance(model, x, layer="lin", target=1)


def test_threads_split_one_model():
    """Eight threads, one model with a reused in-place layer: every result is right."""
    model = zoo.make(zoo.Residual)
    xs = [randn(3, 4, seed=i) for i in range(8)]

    def job(x: Tensor) -> list[Tensor]:
        head, tail = attrfn.split(model, RESIDUAL_ACT, call=1)
        params = {k: p.detach() * (1 + float(x[0, 0])) for k, p in model.named_parameters()}
        other = functools.partial(functional_call, model, params)
        return [
            tail(head(x), x).detach(),
            attrfn.integrated_gradients(model, x, target=1, n_steps=5),
            attrfn.layer_conductance(model, x, layer=RESIDUAL_ACT, target=1, n_steps=3),
            attrfn.layer_activation(other, x, layer="blocks.0"),
            torch.func.vmap(lambda v: attrfn.gradient(model, v[None], target=0)[0])(x),
        ]

    expected = [job(x) for x in xs]
    before = zoo.state(model)
    wrong: list[Any] = []
    start = threading.Barrier(8)

    def work(i: int) -> None:
        try:
            start.wait()
            for _ in range(12):
                for a, b in zip(job(xs[i]), expected[i], strict=True):
                    if not torch.equal(a, b):
                        wrong.append((i, a, b))
        except BaseException as error:
            wrong.append((i, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert zoo.same_state(model, before)


def test_the_head_stops_at_the_layer():
    """In eager mode the rest of the model is not run; the tail does not compute the layer."""
    ran = []

    class Loud(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.lin = name, nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            ran.append(self.name)
            return self.lin(x)

    model, x = zoo.make(lambda: nn.Sequential(Loud("a"), Loud("b"), Loud("c"))), randn(3, 4)
    head, tail = attrfn.split(model, "1")
    a = head(x)
    assert ran == ["a", "b"]
    ran.clear()
    tail(a, x)
    assert ran == ["a", "c"]
    ran.clear()
    attrfn.split(model, "1", at="input").head(x)
    assert ran == ["a"]
    ran.clear()
    attrfn.split(model, ["1", "0"]).head(x)
    assert ran == ["a", "b"]


def test_early_exit_is_invisible():
    """try/finally and context managers are left in order, ``except Exception`` is passed by."""
    log = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                with torch.no_grad():
                    h = self.lin(x)
            except Exception:
                log.append("swallowed")
                h = torch.zeros(3, 5, dtype=x.dtype)
            finally:
                log.append("finally")
            return self.out(h)

    model, x = zoo.make(Net), randn(3, 4)
    equal(attrfn.layer_activation(model, x, layer="lin"), model.lin(x))
    assert log == ["finally"]
    assert torch.is_grad_enabled()


# --- what is refused -----------------------------------------------------------------------------


def test_layers_that_do_not_exist():
    model = zoo.make(zoo.Residual)
    x = randn(3, 4)
    for wrong, message in [
        (
            "blocks.1.atc",
            r"layer 'blocks\.1\.atc' is no part of Residual: did you mean 'blocks\.1\.act'",
        ),
        ("block", r"layer 'block' is no part of Residual: did you mean 'blocks"),
        ("stm", r"layer 'stm' is no part of Residual: did you mean 'stem'"),
        ("qqqqqqqq", r"layer 'qqqqqqqq' is no part of Residual: see named_modules\(\)"),
        (
            nn.Linear(2, 2),
            r"layer Linear is no part of Residual: give one of its modules or the qual",
        ),
        (["stem", "ot"], r"layer 'ot' is no part of Residual: did you mean 'out'"),
    ]:
        with pytest.raises(ValueError, match=message):
            attrfn.split(model, wrong).head(x)
        with pytest.raises(ValueError, match=message):
            attrfn.layer_integrated_gradients(model, x, layer=wrong, target=0)
        with pytest.raises(ValueError, match=message):
            attrfn.neuron_gradient(model, x, layer=wrong, neuron=0)


@pytest.mark.parametrize("wrong", [3, None, 1.5, nn.Linear, ["stem", 3]])
def test_layers_of_the_wrong_type(wrong):
    model = zoo.make(zoo.Residual)
    with pytest.raises(
        TypeError, match=r"^layer is a \w+, expected a module of the model, its qual"
    ):
        attrfn.split(model, wrong).head(randn(3, 4))
    with pytest.raises(
        TypeError, match=r"^layer is a \w+, expected a module of the model, its qual"
    ):
        attrfn.layer_activation(model, randn(3, 4), layer=wrong)


def test_empty_list_of_layers():
    with pytest.raises(ValueError, match=r"^layer is an empty list, expected at least one layer"):
        attrfn.split(zoo.mlp(), [])
    with pytest.raises(ValueError, match=r"^layer is an empty list, expected at least one layer"):
        attrfn.layer_integrated_gradients(zoo.mlp(), randn(3, 4), layer=[], target=0)


@pytest.mark.parametrize("at", ["inputs", None, 0, "Output"])
def test_wrong_at(at):
    with pytest.raises(ValueError, match=rf"^at is {at!r}, expected 'input' or 'output'"):
        attrfn.split(zoo.mlp(), "1", at=at)
    with pytest.raises(ValueError, match=rf"^at is {at!r}, expected 'input' or 'output'"):
        attrfn.grad_cam(zoo.mlp(), randn(3, 4), layer="1", at=at, target=0)


@pytest.mark.parametrize("wrong", [-1, 1.0, "0", True])
def test_wrong_call(wrong):
    with pytest.raises(ValueError, match=rf"^call is {wrong!r}, expected None .*int of at least 0"):
        attrfn.split(zoo.mlp(), "1", call=wrong)
    with pytest.raises(ValueError, match=rf"^call is {wrong!r}, expected None .*int of at least 0"):
        attrfn.layer_conductance(zoo.mlp(), randn(3, 4), layer="1", call=wrong, target=0)


class Skips(nn.Module):
    """A layer that is never called, one whose weight is used directly, and one in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.direct = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.used(x), self.direct.weight, self.direct.bias)


def test_layers_that_are_not_called():
    model, x = zoo.make(Skips), randn(3, 4)
    for layer in ("unused", "direct", model.unused):
        for run in (
            lambda h: h.head(x),
            lambda h: h.tail(randn(3, 5), x),
        ):
            with pytest.raises(
                ValueError, match=r"^layer .* was not called while the model ran, so"
            ):
                run(attrfn.split(model, layer))
        with pytest.raises(ValueError, match=r"was not called while the model ran"):
            attrfn.layer_activation(model, x, layer=["used", layer])


def test_calls_that_do_not_happen():
    model, x = zoo.make(zoo.Residual), randn(3, 4)
    message = (
        r"^layer 'blocks\.1\.act' was called 2 time\(s\), so call=2 does not exist: expected 0 to 1"
    )
    with pytest.raises(ValueError, match=message):
        attrfn.split(model, RESIDUAL_ACT, call=2).head(x)
    with pytest.raises(ValueError, match=message):
        attrfn.split(model, RESIDUAL_ACT, call=2).tail(randn(3, 5), x)
    with pytest.raises(
        ValueError, match=r"^layer 'stem' was called 1 time\(s\), so call=1 does not"
    ):
        attrfn.layer_conductance(model, x, layer="stem", call=1, target=0)


# torch deprecates scripting, but scripted models are around for a while.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripted_layers():
    model, x = zoo.mlp(), randn(3, 4)
    scripted = torch.jit.script(model)
    with pytest.raises(ValueError, match=r"layer '1' (is no part of|was not called)"):
        attrfn.split(scripted, "1").head(x)
    mixed = nn.Sequential(scripted, nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match=r"layer '0\.1' (is no part of|was not called)"):
        attrfn.split(mixed, "0.1").head(x)
    with pytest.raises(ValueError, match=r"layer '0' (is no part of|was not called)"):
        attrfn.split(mixed, "0").head(x)
    # but the model can be explained, and its other layers
    equal(attrfn.gradient(scripted, x, target=1), attrfn.gradient(model, x, target=1))
    equal(attrfn.split(mixed, "1").head(x), mixed(x))


class Boxed:
    """Callable, but its module cannot be seen."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)


def test_functions_that_hide_their_module():
    model, x = zoo.mlp(), randn(3, 4)
    for hidden in (lambda x: model(x), Boxed(model), functools.partial(lambda m, x: m(x), model)):
        message = (
            r"^model is a \w+ with no module in sight, expected a torch\.nn\.Module, .*wrap the fun"
        )
        with pytest.raises(TypeError, match=message):
            attrfn.split(hidden, "1")
        with pytest.raises(TypeError, match=message):
            attrfn.layer_gradient_x_activation(hidden, x, layer="1", target=0)
        with pytest.raises(TypeError, match=message):
            attrfn.neuron_integrated_gradients(hidden, x, layer="1", neuron=0)
        equal(attrfn.gradient(hidden, x, target=0), attrfn.gradient(model, x, target=0))


def test_layers_with_nothing_to_explain():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ids, self.size, self.words = Ids(), Size(), nn.Embedding(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.words(self.ids(x)).mean(1) * self.size(x)

    model, x = zoo.make(Net), randn(3, 4)
    message = r"gives no floating tensor with the 3 example\(s\) in dimension 0 to explain: choose"
    with pytest.raises(ValueError, match=r"^layer 'ids' " + message):
        attrfn.layer_integrated_gradients(model, x, layer="ids", target=0)
    with pytest.raises(ValueError, match=r"^layer 'size' " + message):
        attrfn.layer_gradient_x_activation(model, x, layer="size", target=0)
    equal(attrfn.layer_activation(model, x, layer="ids"), (x > 0).long())


class Ids(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).long()


class Size(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(float(x.shape[1]))


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

TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])
COMPILED = {
    "nest": lambda: (zoo.structured("nest"), "parts", {}, randn(3, 4)),
    "mixed": lambda: (zoo.structured("mixed"), "parts", {}, randn(3, 4)),
    "dict_in": lambda: (zoo.structured("dict"), "join", {"at": "input"}, randn(3, 4)),
    "reused": lambda: (zoo.make(zoo.Residual), RESIDUAL_ACT, {"call": 1}, randn(3, 4)),
    "tied": lambda: (zoo.make(zoo.Tied), ["words", "places"], {}, TOKENS),
    "keywords": lambda: (
        functools.partial(zoo.make(zoo.Keywords), scale=randn(3, 5)),
        "gate",
        {"at": "input"},
        randn(3, 4),
    ),
    "method": lambda: (zoo.make(zoo.Encoder).encode, "body.1", {}, randn(3, 4)),
    "attention": lambda: (zoo.make(zoo.Attends, True, True), "attn", {}, randn(3, 5, 4)),
    "in_place": lambda: (
        zoo.make(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))),
        "0",
        {},
        randn(3, 4),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_attributions(case):
    """One graph with the same numbers, also for other values; the user's model is left alone."""
    torch._dynamo.reset()
    model, layer, where, x = COMPILED[case]()
    before = zoo.state(zoo.owner(model))

    def explain(x: Tensor) -> Any:
        return attrfn.layer_gradient_x_activation(model, x, layer=layer, target=1, **where)

    compiled = torch.compile(explain, fullgraph=True, backend="aot_eager")
    for values in (x, x.flip(0)):
        equal(compiled(values), explain(values), rtol=1e-12, atol=1e-12)
    assert zoo.same_state(zoo.owner(model), before)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="documented limit: see docs/faq.md, sharp edges")
def test_compiled_model_that_keeps_an_activation():
    """An attribute that forward writes stays inside the run. (A failing compile poisons: fork.)"""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import attrfn, zoo

        model, x = zoo.make(zoo.Writes), zoo.randn(3, 4)
        explain = lambda x: attrfn.layer_gradient_x_activation(model, x, layer="lin", target=1)
        compiled = torch.compile(explain, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), explain(x))
        print(model.calls, model.last, model.log, model.cache)
        """
    assert zoo.in_processes({"keeps": code})["keeps"] == "0 None [] {}\n"


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
    for groups in (1, 4):
        for method in (attrfn.layer_gradient_x_activation, attrfn.layer_conductance):
            h, c = method(make(Cell, groups), x, layer="cell", call=5, target=1)
            assert h.shape == c.shape == (8, 4)
            assert (h != 0).any()


def test_a_method_may_call_the_model_from_threads():
    """The function that it gets runs on objects of its own in each."""
    net, x = make(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), randn(5, 3)

    def method(model_fn, inputs, *, target=None):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: model_fn(inputs), range(400)))
        assert all(torch.equal(f, found[0]) for f in found)
        return found[0]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for moved in (attrfn.at_layer(method, "1"), attrfn.at_neuron(method, "1", 0)):
            assert moved(net, x).shape[0] == 5
    finally:
        sys.setswitchinterval(interval)
