"""What the tests of splits share: the identity of a split, and the purity of its halves."""

from __future__ import annotations

from typing import Any

import torch
import zoo
from torch import Tensor

import attrfn
from attrfn._torch import pytree


def check(model, layer, inputs, rtol: float = 0.0, **where) -> Any:
    """The identity of the split and the purity of both halves; returns the activation."""
    expected = call(model, inputs)
    owner = zoo.owner(model)
    before, rng = zoo.state(owner), torch.get_rng_state()
    held = pytree.tree_map_only(Tensor, torch.clone, inputs)
    head, tail = attrfn.split(model, layer, **where)
    activation = head(*inputs) if isinstance(inputs, tuple) else head(inputs)
    kept = pytree.tree_map_only(Tensor, torch.clone, activation)
    got = tail(activation, inputs)
    equal(got, expected, rtol=rtol, atol=rtol)
    equal(activation, kept)
    equal(inputs, held)
    assert zoo.same_state(owner, before)
    assert torch.equal(torch.get_rng_state(), rng)
    leaves = [t for t in pytree.tree_leaves(activation) if isinstance(t, Tensor)]
    assert leaves
    assert any(t.is_floating_point() for t in leaves)
    # the tail listens to the activation: another value there gives another output
    moved = pytree.tree_map_only(
        Tensor, lambda t: t * 1.5 + 0.25 if t.is_floating_point() else t, activation
    )
    assert not all(
        torch.equal(a, b)
        for a, b in zip(tensors(tail(moved, inputs)), tensors(expected), strict=True)
    )
    equal(activation, kept)
    assert zoo.same_state(owner, before)
    return activation


def call(model, inputs) -> Any:
    """The model run as the user runs it, on copies (in-place models write into their input)."""
    inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors(tree) -> list[Tensor]:
    return [t.detach() for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def equal(a, b, **tolerance) -> None:
    a, b = tensors(a), tensors(b)
    assert len(a) == len(b)
    for s, t in zip(a, b, strict=True):
        torch.testing.assert_close(s, t, **({"rtol": 0, "atol": 0} | tolerance))


RESIDUAL_ACT = "blocks.1.act"
