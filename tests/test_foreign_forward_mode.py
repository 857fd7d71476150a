"""Forward mode is one for all threads of a process: no eager method depends on its level."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, assert_informative, randn
from torch import Tensor, nn
from torch.autograd import forward_ad

import attrfn

MODEL = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
X = randn(3, 4)
METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "conductance": (attrfn.layer_conductance, {}),
    "conductance of a list": (attrfn.layer_conductance, {"layer": ["0", "1"]}),
    "exact conductance": (attrfn.layer_conductance, {"quadrature": "gauss_legendre"}),
    "influence": (attrfn.internal_influence, {}),
    "neuron": (attrfn.neuron_conductance, {"neuron": 1}),
}


def _found(name: str) -> list[Tensor]:
    method, options = METHODS[name]
    found = method(MODEL, X, target=0, n_steps=4, **{"layer": "1", **options})
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("rounds", [60, pytest.param(3000, marks=pytest.mark.fuzz)])
def test_conductance_beside_a_thread_that_runs_jvp(rounds: int) -> None:
    expected, x = _found("conductance"), randn(5, 4)
    other, t = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 1)).double(), randn(5, 4)
    right = torch.func.jvp(other, (x,), (t,))[1]
    stop, failed, ran = threading.Event(), [], []

    def foreign() -> None:
        while not stop.is_set():
            try:
                found = torch.func.jvp(other, (x,), (t,))[1]
                failed.extend([] if torch.allclose(found, right) else ["wrong"])
            except Exception as error:
                failed.append(repr(error))
            ran.append(1)

    thread = threading.Thread(target=foreign)
    thread.start()
    try:
        for _ in range(rounds):
            torch.testing.assert_close(_found("conductance"), expected)
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert ran


@pytest.mark.parametrize("name", METHODS)
def test_a_level_of_another_thread_changes_nothing(name: str) -> None:
    """Bit for bit, and the level is still that of its owner."""
    expected = _found(name)
    held, done, still = threading.Event(), threading.Event(), []

    def hold() -> None:
        with forward_ad.dual_level():
            held.set()
            done.wait(60)
            dual = forward_ad.make_dual(X, 2 * X)
            still.append(forward_ad.unpack_dual(3 * dual).tangent)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        found = _found(name)
    finally:
        done.set()
        thread.join()
    for a, b in zip(found, expected, strict=True):
        assert_informative(a)
        assert torch.equal(a, b)
    assert_close(still[0], 6 * X)


@pytest.mark.parametrize("name", METHODS)
def test_no_level_is_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a level of forward mode")

    for place in ("enter_dual_level", "_set_fwd_grad_enabled"):
        monkeypatch.setattr(forward_ad, place, refuse)
    monkeypatch.setattr(torch._C, "_enter_dual_level", refuse)
    with pytest.raises(AssertionError, match="a level"):
        torch.func.jvp(torch.tanh, (X,), (X,))
    _found(name)
