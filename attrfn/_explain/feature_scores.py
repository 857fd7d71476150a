"""The scores of features, from attributions that have one number for each element."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._explain.features import features
from attrfn._explain.shared import mark_of, refuse_laid_out, scores_of
from attrfn._explain.tree import batch_size, flatten
from attrfn._torch.autodiff import transforming
from attrfn._torch.say import say
from attrfn._torch.typing import Tree


class Elements(NamedTuple):
    """The elements of attributions, one after another, and their features.

    Attributes:
        values: (B, E).
        ids: The feature of each element, (1 or B, E); n for one that is fixed.
        n: The number of features.
        mark: The mark of the attributions.
    """

    values: Tensor
    ids: Tensor
    n: int
    mark: str | None

    def added(self) -> Tensor:
        """Sums over the elements of each feature, (B, n)."""
        values = self.values.to(wide(self.values.dtype))
        zeros = values.new_zeros(values.shape[0], self.n + 1)
        total = zeros.scatter_add(1, self.ids.expand(values.shape), values)
        return total[:, : self.n].to(self.values.dtype)

    def once(self) -> Tensor:
        """The value of the first element of each feature, 0 where it has none, (B, n)."""
        rows, count = self.ids.shape
        at = torch.arange(count, device=self.ids.device).expand(rows, count)
        none = torch.full((rows, self.n + 1), count, device=self.ids.device)
        first = none.scatter_reduce(1, self.ids, at, "amin")[:, : self.n]
        values = torch.nn.functional.pad(self.values, (0, 1))
        return values.gather(1, first.expand(len(values), self.n))

    def unequal(self) -> Tensor:
        """Which elements differ from the first one of their feature, but for rounding, (B, E)."""
        once = torch.nn.functional.pad(self.once(), (0, 1))
        first = once.gather(1, self.ids.expand(self.values.shape))
        eps = torch.finfo(first.dtype).eps if first.is_floating_point() else 0.0
        near = (self.values - first).abs() <= 16 * eps * first.abs()
        same = (self.values == first) | (self.values.isnan() & first.isnan())
        return ~(near | same | (self.ids == self.n))


def scored(
    attributions: Tree, feature_mask: Tree, scores: object, n_features: int | None
) -> Tensor:
    """One score for each feature, (B, n), see :func:`attrfn.feature_scores`."""
    kind = _kind(scores)
    found = _elements(attributions, feature_mask, n_features)
    if (kind or found.mark) == "shared":
        once = found.once()
        _require_equal(found, once)
        return once
    if kind is None and found.mark is None and feature_mask is not None:
        _require_single(found)
    return found.added()


def _kind(scores: object) -> str | None:
    if scores is None or (isinstance(scores, str) and scores in ("divided", "shared")):
        return scores
    kind = scores_of(scores) if callable(scores) else None
    if kind == "pairs":
        raise ValueError(
            "scores is a method whose result is a matrix of the features, expected one with a "
            "number for each element: that matrix has one row and column per feature already"
        )
    if kind is None:
        raise ValueError(f"scores is {say(scores)}, expected 'divided', 'shared' or a method")
    return kind


def _require_equal(found: Elements, once: Tensor) -> None:
    """Refuse elements that differ where they should share a score."""
    if transforming() or not bool((wrong := found.unequal()).any()):
        return
    b, e = wrong.nonzero()[0].tolist()
    k = int(found.ids[min(b, len(found.ids) - 1), e])
    raise ValueError(
        f"attributions has {float(once[b, k]):.4g} and {float(found.values[b, e]):.4g} in feature "
        f"{k} of example {b}, expected one score that its elements share: give the feature_mask "
        "that the method had, or scores='divided', which sums them"
    )


def _require_single(found: Elements) -> None:
    """Refuse features of several elements, if nothing says what their scores are."""
    advice = "give scores='divided', scores='shared' or the method, as scores=attrfn.occlusion"
    if transforming():
        raise ValueError(
            "scores is None inside a transform or compiled code, where results of methods are not "
            f"marked: {advice}"
        )
    ones = torch.ones_like(found.ids)
    counts = ones.new_zeros(len(found.ids), found.n + 1).scatter_add(1, found.ids, ones)
    if bool((counts[:, : found.n] > 1).any()):
        raise ValueError(
            "scores is None, and attributions is not a result of a method as it was returned: "
            f"{advice}"
        )


def _elements(attributions: Tree, feature_mask: Tree, n_features: int | None) -> Elements:
    """Take attributions and a mask apart.

    Raises:
        TypeError: A leaf is not a tensor, or the mask does not hold integers.
        ValueError: The mask does not broadcast to the attributions, or an id is out of range.
    """
    leaves, _ = flatten(attributions, "attributions")
    refuse_laid_out(leaves)
    batch = batch_size(leaves, "attributions")
    these = features(feature_mask, attributions, leaves, n_features)
    ids = []
    for i, t in zip(these.ids, leaves, strict=True):
        if isinstance(i, int):
            i = torch.arange(i, i + t.shape[1:].numel(), device=t.device)[None]
        else:
            i = i.expand(i.shape[0], *t.shape[1:]).reshape(i.shape[0], -1)
        ids.append(i)
    rows = batch if any(len(i) == batch for i in ids) else 1
    device = leaves[0].device
    return Elements(
        torch.cat([t.reshape(batch, t.shape[1:].numel()).to(device) for t in leaves], 1),
        torch.cat([i.expand(rows, i.shape[1]).to(device) for i in ids], 1),
        these.n,
        mark_of(leaves),
    )
