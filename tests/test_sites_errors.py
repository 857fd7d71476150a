"""What sites refuse, each in one sentence that says what to do."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import zoo
from test_sites import Structured, plus_one
from torch import Tensor, nn
from zoo import make, randn

import attrfn
from attrfn import Site, activations, intervene


class Bypassed(nn.Module):
    """Reads the weights of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) + x @ self.unused.weight.T


class Case(NamedTuple):
    run: Any
    kind: type[Exception]
    text: str


ERRORS = {
    "never called": Case(
        lambda m, x: activations(make(Bypassed), ["unused"])(x),
        ValueError,
        r"site 'unused' was not passed, because the model did not call this module",
    ),
    "an edit never called": Case(
        lambda m, x: intervene(make(Bypassed), {"unused": plus_one})(x),
        ValueError,
        r"site 'unused' was not passed",
    ),
    "an edit never called in a method": Case(
        lambda m, x: attrfn.gradient(intervene(make(Bypassed), {"unused": plus_one}), x, target=0),
        ValueError,
        r"site 'unused' was not passed",
    ),
    "an edit never called in a layer method": Case(
        lambda m, x: attrfn.layer_gradient_x_activation(
            intervene(make(Bypassed), {"unused": plus_one}), x, layer="used", target=0
        ),
        ValueError,
        r"site 'unused' was not passed",
    ),
    "too few calls": Case(
        lambda m, x: activations(m, [Site("0", call=2)])(x),
        ValueError,
        r"site '0' \(call=2\) was not passed, because the model called the layer 1 time",
    ),
    "shape": Case(
        lambda m, x: intervene(m, {"0": lambda a, s: a[:1]})(x),
        ValueError,
        r"the edit at '0' returned shape \(1, 6\) where the layer gives \(3, 6\)",
    ),
    "dtype": Case(
        lambda m, x: intervene(m, {Site("0", "input"): lambda a, s: a.float()})(x),
        ValueError,
        r"the edit at '0' \(at='input'\) returned dtype torch.float32 where",
    ),
    "structure": Case(
        lambda m, x: intervene(m, {"0": lambda a, s: (a,)})(x),
        ValueError,
        r"the edit at '0' returned a tuple of 1 where the layer gives a tensor \(3, 6\)",
    ),
    "a tensor for a tuple": Case(
        lambda m, x: intervene(make(Structured), {"pair": lambda a, s: a[0]})(x),
        ValueError,
        r"the edit at 'pair' returned a tensor \(3, 4\) where the layer gives a tuple of 3",
    ),
    "a number": Case(
        lambda m, x: intervene(make(Structured), {"pair": lambda a, s: (a[0], None, 4)})(x),
        ValueError,
        r"the edit at 'pair' returned 4 where the layer gives 3",
    ),
    "other keys": Case(
        lambda m, x: intervene(make(Structured), {"named": lambda a, s: {"sum": a["sum"]}})(x),
        ValueError,
        r"the edit at 'named' returned a dict of 'sum' where the layer gives a dict of",
    ),
    "unknown layer": Case(
        lambda m, x: activations(m, ["3"]), ValueError, r"site '3' is not a module of Sequential"
    ),
    "a near name": Case(
        lambda m, x: activations(make(zoo.Residual), ["blocks.0.act1"]),
        ValueError,
        r"did you mean 'blocks.0.act'",
    ),
    "a parameter": Case(
        lambda m, x: activations(m, ["0.weight"]),
        ValueError,
        r"for a value between modules, such as attention scores, give the input or",
    ),
    "a function": Case(
        lambda m, x: activations(m, [torch.tanh]), TypeError, r"sites holds .* expected a module"
    ),
    "another model's module": Case(
        lambda m, x: activations(m, [nn.Linear(4, 4)])(x), ValueError, r"Linear is not part of"
    ),
    "no list": Case(lambda m, x: activations(m, 3), TypeError, r"sites is 3 \(int\), expected"),
    "at": Case(lambda m, x: activations(m, [Site("0", "out")]), ValueError, r"at='out', expected"),
    "call": Case(lambda m, x: activations(m, [Site("0", call=-1)]), ValueError, r"call=-1"),
    "no dict": Case(lambda m, x: intervene(m, ["0"]), TypeError, r"edits is .* expected a dict"),
    "a tensor as an edit": Case(
        lambda m, x: intervene(m, {"0": x}), TypeError, r"the edit at '0' is a Tensor, expected"
    ),
    "one argument": Case(
        lambda m, x: intervene(m, {"0": lambda a: a}),
        TypeError,
        r"the edit at '0' does not take two arguments",
    ),
    "a module as an edit": Case(
        lambda m, x: intervene(m, {"0": nn.ReLU()}),
        TypeError,
        r"the edit at '0' does not take two arguments",
    ),
    "an edit that fails": Case(
        lambda m, x: intervene(m, {"0": lambda a, s: a @ a})(x),
        RuntimeError,
        r"the edit at '0' failed: mat1 and mat2 shapes cannot be multiplied",
    ),
    "a function in C of one argument": Case(
        lambda m, x: attrfn.gradient(intervene(m, {"0": torch.relu}), x, target=1),
        TypeError,
        r"the edit at '0' failed: relu\(\) takes 1 positional argument",
    ),
    "no module": Case(
        lambda m, x: intervene(lambda x: x, {"0": plus_one}),
        TypeError,
        r"model is .*, and no module can be found in it",
    ),
    "not yet seen": Case(
        lambda m, x: intervene(m, {"0": lambda a, s: s["2"], "2": None})(x),
        KeyError,
        r"site '2' has not been passed yet in this run",
    ),
    "not a site": Case(
        lambda m, x: intervene(m, {"0": lambda a, s: s["2"]})(x),
        KeyError,
        r"site '2' is none of the sites",
    ),
    "a site as a layer": Case(
        lambda m, x: attrfn.layer_activation(m, x, layer=Site("0")),
        TypeError,
        r"layer is a Site, expected",
    ),
    "frozen": Case(lambda m, x: activations(m, ["0"], frozen=1), TypeError, r"frozen"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    case = ERRORS[name]
    with pytest.raises(case.kind, match=case.text) as caught:
        case.run(zoo.mlp(), randn(3, 4))
    assert len(str(caught.value)) <= 300


def test_what_was_seen_is_read_only() -> None:
    def edit(a: Tensor, seen: Any) -> Tensor:
        with pytest.raises(TypeError):
            seen["0"] = a
        return a

    intervene(zoo.mlp(), {"0": edit})(randn(3, 4))
