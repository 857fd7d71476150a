"""What can be explained of a layer's value; of complex numbers their real and imaginary parts."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor

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
