"""The strategies of attrfn.testing, models with known attributions, and check_model."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import D, make, randn

import attrfn
from attrfn import axioms, testing

few = settings(max_examples=6)


# --- strategies ----------------------------------------------------------------------------------


@given(testing.models(), st.data())
@settings(max_examples=20)
def test_models_take_their_inputs_and_targets(model: Any, data: Any) -> None:
    x = data.draw(testing.inputs_for(model))
    out = model(x)
    assert out.shape == (len(x), 3)
    assert out.dtype == D
    assert not model.training
    target = data.draw(testing.targets_for(out))
    x0 = data.draw(testing.baselines_for(x))
    a = attrfn.deep_lift(model, x, target=target, baselines=x0)
    gap = attrfn.completeness_delta(model, x, a, target=target, baselines=x0)
    assert gap.abs().max() < 1e-10
    assert attrfn.layer_activation(model, x, layer="mid").shape[0] == len(x)


def test_models_are_of_every_kind() -> None:
    from attrfn.testing._models import KINDS

    assert len({kind.kind for kind in KINDS}) == len(KINDS) == 10
    for kind in KINDS:
        found: list[Any] = []

        @given(testing.models([kind.kind], outputs=0, dtype=torch.float32))
        @few
        def collect(model: Any) -> None:
            found.append(model)  # noqa: B023
            assert model(torch.zeros(2, *model.shape)).shape == (2,)

        collect()
        assert {type(m) for m in found} == {kind}
        assert repr(found[0]).startswith(f"{kind.kind}(width=")


@given(st.data())
@few
def test_targets_of_other_outputs(data: Any) -> None:
    assert data.draw(testing.targets_for(torch.zeros(2))) is None
    target = data.draw(testing.targets_for(torch.zeros(2, 3, 4)))
    assert attrfn.gradient(lambda x: x * torch.ones(2, 3, 4), randn(2, 3, 4), target=target).any()


@given(st.data())
@few
def test_inputs_and_baselines_of_trees(data: Any) -> None:
    x = data.draw(testing.inputs_for(nn.Linear(5, 1), shape=(5,), batch=2))
    assert x.shape == (2, 5)
    assert x.dtype == torch.float32
    tree = {"a": x, "b": x[:, :2]}
    x0 = data.draw(testing.baselines_for(tree))
    attrfn.input_x_gradient(lambda t: t["a"].sum(1), tree, baselines=x0)
    with pytest.raises(ValueError, match="shape is None for a Linear"):
        testing.inputs_for(nn.Linear(5, 1))


# --- known attributions --------------------------------------------------------------------------


@given(testing.games(3))
@settings(max_examples=10)
def test_shapley_values_of_games(game: Any) -> None:
    """By orderings in a loop; Owen's theorem for integrated gradients."""
    x = game.inputs
    for s in itertools.product((0, 1), repeat=3):
        index = sum(bit << k for k, bit in enumerate(s))
        assert_close(game(torch.tensor([s], dtype=D)), game.values[index][None])
    orders = list(itertools.permutations(range(3)))
    right = torch.zeros(3, dtype=D)
    for order in orders:
        for i, k in enumerate(order):
            before = sum(1 << j for j in order[:i])
            right[k] += (game.values[before | 1 << k] - game.values[before]) / len(orders)
    assert_close(game.shapley, right)
    assert_close(attrfn.shapley_values(game, x)[0], right)
    assert_close(attrfn.integrated_gradients(game, x, n_steps=4)[0], right, atol=1e-11)


@given(testing.additive(3), st.data())
@few
def test_attributions_of_additive_models(model: Any, data: Any) -> None:
    x = data.draw(testing.inputs_for(model))
    x0 = data.draw(testing.baselines_for(x))
    base = 0.0 if x0 is None else x0
    right = model.attributions(x, base)
    for method in (attrfn.shapley_values, attrfn.feature_ablation, attrfn.deep_lift):
        assert_close(method(model, x, baselines=x0), right)
    assert_close(
        attrfn.integrated_gradients(model, x, baselines=x0, n_steps=60), right, rtol=1e-7, atol=1e-9
    )


@given(testing.symmetric(0, 2), testing.with_dummy(1, outputs=2), st.data())
@few
def test_symmetric_models_and_dummies(alike: Any, unread: Any, data: Any) -> None:
    x = data.draw(testing.inputs_for(alike))
    assert_close(alike(x), alike(x[:, [2, 1, 0, 3]]))
    assert axioms.symmetry(alike, x, attrfn.shapley_values, pair=(0, 2)).max() < 1e-12
    assert axioms.symmetry(alike, x, attrfn.gradient, pair=(0, 1)).max() > 1e-6
    moved = x.clone()
    moved[:, 1] = 9.0
    assert_close(unread(moved), unread(x))
    features = torch.tensor([False, True, False, False])
    assert axioms.dummy(unread, x, attrfn.gradient, features=features, target=1).max() == 0


def test_places_are_checked() -> None:
    with pytest.raises(ValueError, match="element 4 is not one of 4"):
        testing.with_dummy(4)


# --- check_model ---------------------------------------------------------------------------------

X = randn(3, 4, seed=1)


def mlp(act: nn.Module) -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 3)))


class Of(nn.Module):
    """A linear layer and any function of its output and of the input."""

    def __init__(self, function: Any, **modules: Any) -> None:
        super().__init__()
        self.inp, self.function = nn.Linear(4, 3), function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.inp(x))


def of(function: Any, **modules: Any) -> nn.Module:
    return make(Of, function, **modules)


def counts(self: Any, h: Tensor) -> Tensor:
    self.seen += 1
    return h


class Counting(Of):
    def __init__(self) -> None:
        super().__init__(counts)
        self.register_buffer("seen", torch.zeros(()))


def unregistered() -> nn.Module:
    return of(lambda self, h: self.list[0](h), list=[make(nn.Linear, 3, 3)])


HIDDEN = mlp(nn.Tanh())
WRONG: dict[str, tuple[Any, str, str]] = {
    "mean over the batch": (of(lambda _, h: h - h.mean(0)), "rows", "output 0 changes with the"),
    "norm of the batch": (of(lambda _, h: h / h.norm()), "rows", "rows mix"),
    "size of the batch": (of(lambda _, h: h / len(h)), "rows", "row 0 alone has other outputs"),
    "dropout": (mlp(nn.Dropout()).train(), "deterministic", "the model draws random numbers"),
    "noise": (of(lambda _, h: h + torch.randn_like(h)), "deterministic", "draws random numbers"),
    "training": (mlp(nn.BatchNorm1d(5)).train(), "evaluation mode", "1 in training mode"),
    "counter": (make(Counting), "state", "seen change in a call"),
    "detached": (of(lambda _, h: h.detach()), "gradient", "has no gradient: perturb instead"),
    "part detached": (
        of(lambda _, h: h * h.detach()),
        "gradient",
        "not what finite differences give: a detached path",
    ),
    "rounded": (
        of(lambda _, h: 0 * h + (1e6 * h).round()),
        "gradient",
        "the output changes, and the gradient is 0",
    ),
    "reads values": (of(lambda _, h: h if h.sum().item() > -99 else -h), "vmap", "vmap"),
    "unknown": (
        of(lambda _, h: torch.linalg.svdvals(h[:, None]) * torch.polygamma(1, h.abs() + 1)),
        "rules of LRP",
        "no rule for torch.linalg.svdvals, torch.polygamma",
    ),
    "unregistered": (unregistered(), "modules", "list holds modules that are not registered"),
    "closure": (lambda x: HIDDEN(x), "modules", "Sequential in a function"),
    "one value": (of(lambda _, h: h.sum()), "outputs", "no row for each example"),
    "infinite": (of(lambda _, h: h / 0), "outputs", "not finite"),
    "raises": (of(lambda _, h: h @ torch.ones(7, 7)), "outputs", "RuntimeError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_check_model_finds_what_is_wrong(name: str) -> None:
    model, finding, text = WRONG[name]
    torch.manual_seed(3)
    report = testing.check_model(model, X)
    found = report.find(finding)
    assert found.good is False, str(report)
    assert text in found.text
    assert not report.ok
    assert f"NO   {found.text}" in str(report)


@pytest.mark.parametrize("model", [mlp(nn.Tanh()), functools.partial(mlp(nn.SiLU()))])
def test_check_model_of_a_good_model(model: Any) -> None:
    for x in (X, X[:1]):
        report = testing.check_model(model, x, target=1)
        assert report.ok, str(report)
        assert [layer.name for layer in report.layers] == ["0", "1", "2"]
        assert report.find("1").text.endswith(f"({len(x)}, 5)")
    assert repr(report) == str(report)
    assert str(report).startswith("model ")
    with pytest.raises(KeyError):
        report.find("3")


def test_check_model_of_integers_and_trees() -> None:
    tokens = torch.tensor([[0, 1], [2, 3]])
    model = make(lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)))
    report = testing.check_model(model, tokens)
    assert report.ok
    assert "explain an embedding layer" in report.find("gradient").text
    pair = {"a": X, "b": X[:, :2]}
    report = testing.check_model(lambda z: {"logits": z["a"].sum(1) * 0 + z["b"].sum(1)}, pair)
    assert report.find("rows").good
    assert report.find("outputs").good


def test_check_model_leaves_everything_as_it_was() -> None:
    from attrfn.testing._state import untouched

    model = mlp(nn.BatchNorm1d(5)).train()
    with untouched(model, X):
        testing.check_model(model, X)


def test_a_piecewise_linear_model_is_said_to_be_one() -> None:
    found = testing.check_model(mlp(nn.ReLU()), X).find("second derivative")
    assert found.good is None
    assert "piecewise linear" in found.text


def test_a_layer_that_never_runs_is_named() -> None:
    found = testing.check_model(of(lambda _, h: h, unused=nn.Linear(2, 2)), X).find("unused")
    assert found.good is False
    assert "was not called" in found.text


class Holder:
    """A model that is an object with a module."""

    def __init__(self) -> None:
        self.module = HIDDEN

    def predict(self, x: Tensor) -> Tensor:
        return self.module(x)


def test_modules_of_objects_are_found() -> None:
    for model in (Holder().predict, functools.partial(Holder().predict)):
        report = testing.check_model(model, X)
        assert report.find("modules").text.startswith("Sequential in a function")
        assert report.layers == ()


def test_several_inputs_and_outputs_and_what_is_bound() -> None:
    """The sum of all outputs reads both inputs; bound rows stay with their examples."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 2), nn.Linear(2, 2)

        def forward(self, a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(a).tanh() * scale[:, None], self.two(b).tanh()

    model = functools.partial(make(Two), scale=randn(3, seed=5))
    report = testing.check_model(model, (X, X[:, :2]))
    assert report.ok
    assert report.find("gradient").text == "exists, and agrees with finite differences"
    assert report.find("vmap").good is None
    assert report.find("rows").good
    assert report.find("outputs").text == "4 finite number(s) for each of 3 examples"
    first = testing.check_model(model, (X, X[:, :2]), target=lambda out: out[0][:, 0])
    assert first.find("gradient").text == "exists; that of input 1 is 0"
    with pytest.raises(ValueError, match="inputs has no examples, expected two or more"):
        testing.check_model(HIDDEN, X[:0])


@pytest.mark.parametrize("seed", range(12))
def test_kinks_are_no_fault_of_the_gradient(seed: int) -> None:
    """Differences step over kinks, in single precision most of all."""
    torch.manual_seed(seed)
    conv = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    dense = (nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    for layers, shape in ((conv, (3, 16, 16)), (dense, (10,))):
        report = testing.check_model(nn.Sequential(*layers).eval(), torch.randn(4, *shape))
        assert report.find("gradient").good


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_detached_path_shows_at_every_step(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 3)).to(dtype).eval()
    x = torch.randn(4, 10, dtype=dtype)
    report = testing.check_model(lambda x: net(x) + 0.3 * net(x.flip(1)).detach(), x)
    assert "detached path" in report.find("gradient").text


def test_differences_that_rounding_hides_are_no_verdict() -> None:
    """In float32 a value of 1e6 is rounded to 1/16, more than any step changes it."""
    report = testing.check_model(lambda x: 1e6 + (x**2).sum(1), torch.rand(2, 3))
    found = report.find("gradient")
    assert found.good is None
    assert "rounding" in found.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_jump_shows_at_every_step(dtype: torch.dtype) -> None:
    x = torch.full((2, 3), 0.5, dtype=dtype)
    report = testing.check_model(lambda x: x.sum(1) + (x[:, 0] > 0.5), x)
    assert report.find("gradient").good is False
    assert "a jump" in report.find("gradient").text


@pytest.mark.parametrize("kind", [torch.tensor, list], ids=["tensor", "list"])
def test_targets_of_each_example_are_checked(kind: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    assert testing.check_model(net, torch.randn(3, 4), target=kind([0, 2, 1])).ok
