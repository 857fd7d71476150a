"""The vocabulary of the library's signatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

Tree: TypeAlias = Any
"""A tensor, or a pytree (optree) of tensors."""

Leaves: TypeAlias = tuple[Tensor, ...]
"""The tensors of a tree, in order."""

ModelFn: TypeAlias = Callable[..., Any]
"""Called as ``model_fn(*inputs)`` when inputs is a tuple, else ``model_fn(inputs)``."""

Index: TypeAlias = int | slice
Target: TypeAlias = (
    int
    | Tensor
    | tuple[Index, ...]
    | list[int]
    | list[tuple[Index, ...]]
    | Callable[[Any], Tensor]
    | None
)
"""Which scalar per example is explained (see :doc:`concepts`)."""

Baselines: TypeAlias = Tree
"""``None`` (zeros), a scalar, a tensor that broadcasts to the input, or a prefix tree of those."""

Key: TypeAlias = int | Tensor
"""An int or a key tensor of :mod:`attrfn.random`."""

Layer: TypeAlias = nn.Module | str | Sequence["nn.Module | str"]
"""A module, its qualified name, or a list of either."""

At: TypeAlias = Literal["input", "output"]
Batching: TypeAlias = Literal["fold", "vmap", "loop"]
ChunkSize: TypeAlias = int | Literal["auto"] | None


Method: TypeAlias = Callable[..., Tree]
"""An attribution method: ``method(model_fn, inputs, *, target, **options) -> attributions``."""
