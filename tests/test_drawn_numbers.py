"""Models that draw random numbers: one draw for all runs, one warning, generators as they were."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import randn
from registry import ROWS, Row, explain, rows
from torch import Tensor, nn

import attrfn
from attrfn._torch import generators

W = randn(4, 3, seed=1)
X = randn(3, 4)
OWN = torch.Generator()

DRAWS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "randn": (lambda x: (x + torch.randn(4)).tanh() @ W, "torch.randn"),
    "rand": (lambda x: (x * torch.rand(len(x), 1)).tanh() @ W, "torch.rand"),
    "randn_like": (lambda x: (x * torch.randn_like(x)).tanh() @ W, "torch.randn_like"),
    "bernoulli": (lambda x: (x * torch.bernoulli(torch.full_like(x, 0.5))) @ W, "torch.bernoulli"),
    "normal_": (lambda x: (x + torch.empty_like(x).normal_()).sin() @ W, "torch.Tensor.normal_"),
    "randperm": (lambda x: x[:, torch.randperm(4)].sin() @ W, "torch.randperm"),
    "multinomial": (
        lambda x: x[:, torch.multinomial(torch.ones(4), 4)].sin() @ W,
        "torch.multinomial",
    ),
    "rrelu": (lambda x: F.rrelu(x, training=True) @ W, "torch.nn.functional.rrelu"),
    "dropout": (lambda x: F.dropout(x.tanh()) @ W, "torch.nn.functional.dropout"),
    "module": (
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 3)).double(),
        "torch.nn.functional.dropout",
    ),
    "generator": (lambda x: (x + torch.randn(4, generator=OWN)).tanh() @ W, "torch.randn"),
}
draws = pytest.mark.parametrize(("f", "op"), DRAWS.values(), ids=DRAWS)
METHODS: dict[str, Callable[..., Tensor]] = {
    "gradient": attrfn.gradient,
    "integrated_gradients": functools.partial(attrfn.integrated_gradients, n_steps=200),
    "deep_lift": attrfn.deep_lift,
    "lrp": attrfn.lrp,
    "feature_ablation": attrfn.feature_ablation,
    "shapley_values": attrfn.shapley_values,
    "kernel_shap": attrfn.kernel_shap,
    "noise_tunnel": attrfn.noise_tunnel(attrfn.gradient, n_samples=3),
}
CHUNKED = ("integrated_gradients", "feature_ablation", "shapley_values", "kernel_shap")


@draws
@pytest.mark.parametrize("method", METHODS)
def test_one_warning_names_the_operation_and_generators_stay(f: Any, op: str, method: str) -> None:
    before, own = torch.get_rng_state(), OWN.get_state()
    with pytest.warns(UserWarning, match="draws random numbers") as told:
        found = METHODS[method](f, X, target=0)
    said = [str(w.message) for w in told if "draws random numbers" in str(w.message)]
    assert [op in message for message in said] == [True]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(OWN.get_state(), own)
    with pytest.warns(UserWarning, match="draws random numbers"):
        assert torch.equal(METHODS[method](f, X, target=0), found)


@pytest.mark.filterwarnings("ignore:the model draws random numbers")
@draws
@pytest.mark.parametrize("method", CHUNKED)
def test_all_chunks_see_the_same_numbers(f: Any, op: str, method: str) -> None:
    found = METHODS[method](f, X, target=0, chunk_size=None)
    vmap = {"batching": "vmap"} if op != "torch.nn.functional.rrelu" else {}  # torch has no rule
    for options in ({"chunk_size": 1}, {"chunk_size": 2}, vmap):
        torch.testing.assert_close(METHODS[method](f, X, target=0, **options), found)


@pytest.mark.filterwarnings("ignore:the model draws random numbers")
@draws
@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift", "shapley_values"])
def test_sums_are_exact_for_the_draw(f: Any, op: str, method: str) -> None:
    """f(x) - f(x0) of the user's own runs from the same state of the generators."""
    found = METHODS[method](f, X, target=0)
    state, own = torch.get_rng_state(), OWN.get_state()
    values = []
    for x in (X, torch.zeros_like(X)):
        values.append(f(x)[:, 0])
        torch.set_rng_state(state)
        OWN.set_state(own)
    torch.testing.assert_close(found.sum(1), (values[0] - values[1]).detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:the model draws random numbers")
def test_draws_follow_the_key() -> None:
    f = DRAWS["randn_like"][0]
    run = functools.partial(attrfn.shapley_value_sampling, f, X, target=0, n_samples=3)
    first = run(key=1)
    torch.rand(5)  # the state of torch's generator does not matter
    assert torch.equal(run(key=1), first)
    assert not torch.allclose(run(key=2), first)


@pytest.mark.filterwarnings("ignore:the model draws random numbers")
def test_the_tail_draws_what_the_model_draws() -> None:
    """A layer whose value is given from outside still draws, as it does in the model."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 5), nn.Dropout(), nn.Tanh())
    model = model.double().train()
    state = torch.get_rng_state()
    found = attrfn.layer_integrated_gradients(model, X, layer="1", target=0, n_steps=200)
    y = model(X)[:, 0]
    torch.set_rng_state(state)
    y0 = model(torch.zeros_like(X))[:, 0]
    torch.set_rng_state(state)
    torch.testing.assert_close(found.sum(1), (y - y0).detach(), atol=1e-6, rtol=1e-5)


class Noisy(nn.Module):
    """A model of the registry with a dropout before it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any) -> Any:
        return self.inner(*[F.dropout(t, 0.3) if t.is_floating_point() else t for t in inputs])


@pytest.mark.filterwarnings("ignore::UserWarning")
@rows(lambda r: not r.layer and r.name in ROWS)
def test_every_method_leaves_the_generators_and_repeats_itself(r: Row) -> None:
    model, before = Noisy(r.net.build()), torch.get_rng_state()
    try:
        found = explain(r, r.net, model)
    except attrfn.UnsupportedOpError:
        found = None
    assert torch.equal(torch.get_rng_state(), before)
    if found is not None:
        torch.testing.assert_close(explain(r, r.net, model), found, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_thread_that_draws_is_not_the_model() -> None:
    """Warnings are errors here; the other thread's numbers are not drawn again either."""
    stop, seen = threading.Event(), []

    def draw() -> None:
        while not stop.is_set():
            seen.append(float(torch.rand(())))

    other = threading.Thread(target=draw)
    other.start()
    try:
        for _ in range(100):
            attrfn.gradient(lambda x: x.tanh() @ W, X, target=0)
    finally:
        stop.set()
        other.join()
    assert len(set(seen)) > 0.9 * len(seen)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 311, 312, 623, 624, 625, 1248, 5000, 624 * 64])
@pytest.mark.parametrize(
    "draw",
    [
        torch.rand,
        torch.randn,
        torch.randperm,
        lambda n: torch.randn(n, dtype=torch.float64),
        lambda n: torch.bernoulli(torch.ones(n) / 2),
    ],
)
def test_every_draw_shows_in_the_state(draw, n) -> None:
    """Also where the counter comes back to where it was, or a normal number was left over."""
    for before in (0, 1):
        torch.randn(before, dtype=torch.float64)
        start = generators.states(generators.default())
        assert generators.same(start, generators.states(generators.default()))
        draw(n)
        moved = not torch.equal(start[0], torch.get_rng_state())
        assert generators.same(start, generators.states(generators.default())) != moved
