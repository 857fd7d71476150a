"""Many copies of a batch: folded into its axis, vmapped or looped over, in chunks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import optree
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from attrfn._core.source import is_functional
from attrfn._core.typing import Batching, Leaves


def chunks(
    n: int,
    chunk_size: int | None = None,
    batching: Batching = "fold",
    progress: bool = False,
    label: str = "copies",
) -> Iterable[slice]:
    """Slices of 0..n, each at most ``chunk_size`` long (one by one where batching is a loop).

    Raises:
        ValueError: ``chunk_size`` is no positive int, or ``batching`` none of the three.
    """
    if batching not in ("fold", "vmap", "loop"):
        raise ValueError(f"batching is {batching!r}, expected 'fold', 'vmap' or 'loop'")
    if chunk_size is not None and not is_count(chunk_size):
        raise ValueError(
            f"chunk_size is {chunk_size!r}, expected None (all at once) or the number of copies of "
            "the batch that are evaluated at once, an int of at least 1"
        )
    size = 1 if batching == "loop" else n if chunk_size is None else chunk_size
    parts = [slice(i, min(i + size, n)) for i in range(0, n, max(size, 1))]
    return _show_progress(parts, label) if progress else parts


def is_count(value: object) -> bool:
    """Whether this is an int of at least 1 (and no bool)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def sum_over_copies(part: Callable[[slice], Leaves], parts: Iterable[slice]) -> Leaves:
    """The sum of ``part(chunk)`` over the chunks."""
    total: Leaves = ()
    for i in parts:
        new = part(i)
        total = tuple([a + b for a, b in zip(total, new, strict=True)]) if total else new
    return total


def flat_rows(copies: Leaves) -> Leaves:
    """(S, B, ...) -> (S * B, ...)."""
    return tuple([t.reshape(t.shape[0] * t.shape[1], *t.shape[2:]) for t in copies])


def split_rows(rows: Leaves, copies: int) -> Leaves:
    """(S * B, ...) -> (S, B, ...)."""
    return tuple([t.reshape(copies, t.shape[0] // copies, *t.shape[1:]) for t in rows])


def along(values: Tensor, like: Tensor) -> Tensor:
    """(S,) -> (S, 1, ..., 1), to go with copies (S, B, ...) of ``like`` (B, ...)."""
    return values.to(like.device, wide(like.dtype)).reshape(-1, *[1] * like.ndim)


def row_sums(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(R, ...) -> (R,)."""
    t = t if dtype is None else t.to(dtype)
    return t.sum(tuple(range(1, t.ndim))) if t.ndim > 1 else t


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over copies are taken: float32 for the two half precisions."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def repeat_bound(bound: Any, batch: int, copies: int) -> Any:
    """Let tensors bound with ``functools.partial`` follow the batch into its copies.

    Every tensor in the partial's arguments whose dimension 0 is the batch size is repeated;
    parameters (``nn.Parameter``, or those of ``functional_call``) are not.
    """
    if copies == 1 or not isinstance(bound, functools.partial) or is_functional(bound):
        return bound

    def repeat(value: Any) -> Any:
        if isinstance(value, functools.partial):
            return repeat_bound(value, batch, copies)
        if not isinstance(value, Tensor) or not _is_row(value, batch):
            return value
        return value.repeat(copies, *[1] * (value.ndim - 1))

    arguments: Any = (bound.args, dict(bound.keywords))
    args, kwargs = optree.tree_map(repeat, arguments)
    return functools.partial(repeat_bound(bound.func, batch, copies), *args, **kwargs)


def binds_rows(bound: Any, batch: int) -> bool:
    """Whether :func:`repeat_bound` would repeat anything."""
    if not isinstance(bound, functools.partial) or is_functional(bound):
        return False
    arguments: Any = (bound.func, bound.args, dict(bound.keywords))
    return any(
        binds_rows(value, batch)
        if isinstance(value, functools.partial)
        else isinstance(value, Tensor) and _is_row(value, batch)
        for value in pytree.tree_leaves(arguments)
    )


def _is_row(value: Tensor, batch: int) -> bool:
    return not isinstance(value, nn.Parameter) and value.ndim > 0 and value.shape[0] == batch


def _show_progress(parts: list[slice], label: str) -> Iterable[slice]:
    """A tqdm bar with rate and remaining time, or a line on stderr where tqdm is not installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _plain_progress(parts, label)
    bar: Iterable[slice] = tqdm(parts, desc=label, unit="chunk")
    return bar


def _plain_progress(parts: list[slice], label: str) -> Iterable[slice]:
    for i, part in enumerate(parts):
        print(f"\r{label}: {i}/{len(parts)} chunks", end="", file=sys.stderr, flush=True)
        yield part
    print(f"\r{label}: {len(parts)}/{len(parts)} chunks", file=sys.stderr, flush=True)
