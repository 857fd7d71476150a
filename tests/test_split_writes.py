"""Splits of models that write, raise or stop early, and of one model in several threads."""

from __future__ import annotations

import collections
import functools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo
from splits import RESIDUAL_ACT, equal
from torch import Tensor, nn
from torch.func import functional_call
from zoo import make, randn

import attrfn

# --- models that write ---------------------------------------------------------------------------


def test_model_that_writes_attributes_and_buffers():
    model, x = zoo.make(zoo.Writes), randn(3, 4)
    fresh = zoo.make(zoo.Writes)
    expected = fresh(x)
    before = zoo.state(model)
    for layer in ("lin", "out"):
        head, tail = attrfn.split(model, layer)
        equal(tail(head(x), x), expected)
    attrfn.gradient(model, x, target=1)
    attrfn.integrated_gradients(model, x, target=1, chunk_size=7, n_steps=20)
    attrfn.layer_conductance(model, x, layer="lin", target=1, n_steps=3)
    attrfn.noise_tunnel(attrfn.gradient)(model, x, target=1)
    attrfn.completeness_delta(model, x, x, target=1)
    assert zoo.same_state(model, before)
    assert model.log == []
    assert model.cache == {}
    assert model.calls == 0
    assert model.last is None


def test_model_that_writes_under_transforms():
    """In-place updates of buffers happen on copies made inside the transform."""
    model, x = zoo.make(Counts), randn(3, 4)
    before = zoo.state(model)
    expected = attrfn.gradient(model, x, target=1)
    equal(torch.func.vmap(lambda v: attrfn.gradient(model, v[None], target=1)[0])(x), expected)
    squared = torch.func.grad(lambda v: (attrfn.gradient(model, v, target=1) ** 2).sum())(x)
    assert squared.shape == x.shape
    attrfn.layer_conductance(model, x, layer="lin", target=1, n_steps=3)
    torch.func.vmap(
        lambda v: attrfn.layer_integrated_gradients(model, v[None], layer="lin", target=1)
    )(x)
    assert zoo.same_state(model, before)


class Counts(nn.Module):
    """Counts its calls in place, in a buffer and in an attribute that its output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        return self.out(self.lin(x).tanh()) * self.calls * self.count


def test_every_run_starts_from_the_users_state():
    """No state is carried from chunk to chunk, so the chunks do not matter."""
    model, x = zoo.make(Counts), randn(3, 4)
    for method in (
        functools.partial(attrfn.integrated_gradients, target=1, n_steps=6),
        functools.partial(attrfn.layer_integrated_gradients, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.layer_conductance, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.gradient_shap, target=1, baselines=randn(2, 4, seed=5)),
    ):
        whole = method(model, x)
        torch.testing.assert_close(method(model, x, chunk_size=2), whole)
        torch.testing.assert_close(method(model, x, batching="loop"), whole)


def test_model_that_writes_into_other_containers():
    """Sets, counters, deques and simple objects are state as well."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
            self.kinds: set[str] = set()
            self.recent: collections.deque[int] = collections.deque(maxlen=3)
            self.counts: collections.Counter[str] = collections.Counter()
            self.by_name: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
            self.free = SimpleNamespace(n=0)

        def forward(self, x: Tensor) -> Tensor:
            self.kinds.add("called")
            self.recent.append(x.shape[0])
            self.counts["calls"] += 1
            self.by_name["rows"].append(x.shape[0])
            self.free.n += 1
            return self.out(self.lin(x).tanh())

    model, x = zoo.make(Net), randn(3, 4)
    attrfn.layer_gradient_x_activation(model, x, layer="lin", target=1)
    attrfn.integrated_gradients(model, x, target=1, n_steps=3)
    assert not model.kinds
    assert not model.recent
    assert not model.counts
    assert not model.by_name
    assert model.free.n == 0


def test_batch_norm_in_training_keeps_its_statistics():
    model = zoo.cnn().train()
    x = randn(4, 2, 8, 8)
    before = zoo.state(model)
    with pytest.warns(UserWarning, match=r"training mode and holds BatchNorm2d.*call model\.eval"):
        attrfn.split(model, "2").head(x)
    assert zoo.same_state(model, before)


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("count", torch.zeros(()))
        self.fail = True
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        self.count += 1
        self.log.append(1)
        if self.fail:
            raise KeyError("the model's own error")
        return self.out(h)


def test_model_that_raises():
    """The user's error arrives as it is, and nothing is left behind."""
    model, x = zoo.make(Raises), randn(3, 4)
    before = zoo.state(model)
    for run in (
        lambda: attrfn.split(model, "out").head(x),
        lambda: attrfn.split(model, "lin").tail(randn(3, 5), x),
        lambda: attrfn.gradient(model, x, target=1),
        lambda: attrfn.layer_conductance(model, x, layer="lin", target=1),
        lambda: attrfn.grad_cam(model, x, layer="lin", target=1),
        lambda: torch.func.vmap(lambda v: attrfn.gradient(model, v[None], target=1))(x),
    ):
        with pytest.raises(KeyError, match="the model's own error"):
            run()
        assert zoo.same_state(model, before)
    assert torch._C._functorch.peek_interpreter_stack() is None
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
    model.fail = False
    attrfn.layer_conductance(model, x, layer="lin", target=1)


def test_threads_split_one_model():
    """Eight threads, one model with a reused in-place layer: every result is right."""
    model = zoo.make(zoo.Residual)
    xs = [randn(3, 4, seed=i) for i in range(8)]

    def job(x: Tensor) -> list[Tensor]:
        head, tail = attrfn.split(model, RESIDUAL_ACT, call=1)
        params = {k: p.detach() * (1 + float(x[0, 0])) for k, p in model.named_parameters()}
        other = functools.partial(functional_call, model, params)
        return [
            tail(head(x), x).detach(),
            attrfn.integrated_gradients(model, x, target=1, n_steps=5),
            attrfn.layer_conductance(model, x, layer=RESIDUAL_ACT, target=1, n_steps=3),
            attrfn.layer_activation(other, x, layer="blocks.0"),
            torch.func.vmap(lambda v: attrfn.gradient(model, v[None], target=0)[0])(x),
        ]

    expected = [job(x) for x in xs]
    before = zoo.state(model)
    wrong: list[Any] = []
    start = threading.Barrier(8)

    def work(i: int) -> None:
        try:
            start.wait()
            for _ in range(12):
                for a, b in zip(job(xs[i]), expected[i], strict=True):
                    if not torch.equal(a, b):
                        wrong.append((i, a, b))
        except BaseException as error:
            wrong.append((i, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert zoo.same_state(model, before)


def test_the_head_stops_at_the_layer():
    """In eager mode the rest of the model is not run; the tail does not compute the layer."""
    ran = []

    class Loud(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.lin = name, nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            ran.append(self.name)
            return self.lin(x)

    model, x = zoo.make(lambda: nn.Sequential(Loud("a"), Loud("b"), Loud("c"))), randn(3, 4)
    head, tail = attrfn.split(model, "1")
    a = head(x)
    assert ran == ["a", "b"]
    ran.clear()
    tail(a, x)
    assert ran == ["a", "c"]
    ran.clear()
    attrfn.split(model, "1", at="input").head(x)
    assert ran == ["a"]
    ran.clear()
    attrfn.split(model, ["1", "0"]).head(x)
    assert ran == ["a", "b"]


def test_early_exit_is_invisible():
    """try/finally and context managers are left in order, ``except Exception`` is passed by."""
    log = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                with torch.no_grad():
                    h = self.lin(x)
            except Exception:
                log.append("swallowed")
                h = torch.zeros(3, 5, dtype=x.dtype)
            finally:
                log.append("finally")
            return self.out(h)

    model, x = zoo.make(Net), randn(3, 4)
    equal(attrfn.layer_activation(model, x, layer="lin"), model.lin(x))
    assert log == ["finally"]
    assert torch.is_grad_enabled()


# --- under torch.compile -------------------------------------------------------------------------


def test_a_method_may_call_the_model_from_threads():
    """The function that it gets runs on objects of its own in each."""
    net, x = make(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), randn(5, 3)

    def method(model_fn, inputs, *, target=None):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: model_fn(inputs), range(400)))
        assert all(torch.equal(f, found[0]) for f in found)
        return found[0]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for moved in (attrfn.at_layer(method, "1"), attrfn.at_neuron(method, "1", 0)):
            assert moved(net, x).shape[0] == 5
    finally:
        sys.setswitchinterval(interval)
