"""The vocabulary of the library's signatures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

if sys.version_info >= (3, 11):
    from typing import Unpack as Unpack
else:
    # torch and optree depend on typing_extensions, so it is there.
    from typing_extensions import Unpack as Unpack


class PerExample(NamedTuple):
    """Marks an option that can hold something for each example, and says in which form.

    A function that repeats the batch repeats such an option with it.

    Attributes:
        form: ``"input"`` (a tree of tensors that broadcast to the inputs), ``"layer"`` (one that
            broadcasts to the activation of the layer), ``"index"`` (a target) or ``"key"``.
    """

    form: Literal["input", "layer", "index", "key"]


Tree: TypeAlias = Any
"""A tensor, or a pytree (optree) of tensors."""

Leaves: TypeAlias = tuple[Tensor, ...]
"""The tensors of a tree, in order."""

ModelFn: TypeAlias = Callable[..., Any]
"""Called as ``model_fn(*inputs)`` when inputs is a tuple, else ``model_fn(inputs)``."""

Index: TypeAlias = int | slice

Target: TypeAlias = Annotated[
    int
    | Tensor
    | tuple[Index, ...]
    | list[int]
    | list[tuple[Index, ...]]
    | Callable[[Any], Tensor]
    | None,
    PerExample("index"),
]
"""Which scalar per example is explained (see :doc:`concepts`)."""

Baselines: TypeAlias = Annotated[Tree, PerExample("input")]
"""``None`` (zeros), a scalar, a tensor that broadcasts to the input, or a prefix tree of those."""

FeatureMask: TypeAlias = Annotated[Tree, PerExample("input")]
"""Integers that broadcast to the inputs, or a prefix tree of those."""

OfLayer: TypeAlias = Annotated[Tree, PerExample("layer")]
"""Numbers or tensors that broadcast to the activation of a layer, or a prefix tree of those."""

Key: TypeAlias = Annotated[int | Tensor, PerExample("key")]
"""An int or a key tensor of :mod:`attrfn.random`."""

Layer: TypeAlias = nn.Module | str | Sequence["nn.Module | str"]
"""A module, its qualified name, or a list of either."""

At: TypeAlias = Literal["input", "output"]

RowsOf: TypeAlias = Literal["examples", "time_first"] | Callable[[Any], Tree] | None
"""Where the examples are in a layer's value: in dimension 0 or 1, or there where a function of the
value brings them to dimension 0. ``None``: unknown, unless runs of the model tell."""

Batching: TypeAlias = Literal["fold", "vmap", "loop"]

ChunkSize: TypeAlias = int | Literal["auto"] | None

Method: TypeAlias = Callable[..., Tree]
"""An attribution method: ``method(model_fn, inputs, *, target, **options) -> attributions``."""
