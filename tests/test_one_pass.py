"""Eager layer gradients take one pass, and its results are those of the two halves."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from helpers import assert_close, assert_informative, in_threads
from torch import Tensor, nn
from zoo import make, randn

import attrfn

ALONG_A_PATH = {
    "layer_conductance": (attrfn.layer_conductance, {"n_steps": 3}),
    "internal_influence": (attrfn.internal_influence, {"n_steps": 3}),
}
METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "layer_gradient_x_activation": (attrfn.layer_gradient_x_activation, {}),
    **ALONG_A_PATH,
}


class Counted(nn.Module):
    """Counts how often it runs."""

    runs: ClassVar[list[int]] = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        return x


def counted_runs(monkeypatch: pytest.MonkeyPatch, run: Callable[[nn.Module], object]) -> int:
    """The runs of a call, of which the first one for a model also looks at what the rows are."""
    model = make(lambda: nn.Sequential(Counted(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    run(model)
    monkeypatch.setattr(Counted, "runs", [0])
    run(model)
    return Counted.runs[0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("independent_rows")
def test_the_part_before_the_layer_runs_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, options = METHODS[name]
    # To see what the layer returns; conductance also needs its value at the baseline.
    at_the_inputs = {"layer_conductance": 2, "internal_influence": 1}.get(name, 0)
    runs = counted_runs(
        monkeypatch, lambda model: method(model, randn(5, 3), layer="2", target=1, **options)
    )
    assert runs == at_the_inputs + 1


def test_a_map_takes_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    cam = attrfn.grad_cam
    x = randn(5, 3, 3)
    assert counted_runs(monkeypatch, lambda m: cam(m, x, layer="2", target=(1, 1))) == 1


class Aliased(nn.Module):
    """Hands on a tensor through the layer, and writes into it afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        a = self.layer(h)
        b = self.last(a * a)
        h.mul_(0)
        return b


class Residual(nn.Module):
    """A layer that the inputs also go around."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x + self.layer(x)) * x)


class Twice(nn.Module):
    """A layer of which the second call is explained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class OnlyBackward(torch.autograd.Function):
    """The square, without forward mode."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class NoForwardMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(OnlyBackward.apply(x))))


class InPlaceBehind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).mul_(2).relu_())


class Attention(nn.Module):
    """Attention before the layer, which is differentiated forward, and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
        self.last = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.unflatten(1, (3, 4)))).mean(1)


MODELS: dict[str, tuple[Callable[[], nn.Module], int, dict[str, Any]]] = {
    "aliased": (Aliased, 3, {}),
    "residual": (Residual, 3, {}),
    "second call": (Twice, 3, {"call": 1}),
    "input": (InPlaceBehind, 3, {"at": "input"}),
    "in-place behind": (InPlaceBehind, 3, {}),
    "attention": (Attention, 12, {}),
    "convolution": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 12)),
            nn.Conv1d(1, 2, 3, padding=1, stride=2),
            nn.Conv1d(2, 3, 3, groups=1, bias=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, 2),
        ),
        12,
        {"layer": "3"},
    ),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_agrees_with_the_two_halves(name: str, model: str) -> None:
    """With create_graph=True the head runs first and then the tail."""
    method, options = METHODS[name]
    build, width, where = MODELS[model]
    net, x = make(build), randn(5, width)
    given = {"layer": "layer", "target": 1, **where, **options}
    expected = method(net, x, create_graph=True, **given).detach()
    assert_informative(expected)
    assert_close(method(net, x, **given), expected)
    assert_close(method(net, x, create_graph=False, **given), expected)


def test_conductance_of_what_has_no_forward_mode() -> None:
    net, x = make(NoForwardMode), randn(5, 3)
    options: dict[str, Any] = {"layer": "layer", "target": 1, "n_steps": 200}
    found = attrfn.layer_conductance(net, x, **options)
    change = (net(x) - net(0 * x))[:, 1]
    assert_close(found.sum(1), change.detach(), rtol=1e-6)


def test_conductance_in_threads() -> None:
    """torch has one forward mode for all threads."""
    net = make(Residual)
    batches = [randn(5, 3, seed=i) for i in range(8)]
    run = lambda x: attrfn.layer_conductance(net, x, layer="layer", target=1, n_steps=4)  # noqa: E731
    expected = [run(x) for x in batches]
    assert_close(in_threads(run, batches, times=5), expected)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_may_raise_behind_the_layer(name: str) -> None:
    """Forward mode ends, and the next run is as before."""
    method, options = METHODS[name]

    class Raises(Residual):
        def forward(self, x: Tensor) -> Tensor:
            self.layer(x)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        method(make(Raises), randn(5, 3), layer="layer", target=1, **options)
    assert torch.autograd.forward_ad._current_level == -1


def test_no_gradient_behind_the_layer_warns() -> None:
    class Cut(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(x).detach())

    for method, options in METHODS.values():
        with pytest.warns(UserWarning, match="does not depend on what is explained"):
            a = method(make(Cut), randn(5, 3), layer="layer", target=1, **options)
        assert (a == 0).all()


class Wrapped(OrderedDict[str, Tensor]):
    """A mapping that neither optree nor torch knows."""


class ReturnsMapping(nn.Module):
    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.kind = nn.Linear(3, 4), kind

    def forward(self, x: Tensor) -> Any:
        return self.kind({"h": self.inner(x), "n": 3})


class TakesMapping(nn.Module):
    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.last = ReturnsMapping(kind), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(x)["h"]))


@pytest.mark.parametrize("kind", [dict, Wrapped, UserDict])
@pytest.mark.parametrize("name", METHODS)
def test_layers_that_return_mappings(name: str, kind: Callable[..., Any]) -> None:
    method, options = METHODS[name]
    net, x = make(TakesMapping, kind), randn(5, 3)
    expected = method(net, x, layer="layer", target=1, create_graph=True, **options)["h"].detach()
    assert_informative(expected)
    assert_close(method(net, x, layer="layer", target=1, **options)["h"], expected)


class Writes(nn.Module):
    """Changes a state that no buffer's version tells of."""

    def __init__(self, write: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.last, self.write = nn.Linear(3, 4), nn.Linear(4, 2), write
        self.plain = torch.ones(4, dtype=torch.float64)
        self.several = (torch.ones(4, dtype=torch.float64), 1)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x) * self.plain.clone() * self.several[0].clone() * self.var.clone()
        self.write(self, h)
        return self.last(torch.tanh(h))


WRITES: dict[str, Callable[[Any, Tensor], Any]] = {
    "attribute": lambda m, h: m.plain.mul_(2),
    "in a tuple": lambda m, h: m.several[0].mul_(2),
    "data": lambda m, h: m.var.data.mul_(2),
    "buffer": lambda m, h: m.var.mul_(2),
    "batch norm": lambda m, h: nn.functional.batch_norm(h.detach(), m.mean, m.var, training=True),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "method", [attrfn.layer_integrated_gradients, attrfn.layer_conductance, attrfn.saliency]
)
def test_no_run_starts_from_the_state_of_another(method: Any, write: str) -> None:
    net, x = make(Writes, WRITES[write]), randn(5, 3)
    options: dict[str, Any] = {"target": 1}
    if method is attrfn.saliency:
        method, options = attrfn.integrated_gradients, {"target": 1, "n_steps": 6}
    else:
        options |= {"layer": "layer", "n_steps": 6}
    expected = method(net, x, chunk_size=2, create_graph=True, **options).detach()
    assert_close(method(net, x, chunk_size=2, **options), expected)


class InnerGradient(nn.Module):
    """Its head is itself made of a derivative."""

    def __init__(self, derive: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.layer, self.last, self.derive = nn.Linear(3, 4), nn.Linear(4, 2), derive

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(self.derive(self.f, x))))


DERIVED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a method": lambda f, x: attrfn.gradient(f, x) * x,
    "a layer method": lambda f, x: attrfn.layer_gradient_x_activation(f, x, layer="1")[:, :3] * x,
    "a perturbation": lambda f, x: attrfn.feature_ablation(f, x, n_features=3) * x,
    "jvp": lambda f, x: torch.func.jvp(torch.tanh, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda f, x: torch.vmap(f)(x) * x,
    "grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda z: f(z)[0]))(x),
}


@pytest.mark.parametrize("derived", DERIVED)
def test_conductance_through_derivatives_inside_the_model(derived: str) -> None:
    net, x = make(InnerGradient, DERIVED[derived]), randn(5, 3)
    half = 0.5 * x  # the only node
    a, change = torch.func.jvp(attrfn.split(net, "layer").head, (half,), (x,))
    grads = attrfn.layer_gradient_x_activation(
        net, half, layer="layer", target=1, multiply_by_inputs=False
    )
    found = attrfn.layer_conductance(
        net, x, layer="layer", target=1, n_steps=1, quadrature="riemann_middle"
    )
    assert a.shape == change.shape
    assert_informative(found)
    assert_close(found, (grads * change).detach())
