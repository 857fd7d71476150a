"""Numbers outside of their range are refused by name, in rules, surrogates and random draws."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

import attrfn
from attrfn import random, rules, surrogates

WRONG = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "negative": -0.5,
    "string": "0.5",
    "bool": True,
    "none": None,
}
NUMBERS = [
    (f"{space.__name__.split('.')[-1]}.{name}", function, option)
    for space in (rules, surrogates)
    for name, function in vars(space).items()
    if inspect.isfunction(function) and not name.startswith("_")
    for option, p in inspect.signature(function).parameters.items()
    if isinstance(p.default, float)
]
BOX = {"low": -1.0, "high": 1.0}


def needed(function: Callable[..., Any]) -> dict[str, Any]:
    return {k: v for k, v in BOX.items() if k in inspect.signature(function).parameters}


def refused(option: str, call: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{option}\b") as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize(
    ("function", "option"), [pytest.param(f, o, id=f"{name}-{o}") for name, f, o in NUMBERS]
)
def test_options_of_rules_and_surrogates(
    function: Callable[..., Any], option: str, what: str
) -> None:
    refused(option, lambda: function(**{**needed(function), option: WRONG[what]}))


def test_the_sweep_finds_the_options() -> None:
    found = {(name, option) for name, _, option in NUMBERS}
    assert {("rules.epsilon", "epsilon"), ("rules.gamma", "gamma")} < found
    assert {("rules.alpha_beta", "beta"), ("surrogates.lasso", "alpha")} < found


BOXES = {
    "swapped": ("low", 5.0, -5.0),
    "nan": ("low", math.nan, 1.0),
    "inf": ("high", 0.0, math.inf),
    "string": ("high", 0.0, "1"),
    "bool": ("low", False, 1.0),
    "none": ("low", None, 1.0),
    "swapped tensors": ("low", torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])),
    "swapped tensor": ("low", torch.tensor([0.0, 2.0]), 1.0),
    "nan in a tensor": ("high", 0.0, torch.tensor([1.0, math.nan])),
    "shapes": ("low", torch.zeros(2), torch.ones(3)),
}


@pytest.mark.parametrize("function", [rules.z_box, rules.epsilon_gamma_box])
@pytest.mark.parametrize("what", BOXES)
def test_boxes(function: Callable[..., Any], what: str) -> None:
    option, low, high = BOXES[what]
    refused(option, lambda: function(low, high))


def test_boxes_that_are_right() -> None:
    for low, high in (
        (0, 1),
        (0.0, 0.0),
        (torch.zeros(2), 1.0),
        (torch.zeros(2, 1), torch.ones(2)),
    ):
        rules.z_box(low, high)


PROBABILITIES = {
    "above": 2.0,
    "negative": -0.1,
    "nan": math.nan,
    "string": "0.5",
    "bool": True,
    "none": None,
    "tensor above": torch.tensor(2.0),
    "tensor negative": torch.tensor([0.5, -0.5]),
    "tensor nan": torch.tensor([0.5, math.nan]),
}


@pytest.mark.parametrize("what", PROBABILITIES)
def test_probabilities(what: str) -> None:
    refused("p", lambda: random.bernoulli(0, PROBABILITIES[what], (2,)))


def test_probabilities_under_vmap_are_drawn_as_without() -> None:
    p = torch.tensor([0.0, 0.5, 1.0])
    looped = torch.stack([random.bernoulli(0, q, (4,)) for q in p])
    assert torch.equal(vmap(lambda q: random.bernoulli(0, q, (4,)))(p), looped)


@pytest.mark.parametrize("option", ["minval", "maxval"])
@pytest.mark.parametrize("what", [what for what in WRONG if what != "negative"])
def test_bounds(option: str, what: str) -> None:
    refused(option, lambda: random.uniform(0, (2,), **{option: WRONG[what]}))


def test_bounds_that_the_dtype_cannot_hold() -> None:
    refused("maxval", lambda: random.uniform(0, maxval=1e39))
    refused("maxval", lambda: random.uniform(0, minval=-3e38, maxval=3e38))
    refused("maxval", lambda: random.uniform(0, maxval=1e5, dtype=torch.float16))
    assert random.uniform(0, maxval=6e4, dtype=torch.float16).isfinite()
    assert random.uniform(0, maxval=1e39, dtype=torch.float64).isfinite()


@pytest.mark.parametrize("high", [0, -1, 2**31 + 1, 2.5, math.nan, True, "3", None])
def test_ranges_of_integers(high: Any) -> None:
    refused("high", lambda: random.randint(0, (2,), high))


STDEVS = {
    "inf": math.inf,
    "negative tensor": torch.tensor(-0.1),
    "nan tensor": torch.tensor([0.1, math.nan]),
    "inf tensor": torch.tensor([math.inf, 1.0]),
}


@pytest.mark.parametrize("what", STDEVS)
def test_stdevs(what: str) -> None:
    x = torch.ones(3, 2)
    noisy = attrfn.noise_tunnel(attrfn.gradient, n_samples=2, stdevs=STDEVS[what])
    refused("stdevs", lambda: noisy(_sum, x))
    refused(
        "stdevs",
        lambda: attrfn.gradient_shap(_sum, x, baselines=x, n_samples=2, stdevs=STDEVS[what]),
    )


def test_a_key_is_checked_where_nothing_is_drawn() -> None:
    for key in (object(), 1.5, torch.zeros(3)):
        refused("key", lambda key=key: attrfn.interactions(_sum, torch.ones(1, 2), key=key))


def test_a_mode_is_checked_where_the_backend_has_none() -> None:
    for backend in ("eager", "aot_eager"):
        refused(
            "mode",
            lambda backend=backend: attrfn.compile(
                attrfn.gradient, _sum, mode="abc", backend=backend
            ),
        )


@pytest.mark.parametrize("value", [1, "False", torch.tensor(True)])
def test_flags_of_pictures_and_of_compile(value: Any) -> None:
    viz, images = pytest.importorskip("attrfn.viz"), torch.rand(1, 1, 4, 4)
    for flag in ("original", "outline"):
        wrong = {flag: value}
        refused(flag, lambda wrong=wrong: viz.image_grid(images, {"a": images}, **wrong))
    refused("rest", lambda: viz.bar(torch.ones(2, 2), ["a", "b"], rest=value))
    refused("dynamic", lambda: attrfn.compile(attrfn.gradient, _sum, dynamic=value))
    refused("absolute", lambda: attrfn.compile(attrfn.saliency, _sum, absolute=value))
    explain = attrfn.compile(attrfn.saliency, _sum, backend="eager")
    refused("absolute", lambda: explain(torch.ones(1, 2), absolute=value))
    refused("create_graph", lambda: explain(torch.ones(1, 2), create_graph=None))


def _sum(x: Tensor) -> Tensor:
    return x.sum(1)
