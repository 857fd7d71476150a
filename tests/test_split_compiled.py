"""Splits under torch.compile."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from splits import RESIDUAL_ACT, equal
from torch import Tensor, nn
from zoo import randn

import attrfn

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
