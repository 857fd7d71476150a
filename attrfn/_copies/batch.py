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
from attrfn._model.bound import alias, put_rows, rows_of
from attrfn._model.source import is_functional
from attrfn._torch import pytree
from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import current
from attrfn._torch.precision import full_precision
from attrfn._torch.typing import Leaves


def is_count(value: object) -> bool:
    """Whether this is an integer from 1 to 2^31 - 1: with more, no run ends."""
    return is_integer(value) and 1 <= value < 2**31  # type: ignore[operator]


def is_one_of(value: object, *texts: str) -> bool:
    """Whether this is one of some strings; arrays, which compare element by element, are not."""
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


def repeat_rows(rows: Leaves, copies: int) -> Leaves:
    """(B, ...) -> (copies * B, ...)."""
    return tuple([t.repeat(copies, *[1] * (t.ndim - 1)) for t in rows])


def along(values: Tensor, like: Tensor) -> Tensor:
    """(S,) -> (S, 1, ..., 1), which broadcasts to copies (S, B, ...) of ``like`` (B, ...)."""
    return values.to(like.device, wide(like.dtype)).reshape(-1, *[1] * like.ndim)


def join_copies(a: Leaves, b: Leaves) -> Leaves:
    """Some copies (S, ...) and others (T, ...) as (S + T, ...), a merge."""
    return tuple([torch.cat([s, t]) for s, t in zip(a, b, strict=True)])


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

    Those are the tensors in the partial's arguments, and in objects among them, that are marked so
    (:func:`attrfn.per_example`), and of those without a mark the ones whose dimension 0 is the
    batch size, but not parameters (``nn.Parameter``, or those of ``functional_call``).
    """
    if copies == 1:
        return bound

    def repeated(t: Tensor, dim: int) -> Tensor:
        return t.repeat([copies if d == dim else 1 for d in range(t.ndim)])

    return _of_rows(bound, batch, repeated)


def flip_bound(bound: Any, batch: int) -> Any:
    """The same tensors with their rows in reverse order."""
    return _of_rows(bound, batch, lambda t, dim: t.flip(dim))


def pick_bound(bound: Any, batch: int, index: Tensor) -> Any:
    """The rows of the same tensors for some examples, each any number of times."""
    return _of_rows(bound, batch, lambda t, dim: t.index_select(dim, index.to(t.device)))


def _of_rows(bound: Any, batch: int, f: Callable[[Tensor, int], Tensor]) -> Any:
    if not isinstance(bound, functools.partial) or (is_functional(bound) and not bound.keywords):
        return bound
    # What is decided here is marked, so that a method inside this one, whose batch has another
    # size, decides the same. A tensor that is bound in two places stays one.
    known: dict[int, tuple[Tensor, Tensor]] = {}

    def changed(value: Any) -> Any:
        if isinstance(value, functools.partial):
            return _of_rows(value, batch, f)
        if isinstance(value, Tensor):
            return rows(value)
        return Copies(rows)(value) if not is_compiling() and is_object(value) else value

    def rows(value: Tensor) -> Tensor:
        if is_compiling():  # where id() of a tensor would be a guard
            return decided(value)
        if id(value) not in known:
            known[id(value)] = value, decided(value)
        return known[id(value)][1]

    def decided(value: Tensor) -> Tensor:
        dim = row_dim(value, batch)
        if dim is not None:
            return put_rows(f(value, dim), dim)
        if isinstance(value, nn.Parameter) or rows_of(value) is not None:
            return value
        return alias(value, "shared")

    given: Any = (_arguments(bound), dict(bound.keywords))
    args, kwargs = optree.tree_map(changed, given)
    if is_functional(bound):
        return functools.partial(bound.func, *bound.args, **kwargs)
    return functools.partial(_of_rows(bound.func, batch, f), *args, **kwargs)


def _arguments(bound: functools.partial[Any]) -> tuple[Any, ...]:
    """What a partial binds by place, but not the module and parameters of ``functional_call``."""
    return () if is_functional(bound) else bound.args


def binds_rows(bound: Any, batch: int) -> bool:
    """Whether :func:`repeat_bound` would repeat anything."""
    return any(row_dim(t, batch) is not None for _, t in bound_tensors(bound))


def unmarked_rows(bound: Any, batch: int) -> list[tuple[str, Tensor]]:
    """The tensors, with their names, that count as rows for the sake of their size alone."""
    return [
        (name, t)
        for name, t in bound_tensors(bound)
        if rows_of(t) is None and row_dim(t, batch) is not None
    ]


def bound_tensors(bound: Any) -> list[tuple[str, Tensor]]:
    """The tensors that ``functools.partial`` binds, with the names of their arguments."""
    if not isinstance(bound, functools.partial):
        return []
    found = [] if is_functional(bound) else bound_tensors(bound.func)
    # optree knows the user's classes that are registered with it alone; torch.compile cannot enter
    # optree for trees that hold functions, such as the partial's own.
    leaves_of = pytree.tree_leaves if is_compiling() else optree.tree_leaves
    named = [("", value) for value in _arguments(bound)] + list(bound.keywords.items())
    for name, argument in named:
        for value in leaves_of(argument):
            if isinstance(value, functools.partial):
                found += bound_tensors(value)
            elif isinstance(value, Tensor):
                found.append((name, value))
            elif not is_compiling() and is_object(value):
                found += [(name, t) for t in tensors_of(value)]
    return found


def row_dim(value: Tensor, batch: int) -> int | None:
    """The dimension in which a bound tensor has a row for each example; None if it has none.

    Raises:
        ValueError: It is marked, and has a different number of rows.
    """
    rows = rows_of(value)
    if rows == "shared" or (rows is None and isinstance(value, nn.Parameter)):
        return None
    if rows is None:
        if value.ndim == 0 or value.shape[0] != batch:
            return None
        one = current()
        return None if one is not None and id(value) in one.shared else 0
    if value.shape[rows] != batch:
        raise ValueError(
            f"model_fn, or the target, binds a tensor of shape {tuple(value.shape)} that "
            f"attrfn.per_example marks with dim={rows}, expected {batch} there, as many as there "
            "are examples"
        )
    return rows
