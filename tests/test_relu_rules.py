"""Guided backpropagation and deconvolution: by hand, against Captum, and in every form of ReLU."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from torch import Tensor, nn
from zoo import make, randn

import attrfn
from attrfn._rules.record import Record
from attrfn._rules.relu import DECONV, GUIDED
from attrfn._rules.replay import Replay
from attrfn._rules.run import Seen
from attrfn._rules.table import Rules

RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "guided_backprop": lambda g, x: g.clamp(min=0) * (x > 0),
    "deconvolution": lambda g, x: g.clamp(min=0),
}
by_name = pytest.mark.parametrize("name", RULES)


def dense() -> nn.Module:
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)]
    return make(lambda: nn.Sequential(*layers))


def conv(*relus: nn.Module) -> nn.Module:
    a, b, c = relus
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), a, nn.Conv2d(4, 4, 3), b, nn.Flatten(), nn.Linear(16, 6), c,
            nn.Linear(6, 3),
        )
    )  # fmt: skip


@by_name
def test_by_hand(name: str) -> None:
    """The backward pass written out, layer by layer, with matrices."""
    model, x = dense(), randn(5, 4)
    first, second, last = model[0], model[2], model[4]
    a = x @ first.weight.mT + first.bias
    b = a.clamp(min=0) @ second.weight.mT + second.bias
    g = RULES[name](last.weight[1].expand(5, 5), b)
    g = RULES[name](g @ second.weight, a)
    assert_close(getattr(attrfn, name)(model, x, target=1), g @ first.weight)


def test_rules_differ_from_the_gradient_and_from_each_other() -> None:
    model, x = dense(), randn(5, 4)
    found = [
        f(model, x, target=1)
        for f in (attrfn.gradient, attrfn.guided_backprop, attrfn.deconvolution)
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(found[i], found[j])


@pytest.mark.parametrize(
    ("name", "peer"), [("guided_backprop", "GuidedBackprop"), ("deconvolution", "Deconvolution")]
)
def test_against_captum(name: str, peer: str) -> None:
    """Captum needs a module of its own for every ReLU."""
    attr = pytest.importorskip("captum.attr")
    model, x, t = conv(nn.ReLU(), nn.ReLU(), nn.ReLU()), randn(3, 2, 6, 6), torch.tensor([2, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum tells that it sets hooks
        explain = getattr(attr, peer)(model).attribute
        expected = explain(x.clone().requires_grad_(), target=t).detach()
    assert_close(getattr(attrfn, name)(model, x, target=t), expected)


def test_guided_grad_cam_against_captum() -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = conv(nn.ReLU(), nn.ReLU(), nn.ReLU()), randn(3, 2, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explain = attr.GuidedGradCam(model, model[2]).attribute
        expected = explain(x.clone().requires_grad_(), target=1)
    found = attrfn.guided_grad_cam(model, x, layer="2", target=1)
    assert (found != 0).any()
    assert_close(found, expected.detach())


@by_name
def test_neurons_against_the_cut_model(name: str) -> None:
    model, x = conv(nn.ReLU(), nn.ReLU(), nn.ReLU()), randn(3, 2, 6, 6)
    found = getattr(attrfn, f"neuron_{name.removesuffix('_backprop')}" + (
        "_backprop" if name.endswith("backprop") else ""
    ))(model, x, layer="3", neuron=(1, 0, 1))  # fmt: skip
    expected = getattr(attrfn, name)(model[:4], x, target=(1, 0, 1))
    assert_close(found, expected)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu in place": functools.partial(F.relu, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "clamp": lambda x: torch.clamp(x, min=0),
    "clamp positional": lambda x: x.clamp(0),
    "clamp in place": lambda x: x.clamp_(min=0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: torch.clip(x, 0),
    "keyword": lambda x: F.relu(input=x),
}


@by_name
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_relu(name: str, form: str) -> None:
    model, x = dense(), randn(5, 4)

    def f(x: Tensor) -> Tensor:
        h = FORMS[form](model[0](x))
        return model[4](FORMS[form](model[2](h)))

    expected = getattr(attrfn, name)(model, x, target=1)
    assert_close(getattr(attrfn, name)(f, x, target=1), expected)
    differentiable = getattr(attrfn, name)(f, x, target=1, create_graph=True)
    assert_close(differentiable.detach(), expected)


@pytest.mark.parametrize(
    "other", [lambda x: x.clamp(0, 6), lambda x: x.clamp(min=0.1), lambda x: x.clamp(max=0)]
)
def test_other_clamps_keep_their_derivative(other: Callable[[Tensor], Tensor]) -> None:
    x, w = randn(3, 4), torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return other(x) @ w

    with pytest.warns(UserWarning, match="guided_backprop met no ReLU"):
        assert_close(attrfn.guided_backprop(f, x), attrfn.gradient(f, x))


@by_name
def test_reused_and_in_place_modules(name: str) -> None:
    """One ReLU for all places, in place or not, gives what three modules give."""
    x, method = randn(3, 2, 6, 6), getattr(attrfn, name)
    expected = method(conv(nn.ReLU(), nn.ReLU(), nn.ReLU()), x, target=1)
    for in_place in (False, True):
        one = nn.ReLU(in_place)
        assert_close(method(conv(one, one, one), x, target=1), expected)


def test_residual_sums_and_other_activations() -> None:
    """Where nothing is cut off, guided backpropagation is the gradient: positive weights."""
    w = randn(4, 4).abs()

    def f(x: Tensor) -> Tensor:
        h = x + F.relu(x @ w)
        return (h + torch.tanh(h) + F.relu(h)).sum(1)

    x = randn(3, 4)
    assert_close(attrfn.guided_backprop(f, x), attrfn.gradient(f, x))


@pytest.mark.parametrize("table", [GUIDED, DECONV], ids=["guided", "deconv"])
def test_values_are_bitwise_those_of_the_model(table: Rules) -> None:
    """In the run on what a first run saw, in the single run, and as a model function."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = conv(nn.ReLU(), nn.ReLU(True), nn.ReLU()).to(dtype)
        x = randn(3, 2, 6, 6).to(dtype)
        seen: list[Seen] = []
        record = Record(table, [], seen, True)
        (row,) = record.add([x])
        with record:
            expected = model(row)
        assert torch.equal(expected, model(x))
        assert [name for name, _, _ in seen] == ["relu"] * 3
        for at in (None, seen):
            calls: list[str] = []
            replay = Replay(table, calls, at, None)
            (row,) = replay.add([x])
            with replay:
                assert torch.equal(model(row), expected)
            assert calls == ["relu"] * 3
        assert torch.equal(attrfn.with_rules(model, table)(x), expected)


@by_name
def test_compiled_model_is_explained_the_same(name: str) -> None:
    """A model that was compiled before runs as it is written."""
    torch._dynamo.reset()
    model, x = dense(), randn(5, 4)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    expected = getattr(attrfn, name)(model, x, target=1)
    assert_close(getattr(attrfn, name)(compiled, x, target=1), expected)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it while it traces
@by_name
def test_compiled_function_is_explained_the_same(name: str) -> None:
    torch._dynamo.reset()
    model, x = dense(), randn(5, 4)
    compiled = torch.compile(lambda x: model(x), backend="aot_eager")
    compiled(x)
    expected = getattr(attrfn, name)(model, x, target=1)
    assert_close(getattr(attrfn, name)(compiled, x, target=1), expected)
    torch._dynamo.reset()


@by_name
def test_model_without_relu_warns(name: str) -> None:
    model, x = make(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh())), randn(2, 4)
    with pytest.warns(UserWarning, match=f"{name} met no ReLU, so it is the plain gradient"):
        found = getattr(attrfn, name)(model, x, target=1)
    assert_close(found, attrfn.gradient(model, x, target=1))


def test_guided_grad_cam_of_another_input_is_refused() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="inputs has a tensor of shape"):
        attrfn.guided_grad_cam(model, randn(2, 4), layer="1", target=0)
