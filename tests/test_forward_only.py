"""Runs without derivatives use one shell again, unless a run has changed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from zoo import make, randn, same_state, state

import attrfn
from attrfn._model.bind import bind


class Stateful(nn.Module):
    """Its output grows with every run that starts from the state that the last one left."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 3)
        self.count = 1
        self.names: list[int] = []
        self.cache: dict[str, Any] = {}
        self.register_buffer("steps", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Counts(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.inp(x) * self.count


class Appends(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        self.names.append(1)
        return self.inp(x) * len(self.names)


class Caches(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        factor = 1.0 + len(self.cache)
        self.cache[str(factor)] = x
        return self.inp(x) * factor


class WritesBuffer(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return self.inp(x) * self.steps


class ReplacesBuffer(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + 1
        return self.inp(x) * self.steps


class AddsAttribute(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        factor = 2.0 if hasattr(self, "ran") else 1.0
        self.ran = True
        return self.inp(x) * factor


class Hooks(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        out = self.inp(x)
        self.inp.register_forward_hook(lambda m, a, y: 2 * y)
        return out


class ReplacesModule(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        out = self.inp(x)
        self.inp = nn.Sequential(self.inp, nn.Hardtanh())
        return out


class ChangesChild(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        out = self.inp(x) * getattr(self.inp, "factor", 1.0)
        self.inp.factor = 3.0
        return out


MODELS = [
    Counts, Appends, Caches, WritesBuffer, ReplacesBuffer, AddsAttribute, Hooks, ReplacesModule,
    ChangesChild,
]  # fmt: skip


@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_every_run_starts_from_the_users_state(kind: Callable[[], nn.Module], chunk_size) -> None:
    """The attributions are those of the first run's function, which is linear."""
    model, x = make(kind), randn(2, 4)
    before = state(model)
    first = bind(model, frozen=True)(x)
    factor = (first / model.inp(x)).detach()[0, 0].item() if kind is not Hooks else 1.0
    found = attrfn.feature_ablation(model, x, target=1, chunk_size=chunk_size)
    assert_close(found, factor * x * model.inp.weight[1].detach())
    assert same_state(model, before)


def test_unchanged_shells_run_again() -> None:
    """One walk over the tree for all runs of a plain model."""
    model = make(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()))
    run = bind(model, frozen=True, forward_only=True)
    seen = []

    class Sees(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(id(self))
            return x

    model.append(Sees())
    x = randn(2, 4)
    for _ in range(3):
        assert_close(run(x), model(x))
    assert len(set(seen[0::2])) == 1
    assert seen[0] != seen[1]


def test_error_leaves_nothing_behind() -> None:
    """PrivateCopy of a run that raised are not used again."""
    calls = []

    class Raises(Counts):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            calls.append(self.count)
            if len(calls) == 2:
                raise RuntimeError("second run")
            return out

    model, x = make(Raises), randn(2, 4)
    run = bind(model, frozen=True, forward_only=True)
    run(x)
    with pytest.raises(RuntimeError, match="second run"):
        run(x)
    run(x)
    assert calls == [2, 2, 2]


def test_new_values_of_parameters_are_seen() -> None:
    """Between two runs an optimizer may have stepped: the tensors are shared, not copied."""
    model, x = make(lambda: nn.Linear(4, 3)), randn(2, 4)
    run = bind(model, frozen=True, forward_only=True)
    run(x)
    with torch.no_grad():
        model.weight.mul_(2)
    assert_close(run(x), model(x).detach())


@pytest.mark.parametrize("mask", [False, True])
def test_fused_encoder_layers_give_the_values_of_the_model(mask: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model, x = make(lambda: layer), randn(3, 5, 8)
    pad = torch.zeros(3, 5, dtype=torch.bool)
    pad[1, 3:] = True
    options = {"src_key_padding_mask": pad} if mask else {}
    # At padded places torch's fused path gives other numbers; every method takes the ordinary one.
    with torch.set_grad_enabled(mask):
        expected = model(x, **options).detach()
    with torch.no_grad():
        found = bind(model, frozen=True, forward_only=True)(x, **options)
    assert_close(found, expected, rtol=0, atol=1e-12 if mask else 0)
