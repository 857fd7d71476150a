"""A batch whose results are large runs in parts of a few rows, with the results of the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, randn
from torch import Tensor, nn

import attrfn

B = 10


class Seen(nn.Module):
    """Notes the rows of each run, with a graph and without one."""

    def __init__(self, body: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.body = body

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        (ROWS if torch.is_grad_enabled() else FORWARDS).append(len(x))
        out = self.inner(x if self.body is None else self.body(x))
        return out if scale is None else out * scale


ROWS: list[int] = []
FORWARDS: list[int] = []


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of more than 3 rows are large, and a copy of the batch leaves the caches."""
    ROWS.clear()
    FORWARDS.clear()
    bytes_of_a_row = 8 * 8
    monkeypatch.setattr("attrfn._copies.sizes._LARGEST", 3 * bytes_of_a_row)
    for module in ("chunks", "memory"):
        monkeypatch.setattr(f"attrfn._copies.{module}.budget", lambda device: 1)
    for module in ("_copies.chunks", "_explain.masked"):
        monkeypatch.setattr(f"attrfn.{module}.unmeasured_copies", lambda x: 1)
    monkeypatch.setattr("attrfn._explain.masked_parts.budget", lambda device: 1)


METHODS: dict[str, Callable[..., Any]] = {
    "integrated_gradients": functools.partial(attrfn.integrated_gradients, n_steps=6),
    "layer_integrated_gradients": functools.partial(
        attrfn.layer_integrated_gradients, layer="inner.0", n_steps=6
    ),
    "gradient_shap": functools.partial(
        attrfn.gradient_shap, baselines=randn(3, 9), n_samples=6, stdevs=0.1
    ),
}
TARGETS: dict[str, Any] = {
    "one": 1,
    "tensor": torch.arange(B) % 3,
    "list": [(i % 3,) for i in range(B)],
    "function": lambda out: out[:, 0] - out[:, 2],
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_parts_give_what_the_batch_gives(method: Any, target: Any) -> None:
    model, x = Seen(), randn(B, 9)
    found = method(model, x, target=target)
    assert min(ROWS) <= 3
    assert ROWS.count(B) <= 1 + 3  # the first copy, and the check of rows
    ROWS.clear()
    assert_close(found, method(model, x, target=target, chunk_size=1))
    assert set(ROWS) == {B}


def test_bound_tensors_follow_their_rows() -> None:
    model, x, scale = Seen(), randn(B, 9), randn(B, 3)
    found = attrfn.integrated_gradients(functools.partial(model, scale=scale), x, target=1)
    assert min(ROWS) <= 3
    for i in range(B):
        alone = functools.partial(model, scale=scale[i : i + 1])
        assert_close(found[i : i + 1], attrfn.integrated_gradients(alone, x[i : i + 1], target=1))


FORWARD_METHODS: dict[str, Callable[..., Any]] = {
    "feature_ablation": functools.partial(attrfn.feature_ablation, baselines=0.3),
    "occlusion": functools.partial(attrfn.occlusion, window=1),
    "shapley_value_sampling": functools.partial(attrfn.shapley_value_sampling, n_samples=3, key=0),
    "kernel_shap": functools.partial(attrfn.kernel_shap, n_samples=20, key=0),
    "layer_feature_ablation": functools.partial(attrfn.layer_feature_ablation, layer="inner.0"),
}


@pytest.mark.parametrize("target", [*TARGETS.values(), None], ids=[*TARGETS, "none"])
@pytest.mark.parametrize("method", FORWARD_METHODS.values(), ids=FORWARD_METHODS)
def test_forward_passes_in_parts_give_what_the_batch_gives(method: Any, target: Any) -> None:
    model, x = Seen(), randn(B, 9).requires_grad_()
    found = method(model, x, target=target)
    assert min(FORWARDS) <= 3
    assert FORWARDS.count(B) <= 4  # the inputs, the baselines, and the check of rows
    FORWARDS.clear()
    assert_close(found, method(model, x, target=target, chunk_size=1))
    assert set(FORWARDS) == {B}


def test_bound_tensors_follow_their_rows_forwards() -> None:
    model, x, scale = Seen(), randn(B, 9), randn(B, 3)
    options = {"target": 1, "n_samples": 20, "key": 0}
    found = attrfn.kernel_shap(functools.partial(model, scale=scale), x, **options)
    assert min(FORWARDS) <= 3
    options["chunk_size"] = 1
    assert_close(found, attrfn.kernel_shap(functools.partial(model, scale=scale), x, **options))


def test_few_copies_run_whole() -> None:
    attrfn.feature_ablation(Seen(), randn(B, 9), target=1, feature_mask=torch.arange(9) // 2)
    assert min(FORWARDS) == B


def whole(x: Tensor) -> Tensor:
    """A model that takes batches of 10 only."""
    return x.view(-1, B, 9).flatten(0, 1)


def pairs(x: Tensor) -> Tensor:
    """A model whose rows depend on their neighbours, which two copies of a batch do not show."""
    if len(x) % 2:
        return x
    a, b = x.unflatten(0, (-1, 2)).unbind(1)
    return torch.stack([a + b, a - b], 1).flatten(0, 1)


@pytest.mark.parametrize("body", [whole, pairs])
def test_a_model_that_needs_the_whole_batch_gets_it(body: Any) -> None:
    model, x = Seen(body), randn(B, 9)
    found = attrfn.integrated_gradients(model, x, target=1, n_steps=6)
    assert_close(found, attrfn.integrated_gradients(model, x, target=1, n_steps=6, chunk_size=1))


@pytest.mark.parametrize("body", [whole, pairs])
def test_forward_passes_of_a_model_that_needs_the_whole_batch(body: Any) -> None:
    model, x = Seen(body), randn(B, 9)
    found = attrfn.occlusion(model, x, window=1, target=1)
    whole_batch = attrfn.occlusion(model, x, window=1, target=1, chunk_size=1)
    assert_close(found, whole_batch)
