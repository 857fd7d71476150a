"""What can be explained of a layer's value; of complex numbers their real and imaginary parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._explain.tree import as_dicts
from attrfn._torch.dense import is_packed
from attrfn._torch.typing import ModelFn, Tree


def real_view(t: Tensor) -> Tensor:
    """Complex numbers (...) as their parts (..., 2); real ones as they are."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def complex_view(t: Tensor) -> Tensor:
    """Parts (..., 2) as complex numbers."""
    return torch.view_as_complex(t.contiguous())


def have_parts(activation: Tree, value: Tree) -> tuple[bool, ...]:
    """For each tensor of an activation whether it holds the parts of the complex one in a value."""
    return tuple([t.is_complex() for t in optree.tree_leaves(present(activation, value))])


def of_parts(flags: tuple[bool, ...], tail: ModelFn, activation: Tree, *inputs: Any) -> Any:
    """A tail that gets complex numbers again where an activation has their parts."""
    leaves, spec = optree.tree_flatten(activation)
    planted = [complex_view(t) if f else t for f, t in zip(flags, leaves, strict=True)]
    return tail(optree.tree_unflatten(spec, planted), *inputs)


def present(activation: Tree, value: Tree) -> Tree:
    """The same without views of complex tensors."""

    def here(mine: Any, other: Any) -> Any:
        return None if mine is None else other

    return optree.tree_map(here, activation, value, none_is_leaf=True)


def repacked(tree: Tree, value: Tree) -> Tree:
    """Packed sequences in the places of those of a value, with the data that a tree has there."""

    def pack(value: Any, mine: Any) -> Any:
        return value._replace(data=mine) if is_packed(value) and isinstance(mine, Tensor) else mine

    return optree.tree_map(pack, as_dicts(value), tree, is_leaf=is_packed, none_is_leaf=True)


def of_leaves(f: Callable[..., Tensor], *trees: Tree) -> Tree:
    """``f`` of the tensors of several trees, and of the data of packed sequences."""

    def leaf(*values: Any) -> Any:
        if not is_packed(values[0]):
            return f(*values)
        return values[0]._replace(data=f(*[v.data for v in values]))

    return optree.tree_map(leaf, *trees, is_leaf=is_packed)
