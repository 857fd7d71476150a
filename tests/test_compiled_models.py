"""attrfn.compile follows what the user changes in a model, and leaves a model as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from zoo import make, randn, same_state, state

import attrfn

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Settings:
    """What a module shares with its clone, such as the config of a transformer."""

    def __init__(self, slope: float = 1.0) -> None:
        self.slope = slope


class Scaled(nn.Module):
    """Layers, a number and a function, to be changed between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Softplus(beta=1.0), nn.Linear(5, 3))
        self.scale, self.shift = 1.0, 1
        self.rows: list[int] = [0, 1]
        self.function = torch.tanh
        self.settings, self._hooks = Settings(), Settings()
        self.many = [Settings() for _ in range(100)]

    @property
    def slope(self) -> float:
        return self.settings.slope * self._hooks.slope * self.many[99].slope

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.function(self.layers(x) + self.shift * self.slope)[:, self.rows]


def _freeze(model: Scaled) -> None:
    model.layers[2] = nn.Linear(5, 3).double().requires_grad_(False)


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "number": lambda m: setattr(m, "scale", 3.0),
    "count": lambda m: setattr(m, "shift", 2),
    "number of a layer": lambda m: setattr(m.layers[1], "beta", 2.0),
    "object": lambda m: setattr(m.settings, "slope", 2.0),
    "another object": lambda m: setattr(m, "settings", Settings(2.0)),
    "object that is named as torch's": lambda m: setattr(m, "_hooks", Settings(2.0)),
    "object in a long list": lambda m: setattr(m.many[99], "slope", 3.0),
    "list": lambda m: m.rows.reverse(),
    "function": lambda m: setattr(m, "function", torch.sin),
    "layer": lambda m: m.layers.__setitem__(1, nn.ReLU()),
    "layer with parameters": _freeze,
    "no bias": lambda m: setattr(m.layers[0], "bias", None),
    "parameter": lambda m: setattr(m.layers[0], "weight", nn.Parameter(torch.ones(5, 4).double())),
    "values": lambda m: m.layers[0].weight.data.mul_(2),
    "hook": lambda m: m.layers[0].register_forward_hook(lambda _, args, out: out * 2),
    "dtype": lambda m: m.float(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "method", [attrfn.gradient, attrfn.layer_gradient_x_activation, attrfn.lrp]
)
def test_changes_of_the_model_are_seen(method: Any, change: str) -> None:
    """Compiled code looks at little of what it was made from, but at all of the user's."""
    if method is attrfn.lrp and change in ("number", "hook", "function"):
        pytest.skip("no rule")
    layer = {"layer": "layers.0"} if "layer" in inspect.signature(method).parameters else {}
    model = make(Scaled)
    explain = attrfn.compile(method, model, backend="eager", **layer)
    x = randn(3, 4)
    assert_close(explain(x, target=0), method(model, x, target=0, **layer))
    CHANGES[change](model)
    x = x.float() if change == "dtype" else x
    assert_close(explain(x, target=0), method(model, x, target=0, **layer))


class Caching(nn.Module):
    """Keeps what it computed first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mean"):
            self.mean = x.detach().mean()
        return self.layer(x) * self.mean


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.calls = 0
        self.register_buffer("total", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.total = self.total + 1
        return self.layer(x) * self.calls * self.total


class Switching(nn.Module):
    """Is in the other mode after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) * (2 if self.training else 1)
        self.train(not self.training)
        return y


@pytest.mark.parametrize("kind", [Caching, Counting, Switching])
def test_models_that_write_to_themselves_start_anew_at_each_call(kind: type[nn.Module]) -> None:
    """The private clone is not looked at by guards; what a run writes there must not be seen."""
    model = make(kind)
    before = state(model)
    explain = attrfn.compile(attrfn.gradient, model, backend="eager", target=1)
    for seed in range(3):
        x = randn(2, 4, seed=seed) + seed
        assert_close(explain(x), attrfn.gradient(model, x, target=1))
    assert same_state(model, before)
