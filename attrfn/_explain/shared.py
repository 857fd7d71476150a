"""Scores that are divided among elements, and scores that the elements of a feature share.

A method says which by its attribute ``scores``: ``"divided"`` (every element has a part, and the
parts of a feature are summed), ``"shared"`` (every element of a feature has the feature's whole
score, which counts once) or ``"pairs"`` (a matrix of the features). Results carry a mark with the
same meaning, so that nothing sums what is shared by mistake. What is computed from a result has no
mark, and nothing is marked where values cannot be read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

from torch import Tensor

from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling

Scores: TypeAlias = Literal["divided", "shared", "pairs"]
_MARK = "_attrfn_scores"
_LAYOUT = "_attrfn_layout"


def marked(leaves: Sequence[Tensor], scores: str | None) -> tuple[Tensor, ...]:
    """The same new tensors, with a mark that says what their scores are."""
    if scores is not None and not transforming():
        for t in leaves:
            setattr(t, _MARK, scores)
    return tuple(leaves)


def mark_of(leaves: Sequence[Tensor]) -> str | None:
    """The mark that all of the tensors have, or None."""
    if transforming():
        return None
    marks = {getattr(t, _MARK, None) for t in leaves}
    return marks.pop() if len(marks) == 1 else None


def scores_of(method: object) -> Scores | None:
    """What the attributions of a method are, or of the method that it wraps or binds."""
    own = getattr(method, "scores", None)
    if own in ("divided", "shared", "pairs"):
        return cast(Scores, own)
    inner = getattr(method, "__wrapped__", None)
    if isinstance(method, functools.partial):
        inner = method.func
    return None if inner is None else scores_of(inner)


def laid_out(leaves: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Mark new tensors as those of a layer without examples in dimension 0, and as ``given`` is."""
    if is_compiling():
        return
    marked(leaves, mark_of(given))
    for t in leaves:
        if t.is_floating_point():  # the lengths of a packed sequence are the model's own
            setattr(t, _LAYOUT, True)


def is_laid_out(leaves: Sequence[object]) -> bool:
    """Whether tensors are marked as those of a layer without examples in dimension 0."""
    return not is_compiling() and any(getattr(t, _LAYOUT, False) for t in leaves)


def refuse_laid_out(leaves: Sequence[object]) -> None:
    """Refuse attributions of a layer without examples in dimension 0.

    Raises:
        ValueError: One of the tensors is marked so.
    """
    if is_laid_out(leaves):
        raise ValueError(
            "attributions has the layout of a layer whose examples are not in dimension 0, "
            "expected them there: move them first, as in a.transpose(0, 1) or "
            "a.unflatten(0, (-1, 5))"
        )
