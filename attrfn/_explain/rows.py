"""Rows of copies of a batch that went through a function of the user."""

from __future__ import annotations

from attrfn._copies.batch import split_rows
from attrfn._explain.tree import each, flatten
from attrfn._torch.typing import Leaves, Tree


def like_rows(found: Tree, x: Leaves, copies: int, name: str) -> Leaves:
    """What a function of the user returned for the rows of copies, as fresh (S, B, ...).

    Raises:
        ValueError: Its form is not that of the rows that the function got.
    """
    leaves, _ = flatten(found, f"what {name} returned")
    shapes = [(copies * t.shape[0], *t.shape[1:]) for t in x]
    if [tuple(t.shape) for t in leaves] != shapes:
        raise ValueError(
            f"{name} returned {', '.join([str(tuple(t.shape)) for t in leaves])} for rows of shape "
            f"{', '.join(map(str, shapes))}, expected tensors of the same shape"
        )
    # The model may write into its inputs, and the function may return those of the user.
    return split_rows(each(lambda t, x: t.to(x.dtype, copy=True), leaves, x), copies)
