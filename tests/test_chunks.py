"""Copies of a batch folded, vmapped or looped over, in chunks of any size: the same result."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import assert_close
from models import NETS, Net, targets
from registry import Row, explain, rows, rows_and_nets, trial
from torch import Tensor, nn
from zoo import make, randn

import attrfn
from attrfn.testing import _values as checks

COPIES = 7
CHUNKS = [None, 1, 3, 7, 100, "auto"]


def in_chunks(r: Row, net: Net, model: Any = None, **options: Any) -> Tensor:
    return explain(r, net, model, **copies(r), **options)


def copies(r: Row) -> dict[str, int]:
    """Seven copies of the batch, where their number is an option."""
    return {} if r.copies is None else {r.copies: COPIES}


@rows_and_nets(lambda r, net: r.chunked)
def test_chunks_of_any_size(r: Row, net: Net) -> None:
    checks.chunks(trial(r, net, **copies(r)), CHUNKS)


@rows(lambda r: r.batching)
@pytest.mark.parametrize("batching", ["fold", "vmap", "loop"])
def test_every_batching_in_chunks_of_any_size(r: Row, batching: str) -> None:
    checks.chunks(trial(r, r.net, **copies(r)), CHUNKS, batching=batching)


@rows_and_nets(lambda r, net: r.batching and net is not NETS["mlp"])
def test_every_batching_on_every_net(r: Row, net: Net) -> None:
    whole = in_chunks(r, net)
    for batching in ("vmap", "loop"):
        assert_close(in_chunks(r, net, batching=batching), whole)


@rows(lambda r: r.chunked and r.target)
@pytest.mark.parametrize(
    "target",
    [
        1,
        targets(3),
        [2, 0, 1],
        [(2,), (0,), (1,)],
        (slice(1, 3),),
        lambda out: out[:, 0] - out[:, 2],
        functools.partial(lambda out, pick: (out * pick).sum(1), pick=randn(3, 3)),
    ],
    ids=["int", "tensor", "list", "tuples", "slice", "callable", "bound"],
)
def test_targets_follow_their_examples(r: Row, target: Any) -> None:
    whole = in_chunks(r, r.net, target=target, chunk_size=1)
    for size in (None, 3):
        assert_close(in_chunks(r, r.net, target=target, chunk_size=size), whole)


@rows(lambda r: r.baselines == "point" and r.chunked)
def test_baselines_follow_their_examples(r: Row) -> None:
    x0 = 0.3 * r.net.inputs(3, seed=5)
    whole = in_chunks(r, r.net, baselines=x0, chunk_size=1)
    for size in (None, 3):
        assert_close(in_chunks(r, r.net, baselines=x0, chunk_size=size), whole)


class Scaled(nn.Module):
    """Takes further arguments: a row per example in a tensor and in a tree, and shared tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 5)
        self.mid = nn.Tanh()
        self.out = nn.Linear(5, 3)

    def forward(
        self, x: Tensor, scale: Tensor, more: dict[str, Any], mix: Tensor, power: float = 1.0
    ) -> Tensor:
        assert x.shape[0] == scale.shape[0] == more["shift"][0].shape[0]
        h = self.mid(self.inp(x) * scale[:, None] + more["shift"][0]) @ mix
        return self.out(h).abs() ** power * more["factor"]


BOUND = {
    "scale": randn(3, seed=30),
    "more": {"shift": (randn(3, 5, seed=31), "text"), "factor": torch.tensor(1.5)},
    "mix": randn(5, 5, seed=32),
    "power": 1.3,
}


@rows(lambda r: not (r.spatial or r.mixes or r.relu))
def test_bound_tensors_follow_the_batch(r: Row) -> None:
    """Every row alone, with its own rows of the bound tensors, gives what the batch gives."""
    model, x, t = make(Scaled), NETS["mlp"].inputs(), targets(3)
    bound = functools.partial(model, **BOUND)
    together = explain(r, r.net, bound, x, target=t)
    for i in range(3):
        one = slice(i, i + 1)
        more = {"shift": (BOUND["more"]["shift"][0][one], "text"), "factor": torch.tensor(1.5)}
        row = functools.partial(model, **{**BOUND, "scale": BOUND["scale"][one], "more": more})
        alone = explain(r, r.net, row, x[one], target=t[one])
        assert_close(alone.select(r.batch_dim, 0), together.select(r.batch_dim, i))


@rows(lambda r: r.chunked and not r.spatial)
def test_bound_tensors_follow_the_batch_in_chunks(r: Row) -> None:
    bound = functools.partial(make(Scaled), **BOUND)
    net = NETS["mlp"]
    whole = explain(r, net, bound, **copies(r), chunk_size=1)
    for size in (None, 3):
        assert_close(explain(r, net, bound, **copies(r), chunk_size=size), whole)
    if r.batching:
        vmapped = explain(r, net, bound, **copies(r), batching="vmap", chunk_size=3)
        assert_close(vmapped, whole)


def test_nested_partials_follow_the_batch() -> None:
    model, x = make(Scaled), NETS["mlp"].inputs()
    first = functools.partial(model, scale=BOUND["scale"])
    nested = functools.partial(first, more=BOUND["more"], mix=BOUND["mix"], power=1.3)
    found = attrfn.integrated_gradients(nested, x, target=1, n_steps=4)
    bound = functools.partial(model, **BOUND)
    assert_close(found, attrfn.integrated_gradients(bound, x, target=1, n_steps=4))


def test_closure_with_rows_needs_vmap_or_loop() -> None:
    """A tensor in a closure cannot be seen, so it follows the batch only where the batch stays."""
    x, scale = randn(3, 4), randn(3, seed=33)

    def f(x: Tensor) -> Tensor:
        return ((x * scale[:, None]) ** 3).sum(1)

    # Integral of 3 s^3 (a x)^2 over a: the attribution of a sum of cubes is each one's cube.
    expected = (x * scale[:, None]) ** 3
    for batching in ("vmap", "loop"):
        assert_close(attrfn.integrated_gradients(f, x, n_steps=3, batching=batching), expected)
    with pytest.raises(RuntimeError):
        attrfn.integrated_gradients(f, x, n_steps=3, batching="fold")


def test_model_without_a_usable_batch_axis() -> None:
    """A model that sees one example at a time, its batch axis removed, in every copy."""
    x = randn(1, 4)

    def f(x: Tensor) -> Tensor:
        return (x.squeeze(0) @ torch.eye(4, dtype=x.dtype)).pow(3).sum()

    for batching in ("vmap", "loop"):
        assert_close(attrfn.integrated_gradients(f, x, n_steps=3, batching=batching), x**3)


@rows(lambda r: r.chunked and r.explains != "map")
def test_memory_follows_the_chunk(r: Row) -> None:
    """The model never sees more rows at once than chunk_size copies of the batch."""
    model = r.net.build()
    seen: list[int] = []
    model.mid.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[0]))
    for size in (1, 2, 7):
        seen.clear()
        in_chunks(r, r.net, model, chunk_size=size)
        full = max(seen) == 3 * size
        # less than seven features, windows or baselines
        few = not r.gradient or r.copies is None
        assert full or (size == 7 and few and max(seen) < 3 * size)


@rows(lambda r: r.chunked)
@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True])
def test_chunk_size_of_another_kind_is_refused(r: Row, chunk_size: Any) -> None:
    with pytest.raises(ValueError, match="chunk_size is"):
        in_chunks(r, r.net, chunk_size=chunk_size)


@rows(lambda r: r.batching)
def test_batching_of_another_name_is_refused(r: Row) -> None:
    with pytest.raises(ValueError, match="batching is 'folded', expected"):
        in_chunks(r, r.net, batching="folded")


@rows(lambda r: r.batch_dim == 1)
def test_more_samples_start_with_the_fewer(r: Row) -> None:
    """Sample s of a key does not depend on how many follow, so that runs can be continued."""
    few, many = (explain(r, r.net, n_samples=n) for n in (2, 5))
    assert_close(many[:2], few)
