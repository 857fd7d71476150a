"""Functions that are called again and again keep private copies, and notice a changed model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import make, randn

import attrfn
from attrfn._model import bind
from attrfn._model.private_copy import PrivateCopy


class Net(nn.Module):
    """Reads all kinds of state that a user may change between two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("shift", torch.ones(4))
        self.scale = 2.0
        self.plain = torch.ones(4, dtype=torch.float64)
        self.numbers = [1.0, [2.0]]
        self.named = {"a": 1.0}
        self.hidden = [nn.Linear(4, 4).double()]
        self.act: Callable[[Tensor], Tensor] = functools.partial(torch.clamp, min=-1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) * self.scale + self.shift * self.plain
        h = h * self.numbers[0] * self.numbers[1][0] * sum(self.named.values())
        h = self.hidden[0](self.act(h)) + (0.5 if self.training else 0.0)
        return self.last(h * (2.0 if "b" in self.named else 1.0))


def replaced(m: Any) -> None:
    m.first.weight = nn.Parameter(m.first.weight.detach() * 2)


def trained(m: Any) -> None:
    with torch.no_grad():
        m.first.weight.mul_(2)


def loaded(m: Any) -> None:
    m.load_state_dict({k: 2 * v for k, v in m.state_dict().items()})


def swapped(m: Any) -> None:
    m.first.weight.data = m.first.weight.data * 2


def renamed(m: Any) -> None:
    m.named = {"b": m.named.pop("a")}


def patched(m: Any) -> None:
    m.first.forward = lambda x: nn.Linear.forward(m.first, x) * 2


CHANGES: dict[str, Callable[[Any], object]] = {
    "parameter replaced": replaced,
    "parameter trained": trained,
    "parameter's data swapped": swapped,
    "state loaded": loaded,
    "training mode": lambda m: m.train(),
    "buffer replaced": lambda m: setattr(m, "shift", m.shift * 2),
    "buffer written": lambda m: m.shift.mul_(2),
    "buffer's data written": lambda m: m.shift.data.mul_(2),
    "number": lambda m: setattr(m, "scale", 3.0),
    "plain tensor": lambda m: m.plain.mul_(2),
    "list": lambda m: m.numbers.__setitem__(0, 3.0),
    "list in a list": lambda m: m.numbers[1].__setitem__(0, 3.0),
    "dict": lambda m: m.named.update(c=4.0),
    "names of a dict": renamed,
    "module in a list": lambda m: m.hidden.__setitem__(0, nn.Identity()),
    "parameter in a list": lambda m: replaced_in(m.hidden[0]),
    "partial": lambda m: setattr(m, "act", functools.partial(torch.clamp, min=0.9)),
    "layer replaced": lambda m: setattr(m, "last", nn.Linear(4, 2).double()),
    "hook": lambda m: m.first.register_forward_hook(lambda mod, args, out: out * 2),
    "forward patched": patched,
}


def replaced_in(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[PrivateCopy]:
    """The private copies that were built meanwhile."""
    copies: list[PrivateCopy] = []

    def note(**options: Any) -> PrivateCopy:
        copies.append(PrivateCopy(**options))
        return copies[-1]

    monkeypatch.setattr(bind, "PrivateCopy", note)
    return copies


def functions(net: nn.Module) -> list[Callable[[Tensor], Any]]:
    return [
        attrfn.activations(net, ["first"], frozen=True),
        attrfn.intervene(net, {"first": lambda a, seen: a + 1}, frozen=True),
    ]


def test_copies_serve_for_the_next_call(built: list[PrivateCopy]) -> None:
    net, x = make(Net), randn(5, 3)
    for f in functions(net):
        built.clear()
        first = f(x)
        for _ in range(3):
            again = f(x)
        assert len(built) == 1
        torch.testing.assert_close(again, first, rtol=0, atol=0)
        with torch.no_grad():
            trained(net)
        f(x)
        assert len(built) == 1


def test_copies_serve_where_no_graph_is_recorded(built: list[PrivateCopy]) -> None:
    net, x = make(Net), randn(5, 3)
    f = attrfn.activations(net, ["first"])
    with torch.no_grad():
        f(x)
        f(x)
    assert len(built) == 1
    f(x)[0].sum().backward()
    f(x)
    assert len(built) == 3
    assert net.first.weight.grad is not None


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_noticed(change: str) -> None:
    net, x = make(Net), randn(5, 3)
    calls = functions(net)
    before = [f(x) for f in calls]
    CHANGES[change](net)
    with torch.no_grad():
        expected = net(x)
        values = attrfn.activations(net, ["first"])(x)[1]["first"]
    after = [f(x) for f in calls]
    assert torch.equal(after[0][0], expected)
    assert torch.equal(after[0][1]["first"], values)
    assert torch.equal(after[1], functions(net)[1](x))
    assert not torch.equal(before[0][0], after[0][0])
    assert not torch.equal(before[1], after[1])


class Counts(nn.Module):
    """Changes its own state in each run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 2), []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls.append(1)
        return self.layer(x) * self.count * len(self.calls)


def test_each_call_starts_from_the_users_state() -> None:
    net, x = make(Counts), randn(5, 3)
    f = attrfn.activations(net, ["layer"], frozen=True)
    for _ in range(3):
        assert torch.equal(f(x)[0], net.layer(x))
    assert net.calls == []
    assert net.count == 0


def test_what_a_call_returns_may_be_written() -> None:
    net, x = make(Net), randn(5, 3)
    f = attrfn.activations(net, ["first"], frozen=True)
    expected = f(x)[1]["first"].clone()
    f(x)[1]["first"].zero_()
    assert torch.equal(f(x)[1]["first"], expected)
