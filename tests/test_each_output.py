"""All outputs in one call: equal to one call for each target."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import attrfn

torch.manual_seed(0)
NET = nn.Sequential(
    *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
).double()
X, POOL = torch.randn(2, 3, 6, 6).double(), torch.randn(3, 3, 6, 6).double()
MASK = {"feature_mask": (torch.arange(108) // 27).reshape(3, 6, 6)}
AT, STEPS, DRAWS = {"layer": "1"}, {"n_steps": 5}, {"baselines": POOL}
PATH = STEPS | {"check_completeness": False}
METHODS: dict[str, dict[str, Any]] = {
    **{k: {} for k in ("gradient", "saliency", "input_x_gradient", "deep_lift", "lrp")},
    **{k: {} for k in ("guided_backprop", "deconvolution", "rise")},
    "integrated_gradients": STEPS,
    "gradient_shap": DRAWS,
    "deep_lift_shap": DRAWS,
    **{f"layer_{k}": AT for k in ("gradient_x_activation", "deep_lift", "lrp", "feature_ablation")},
    **dict.fromkeys(("layer_integrated_gradients", "layer_conductance"), AT | STEPS),
    "internal_influence": AT | STEPS,
    "layer_gradient_shap": AT | DRAWS,
    **dict.fromkeys(("grad_cam", "hires_cam", "score_cam", "ablation_cam", "guided_grad_cam"), AT),
    **dict.fromkeys(("feature_ablation", "shapley_values", "kernel_shap", "lime"), MASK),
    "occlusion": {"window": (3, 3, 3)},
    "interactions": MASK,
    "integrated_hessians": MASK | {"n_steps": 4},
}
# Of few steps and samples, which show the same for all.
pytestmark = pytest.mark.filterwarnings("ignore:.*(error|completeness|n_steps|n_samples|missed)")


def by_targets(method: Any, model: Any, x: Any, n: int = 5, **options: Any) -> Tensor:
    """One call for each output."""
    return torch.stack([method(model, x, target=k, **options) for k in range(n)], 1)


@pytest.mark.parametrize("name", METHODS)
def test_equal_to_one_call_for_each_target(name):
    method, options = getattr(attrfn, name), METHODS[name]
    expected = by_targets(method, NET, X, **options)
    close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    got = attrfn.each_output(method)(NET, X, **options)
    close(got, expected)
    assert not got.requires_grad or name in ("feature_ablation", "occlusion")
    for how in ({"chunk_size": 2}, {"chunk_size": 1}, {"n": 3}):
        close(attrfn.each_output(method, **how)(NET, X, **options), expected[:, : how.get("n")])
    picked = attrfn.each_output(method)(NET, X, target=lambda out: out[:, [3, 1]], **options)
    close(picked, expected[:, [3, 1]])


def test_outputs_of_several_dimensions():
    f = lambda x: NET(x)[:, :, None] * torch.arange(1.0, 4).double()  # noqa: E731
    got = attrfn.each_output(attrfn.gradient)(f, X)
    assert got.shape == (2, 5, 3, *X.shape[1:])
    torch.testing.assert_close(got[:, 2, 1], attrfn.gradient(f, X, target=(2, 1)))


def test_it_composes():
    tunnel = attrfn.noise_tunnel(attrfn.gradient, n_samples=3, stdevs=0.1)
    each = attrfn.each_output(tunnel)(NET, X)
    torch.testing.assert_close(each, by_targets(tunnel, NET, X))
    outside = attrfn.noise_tunnel(attrfn.each_output(attrfn.gradient), n_samples=3, stdevs=0.1)
    torch.testing.assert_close(outside(NET, X), each)
    layer = attrfn.at_layer(attrfn.gradient, "1")
    expected = by_targets(layer, NET, X)
    torch.testing.assert_close(attrfn.each_output(layer)(NET, X), expected)
    torch.testing.assert_close(
        attrfn.at_layer(attrfn.each_output(attrfn.gradient), "1")(NET, X), expected
    )


def test_transforms():
    every = attrfn.each_output(attrfn.gradient)
    expected = every(NET, X)
    rows = torch.func.vmap(lambda row: every(NET, row[None])[0])(X)
    torch.testing.assert_close(rows, expected)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = X.clone().requires_grad_()
    total = every(smooth, x, create_graph=True).pow(2).sum()
    hessians = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(lambda r: smooth(r[None])[0])))(
        X
    )
    hessians = hessians.reshape(2, 3, 108, 108)
    gradients = torch.func.vmap(torch.func.jacrev(lambda r: smooth(r[None])[0]))(X)
    expected = 2 * torch.einsum("bkij,bkj->bi", hessians, gradients.flatten(2))
    torch.testing.assert_close(torch.autograd.grad(total, x)[0].flatten(1), expected)


def test_one_forward_pass_for_all_outputs():
    class Counts(nn.Module):
        runs: list[int] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            self.runs.append(len(x))
            return NET(x)

    attrfn.each_output(attrfn.gradient, n=5, chunk_size=None)(Counts(), X)
    assert Counts.runs == [2]


@pytest.mark.parametrize(
    ("make", "call", "error", "message"),
    [
        ({"method": 3}, {}, TypeError, "method is 3"),
        ({"method": attrfn.neuron_gradient}, {}, TypeError, "no option target"),
        ({"n": 0}, {}, ValueError, "n is 0"),
        ({"n": True}, {}, ValueError, "n is True"),
        ({}, {"target": 1}, TypeError, "target is 1, expected None or a callable"),
        ({}, {"target": lambda out: out[:, 0]}, ValueError, "the callable target returned"),
        ({"chunk_size": 0}, {}, ValueError, "chunk_size is 0"),
        ({"n": 6}, {}, (ValueError, IndexError, RuntimeError), "out of"),
    ],
)
def test_wrong_arguments(make, call, error, message):
    with pytest.raises(error, match=message):
        attrfn.each_output(**{"method": attrfn.gradient} | make)(NET, X, **call)


def test_a_model_of_one_output():
    with pytest.raises(ValueError, match="model_fn returned"):
        attrfn.each_output(attrfn.gradient)(lambda x: x.flatten(1).sum(1), X)


RUNS: list[int] = []


class Counted(nn.Module):
    """The net, which notes the numbers of rows of its runs."""

    def __init__(self, inner: nn.Module = NET) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, scale: Any = 1) -> Tensor:
        RUNS.append(len(x))
        return self.inner(x) * scale


@pytest.mark.parametrize("method", [attrfn.gradient, attrfn.saliency, attrfn.input_x_gradient])
def test_outputs_one_by_one_share_a_forward_pass(method):
    RUNS.clear()
    got = attrfn.each_output(method, n=5, chunk_size=1)(Counted(), X)
    assert RUNS == [2]
    torch.testing.assert_close(got, by_targets(method, NET, X), rtol=0, atol=0)


def _two_models(model, inputs, **options):
    return attrfn.ensemble(attrfn.gradient)([model, lambda x: NET(2 * x)], inputs, **options)


def _two_points(model, inputs, **options):
    return attrfn.gradient(lambda x: model(x) + model(x.flip(0)).flip(0), inputs, **options)


def _other_derivative(model, inputs, **options):
    first = attrfn.gradient(model, inputs, **options)
    return first + attrfn.gradient(lambda x: model(first.detach() * x), inputs, **options)


def _halves(model, inputs, **options):
    layers = [attrfn.layer_conductance(model, inputs, layer=n, n_steps=2, **options) for n in "01"]
    return layers[0] + layers[1]


@pytest.mark.parametrize(
    "method",
    [
        _two_models,
        _two_points,
        _other_derivative,
        _halves,
        attrfn.relative_to(attrfn.gradient, attrfn.deep_lift),
        functools.partial(attrfn.integrated_gradients, n_steps=6, chunk_size=2),
        functools.partial(attrfn.integrated_gradients, tolerance=1e-6),
        functools.partial(attrfn.gradient, create_graph=True),
        attrfn.at_layer(attrfn.gradient, ["0", "1"][0]),
        attrfn.noise_tunnel(attrfn.integrated_gradients, n_samples=2),
    ],
)
@pytest.mark.parametrize("x", [X, X[:1].expand_as(X).clone(), torch.full_like(X, torch.nan)])
def test_a_shared_forward_pass_belongs_to_one_model_and_its_rows(method, x):
    """Methods that run other models, the same rows for other models, or rows that differ."""
    expected = by_targets(method, NET, x)
    got = attrfn.each_output(method, chunk_size=1)(NET, x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12, equal_nan=True)


def test_a_target_may_write_into_the_outputs_that_are_shared():
    got = attrfn.each_output(attrfn.gradient, chunk_size=1)(NET, X, target=lambda y: y.mul_(2))
    torch.testing.assert_close(got, 2 * by_targets(attrfn.gradient, NET, X))


def test_rows_of_the_target_follow_copies():
    scale, other = torch.tensor([1.0, 3.0]).double(), torch.tensor([[2.0, 5.0]]).double()

    def scaled(y, own, mine):
        return y * own[:, None] * mine[0, :, None]

    target = functools.partial(scaled, own=scale, mine=attrfn.per_example(other, dim=1))
    for method in (attrfn.gradient, functools.partial(attrfn.integrated_gradients, n_steps=3)):
        got = attrfn.each_output(method)(NET, X, target=target)
        factor = (scale * other[0])[:, None, None, None, None]
        torch.testing.assert_close(got, factor * by_targets(method, NET, X))


@pytest.mark.parametrize("width", [2, 48])
def test_the_size_of_chunks_follows_from_operations(width):
    """Large convolutions are explained one after the other, and small ones together."""
    wide = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(13924 * width, 7)
    )
    x = torch.randn(1, 3, 120, 120)
    expected = by_targets(attrfn.gradient, wide, x, 7)
    with mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as backward:
        got = attrfn.each_output(attrfn.gradient)(wide, x)
    # The first output is explained alone; the mode that measures it calls the function again.
    assert backward.call_count - 1 == (7 if width == 48 else 2)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("wrap", [lambda m: m, attrfn.absolute, attrfn.noise_tunnel])
def test_gradients_that_are_known_belong_to_the_explained_values(wrap):
    """A user's method may explain something else; a method of the library explains its target."""

    def other(model, inputs, *, target, create_graph=False):
        return attrfn.gradient(model, inputs, target=lambda y: y[:, target].exp())

    def same_value(model, inputs, *, target, create_graph=False):
        def twice(y):  # the value of the target, and twice its derivative
            return 2 * y[:, target] - y[:, target].detach()

        return attrfn.gradient(model, inputs, target=twice)

    for method in (wrap(other), wrap(same_value)):
        got = attrfn.each_output(method)(NET, X)
        torch.testing.assert_close(got, by_targets(method, NET, X), rtol=1e-10, atol=1e-12)
