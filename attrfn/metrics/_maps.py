"""Attribution maps as tables: one row per example, all leaves side by side."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attrfn._explain.tree import batch_size, flatten
from attrfn._torch.typing import Leaves, Tree
from attrfn.metrics._scores import floating

Sign = Literal["signed", "positive", "absolute"]


def map_leaves(tree: Tree, name: str = "attributions") -> Leaves:
    """The leaves of maps, (B, ...) each, in types to sum in.

    Raises:
        TypeError: A leaf is not a tensor of real numbers.
        ValueError: There is none, or the batch sizes disagree.
    """
    leaves, _ = flatten(tree, name)
    batch_size(leaves, name)
    for t in leaves:
        if t.is_complex():
            raise TypeError(f"{name} is a tensor of {t.dtype}, expected real numbers")
    return tuple(map(floating, leaves))


def side_by_side(leaves: Sequence[Tensor]) -> Tensor:
    """(B, ...) each to (B, N)."""
    common = functools.reduce(torch.promote_types, [t.dtype for t in leaves])
    rows = [t.to(common).reshape(t.shape[0], t.shape[1:].numel()) for t in leaves]
    found = rows[0] if len(rows) == 1 else torch.cat(rows, 1)
    if found.shape[1] == 0:
        raise ValueError("the maps have no element, expected at least one in each example")
    return found


def flat_maps(tree: Tree, name: str = "attributions") -> tuple[Tensor, list[torch.dtype]]:
    """A tree as (B, N), and the floating types of its leaves."""
    kinds = [t.dtype for t in flatten(tree, name)[0] if t.is_floating_point()]
    found = side_by_side(map_leaves(tree, name))
    return found, kinds or [found.dtype]


def in_dtype_of(tree: Tree, t: Tensor) -> Tensor:
    """Results in the type of the first map, if that is floating, else the default."""
    first = flatten(tree)[0][0].dtype
    return t.to(first if first.is_floating_point else torch.get_default_dtype())


def signed(t: Tensor, sign: Sign) -> Tensor:
    """The part of attributions that counts."""
    if sign == "signed":
        return t
    if sign == "positive":
        return t.clamp(min=0)
    if sign == "absolute":
        return t.abs()
    raise ValueError(f"sign is {sign!r}, expected 'signed', 'positive' or 'absolute'")


def undefined_where(bad: Tensor, t: Tensor) -> Tensor:
    """Nan where the condition holds."""
    return t.masked_fill(bad, torch.nan)
