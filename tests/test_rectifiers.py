"""Guided backpropagation and deconvolution at the relatives of ReLU."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import close, randn, seeded
from torch import Tensor, nn
from torch.func import vmap

import attrfn

SLOPES = torch.tensor([0.25, 0.1, 0.5, 0.7, 0.3, 0.2], dtype=torch.float64)


def sloped(x: Tensor, below: Any) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), below * torch.ones_like(x))


# From a function to its derivative, each written out from the definition in torch's documentation.
FORMS: dict[str, tuple[Any, Any]] = {
    "relu6": (F.relu6, lambda x: (x > 0) & (x < 6)),
    "nn.ReLU6": (nn.ReLU6(), lambda x: (x > 0) & (x < 6)),
    "relu6 in place": (lambda x: F.relu6(x * 1, inplace=True), lambda x: (x > 0) & (x < 6)),
    "clamp(0, 6)": (lambda x: x.clamp(0, 6), lambda x: (x > 0) & (x < 6)),
    "clamp_(0, 6)": (lambda x: (x * 1).clamp_(0, 6), lambda x: (x > 0) & (x < 6)),
    "clip by keyword": (lambda x: torch.clip(x, min=0, max=6), lambda x: (x > 0) & (x < 6)),
    "hardtanh": (F.hardtanh, lambda x: (x > -1) & (x < 1)),
    "hardtanh with bounds": (
        lambda x: F.hardtanh(x, -0.5, 2.0, inplace=False),
        lambda x: (x > -0.5) & (x < 2),
    ),
    "nn.Hardtanh": (nn.Hardtanh(-2, 2), lambda x: (x > -2) & (x < 2)),
    "threshold": (lambda x: F.threshold(x, 0.3, -1.0), lambda x: x > 0.3),
    "nn.Threshold": (nn.Threshold(0.1, 20), lambda x: x > 0.1),
    "threshold_": (lambda x: torch.threshold_(x * 1, 0.3, 0.0), lambda x: x > 0.3),
    "leaky_relu": (F.leaky_relu, lambda x: sloped(x, 0.01)),
    "leaky_relu in place": (
        lambda x: F.leaky_relu(x * 1, 0.2, True),
        lambda x: sloped(x, 0.2),
    ),
    "nn.LeakyReLU": (nn.LeakyReLU(0.3), lambda x: sloped(x, 0.3)),
    "prelu": (lambda x: F.prelu(x, SLOPES), lambda x: sloped(x, SLOPES)),
    "nn.PReLU": (nn.PReLU(6, 0.5).double(), lambda x: sloped(x, 0.5)),
    "rrelu": (lambda x: F.rrelu(x, 0.1, 0.3), lambda x: sloped(x, 0.2)),
}
METHODS = {"guided_backprop": True, "deconvolution": False}
each = pytest.mark.parametrize("form", FORMS)
by_method = pytest.mark.parametrize("name", METHODS)


def net(act: Any) -> tuple[nn.Module, Any, Tensor]:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)))
    for layer in model:
        layer.weight.data *= 3
    return model, lambda x: model[2](act(model[1](act(model[0](x))))), randn(0, 5, 4)


def by_hand(name: str, form: str) -> Tensor:
    """The backward pass written out with matrices: max(g, 0), times f'(x) if guided."""
    act, slope = FORMS[form]
    model, _, x = net(act)
    first, second, last = [(m.weight.detach(), m.bias.detach()) for m in model]
    a = x @ first[0].mT + first[1]
    b = act(a).detach() @ second[0].mT + second[1]
    g = last[0][1].expand(5, 6)
    for weight, z in ((second[0], b), (first[0], a)):
        g = g.clamp(min=0) * (slope(z) if METHODS[name] else 1) @ weight
    return g


@by_method
@each
def test_positive_cotangents_pass(name: str, form: str) -> None:
    _, f, x = net(FORMS[form][0])
    method, expected = getattr(attrfn, name), by_hand(name, form)
    close(method(f, x, target=1), expected)
    close(method(f, x, target=1, create_graph=True).detach(), expected)
    if form != "rrelu":  # vmap takes a random function with an option only
        close(vmap(lambda row: method(f, row[None], target=1)[0])(x), expected)


@by_method
@pytest.mark.parametrize("form", ["relu6", "leaky_relu", "prelu", "clamp(0, 6)", "threshold"])
def test_compiled(name: str, form: str) -> None:
    torch._dynamo.reset()
    _, f, x = net(FORMS[form][0])
    method = getattr(attrfn, name)
    run = torch.compile(lambda x: method(f, x, target=1), backend="aot_eager", fullgraph=True)
    close(run(x), by_hand(name, form))
    torch._dynamo.reset()


@by_method
def test_relu6_below_six_is_relu(name: str) -> None:
    """Two models with equal outputs have equal explanations."""
    model, _, x = net(None)
    x = x / 10
    results = []
    for act in (F.relu, F.relu6):
        f = lambda x, act=act: model[2](act(model[1](act(model[0](x)))))  # noqa: E731
        results.append(getattr(attrfn, name)(f, x, target=1))
        assert model[0](x).abs().max() < 6
    close(results[0], results[1])


def test_slopes_are_trained_through_the_attributions() -> None:
    """The derivative by the slope of a parametric ReLU against central differences."""
    model, _, x = net(None)
    slope = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

    def loss(s: Tensor) -> Tensor:
        f = lambda x: model[2](F.prelu(model[0](x), s))  # noqa: E731
        return attrfn.guided_backprop(f, x, target=1, create_graph=True).square().sum()

    (found,) = torch.autograd.grad(loss(slope), slope)
    h = 1e-6
    expected = (loss(slope.detach() + h) - loss(slope.detach() - h)).detach() / (2 * h)
    close(found, expected[None].expand(1), 1e-6)


@by_method
def test_a_mobile_block_is_not_the_plain_gradient(name: str) -> None:
    model = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(True), nn.Conv2d(8, 8, 3, groups=8)),
            *(nn.ReLU6(True), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 4 * 4, 3)),
        )
    )
    x = randn(1, 2, 3, 8, 8)
    found = getattr(attrfn, name)(model, x, target=0)
    assert not torch.allclose(found, attrfn.gradient(model, x, target=0))


def quantised() -> nn.Module:
    layers = [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(*layers).eval(), {nn.Linear})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="no engine")
@pytest.mark.parametrize(
    "name", ["gradient", "integrated_gradients", "guided_backprop", "deconvolution"]
)
def test_quantised_layers_are_refused(name: str) -> None:
    """They have no derivative, for which torch gives no gradient and a warning."""
    with pytest.raises(ValueError, match="such as a quantised layer"):
        getattr(attrfn, name)(quantised(), torch.randn(3, 4), target=0)
    assert attrfn.feature_ablation(quantised(), torch.randn(3, 4), target=0).shape == (3, 4)
