"""Inputs that are not dense tensors: sparse ones and packed sequences, explained as dense ones.

A method makes points and rows of its inputs, which sparse tensors and packed sequences do not
allow. So it works on the dense (or padded) tensor, and the model gets each of its batches in the
layout of the inputs. Attributions are dense: a zero that is not stored may matter as well.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from attrfn._torch.typing import ModelFn, Tree

_SPARSE = (torch.sparse_coo, torch.sparse_csr)


def is_packed(value: Any) -> bool:
    """Whether this is a PackedSequence."""
    return isinstance(value, rnn.PackedSequence)


def is_sparse(value: Any) -> bool:
    """Whether this is a sparse tensor of a layout that can be made again."""
    return isinstance(value, Tensor) and value.layout in _SPARSE


def densified(model_fn: ModelFn, inputs: Tree) -> tuple[ModelFn, Tree] | None:
    """The model as a function of dense tensors, and the inputs as such; None if they are dense."""
    leaves, spec = optree.tree_flatten(inputs, is_leaf=is_packed)
    if not any(is_packed(leaf) or is_sparse(leaf) for leaf in leaves):
        return None
    lengths = [rnn.pad_packed_sequence(v)[1] if is_packed(v) else None for v in leaves]
    layouts = [v.layout if is_sparse(v) else None for v in leaves]
    dense = [
        rnn.pad_packed_sequence(v, batch_first=True)[0]
        if is_packed(v)
        else v.to_dense()
        if is_sparse(v)
        else v
        for v in leaves
    ]

    def run(call: Callable[..., Any], lengths: list[Tensor | None], *rows: Any, **kw: Any) -> Any:
        tree: Any = rows if len(rows) != 1 else rows[0]
        parts: list[Any] = optree.tree_leaves(tree)
        again = [_again(*how) for how in zip(parts, layouts, lengths, strict=True)]
        given: Any = optree.tree_unflatten(spec, again)
        return (
            call(*given, **kw)
            if isinstance(given, tuple) and not is_packed(given)
            else call(given, **kw)
        )

    return _around(model_fn, run, lengths), optree.tree_unflatten(spec, dense)


def _around(model_fn: ModelFn, run: Callable[..., Any], lengths: Any) -> ModelFn:
    """``run(model_fn, lengths, *inputs)`` as a model function in which a module can be found."""
    if isinstance(model_fn, nn.Module):

        def method(self: nn.Module, lengths: Any, *rows: Any, **kw: Any) -> Any:
            return run(self, lengths, *rows, **kw)

        # A bound method shows its module, and a partial the lengths, which follow the batch.
        return functools.partial(types.MethodType(method, model_fn), lengths)
    return functools.partial(functools.partial(run, model_fn), lengths)


def _again(t: Tensor, layout: torch.layout | None, lengths: Tensor | None) -> Any:
    """A dense batch in the layout of the inputs, with every element stored."""
    if lengths is not None:
        return rnn.pack_padded_sequence(t, lengths.cpu(), batch_first=True, enforce_sorted=False)
    if layout is None:
        return t
    places = torch.ones_like(t, dtype=torch.bool).nonzero().T
    coo = torch.sparse_coo_tensor(
        places, t.flatten(), t.shape, is_coalesced=True, check_invariants=False
    )
    return coo if layout == torch.sparse_coo else coo.to_sparse_csr()
