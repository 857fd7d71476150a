"""Layers behind each other share one pass, and each gets what it gets alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
import zoo
from helpers import assert_close, assert_informative
from torch import Tensor, nn
from torch.func import vmap
from zoo import make, randn

import attrfn
from attrfn._rules import at_sites

RULES = attrfn.rules
LISTS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gradient_x_activation": (attrfn.layer_gradient_x_activation, {"target": 1}),
    "gradient": (attrfn.layer_gradient_x_activation, {"target": 1, "multiply_by_inputs": False}),
    "activation": (attrfn.layer_activation, {}),
    "conductance": (attrfn.layer_conductance, {"target": 1, "n_steps": 4}),
    "influence": (attrfn.internal_influence, {"target": 1, "n_steps": 3}),
    "lrp": (attrfn.layer_lrp, {"target": 1}),
    "attn_lrp": (attrfn.layer_lrp, {"target": 1, "rules": RULES.attn_lrp()}),
    "gamma": (attrfn.layer_lrp, {"target": 1, "rules": RULES.gamma()}),
}
CHAIN = ["stem", "blocks.0.one", "blocks.0", "blocks.1.two", "blocks.1", "out"]


class Runs:
    """Counts the runs of a part of the model."""

    def __init__(self) -> None:
        self.number = 0


class Counted(nn.Module):
    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self.runs = (runs,)  # an object that copies share

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0].number += 1
        return x


def alone(method: Any, model: Any, x: Any, layers: Any, **options: Any) -> Any:
    return [method(model, x, layer=layer, **options) for layer in layers]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("at", ["output", "input"])
def test_each_layer_gets_what_it_gets_alone(name: str, at: Any) -> None:
    method, options = LISTS[name]
    model, x = make(zoo.Residual), randn(3, 4)
    expected = alone(method, model, x, CHAIN, at=at, **options)
    assert_informative(expected)
    assert_close(method(model, x, layer=CHAIN, at=at, **options), expected)
    twice = [*CHAIN[::-1], model.stem, "stem"]  # in any order, by name or module, and again
    assert_close(
        method(model, x, layer=twice, at=at, **options),
        alone(method, model, x, twice, at=at, **options),
    )


@pytest.mark.parametrize("name", LISTS)
def test_with_a_graph_and_in_transforms(name: str) -> None:
    method, options = LISTS[name]
    model, x, layers = zoo.mlp(), randn(3, 4), ["0", "1", "2"]
    expected = alone(method, model, x, layers, **options)
    z = x.clone().requires_grad_()
    found = method(model, z, layer=layers, create_graph=True, **options)
    assert_close([t.detach() for t in found], expected)
    one = method(model, z, layer="0", create_graph=True, **options)
    direction = randn(*one.shape, seed=3)
    got, wanted = [
        torch.autograd.grad((t * direction).sum(), [z, model[0].weight]) for t in (found[0], one)
    ]
    assert_close(got, wanted)
    mapped = vmap(lambda x: method(model, x[None], layer=layers, **options))(x)
    assert_close([t[:, 0] for t in mapped], expected, rtol=1e-8)
    jac = torch.func.jacrev(lambda x: method(model, x, layer=layers, **options)[0])(x)
    assert_close(jac, torch.func.jacrev(lambda x: method(model, x, layer="0", **options))(x))


def test_compiled() -> None:
    method, options = LISTS["gradient_x_activation"]
    model, x, layers = zoo.mlp(), randn(3, 4), ["0", "1"]
    explain = functools.partial(method, model, layer=layers, **options)
    compiled = torch.compile(explain, fullgraph=True, backend="eager")
    assert_close(compiled(x), alone(method, model, x, layers, **options))


def test_maps_of_layers_behind_each_other() -> None:
    model, x, layers = zoo.cnn(), randn(2, 2, 8, 8), ["0", "2", "3", "5"]
    for cam in (attrfn.grad_cam, attrfn.hires_cam, attrfn.layer_cam):
        given: dict[str, Any] = {"target": 1, "upsample": "nearest"}
        assert_close(cam(model, x, layer=layers, **given), alone(cam, model, x, layers, **given))


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("gradient_x_activation", 1),
        ("activation", 1),
        ("conductance", 3),
        ("influence", 2),
        ("lrp", 2),
    ],
)
@pytest.mark.usefixtures("independent_rows")
def test_passes_do_not_grow_with_the_layers(name: str, passes: int) -> None:
    """One pass; what is behind the plus in docs/methods/layers.md reads the layers first."""
    method, options = LISTS[name]
    counts = []
    for depth in (2, 9):
        runs = Runs()
        layers = [str(i + 1) for i in range(depth)]
        model = make(
            lambda runs=runs: nn.Sequential(
                Counted(runs), *[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(9)]
            )
        )
        method(model, randn(3, 4), layer=layers, **options)
        runs.number = 0
        method(model, randn(3, 4), layer=layers, **options)
        counts.append(runs.number)
    assert counts == [passes, passes]


def test_all_calls_behind_each_other() -> None:
    model, x = make(zoo.Residual), randn(3, 4)
    act = "blocks.1.act"
    method = attrfn.layer_gradient_x_activation
    each = [method(model, x, layer=act, call=i, target=1) for i in (0, 1)]
    assert_close(method(model, x, layer=act, call=None, target=1), tuple(each))
    found = method(model, x, layer=["stem", act], call=None, target=1)
    assert_close(found, [(method(model, x, layer="stem", target=1),), tuple(each)])


def test_methods_that_replace_activations_still_refuse_what_they_would_cut() -> None:
    model, x = make(zoo.Residual), randn(3, 4)
    for method in (attrfn.layer_integrated_gradients, attrfn.layer_deep_lift):
        with pytest.raises(ValueError, match="depends on what another layer"):
            method(model, x, layer=["stem", "blocks.0"], target=1)


# --- relevance: where one pass would not be what each layer gets alone ---------------------------


class Gate(nn.Module):
    """A product of a value and a gate: alone behind the value, the gate is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.value(x) * self.gate(x))


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Softplus(nn.Module):
    """log(1 + exp(h)), which is one function of h, with a layer in the middle of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.exp, self.last = nn.Linear(4, 4), Exp(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.log(1 + self.exp(self.first(x))))


class Divided(nn.Module):
    """A product with 1 / s, which is a quotient, and a layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h * self.between((h**2).mean(1, keepdim=True).add(1).rsqrt()))


def with_batch_norm() -> nn.Module:
    net = make(
        lambda: nn.Sequential(
            nn.Conv1d(4, 3, 1),
            nn.Tanh(),
            nn.Conv1d(3, 3, 1),
            nn.BatchNorm1d(3),
            nn.Flatten(),
            nn.Linear(6, 3),
        )
    )
    with torch.no_grad():
        net[3].running_mean.copy_(randn(3, seed=1))
        net[3].running_var.copy_(randn(3, seed=2).exp())
    return net


class Written(nn.Module):
    """Collects the values of two layers in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.zeros(len(x), 8, dtype=x.dtype)
        both[:, :4] = self.one(x)
        both[:, 4:] = self.two(x).tanh()
        return self.last(both * both.sin())


APART: dict[str, tuple[Callable[[], nn.Module], list[str], Callable[[], Tensor]]] = {
    "product": (lambda: make(Gate), ["value", "gate", "last"], lambda: randn(3, 4)),
    "chain": (lambda: make(Softplus), ["first", "exp"], lambda: randn(3, 4)),
    "quotient": (lambda: make(Divided), ["first", "between"], lambda: randn(3, 4)),
    "batch norm": (with_batch_norm, ["0", "2", "3"], lambda: randn(3, 4, 2)),
    "written": (lambda: make(Written), ["one", "two"], lambda: randn(3, 4)),
}
TOGETHER: dict[str, tuple[Callable[[], nn.Module], list[str], Callable[[], Tensor]]] = {
    "residual": (lambda: make(zoo.Residual), CHAIN, lambda: randn(3, 4)),
    "cnn": (zoo.cnn, ["2", "3", "5", "6"], lambda: randn(2, 2, 8, 8)),
    "before batch norm": (with_batch_norm, ["0", "1", "3"], lambda: randn(3, 4, 2)),
    "beside": (lambda: make(Softplus), ["first", "last"], lambda: randn(3, 4)),
}


@pytest.mark.parametrize("rules", [RULES.epsilon_plus(), RULES.attn_lrp(), RULES.cp_lrp()])
@pytest.mark.parametrize("name", [*APART, *TOGETHER])
def test_relevance_is_that_of_each_layer_alone(
    name: str, rules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, layers, inputs = (APART | TOGETHER)[name]
    model, x = build(), inputs()
    one_pass: list[bool] = []

    def noted(*args: Any, **options: Any) -> Any:
        found = at_sites.relevances(*args, **options)
        one_pass.append(found is not None)
        return found

    monkeypatch.setattr("attrfn._methods.lrp.relevances", noted)
    expected = alone(attrfn.layer_lrp, model, x, layers, target=1, rules=rules)
    for _ in range(2):  # the second time it is known which layers need a pass each
        found = attrfn.layer_lrp(model, x, layer=layers, target=1, rules=rules)
        assert_close(found, expected)
    assert one_pass == [name in TOGETHER] * 2
    assert any((t != 0).any() for t in optree.tree_leaves(expected))


def test_rules_by_name_in_one_pass() -> None:
    model, x = make(zoo.Residual), randn(3, 4)
    rules = RULES.composite(dense=RULES.epsilon(), names={"blocks.1.*": RULES.gamma()})
    expected = alone(attrfn.layer_lrp, model, x, CHAIN, target=1, rules=rules)
    assert_close(attrfn.layer_lrp(model, x, layer=CHAIN, target=1, rules=rules), expected)


class Asks(nn.Module):
    """Asks for the value of a tensor while it runs."""

    def __init__(self, runs: Runs, ask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.counted, self.layer, self.last = Counted(runs), nn.Linear(4, 4), nn.Linear(4, 3)
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        asked = bool(self.ask(x))
        h = self.layer(self.counted(x))
        return self.last(torch.tanh(h) if asked else h)


def written(x: Tensor) -> Tensor:
    buffer = torch.zeros(4, dtype=x.dtype)
    row = buffer[:2]
    row.copy_(x[0, :2])
    return buffer.sum() > 0


ASKED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "positions": (lambda x: (torch.arange(4).cumsum(0)[-1] == 6).all(), False),
    "the inputs": (lambda x: (x > 0).any(), True),
    "zeros like the inputs": (lambda x: x.new_zeros(3).any(), True),
    "what was written into a buffer": (written, True),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_depends_on_no_input_chooses_no_rows(name: str) -> None:
    """Else each call looks at the examples again, in reverse order, as transformers would need."""
    ask, by_inputs = ASKED[name]
    runs = Runs()
    model = make(lambda: Asks(runs, ask))
    method = attrfn.layer_gradient_x_activation
    method(model, randn(3, 4), layer="layer", target=1)
    runs.number = 0
    method(model, randn(3, 4), layer="layer", target=1)
    assert (runs.number > 1) == by_inputs
