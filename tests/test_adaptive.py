"""Integrated gradients to a tolerance: panels where the gap is, examples apart, in chunks."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from zoo import make, randn

import attrfn

X = 2 * randn(4, 6)


def rectified() -> nn.Module:
    return make(
        lambda: nn.Sequential(
            nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3)
        )
    )


class Norm(nn.Module):
    """RMSNorm, whose slope at zero is a million, before a smooth net."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-12))


class Counts:
    """A model function that counts the rows it differentiates."""

    def __init__(self, f: Any) -> None:
        self.f, self.rows, self.most = f, 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.most = max(self.most, len(x))
        self.rows += len(x) if torch.is_grad_enabled() else 0
        return self.f(x)


def gap_of(f: Any, x: Tensor, a: Tensor, **options: Any) -> Tensor:
    return attrfn.completeness_delta(f, x, a, **options).abs()


def doubled(f: Any, x: Tensor, tolerance: float, n: int, **options: Any) -> int:
    """The gradients of an example by doubling: all steps of all rounds."""
    taken = 0
    for _ in range(11):
        a = attrfn.integrated_gradients(f, x, n_steps=n, check_completeness=False, **options)
        taken += n
        if float(gap_of(f, x, a, **options).max()) <= tolerance:
            return taken
        n *= 2
    return taken


@pytest.mark.usefixtures("independent_rows")
@pytest.mark.parametrize("n", [1, 2, 8, 20, 50])
@pytest.mark.parametrize("share", [1e-2, 1e-3])
@pytest.mark.parametrize("kind", ["smooth", "rectified"])
def test_no_more_gradients_than_by_doubling(kind: str, share: float, n: int) -> None:
    model = make(Norm).rest if kind == "smooth" else rectified()
    change = model(X)[:, 1] - model(0 * X)[:, 1]
    tolerance = share * float(change.detach().abs().max())
    counted = Counts(model)
    a = attrfn.integrated_gradients(counted, X, target=1, n_steps=n, tolerance=tolerance)
    assert float(gap_of(model, X, a, target=1).max()) <= tolerance
    assert counted.rows / len(X) <= doubled(model, X, tolerance, n, target=1)


@pytest.mark.usefixtures("independent_rows")
@pytest.mark.parametrize("share", [1e-2, 1e-3, 1e-5])
def test_a_norm_from_zero_takes_few_gradients(share: float) -> None:
    """More steps of one rule are far off, by the change itself."""
    model = make(Norm)
    change = model(X)[:, 1] - model(0 * X)[:, 1]
    tolerance = share * float(change.detach().abs().min())
    counted = Counts(model)
    a = attrfn.integrated_gradients(counted, X, target=1, tolerance=tolerance)
    assert float(gap_of(model, X, a, target=1).max()) <= tolerance
    assert counted.rows / len(X) <= 400
    far = attrfn.integrated_gradients(model, X, target=1, n_steps=1000, check_completeness=False)
    assert float(gap_of(model, X, far, target=1).max()) > tolerance


@pytest.mark.parametrize("kind", [Norm, rectified])
def test_examples_are_apart_and_chunks_change_rounding_only(kind: Any) -> None:
    """An example alone, in a batch of others, and in chunks of any size has the same panels."""
    model = make(kind) if kind is Norm else kind()
    run = functools.partial(attrfn.integrated_gradients, model, tolerance=1e-4)
    whole = run(X, target=[1, 2, 0, 1])
    for size in (None, 2, 3, 50):
        assert_close(run(X, target=[1, 2, 0, 1], chunk_size=size), whole)
    for i, t in enumerate([1, 2, 0, 1]):
        assert_close(run(X[i : i + 1], target=t)[0], whole[i])
    order = torch.tensor([2, 0, 3, 1])
    assert_close(run(X[order], target=torch.tensor([0, 1, 1, 2])), whole[order])
    assert torch.equal(run(X, target=[1, 2, 0, 1]), whole)


def test_a_chunk_bounds_the_rows() -> None:
    counted = Counts(make(Norm))
    attrfn.integrated_gradients(counted, X, target=1, tolerance=1e-4, n_steps=8, chunk_size=2)
    assert counted.most == 2 * len(X)


@pytest.mark.parametrize("options", [{"batching": "vmap"}, {"batching": "loop"}, {"chunk_size": 1}])
def test_whole_batches_meet_it_together(options: dict[str, Any]) -> None:
    model = make(Norm)

    def f(x: Tensor) -> Tensor:
        assert x.shape == X.shape
        return model(x)

    a = attrfn.integrated_gradients(f, X, target=1, tolerance=1e-4, **options)
    assert float(gap_of(model, X, a, target=1).max()) <= 1e-4
    assert_close(a, attrfn.integrated_gradients(model, X, target=1, tolerance=1e-6), atol=1e-3)


def test_rows_that_mix_meet_it_together() -> None:
    model = make(Norm)
    with pytest.warns(UserWarning, match="rows depend on each other"):
        a = attrfn.integrated_gradients(lambda x: model(x - x.mean(0)), X, target=1, tolerance=1e-4)
    f = lambda x: model(x - x.mean(0))[:, 1].sum()[None]  # noqa: E731
    change = f(X) - f(0 * X)
    assert float((a.sum() - change.detach()).abs()) <= 4e-4


def test_what_belongs_to_examples_follows_them() -> None:
    """Bound tensors, targets and baselines with a row for each example."""
    model, scale = make(Norm), 1 + randn(4, 6, seed=2).abs()
    x0, t = 0.1 * randn(4, 6, seed=3), torch.tensor([0, 2, 1, 1])
    bound = functools.partial(lambda x, s: model(x * s), s=scale)
    run = functools.partial(attrfn.integrated_gradients, tolerance=1e-5, n_steps=4)
    whole = run(bound, X, target=t, baselines=x0)
    for i in range(4):
        one = functools.partial(lambda x, s: model(x * s), s=scale[i : i + 1])
        part = run(one, X[i : i + 1], target=int(t[i]), baselines=x0[i : i + 1])
        assert_close(part[0], whole[i])
    chosen = functools.partial(lambda out, w: (out * w).sum(1), w=nn.functional.one_hot(t, 3))
    assert_close(run(bound, X, target=chosen, baselines=x0), whole)


def test_trees_and_layers() -> None:
    model = make(Norm)
    tree = {"a": X[:, :2], "b": X[:, 2:]}
    f = lambda d: model(torch.cat([d["a"], d["b"]], 1))  # noqa: E731
    run = functools.partial(attrfn.integrated_gradients, target=1, tolerance=1e-5)
    found = run(f, tree)
    assert_close(torch.cat([found["a"], found["b"]], 1), run(model, X))
    net = nn.Sequential(nn.Linear(6, 6).double(), model)
    a = attrfn.layer_integrated_gradients(net, X, layer="0", target=1, tolerance=1e-5)
    change = net(X)[:, 1] - net(0 * X)[:, 1]
    assert float((a.sum(1) - change.detach()).abs().max()) <= 1e-5


def test_its_derivatives_are_those_of_the_integral() -> None:
    """Against those of 256 steps; values only decide where the panels are."""
    model = make(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    found = []
    for options in ({"tolerance": 1e-7, "n_steps": 16}, {"n_steps": 256}):
        x = (8 * X).requires_grad_()
        a = attrfn.integrated_gradients(model, x, target=1, create_graph=True, **options)
        found.append(torch.autograd.grad(a.square().sum(), x)[0])
    assert_close(*found, rtol=1e-4, atol=1e-4 * float(found[1].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_ends_the_search(dtype: torch.dtype) -> None:
    """A tolerance below the rounding of the output is missed, soon and with a warning."""
    model, x = make(Norm).to(dtype), X.to(dtype)
    counted = Counts(model)
    with pytest.warns(UserWarning, match=r"missed tolerance=1e-12 .* below the rounding"):
        a = attrfn.integrated_gradients(counted, x, target=1, tolerance=1e-12)
    assert counted.rows / len(X) < 8000
    share = gap_of(model.double(), x.double(), a.double(), target=1)
    assert float(share.max()) < (1e-4 if dtype == torch.float32 else 0.3)


def test_an_empty_batch_and_inputs_at_the_baseline() -> None:
    model = make(Norm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attrfn.integrated_gradients(model, X[:0], target=1, tolerance=1e-4)
        assert found.shape == (0, 6)
        same = torch.cat([torch.zeros(1, 6, dtype=X.dtype), X[:1]])
        found = attrfn.integrated_gradients(model, same, target=1, tolerance=1e-4)
    assert bool((found[0] == 0).all())


@pytest.mark.usefixtures("independent_rows")
def test_a_gap_that_stays_ends_the_search() -> None:
    """A part that is detached changes the output, and no gradient sees it."""
    counted = Counts(lambda x: x.sum(1) + x.detach().square().sum(1))
    with pytest.warns(UserWarning, match=r"missed tolerance=0\.001"):
        a = attrfn.integrated_gradients(counted, X, tolerance=1e-3)
    assert_close(a, X)
    assert counted.rows / len(X) < 3000
