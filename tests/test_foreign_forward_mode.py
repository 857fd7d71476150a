"""Forward mode is one for all threads of a process: nobody is disturbed by another one's."""

from __future__ import annotations

import os
import threading
import warnings

import pytest
import torch
from helpers import randn
from torch import Tensor, nn

import attrfn
from attrfn._torch import autodiff

MODEL = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
X = randn(3, 4)


def _conductance() -> Tensor:
    return attrfn.layer_conductance(MODEL, X, layer="1", target=0, n_steps=4)


@pytest.mark.parametrize("rounds", [60, pytest.param(3000, marks=pytest.mark.fuzz)])
def test_conductance_beside_a_thread_that_runs_jvp(rounds: int) -> None:
    expected, x = _conductance(), randn(5, 4)
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
            torch.testing.assert_close(_conductance(), expected)
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert ran


def test_a_progress_bar_does_not_count() -> None:
    class Monitor(threading.Thread):
        pass

    Monitor.__module__ = "tqdm._monitor"
    for kind, harmless in ((Monitor, True), (threading.Thread, False)):
        stop = threading.Event()
        thread = kind(target=stop.wait)
        thread.start()
        try:
            assert autodiff._others_are_harmless() == harmless
        finally:
            stop.set()
            thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_that_is_forked_while_the_lock_is_held() -> None:
    expected = _conductance()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        x = randn(2, 3)
        with autodiff.tangents_on((x,), (x,)):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                # Both ways: the lock is free, and the level that stays open is not used.
                with autodiff._FORWARD_MODE:
                    code = 0 if torch.allclose(_conductance(), expected) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        done.set()
        thread.join()
