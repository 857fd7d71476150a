"""Sizes of chunks for compiled code, which cannot measure: found before, and few different ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._copies.chunks import Demand, demand_of
from attrfn._copies.memory import Peak, budget, unmeasured_copies
from attrfn._explain.tree import call_model, flatten
from attrfn._model.bind import bind, uncompiled
from attrfn._torch.typing import ModelFn, Tree

MOST = 32  # chunks in a graph: the loop over them is unrolled
_ALIKE = 4  # a size that is at most so many times too small serves, too


def static_size(
    run: Callable[[Any], object], model_fn: ModelFn, inputs: Tree, known: Iterable[int]
) -> int | None:
    """How many copies of the batch fit into memory at once: None (all) or a power of two.

    The method runs up to its first chunk, and the model once.

    Args:
        run: Calls the method on the inputs with the ``chunk_size`` that it is given.
        model_fn: The model function.
        inputs: Its inputs.
        known: Sizes for which there is a graph; one of them is taken where it is about right.
    """
    found = demand_of(run)
    leaves = flatten(inputs)[0]
    if found is None or leaves[0].shape[0] == 0:
        return None
    most = budget(leaves[0].device)
    if unmeasured_copies(leaves) >= found.copies:
        return None
    size = rounded(found.copies, most // one_copy(model_fn, inputs, found))
    if size is None:
        return None
    return max([k for k in known if size // _ALIKE <= k <= size], default=size)


def rounded(copies: int, fit: int) -> int | None:
    """The power of two below what fits, so large that there are at most ``MOST`` chunks."""
    below = 1 << (max(1, fit).bit_length() - 1)
    size = max(below, 1 << (-(-copies // MOST) - 1).bit_length())
    return None if max(size, fit) >= copies else size


def one_copy(model_fn: ModelFn, inputs: Tree, of: Demand) -> int:
    """The bytes that one copy of the batch takes, with what is kept for the backward passes."""
    leaves, rebuild = flatten(inputs)
    frozen = any(t.is_floating_point() for t in leaves)
    model = bind(uncompiled(model_fn), frozen=frozen, forward_only=not of.backward)
    with torch.inference_mode(False), torch.set_grad_enabled(of.backward), Peak() as peak:
        x = [_leaf(t, of.backward) for t in leaves]
        call_model(model, rebuild(x), fresh=True)
    took: int = max(1, peak.bytes)
    return took * of.passes


def shapes(tree: Tree) -> object:
    """What a size depends on: kinds and shapes of tensors, values of what is not."""
    leaves, spec = optree.tree_flatten(tree)
    return spec, tuple([_shape(leaf) for leaf in leaves])


def _shape(leaf: object) -> object:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if isinstance(leaf, (int, str)) else type(leaf)


def _leaf(t: Tensor, differentiated: bool) -> Tensor:
    t = t.clone().detach()
    return t.requires_grad_() if differentiated and t.is_floating_point() else t
