"""Processes that run one model together: what they do has to be the same in all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from attrfn._torch.explanation import current
from attrfn._torch.private_distributed import MOVES


def together() -> bool:
    """Whether the model of this call is shared by several processes."""
    one = current()
    return one is not None and bool(one.groups)


def least(n: int) -> int:
    """The least of a number over all processes that share the model of this call.

    Each has memory of its own, and all must take chunks of one size: a process with fewer chunks
    would leave the others waiting for its part of the next one.
    """
    one = current()
    if one is None or not one.groups:
        return n
    for group in one.groups:
        device = "cuda" if torch.distributed.get_backend(group) == "nccl" else "cpu"
        found = torch.tensor(n, device=device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN, group=group)
        n = int(found)
    return n


def note(mesh: Any) -> None:
    """Note that the processes of a DeviceMesh share the model of this call."""
    one = current()
    if one is not None:
        groups = [mesh.get_group(i) for i in range(mesh.ndim)]
        one.groups += [g for g in groups if not any(g is known for known in one.groups)]


def refuse_second() -> None:
    """Refuse a second derivative of a model that is gone after the first.

    Raises:
        ValueError: The model of this call is one of ``fully_shard``.
    """
    one = current()
    if one is not None and one.once:
        raise ValueError(
            "the model is one of fully_shard, which frees its weights after the first backward "
            "pass, so there is no second derivative: leave create_graph out, use another method, "
            "or explain the model before it is sharded"
        )


def carried(t: Tensor, others: Iterable[Tensor]) -> Tensor | None:
    """The tensor among others whose values another one holds, as its graph tells; None if none.

    Values that processes gather, scatter or add up pass functions of autograd that no mode of
    functions sees. These are linear, and compute nothing else.
    """
    if not _moves(t.grad_fn):
        return None
    made: dict[Any, Tensor] = {o.grad_fn: o for o in others if o.grad_fn is not None}
    todo: list[Any] = [t.grad_fn]
    visited: set[Any] = set()
    while todo:
        for before, _ in todo.pop().next_functions:
            if before in made:
                return made[before]
            if before not in visited and _moves(before):
                visited.add(before)
                todo.append(before)
    return None


def _moves(node: Any) -> bool:
    return node is not None and node.name() in MOVES
