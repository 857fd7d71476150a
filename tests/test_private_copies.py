"""Private copies of modules: reused while runs leave them alone, and fresh after one that wrote.

The tables sweep what a module can hold: every kind of container, as an attribute and inside of
others, each written in every way that the kind has.
"""

from __future__ import annotations

import functools
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from zoo import randn

import attrfn
from attrfn._model import bind


class Listed(list):  # type: ignore[type-arg]
    """A list with attributes."""


class Named(dict):  # type: ignore[type-arg]
    """A dict whose items are its attributes."""

    def __init__(self, *args: Any, **items: Any) -> None:
        super().__init__(*args, **items)
        self.__dict__ = self


class Slotted(list):  # type: ignore[type-arg]
    """A list with a slot."""

    __slots__ = ("extra",)


class Loud(dict):  # type: ignore[type-arg]
    """A dict that answers for any attribute, or fails with its own error."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def _listed() -> Listed:
    found = Listed([1.0])
    found.extra = [2.0]  # type: ignore[attr-defined]
    return found


def _slotted() -> Slotted:
    found = Slotted([1.0])
    found.extra = 2.0  # type: ignore[attr-defined]
    return found


class Counting(nn.Module):
    """Counts its calls, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0.0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1.0
        return x * self.calls[0]


def _later(d: Any) -> None:
    d.move_to_end("a")


def _other_key(d: Any) -> None:
    d["c"] = d.pop("b")  # the same values in the same order


def _add(t: Tensor) -> None:
    t.add_(1.0)


def _in_data(t: Tensor) -> None:
    t.data.add_(1.0)  # no version counts this


Write = Callable[[Any], object]
# What a module holds, and ways in which a run changes it.
KINDS: dict[str, tuple[Callable[[], Any], list[Write]]] = {
    "list": (
        lambda: [1.0, 2.0],
        [lambda v: v.append(3.0), lambda v: v.pop(), lambda v: v.reverse()],
    ),
    "list, item": (lambda: [1.0, 2.0], [lambda v: v.__setitem__(0, 3.0)]),
    "dict": (
        lambda: {"a": 1.0, "b": 2.0},
        [lambda v: v.update(a=3.0), lambda v: v.pop("b"), _other_key],
    ),
    "OrderedDict": (lambda: OrderedDict(a=1.0, b=2.0), [_later, lambda v: v.update(a=3.0)]),
    "defaultdict": (
        lambda: defaultdict(float, a=1.0),
        [lambda v: v["new"], lambda v: setattr(v, "default_factory", int)],
    ),
    "Counter": (lambda: Counter("aab"), [lambda v: v.update("b")]),
    "set": (lambda: {1.0, 2.0}, [lambda v: v.add(3.0), lambda v: v.discard(1.0)]),
    "deque": (
        lambda: deque([1.0, 2.0], maxlen=2),
        [lambda v: v.append(3.0), lambda v: v.rotate(1)],
    ),
    "bytearray": (lambda: bytearray(b"ab"), [lambda v: v.__setitem__(0, 3)]),
    "namespace": (
        lambda: types.SimpleNamespace(a=1.0),
        [lambda v: setattr(v, "a", 2.0), lambda v: setattr(v, "b", 2.0)],
    ),
    "list in a dict": (lambda: {"a": [1.0]}, [lambda v: v["a"].append(2.0)]),
    "dict in a list": (lambda: [{"a": 1.0}], [lambda v: v[0].update(a=2.0)]),
    "list in a tuple": (lambda: ([1.0],), [lambda v: v[0].append(2.0)]),
    "set in a namespace": (lambda: types.SimpleNamespace(a={1}), [lambda v: v.a.add(2)]),
    "list in a deque": (lambda: deque([[1.0]]), [lambda v: v[0].append(2.0)]),
    "list in itself": (lambda: _of_itself(), [lambda v: v[0].append(2.0)]),
    "subclass of list": (
        _listed,
        [
            lambda v: v.append(2.0),
            lambda v: v.extra.append(3.0),
            lambda v: setattr(v, "extra", None),
            lambda v: setattr(v, "more", 1.0),
        ],
    ),
    "dict of attributes": (
        lambda: Named(a=1.0),
        [lambda v: setattr(v, "a", 2.0), lambda v: v.update(a=2.0)],
    ),
    "dict that answers": (lambda: Loud(a=1.0), [lambda v: v.update(a=2.0)]),
    "keywords of a partial": (
        lambda: functools.partial(max, key=[1.0]),
        [lambda v: v.keywords.update(key=None), lambda v: v.keywords["key"].append(2.0)],
    ),
    "tensor in a list": (lambda: [torch.ones(2)], [lambda v: _add(v[0]), lambda v: _in_data(v[0])]),
    "tensor in a deque": (lambda: deque([torch.ones(2)]), [lambda v: _add(v[0])]),
    "tensor in a set": (lambda: {torch.ones(2)}, [lambda v: _add(next(iter(v)))]),
    "tensor in a dict": (lambda: {"a": (torch.ones(2),)}, [lambda v: _add(v["a"][0])]),
    "module in a list": (lambda: [Counting()], [lambda v: v[0](torch.ones(1))]),
    "slot": (_slotted, [lambda v: setattr(v, "extra", 3.0)]),
}
REBUILT = {"slot"}  # no snapshot looks there
WRITES = [
    pytest.param(make, write, id=f"{name} {i}")
    for name, (make, writes) in KINDS.items()
    for i, write in enumerate(writes)
]


def _of_itself() -> list[Any]:
    found: list[Any] = [[1.0]]
    found.append(found)
    return found


def text(value: Any, deeper: int = 8) -> str:
    """All that a value holds, in order, so that two states can be compared."""
    if deeper == 0:
        return "..."
    inner = functools.partial(text, deeper=deeper - 1)
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, functools.partial):
        return inner(value.keywords)
    if isinstance(value, nn.Module):
        return inner({k: v for k, v in vars(value).items() if not k.startswith("_")})
    found = [type(value).__name__]
    if isinstance(value, dict):
        found += [f"{k}: {inner(v)}" for k, v in value.items()]
        found.append(
            str(getattr(value, "default_factory", None)) if type(value) is defaultdict else ""
        )
    elif isinstance(value, (list, tuple, set, deque, bytearray)):
        found += map(inner, value)
    elif not hasattr(value, "__dict__"):
        return repr(value)
    extra = vars(value) if type(value) in (Listed, types.SimpleNamespace) else {}
    found += [f"{k}= {inner(v)}" for k, v in extra.items()]
    found += [str(value.extra)] if isinstance(value, Slotted) else []
    return " ".join(found)


class Holds(nn.Module):
    """Notes what its container holds when a run begins, and then may write into it."""

    def __init__(self, container: Any, write: Write | None) -> None:
        super().__init__()
        self.container = container
        self.write = write
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(text(self.container))
        if self.write is not None:
            self.write(self.container)
        return self.linear(x)


SEEN: list[str] = []


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each private copy that is built."""
    built: list[int] = []
    general = bind._private_copy

    def counted(*args: Any) -> Any:
        built.append(1)
        return general(*args)

    monkeypatch.setattr(bind, "_private_copy", counted)
    SEEN.clear()
    return built


METHODS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "integrated_gradients": lambda f, x: attrfn.integrated_gradients(f, x, n_steps=4, chunk_size=1),
    "feature_ablation": lambda f, x: attrfn.feature_ablation(f, x, chunk_size=1),
    "layer_activation": lambda f, x: attrfn.layer_integrated_gradients(
        f, x, layer="linear", n_steps=4, chunk_size=1
    ),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_that_no_run_wrote_are_reused(kind: str, method: Any, builds: list[int]) -> None:
    """One walk over the modules a call, whatever they hold."""
    model = Holds(KINDS[kind][0](), None).double()
    method(model, randn(1, 3))
    assert len(SEEN) >= 4
    assert len(builds) == (len(SEEN) if kind in REBUILT else 1)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("make", "write"), WRITES)
def test_a_run_that_wrote_starts_the_next_one_fresh(
    make: Any, write: Write, method: Any, builds: list[int]
) -> None:
    """Each run finds what the user put there, and so does the user afterwards."""
    model = Holds(make(), write).double()
    before = text(model.container)
    write(expected := make())
    assert text(expected) != before  # else the write shows nothing
    method(model, randn(1, 3))
    assert len(SEEN) >= 4
    assert set(SEEN) == {before}
    assert text(model.container) == before
    assert len(builds) == len(SEEN)


NESTED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "noise_tunnel": lambda f, x: attrfn.noise_tunnel(
        attrfn.gradient, n_samples=4, stdevs=0.1, chunk_size=1
    )(f, x),
    "noise_tunnel of a layer": lambda f, x: attrfn.noise_tunnel(
        attrfn.layer_gradient_x_activation, n_samples=4, stdevs=0.1, chunk_size=1
    )(f, x, layer="linear"),
    "over_baselines": lambda f, x: attrfn.over_baselines(attrfn.feature_ablation, chunk_size=1)(
        f, x, baselines=randn(4, 3)
    ),
    "layer_conductance": lambda f, x: attrfn.layer_conductance(
        f, x, layer="linear", n_steps=4, chunk_size=1
    ),
}


@pytest.mark.parametrize("method", NESTED.values(), ids=NESTED)
def test_a_method_inside_of_another_reuses_its_copies(method: Any, builds: list[int]) -> None:
    """It is bound anew for each chunk."""
    method(Holds([1], None).double(), randn(1, 3))
    assert len(SEEN) >= 4
    assert len(builds) == 1


def test_writes_of_one_run_are_seen_within_it() -> None:
    """A model that counts its layers' calls in a list counts from zero in each run."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = {"module": Counting()}

        def forward(self, x: Tensor) -> Tensor:
            return self.shared["module"](self.shared["module"](x)).sum(1)

    # 1 x and then 2 (1 x)
    x = randn(2, 3)
    assert_close(attrfn.integrated_gradients(Twice(), x, n_steps=4, chunk_size=1), 2 * x)
    assert_close(attrfn.feature_ablation(Twice(), x, chunk_size=1), 2 * x)


def test_a_container_in_two_places_stays_one() -> None:
    """What is written at one place is read at the other, in the same run."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kept: list[Tensor] = []
            self.write, self.read = kept, {"here": kept}

        def forward(self, x: Tensor) -> Tensor:
            self.write.append(x * 3)
            return self.read["here"][-1].sum(1) + 0 * len(self.read["here"])

    model, x = Two(), randn(2, 3)
    assert_close(attrfn.integrated_gradients(model, x, n_steps=4, chunk_size=1), 3 * x)
    assert model.write == []
