"""Inputs and outputs in other forms: arrays, fractions, whole batches, outputs with fields."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close, randn
from torch import Tensor, nn

import attrfn

X = randn(3, 4).double()
W = randn(4, 5, seed=1).double()
TABLE = randn(9, seed=2).double()
RIDGE = attrfn.surrogates.ridge(1e-9)
PERTURBATION = {
    "feature_ablation": attrfn.feature_ablation,
    "occlusion": functools.partial(attrfn.occlusion, window=1),
    "shapley_values": attrfn.shapley_values,
    "shapley_value_sampling": functools.partial(attrfn.shapley_value_sampling, n_samples=3),
    "kernel_shap": functools.partial(attrfn.kernel_shap, n_samples=60),
    "lime": functools.partial(attrfn.lime, n_samples=60, surrogate=RIDGE),
}


@pytest.mark.parametrize("name", PERTURBATION)
@pytest.mark.parametrize("batching", ["fold", "vmap", "loop"])
def test_several_values_for_the_whole_batch(name: str, batching: Any) -> None:
    """A linear function of all rows: the score of column i is the sum of its rows times weights."""
    found = PERTURBATION[name](lambda x: (x @ W).sum(0), X, batching=batching)
    assert_close(found, X.sum(0) * W.T, rtol=1e-6, atol=1e-6)
    one = PERTURBATION[name](lambda x: (x @ W).sum(), X, batching=batching)
    assert_close(one, (X.sum(0) * W.sum(1))[None], rtol=1e-6, atol=1e-6)


def test_several_values_of_a_batch_have_scores_of_features() -> None:
    f = functools.partial(attrfn.kernel_shap, lambda x: (x @ W).sum(0), X, return_input_shape=False)
    assert_close(f(), X.sum(0) * W.T, rtol=1e-9, atol=1e-9)
    values, errors = f(n_samples=14, return_stderr=True)
    assert values.shape == errors.shape == (5, 4)


def test_outputs_in_another_axis_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"returned shape \(5, 4\) for 3 row\(s\)"):
        attrfn.feature_ablation(lambda x: torch.ones(5, 4), X)


# --- inputs without a dimension of examples ---

IDS = torch.tensor([1, 5, 2, 7, 3])


def bag(x: Tensor, ids: Tensor) -> Tensor:
    return x.tanh().sum() * TABLE[ids].sum() + TABLE[ids].prod()


@pytest.mark.parametrize("outputs", ["one", "two"])
def test_ids_without_a_batch(outputs: str) -> None:
    """Each element is a feature, against a loop over the elements."""

    def f(x: Tensor, ids: Tensor) -> Tensor:
        value = bag(x, ids)
        return value if outputs == "one" else torch.stack([value, 2 * value])

    of_x, of_ids = attrfn.feature_ablation(f, (X, IDS))
    if outputs == "two":
        assert_close(of_x[1], 2 * of_x[0])
        of_x, of_ids = of_x[0], of_ids[0]
    for i in range(len(IDS)):
        without = torch.where(torch.arange(len(IDS)) == i, 0, IDS)
        assert_close(of_ids[i], bag(X, IDS) - bag(X, without))
    for i in range(3):
        for j in range(4):
            without_x = X.clone()
            without_x[i, j] = 0
            assert_close(of_x[i, j], bag(X, IDS) - bag(without_x, IDS))


@pytest.mark.parametrize("name", ["shapley_values", "shapley_value_sampling", "kernel_shap"])
def test_ids_without_a_batch_are_complete(name: str) -> None:
    parts = (X[:2, :2], IDS[:3])
    masks = (torch.arange(4).reshape(2, 2), 4 + torch.arange(3))
    found = PERTURBATION[name](bag, parts, feature_mask=masks)
    assert [t.shape for t in found] == [t.shape for t in parts]
    start = bag(0 * parts[0], 0 * parts[1])
    assert_close(sum(t.sum() for t in found), bag(*parts) - start, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "f", [lambda x, y: x.sum(1), lambda x, y: (x * y).sum(1), lambda x, y: (x @ y.T).sum(0)]
)
def test_rows_that_disagree_are_refused(f: Any) -> None:
    """A model of rows has as many values as a tensor has rows, or fails."""
    with pytest.raises(ValueError, match="inputs has tensors with 3 and 2 examples in dimension 0"):
        attrfn.feature_ablation(f, (X, X[:2]))


# --- arrays, fractions ---


@pytest.mark.parametrize("name", PERTURBATION)
def test_arrays_are_taken(name: str) -> None:
    def f(x: Any) -> Any:
        return np.tanh(np.asarray(x)).sum(1)

    array = X.numpy().copy()
    found = PERTURBATION[name](f, array)
    assert_close(found, PERTURBATION[name](f, X))
    assert (array == X.numpy()).all()
    if name in ("shapley_values", "kernel_shap"):
        gap = attrfn.completeness_delta(lambda x: torch.as_tensor(f(x)), array, found)
        assert_close(gap, torch.zeros_like(gap), atol=1e-9)
    both = PERTURBATION[name](lambda x, y: f(x) + f(y), (array, X))
    assert [t.shape for t in both] == [(3, 4), (3, 4)]


@pytest.mark.parametrize("name", PERTURBATION)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_fractions_are_baselines_of_integers(name: str, dtype: torch.dtype) -> None:
    """For a linear model (x - 0.5) times the weights; the inputs stay as they are."""
    x = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]]).to(dtype)
    before = x.clone()
    for start in (0.5, torch.full((4,), 0.5)):
        found = PERTURBATION[name](lambda x: x.double() @ W, x, baselines=start)
        expected = (x.double() - 0.5)[:, None] * W.T
        assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


def test_two_rows_are_always_exchanged() -> None:
    x = torch.tensor([[1.0, 2.0], [5.0, 3.0]])
    for key in range(10):
        found = attrfn.feature_permutation(lambda x: x.sum(1), x, key=key, n_samples=2)
        assert_close(found, torch.tensor([[-4.0, -1.0], [4.0, 1.0]]))


# --- outputs with fields ---


class Output(dict[str, Tensor]):
    """A mapping with attributes, as the outputs of transformers are."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(name)


NET = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
METHODS = [attrfn.gradient, attrfn.integrated_gradients, attrfn.deep_lift, attrfn.lrp]
METHODS += [attrfn.feature_ablation, attrfn.kernel_shap]


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_taken(method: Any) -> None:
    for outputs in (
        lambda x: Output(logits=NET(x)),
        lambda x: Output(loss=NET(x).sum(), logits=NET(x), hidden_states=(x,)),
        lambda x: SimpleNamespace(logits=NET(x), other=x),
    ):
        for target in (1, torch.tensor([0, 2, 1])):
            assert_close(method(outputs, X, target=target), method(NET, X, target=target))


@pytest.mark.parametrize("method", METHODS)
def test_other_fields_need_a_callable(method: Any) -> None:
    """The message shows one that works."""
    for outputs, advice in (
        (lambda x: Output(last_hidden_state=NET(x)), "lambda o: o.last_hidden_state[:, 2]"),
        (lambda x: {"logits": NET(x), "x": x}, "lambda o: o['logits'][:, 2]"),
        (lambda x: (NET(x), x), "lambda out: out[0][:, 2]"),
    ):
        with pytest.raises(TypeError) as error:
            method(outputs, X, target=2)
        assert str(error.value).endswith(advice)
        assert_close(method(outputs, X, target=eval(advice)), method(NET, X, target=2))


def test_compiled_targets_of_logits_are_checked() -> None:
    explain = attrfn.compile(attrfn.gradient, lambda x: Output(logits=NET(x)), backend="eager")
    assert_close(explain(X, target=1), attrfn.gradient(NET, X, target=1))
    with pytest.raises(ValueError, match="out of range"):
        explain(X, target=3)


@pytest.mark.parametrize("method", [attrfn.gradient, attrfn.feature_ablation, attrfn.deep_lift])
@pytest.mark.parametrize("ones", [1, 2])
def test_dimensions_of_size_1_need_no_index(method: Any, ones: int) -> None:
    """(B, 3, 1) and (B, 3, 1, 1) with every form of a target of one entry."""

    def f(x: Tensor) -> Tensor:
        return NET(x).reshape(-1, 3, *[1] * ones)

    for target in (1, (1,), torch.tensor([0, 1, 2]), [0, 1, 2], slice(0, 2), [slice(0, 2), 1, 1]):
        assert_close(method(f, X, target=target), method(NET, X, target=target))
    assert_close(method(f, X, target=(1, *[0] * ones)), method(NET, X, target=1))
    with pytest.raises(ValueError, match="has 1 entry"):
        method(lambda x: NET(x)[:, :, None].expand(-1, 3, 2), X, target=1)


# --- what the messages name ---


def test_numpy_in_a_model_needs_a_perturbation_method() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.as_tensor(x.numpy()).sum(1)

    for method in (attrfn.gradient, attrfn.integrated_gradients, attrfn.input_x_gradient):
        with pytest.raises(TypeError, match=r"NumPy arrays.*use a perturbation method"):
            method(f, X)
    assert_close(attrfn.kernel_shap(f, X), X)


def test_rows_by_coincidence_are_named() -> None:
    x, scale = randn(4, 3, 4).double(), randn(4, seed=3).double()

    def f(x: Tensor, scale: Tensor) -> Tensor:
        return (x * scale).sum((1, 2))

    bound = functools.partial(f, scale=scale)
    for method in (attrfn.integrated_gradients, attrfn.feature_ablation, attrfn.kernel_shap):
        with pytest.warns(UserWarning, match=r"scale that .* as many rows .* attrfn\.shared"):
            assert_close(method(bound, x), method(functools.partial(f, scale=scale[None]), x))
    fixed = functools.partial(f, scale=scale[None])
    assert_close(attrfn.integrated_gradients(fixed, x), x * scale)
    assert_close(attrfn.feature_ablation(bound, x, chunk_size=1), x * scale)


# --- baselines and channels apart ---


@pytest.mark.parametrize("multiply_by_inputs", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_each_baseline_of_deep_shap(multiply_by_inputs: bool, chunk_size: Any) -> None:
    pool = randn(5, 4, seed=7).double()
    options: dict[str, Any] = {"target": 1, "multiply_by_inputs": multiply_by_inputs}
    found = attrfn.deep_lift_shap(
        NET, X, baselines=pool, per_baseline=True, chunk_size=chunk_size, **options
    )
    each = [attrfn.deep_lift(NET, X, baselines=b[None], **options) for b in pool]
    assert_close(found, torch.stack(each))
    assert_close(found.mean(0), attrfn.deep_lift_shap(NET, X, baselines=pool, **options))


class Pair(nn.Module):
    """A layer with a tuple of two tensors as its value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 2, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.first(x).relu(), {"b": self.second(x).tanh()}


class OfPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.last = Pair(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pair(x)
        return self.last(torch.cat([a.mean((2, 3)), b["b"].square().mean((2, 3))], 1))


CAMS = [attrfn.grad_cam, attrfn.hires_cam, attrfn.layer_cam, attrfn.xgrad_cam]


@pytest.mark.parametrize("method", [*CAMS, attrfn.grad_cam_plus_plus])
def test_maps_of_tuples_and_channels(method: Any) -> None:
    net, images = OfPair().double().eval(), randn(2, 1, 8, 8).double()
    run = functools.partial(method, net, images, layer="pair", target=1)
    first, second = run()
    assert_close(first, run(reshape=lambda v: v[0]))
    assert_close(second["b"], run(reshape=lambda v: v[1]["b"]))
    maps = run(per_channel=True)
    assert maps[0].shape == (2, 4, 6, 6)
    assert_close(maps[0].sum(1, keepdim=True), first)
    for other in (attrfn.guided_grad_cam, attrfn.ablation_cam):
        with pytest.raises(TypeError, match=r"layer 'pair' gives a tuple.*reshape="):
            other(net, images, layer="pair", target=1)
    if method is attrfn.grad_cam:  # the gradient of a mean over places, by hand
        weight = net.last.weight[1, :4] / 36
        assert_close(maps[0], weight[:, None, None] * net.pair(images)[0].detach())
