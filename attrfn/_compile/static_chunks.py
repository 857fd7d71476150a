"""Sizes of chunks for compiled code, found before it runs, because a graph cannot measure.

Each size is another graph, which takes seconds to minutes to compile. So sizes are powers of two,
and one that was compiled is reused where it is about right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._copies.chunks import ROOM_WITH_BACKWARD, Demand, copies_that_fit, demand_of
from attrfn._copies.memory import Peak, budget, unmeasured_copies
from attrfn._copies.sizes import Took, equal
from attrfn._explain.tree import call_model, flatten
from attrfn._model.bind import bind
from attrfn._model.uncompiled import one_of, uncompiled
from attrfn._torch.typing import ModelFn, Tree

# Chunks in a graph. The loop over them is unrolled, and the time to compile grows with them; with
# fewer, each takes more memory.
MOST = 32
# A known size that is at most this many times too small is taken. A smaller chunk costs some speed,
# another graph costs a compilation.
_ALIKE = 4


def static_size(
    run: Callable[[Any], object], model_fn: ModelFn, inputs: Tree, known: Iterable[int]
) -> int | None:
    """How many copies of the batch fit into memory at once: None (all) or a power of two.

    The method runs up to its first chunk, and the model once.

    Args:
        run: Calls the method on the inputs with the ``chunk_size`` that it is given.
        model_fn: The model function.
        inputs: Its inputs.
        known: Sizes that have a graph; one of them is taken if it is about right.
    """
    demand = demand_of(run)
    leaves = flatten(inputs)[0]
    if demand is None or leaves[0].shape[0] == 0:
        return None
    if unmeasured_copies(leaves) >= demand.copies:
        return None
    size = rounded(demand.copies, _fit(model_fn, inputs, demand))
    if size is None:
        return None
    return max([k for k in known if size // _ALIKE <= k <= size], default=size)


def unit_size(run: Callable[[Any], object], model_fn: ModelFn, inputs: Tree) -> int | None:
    """How many copies of the batch a compiled unit takes: None (all), or as many as memory holds.

    Args:
        run: Calls the method on the inputs with the ``chunk_size`` that it is given.
        model_fn: The model function.
        inputs: Its inputs.
    """
    demand = demand_of(run)
    leaves = flatten(inputs)[0]
    if demand is None or leaves[0].shape[0] == 0 or unmeasured_copies(leaves) >= demand.copies:
        return None
    return equal(demand.copies, _fit(model_fn, inputs, demand))


def rounded(copies: int, fit: int) -> int | None:
    """The largest power of two that fits, or a larger one for at most ``MOST`` chunks."""
    # The limit on chunks wins over memory, because each chunk adds its compile time to the graph.
    below = 1 << (max(1, fit).bit_length() - 1)
    size = max(below, 1 << (-(-copies // MOST) - 1).bit_length())
    return None if max(size, fit) >= copies else size


def _fit(model_fn: ModelFn, inputs: Tree, demand: Demand) -> int:
    """How many copies of the batch fit, by a run of the model on one."""
    leaves, rebuild = flatten(inputs)
    device = leaves[0].device
    frozen = any(t.is_floating_point() for t in leaves)
    model = bind(uncompiled(one_of(model_fn)), frozen=frozen, forward_only=not demand.backward)
    with torch.inference_mode(False), torch.set_grad_enabled(demand.backward), Peak() as peak:
        x = [_leaf(t, demand.backward) for t in leaves]
        call_model(model, rebuild(x), fresh=True)
    took = Took(max(1, peak.bytes) * demand.passes, peak.largest)
    with_graph = demand.backward and device.type == "cpu"
    room = budget(device) * (ROOM_WITH_BACKWARD if with_graph else 1)
    return copies_that_fit(took, room, device, leaves)


def shapes(tree: Tree) -> object:
    """What a size depends on: the shapes of tensors, the values of other leaves."""
    leaves, spec = optree.tree_flatten(tree)
    return spec, tuple([_shape(leaf) for leaf in leaves])


def _shape(leaf: object) -> object:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if isinstance(leaf, (int, str)) else type(leaf)


def _leaf(t: Tensor, differentiated: bool) -> Tensor:
    t = t.clone().detach()
    return t.requires_grad_() if differentiated and t.is_floating_point() else t
