"""Layers whose rows are as many as the examples by chance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import make, randn

import attrfn

METHODS: dict[str, Callable[..., Any]] = {
    "activation": attrfn.layer_gradient_x_activation,
    "ablation": attrfn.layer_feature_ablation,
    "gradients": functools.partial(attrfn.layer_integrated_gradients, baselines=0.9, n_steps=2),
    "conductance": functools.partial(attrfn.layer_conductance, n_steps=2),
    "saliency": lambda m, x, *, layer, target: attrfn.at_layer(attrfn.saliency, layer)(
        m, x, target=target
    ),
}


class Experts(nn.Module):
    """Tokens (B, T, 4) go to the expert of their largest entry, in one of several spellings."""

    def __init__(self, route: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.route = route
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.after = nn.Tanh()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        y = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows = self.route(tokens, i)
            y = y.index_add(0, rows, expert(tokens[rows]))
        return self.out(self.after(y.unflatten(0, x.shape[:2]))).mean(1)


ROUTES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "nonzero": lambda t, i: ((t[:, 0] > 0).long() == i).nonzero()[:, 0],
    "where": lambda t, i: torch.where((t[:, 0] > 0).long() == i)[0],
    "mask": lambda t, i: torch.arange(len(t))[(t[:, 0] > 0).long() == i],
    "sorted": lambda t, i: torch.argsort((t[:, 0] > 0).long(), stable=True)[
        slice(0, int((t[:, 0] <= 0).sum())) if i == 0 else slice(int((t[:, 0] <= 0).sum()), None)
    ],
    "topk": lambda t, i: torch.topk(t[:, i], len(t) // 2).indices,
}


def routed(*tokens: tuple[int, ...]) -> Tensor:
    """Examples whose tokens go to expert 1 where there is a one."""
    x = randn(len(tokens), len(tokens[0]), 4)
    x[..., 0] = x[..., 0].abs() * torch.tensor(tokens).mul(2).sub(1)
    return x


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", METHODS)
def test_tokens_of_an_expert(name: str, route: str) -> None:
    """Three tokens for three examples, which are not one of each: the result has their shape.

    What is known is df/da = (1 - tanh(y)^2) W / 2 of a mean over two tokens, with y the sum of what
    the experts return for a token; baselines of 0.9 go to another expert.
    """
    model = make(lambda: Experts(ROUTES[route]))
    x = routed((1, 1), (0, 0), (1, 0))
    a = attrfn.layer_activation(model, x, layer="experts.1")
    rows = ROUTES[route](x.flatten(0, 1), 1)
    y = attrfn.layer_activation(model, x, layer="after", at="input").flatten(0, 1)[rows]
    slopes = (1 - y.tanh() ** 2) * model.out.weight[1] / 2
    lost = (y.tanh() - (y - a).tanh()) * model.out.weight[1] / 2  # each unit is replaced alone
    if name in ("gradients", "conductance"):
        with pytest.raises(ValueError, match=r"^the model chooses the rows of layer by values"):
            METHODS[name](model, x, layer="experts.1", target=1)
        return
    expected = {"activation": a * slopes, "ablation": lost, "saliency": slopes.abs()}[name]
    torch.testing.assert_close(METHODS[name](model, x, layer="experts.1", target=1), expected)


@pytest.mark.parametrize("route", ["nonzero", "where", "mask", "sorted"])
def test_one_token_of_each_example(route: str) -> None:
    """Rows that are examples after all; df/da of a mean over two tokens is known."""
    model = make(lambda: Experts(ROUTES[route]))
    x = routed((1, 0), (0, 1), (1, 0))
    a = attrfn.layer_activation(model, x, layer="experts.1")
    expected = a * (1 - a.tanh() ** 2) * model.out.weight[1] / 2
    found = attrfn.layer_gradient_x_activation(model, x, layer="experts.1", target=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("route", ROUTES)
def test_layers_behind_experts_are_explained(route: str) -> None:
    model, x = make(lambda: Experts(ROUTES[route])), routed((1, 1), (0, 0), (1, 0))
    for method in METHODS.values():
        assert method(model, x, layer="after", target=1).shape == x.shape


class Constants(nn.Module):
    """Embeddings of positions, and queries that are parameters: as many as there are places."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(8, 4)
        self.queries = nn.Parameter(torch.ones(3, 4))
        self.asked = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        places = self.positions(torch.arange(x.shape[1]))
        q = self.asked(self.queries.to(x))
        return self.out(torch.tanh(x + places + q.sum(0))).mean(1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("layer", ["positions", "asked"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_constants(layer: str, name: str, batch: int) -> None:
    """(3, 4) whatever the batch: with three examples, or one and one place, it looks like rows."""
    model, places = make(Constants), 1 if batch == 1 and layer == "positions" else 3
    x = randn(batch, places, 4)
    with pytest.raises(ValueError, match=rf"^layer '{layer}' gives (3 rows|1 rows|no floating)"):
        METHODS[name](model, x, layer=layer, target=1)


def test_what_was_told_holds_for_the_same_sizes_only() -> None:
    """Four examples are four rows; then three, of which there are three positions."""
    model = make(Constants)
    for batch in (4, 3, 4, 3):
        with pytest.raises(ValueError, match="layer 'positions' gives"):
            attrfn.layer_feature_ablation(model, randn(batch, 3, 4), layer="positions", target=1)
    assert attrfn.layer_feature_ablation(model, randn(3, 3, 4), layer=["out"], target=1)[
        0
    ].shape == (3, 3, 2)


def test_bound_rows_follow_where_examples_are_reversed() -> None:
    class Scaled(Experts):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return super().forward(x * scale[:, None, None])

    model, x = make(lambda: Scaled(ROUTES["nonzero"])), routed((1, 1), (0, 0), (1, 0))
    bound = functools.partial(model, scale=torch.tensor([1.0, 2.0, 3.0]).double())
    found = attrfn.layer_feature_ablation(bound, x, layer="after", target=1)
    for i in range(3):
        one = functools.partial(model, scale=bound.keywords["scale"][i : i + 1])
        alone = attrfn.layer_feature_ablation(one, x[i : i + 1], layer="after", target=1)
        torch.testing.assert_close(alone[0], found[i])
