"""Attributes of every kind: what torch.compile(model) follows, attrfn.compile follows too."""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, randn
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import attrfn

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Several(list):
    pass


class Named(dict):
    pass


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


Get = Callable[[Any], Any]
KINDS: dict[str, tuple[Any, Get, Callable[[nn.Module], object]]] = {
    "namespace": (types.SimpleNamespace(k=1.0), lambda c: c.k, lambda m: setattr(m.c, "k", 2.0)),
    "defaultdict": (
        collections.defaultdict(float, k=1.0),
        lambda c: c["k"],
        lambda m: m.c.__setitem__("k", 2.0),
    ),
    "subclass of list": (Several([1.0]), lambda c: c[0], lambda m: m.c.__setitem__(0, 2.0)),
    "subclass of dict": (Named(k=1.0), lambda c: c["k"], lambda m: m.c.__setitem__("k", 2.0)),
    "deque": (collections.deque([1.0]), lambda c: c[0], lambda m: m.c.__setitem__(0, 2.0)),
    "partial": (
        functools.partial(torch.mul, other=1.0),
        lambda c: c(torch.ones(())),
        lambda m: setattr(m, "c", functools.partial(torch.mul, other=2.0)),
    ),
    "long list": ([1.0] * 100, lambda c: c[70], lambda m: m.c.__setitem__(70, 2.0)),
    "nested": (
        {"a": types.SimpleNamespace(k=[1.0])},
        lambda c: c["a"].k[0],
        lambda m: m.c["a"].k.__setitem__(0, 2.0),
    ),
    "list in a tuple": (([1.0],), lambda c: c[0][0], lambda m: m.c[0].__setitem__(0, 2.0)),
    "dict in a tuple": (
        [(0, {"k": [1.0]})],
        lambda c: c[0][1]["k"][0],
        lambda m: m.c[0][1]["k"].__setitem__(0, 2.0),
    ),
    "longer list in a tuple": (([1.0],), lambda c: sum(c[0]), lambda m: m.c[0].append(2.0)),
    "tensor": (tensor(1.0), lambda c: c, lambda m: setattr(m, "c", tensor(2.0))),
    "written tensor": (tensor(1.0), lambda c: c, lambda m: m.c.fill_(2.0)),
    "list of tensors": ([tensor(1.0)], lambda c: c[0], lambda m: m.c.__setitem__(0, tensor(2.0))),
    "dict of tensors": (
        {"k": tensor(1.0)},
        lambda c: c["k"],
        lambda m: m.c.__setitem__("k", tensor(2.0)),
    ),
}


def model_with(c: Any, get: Get) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp = nn.Linear(4, 3)
            self.c = c

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.inp(x)) * get(self.c)

    return Model().double()


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_followed(kind: str) -> None:
    c, get, change = KINDS[kind]
    model, x = model_with(c, get), randn(2, 4)
    explain = attrfn.compile(attrfn.gradient, model, backend="eager")
    before = explain(x, target=0)
    assert_close(before, attrfn.gradient(model, x, target=0))
    change(model)
    after = explain(x, target=0)
    assert_close(after, attrfn.gradient(model, x, target=0))
    assert not torch.allclose(after, before)


@pytest.mark.parametrize(
    ("c", "why"),
    [
        (types.SimpleNamespace(t=tensor(1.0)), "tensors in a SimpleNamespace"),
        ({"a": collections.deque([tensor(1.0)])}, "tensors in a deque"),
        (functools.partial(torch.mul, other=tensor(1.0)), "tensors in a partial"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_rest_is_refused_when_compiling(c: Any, why: str) -> None:
    model = model_with(c, lambda c: 1.0)
    for f in (model, functools.partial(model), model.forward):
        with pytest.raises(TypeError, match=rf"Model\.c .*{why}.*would not follow"):
            attrfn.compile(attrfn.gradient, f, backend="eager")
    attrfn.gradient(model, randn(2, 4), target=0)


def test_lists_in_tuples_that_stay_are_compiled_once() -> None:
    model, x = model_with(([1.0], ["a"]), lambda c: c[0][0]), randn(2, 4)
    counts = CompileCounter()
    explain = attrfn.compile(attrfn.gradient, model, backend=counts)
    for _ in range(3):
        explain(x, target=0)
    model.c[0][0] = float("1")  # equal, and another object
    explain(x, target=0)
    assert counts.frame_count == 1


def test_a_plain_tensor_that_the_model_writes_stays() -> None:
    def write(c: Tensor) -> Tensor:
        return c.mul_(2).clone()

    model, x = model_with(tensor(1.0), write), randn(2, 4)
    explain = attrfn.compile(attrfn.gradient, model, backend="eager")
    first = explain(x, target=0)
    assert_close(explain(x, target=0), first)
    assert_close(attrfn.gradient(model, x, target=0), first)
    assert model.c == 1


def test_compiled_draws_are_said_and_leave_the_generator() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).double(), randn(2, 4)
    explain = attrfn.compile(attrfn.gradient, model, backend="eager")
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="in compiled code others"):
        first = explain(x, target=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(explain(x, target=0), first)
    assert torch.equal(torch.get_rng_state(), before)
