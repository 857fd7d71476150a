"""Relevance at layers of random nets: a list of layers gives what each layer gives alone."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import randn

import attrfn

WIDTH, PLACES = 3, 2
RULES = [
    attrfn.rules.epsilon_plus(),
    attrfn.rules.attn_lrp(),
    attrfn.rules.cp_lrp(),
    attrfn.rules.gamma(),
]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Conv(nn.Module):
    """A convolution over the places, and a batch norm that a rule folds into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(WIDTH, WIDTH, 1), nn.BatchNorm1d(WIDTH)
        self.norm.running_var.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.mT)).mT


CURVES: dict[str, Any] = {
    "relu": lambda x: x.relu(),
    "tanh": torch.tanh,
    "exp": lambda x: (0.3 * x).exp(),
    "double": lambda x: 2 * x,
    "shift": lambda x: x + 0.5,
    "log": lambda x: (1.5 + x * x).log(),
    "one more": lambda x: 1 + x,
    "log of it": lambda x: (x.abs() + 1.1).log(),
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))),
    "norm": lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 0.1).rsqrt(),
    "softmax": lambda x: x.softmax(-1),
}


class Curve(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return CURVES[self.name](x)


JOINS: dict[str, Any] = {
    "product": lambda x, a, b: a * b,
    "sum": lambda x, a, b: a + b,
    "residual": lambda x, a, b: x + a * 0.5,
    "gated": lambda x, a, b: x * a,
    "in place": lambda x, a, b: a.clone().add_(b),
    "attention": lambda x, a, b: (a @ b.mT).softmax(-1) @ x,
    "quotient": lambda x, a, b: a / (b.abs() + 1),
    "cat": lambda x, a, b: torch.cat([a[..., :1], b[..., 1:]], -1),
}


class Join(nn.Module):
    def __init__(self, name: str, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.name, self.left, self.right = name, left, right

    def forward(self, x: Tensor) -> Tensor:
        return JOINS[self.name](x, self.left(x), self.right(x))


leaves = st.one_of(
    st.builds(Linear), st.builds(Conv), st.builds(Curve, st.sampled_from(sorted(CURVES)))
)
nets = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map(lambda parts: nn.Sequential(*parts)),
        st.builds(Join, st.sampled_from(sorted(JOINS)), inner, inner),
    ),
    max_leaves=8,
)


class Whole(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(WIDTH, WIDTH), body, nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)).sum(1))


def compare(body: nn.Module, rules: Any, data: st.DataObject) -> None:
    model = Whole(body).double().eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(randn(*p.shape, seed=i))
    names = [name for name, _ in model.named_modules() if name and name != "last"]
    layers = data.draw(st.lists(st.sampled_from(names), min_size=2, max_size=5, unique=True))
    x, given_ = randn(2, PLACES, WIDTH), {"target": 1, "rules": rules}
    found = attrfn.layer_lrp(model, x, layer=layers, **given_)
    for layer, a in zip(layers, found, strict=True):
        alone = attrfn.layer_lrp(model, x, layer=layer, **given_)
        scale = max(1.0, float(alone.abs().max()))
        torch.testing.assert_close(a / scale, alone / scale, rtol=1e-7, atol=1e-9)
    assert len(optree.tree_leaves(found)) == len(layers)


@pytest.mark.filterwarnings("ignore:the explained output does not depend")
@settings(max_examples=60, deadline=None)
@given(nets, st.sampled_from(RULES), st.data())
def test_a_list_gives_what_each_layer_gives(body: nn.Module, rules: Any, data: Any) -> None:
    compare(body, rules, data)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore:the explained output does not depend")
@settings(max_examples=1500, deadline=None)
@given(nets, st.sampled_from(RULES), st.data())
def test_a_list_gives_what_each_layer_gives_at_length(
    body: nn.Module, rules: Any, data: Any
) -> None:
    compare(body, rules, data)
