"""Copies of a batch folded into its dimension, and sums over them.

Folding is the default: it needs no batching rule, so that it also serves an LSTM, which vmap cannot
run forward, and it is as fast as vmap or faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Integral
from typing import Any

import optree
import torch
from torch import Tensor, nn

from attrfn._model.arguments import Copies, is_object, tensors_of
from attrfn._model.source import is_functional
from attrfn._torch import pytree
from attrfn._torch.compiling import is_compiling
from attrfn._torch.precision import full_precision
from attrfn._torch.typing import Leaves


def is_count(value: object) -> bool:
    """Whether this is an integer from 1 to 2^31 - 1: with more, no run ends."""
    return is_integer(value) and 1 <= value < 2**31  # type: ignore[operator]


def is_one_of(value: object, *texts: str) -> bool:
    """Whether this is one of some strings; arrays, which compare element by element, are none."""
    return isinstance(value, str) and value in texts


def is_integer(value: object) -> bool:
    """Whether this is an int or an integer of numpy, but not a bool."""
    return isinstance(value, (int, Integral)) and not isinstance(value, bool)


def flat_rows(copies: Leaves) -> Leaves:
    """(S, B, ...) -> (S * B, ...)."""
    return tuple([t.reshape(t.shape[0] * t.shape[1], *t.shape[2:]) for t in copies])


def split_rows(rows: Leaves, copies: int) -> Leaves:
    """(S * B, ...) -> (S, B, ...)."""
    return tuple([t.reshape(copies, t.shape[0] // copies, *t.shape[1:]) for t in rows])


def along(values: Tensor, like: Tensor) -> Tensor:
    """(S,) -> (S, 1, ..., 1), which broadcasts to copies (S, B, ...) of ``like`` (B, ...)."""
    return values.to(like.device, wide(like.dtype)).reshape(-1, *[1] * like.ndim)


def row_sums(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(R, ...) -> (R,)."""
    t = t if dtype is None else t.to(dtype)
    return t.sum(tuple(range(1, t.ndim))) if t.ndim > 1 else t


@full_precision
def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """``sum_s values_s weights_s``: (S, R, K...) and (S, 1 or R, ...) to (R, K..., elements)."""
    v = values.reshape(*values.shape[:2], values.shape[2:].numel())
    w = weights.flatten(2).to(v)
    if w.shape[1] == 1:
        total = torch.einsum("srk,sf->rkf", v, w[:, 0])
    else:
        total = torch.einsum("srk,srf->rkf", v, w)
    return total.reshape(*values.shape[1:], total.shape[-1])


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over copies are taken: float32 for the two half precisions."""
    # A sum of many small parts in half precision stops growing when a part is below its rounding.
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def repeat_bound(bound: Any, batch: int, copies: int) -> Any:
    """Repeat the tensors that ``functools.partial`` binds for each example, as the batch is.

    Those are the tensors in the partial's arguments, and in objects among them, whose dimension 0
    is the batch size, but not parameters (``nn.Parameter``, or those of ``functional_call``).
    """
    if copies == 1:
        return bound
    return _of_rows(bound, batch, lambda t: t.repeat(copies, *[1] * (t.ndim - 1)))


def flip_bound(bound: Any, batch: int) -> Any:
    """The same tensors with their rows in reverse order."""
    return _of_rows(bound, batch, lambda t: t.flip(0))


def pick_bound(bound: Any, batch: int, index: Tensor) -> Any:
    """The rows of the same tensors for some examples, each any number of times."""
    return _of_rows(bound, batch, lambda t: t[index.to(t.device)])


def _of_rows(bound: Any, batch: int, f: Callable[[Tensor], Tensor]) -> Any:
    if not isinstance(bound, functools.partial) or is_functional(bound):
        return bound

    def changed(value: Any) -> Any:
        if isinstance(value, functools.partial):
            return _of_rows(value, batch, f)
        if isinstance(value, Tensor):
            return rows(value)
        return Copies(rows)(value) if not is_compiling() and is_object(value) else value

    def rows(value: Tensor) -> Tensor:
        return f(value) if is_row(value, batch) else value

    arguments: Any = (bound.args, dict(bound.keywords))
    args, kwargs = optree.tree_map(changed, arguments)
    return functools.partial(_of_rows(bound.func, batch, f), *args, **kwargs)


def binds_rows(bound: Any, batch: int) -> bool:
    """Whether :func:`repeat_bound` would repeat anything."""
    if not isinstance(bound, functools.partial) or is_functional(bound):
        return False
    arguments: Any = (bound.func, bound.args, dict(bound.keywords))
    # optree knows the user's classes that are registered with it alone; torch.compile cannot enter
    # optree for trees that hold functions, such as the partial's own.
    leaves_of = pytree.tree_leaves if is_compiling() else optree.tree_leaves
    found = False
    for value in leaves_of(arguments):
        if isinstance(value, functools.partial):
            if binds_rows(value, batch):
                return True
        elif isinstance(value, Tensor):
            if is_row(value, batch):
                return True
        elif not is_compiling() and is_object(value):
            found = found or any(is_row(t, batch) for t in tensors_of(value))
    return found


def is_row(value: Tensor, batch: int) -> bool:
    """Whether a bound tensor has a row for each example, as it seems."""
    return not isinstance(value, nn.Parameter) and value.ndim > 0 and value.shape[0] == batch
