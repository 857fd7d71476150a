"""Bound tensors, containers and objects: each run gets them as they were given."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from zoo import make, randn

import attrfn

METHODS: dict[str, Callable[..., Tensor]] = {
    "gradient": attrfn.gradient,
    "integrated_gradients": functools.partial(attrfn.integrated_gradients, n_steps=6),
    "feature_ablation": attrfn.feature_ablation,
    "deep_lift": attrfn.deep_lift,
    "layer_integrated_gradients": functools.partial(
        attrfn.layer_integrated_gradients, layer="lin", n_steps=6
    ),
    "layer_conductance": functools.partial(attrfn.layer_conductance, layer="lin", n_steps=6),
    "noise_tunnel": attrfn.noise_tunnel(attrfn.gradient, key=1, n_samples=4, stdevs=0.1),
}


class Cache:
    """Rows that grow."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = [rows]
        self.lock = threading.Lock()

    def update(self, x: Tensor) -> Tensor:
        with self.lock:
            self.rows.append(x)
            return sum(self.rows[1:], self.rows[0])


class LeavesOutForFiles(Cache):
    def __getstate__(self) -> dict[str, Any]:
        return {"lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("a file")


class Slotted:
    __slots__ = ("total",)

    def __init__(self, rows: Tensor) -> None:
        self.total = rows

    def update(self, x: Tensor) -> Tensor:
        self.total = self.total + x
        return self.total


class InPlace(Slotted):
    def update(self, x: Tensor) -> Tensor:
        return self.total.mul_(0.5) + x


@dataclasses.dataclass(frozen=True)
class Frozen:
    inner: Cache

    def update(self, x: Tensor) -> Tensor:
        return self.inner.update(x)


class OfDict(dict[str, Tensor]):
    def update(self, x: Tensor) -> Tensor:  # type: ignore[override]
        self["rows"] = self["rows"] + x
        return self["rows"]


class Circle(Cache):
    def __init__(self, rows: Tensor) -> None:
        super().__init__(rows)
        self.me = self

    def update(self, x: Tensor) -> Tensor:
        return Cache.update(self.me, x)


def namespace(rows: Tensor) -> Any:
    return SimpleNamespace(cache=Cache(rows))


OBJECTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any, Tensor], Tensor]]] = {
    "cache": (Cache, lambda c, x: c.update(x)),
    "class that leaves attributes out": (LeavesOutForFiles, lambda c, x: c.update(x)),
    "slots": (Slotted, lambda c, x: c.update(x)),
    "in place": (InPlace, lambda c, x: c.update(x)),
    "frozen dataclass": (lambda r: Frozen(Cache(r)), lambda c, x: c.update(x)),
    "subclass of dict": (lambda r: OfDict(rows=r), lambda c, x: c.update(x)),
    "circle": (Circle, lambda c, x: c.update(x)),
    "namespace": (namespace, lambda c, x: c.cache.update(x)),
    "tensor": (lambda r: r, lambda c, x: c.mul_(0.5) + x),
    "list": (lambda r: [r], lambda c, x: (c.append(x), c[0].mul_(0.5) + len(c) * x)[1]),
    "dict": (lambda r: {"a": r}, lambda c, x: c.setdefault("b", x) + c["a"].add_(x)),
    "deque": (
        lambda r: collections.deque([r]),
        lambda c, x: (c.append(x), c[0] + len(c) * x)[1],
    ),
    "objects in a list": (lambda r: [Cache(r), 1], lambda c, x: c[0].update(x)),
    "partial": (
        lambda r: functools.partial(lambda cache, x: cache.update(x), Cache(r)),
        lambda c, x: c(x),
    ),
}


class Model(nn.Module):
    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.step = step

    def forward(self, x: Tensor, cache: Any) -> Tensor:
        h = self.lin(x).tanh()
        for _ in range(2):
            h = self.step(cache, h).tanh()
        return self.out(h)


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("method", METHODS)
def test_each_run_gets_what_was_given(method: str, kind: str) -> None:
    build, step = OBJECTS[kind]
    explain = METHODS[method]
    model, x, rows = make(Model, step), randn(3, 4), randn(3, 5, seed=3)
    given = build(rows.clone())
    bound = functools.partial(model, cache=given)

    def fresh(x: Tensor) -> Tensor:
        return model(x, build(rows.repeat(len(x) // 3, 1)))

    found = explain(bound, x, target=1)
    if "layer" not in method:
        assert_close(found, explain(fresh, x, target=1))
    assert_close(explain(bound, x, target=1), found)
    if method not in ("gradient", "deep_lift", "noise_tunnel"):
        assert_close(explain(bound, x, target=1, chunk_size=1), found)
    h = randn(3, 5, seed=4)
    assert_close(step(given, h), step(build(rows.clone()), h))


@pytest.mark.parametrize("kind", ["cache", "in place", "tensor", "list"])
def test_transforms_and_functions(kind: str) -> None:
    """A function without a visible module, vmap, and derivatives."""
    build, step = OBJECTS[kind]
    net, x, rows = make(nn.Linear, 4, 5), randn(3, 4), randn(3, 5, seed=3)
    given, shared = build(rows.clone()), build(rows[:1].clone())

    def f(c: Any, x: Tensor) -> Tensor:
        return step(c, net(x).tanh()).sin()

    expected = attrfn.gradient(lambda x: f(build(rows.clone()), x), x, target=1)
    for _ in range(2):
        assert_close(attrfn.gradient(functools.partial(f, given), x, target=1), expected)
    squares = torch.func.grad(
        lambda x: attrfn.gradient(functools.partial(f, given), x, target=1).square().sum()
    )
    assert_close(squares(x), squares(x))
    each = torch.func.vmap(
        lambda r: attrfn.gradient(functools.partial(f, shared), r[None], target=1)[0]
    )
    assert_close(each(x), each(x))


def test_what_cannot_be_copied_is_refused() -> None:
    model, x = make(Model, lambda c, x: x), randn(3, 4)

    class Refuses:
        def __reduce__(self) -> Any:
            raise RuntimeError("a wire\nto the moon")

    for value in (Refuses(), (i for i in range(3)), {"a": Refuses()}):
        with pytest.raises(TypeError, match=r"^the model function binds a \w+, which cannot be c"):
            attrfn.gradient(functools.partial(model, cache=value), x, target=1)


def test_a_generator_of_random_numbers_starts_again() -> None:
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()

    def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
        return (x + torch.randn(4, generator=generator)).sin().sum(1)

    f, x = functools.partial(noisy, generator=generator), randn(3, 4)
    assert_close(attrfn.gradient(f, x), attrfn.gradient(f, x))
    whole = attrfn.feature_ablation(f, x)
    assert_close(attrfn.feature_ablation(f, x, chunk_size=1), whole)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_cache_of_a_transformer(name: str, filled: bool) -> None:
    tiny = pytest.importorskip("tiny_transformers")
    transformers = pytest.importorskip("transformers")
    model, cache = getattr(tiny, name)(), transformers.DynamicCache()
    ids = torch.randint(1, 20, (2, 4), generator=torch.Generator().manual_seed(0))
    if filled:
        with torch.no_grad():
            model(ids.flip(1)[:, :3], past_key_values=cache)
    length, before = cache.get_seq_length(), copy.deepcopy(cache)
    bound = functools.partial(model, past_key_values=cache)

    def target(out: Any) -> Tensor:
        return out.logits[:, -1, 1]

    found = attrfn.feature_ablation(bound, ids, target=target, baselines=0)
    with torch.no_grad():
        for i in range(4):
            changed = ids.clone()
            changed[:, i] = 0
            runs = [target(model(v, past_key_values=copy.deepcopy(before))) for v in (ids, changed)]
            assert_close(found[:, i].to(runs[0].dtype), runs[0] - runs[1])
    for size in (1, 2):
        again = attrfn.feature_ablation(bound, ids, target=target, baselines=0, chunk_size=size)
        assert_close(again, found)
    assert cache.get_seq_length() == length
