"""Eight threads explain one model at once: every result is right, and the model is intact."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import assert_close
from models import NETS, Net
from registry import REGISTRY, Row, explain, rows_and_nets, trial
from torch import Tensor
from zoo import same_state, state

from attrfn import rules
from attrfn._rules.replay import Replay
from attrfn.testing import _state

THREADS = 8


@rows_and_nets(lambda r, net: net is NETS["reuse"])
def test_eight_threads_explain_one_model(r: Row, net: Net) -> None:
    _state.threads(trial(r, net, batch=2))


@rows_and_nets(lambda r, net: net is NETS["attention"] and r.explains != "map")
def test_eight_threads_explain_one_transformer(r: Row, net: Net) -> None:
    _state.threads(trial(r, net, batch=2))


@rows_and_nets(lambda r, net: net is NETS["cnn"] and r.gradient and not r.keyed)
def test_eight_threads_transform_one_model(r: Row, net: Net) -> None:
    def mapped(model: Any, x: Tensor, **options: Any) -> Tensor:
        return torch.func.vmap(lambda t: r.method(model, x * (1 + t), **options))(torch.zeros(1))

    _state.threads(trial(r, net, batch=2)._replace(method=mapped))


@pytest.mark.filterwarnings("ignore:the sum of integrated_hessians")
@pytest.mark.filterwarnings("ignore:.*met no (ReLU|linear operation)")
@pytest.mark.parametrize("name", ["reuse", "norm"])
def test_eight_threads_use_different_methods_on_one_model(name: str) -> None:
    net = NETS[name]
    model, x = net.build(), net.inputs(2)
    before = state(model)
    expected = [explain(r, net, model, x) for r in REGISTRY]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda r: explain(r, net, model, x), REGISTRY * 2))
    for one, right in zip(found, expected * 2, strict=True):
        assert_close(one, right)
    assert same_state(model, before)


def test_runs_with_tables_of_their_own_start_together() -> None:
    """What runs remember of a table is not shared between tables."""
    together, interval = threading.Barrier(THREADS), sys.getswitchinterval()

    def work(i: int) -> None:
        together.wait()
        for _ in range(300):
            for table in (rules.attn_lrp(), rules.rescale().allow(torch.prod)):
                Replay(table, [], None, None)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)
