"""Localisation: how much of the attributions lies in a mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import is_count
from attrfn._explain.baseline import broadcasts, per_leaf
from attrfn._explain.forms import documented
from attrfn._torch.typing import Tree
from attrfn.metrics._correlation import ranks_of_sorted
from attrfn.metrics._direction import better
from attrfn.metrics._maps import (
    Sign,
    in_dtype_of,
    map_leaves,
    side_by_side,
    signed,
    undefined_where,
)
from attrfn.metrics._options import Localized


class _Map(NamedTuple):
    """Attributions and a mask, side by side.

    Attributes:
        a: The pooled attributions, (B, N).
        inside: Whether each is inside the mask.
        finite: Whether those of an example were finite before a sign was taken, (B,).
    """

    a: Tensor
    inside: Tensor
    finite: Tensor

    @property
    def undefined(self) -> Tensor:
        """Whether the mask is empty, or an attribution is not finite, (B,)."""
        return ~self.inside.any(-1) | ~self.finite

    def share_of_top(self, k: Tensor | int) -> Tensor:
        """The share of the k largest entries that are inside, (B,); ties in the order of places."""
        order = self.a.argsort(dim=-1, descending=True, stable=True)
        places = torch.arange(order.shape[-1], device=order.device)
        top = places < (k[:, None] if isinstance(k, Tensor) else k)
        return (self.inside.gather(-1, order) & top).sum(-1).to(self.a.dtype) / k


@better("higher")
@documented(Localized)
def pointing_game(attributions: Tree, mask: Tree) -> Tensor:
    """The pointing game: whether the largest attribution lies in the mask.

        1 if mask[argmax_k a_k] else 0

    The paper allows a margin of 15 pixels: dilate the mask. Of equal entries the first counts.

    Returns:
        1 or 0 per example, (B,); nan for an empty mask.

    Example:
        >>> import torch, attrfn.metrics
        >>> a = torch.tensor([[0.0, 2.0, 1.0]])
        >>> attrfn.metrics.pointing_game(a, torch.tensor([[False, True, False]]))
        tensor([1.])

    Reference:
        Zhang et al., Top-down Neural Attention by Excitation Backprop, 2018.
        https://arxiv.org/abs/1608.00507
    """
    m = _pooled(attributions, mask)
    hit = m.inside.gather(-1, m.a.argmax(-1, keepdim=True))[:, 0]
    return _result(attributions, m, hit.to(m.a.dtype))


@better("higher")
@documented(Localized)
def relevance_mass(attributions: Tree, mask: Tree, *, sign: Sign = "positive") -> Tensor:
    """Relevance mass: the share of the attributions that lies in the mask.

        sum_{k in mask} a_k / sum_k a_k

    Over positive attributions it is attribution localisation, too, and over mosaics of images the
    focus.

    Returns:
        One share per example, (B,); nan for an empty mask or a sum of 0.

    Example:
        >>> import torch, attrfn.metrics
        >>> a = torch.tensor([[1.0, 3.0, -1.0]])
        >>> attrfn.metrics.relevance_mass(a, torch.tensor([[False, True, True]]))
        tensor([0.7500])

    Reference:
        Arras, Osman and Samek, CLEVR-XAI: A benchmark dataset for the ground truth evaluation of
        neural network explanations, 2022. https://arxiv.org/abs/2003.07258
        Kohlbrenner et al., Towards Best Practice in Explaining Neural Network Decisions with LRP,
        2020. https://arxiv.org/abs/1910.09840
    """
    m = _pooled(attributions, mask, sign)
    total = m.a.sum(-1)
    share = (m.a * m.inside).sum(-1) / undefined_where(total == 0, total)
    return _result(attributions, m, share)


@better("higher")
@documented(Localized)
def relevance_rank(attributions: Tree, mask: Tree, *, sign: Sign = "signed") -> Tensor:
    """Relevance rank: the share of the K largest attributions in the mask, K its size.

        #(top K entries in the mask) / K

    Returns:
        One share per example, (B,); nan for an empty mask.

    Example:
        >>> import torch, attrfn.metrics
        >>> a = torch.tensor([[1.0, 3.0, 2.0]])
        >>> attrfn.metrics.relevance_rank(a, torch.tensor([[True, True, False]]))
        tensor([0.5000])

    Reference:
        Arras, Osman and Samek, CLEVR-XAI: A benchmark dataset for the ground truth evaluation of
        neural network explanations, 2022. https://arxiv.org/abs/2003.07258
    """
    m = _pooled(attributions, mask, sign)
    return _result(attributions, m, m.share_of_top(m.inside.sum(-1).clamp(min=1)))


@better("higher")
@documented(Localized)
def top_k_intersection(attributions: Tree, mask: Tree, *, k: int) -> Tensor:
    """Top-k intersection: the share of the k largest attributions that lies in the mask.

        #(top k entries in the mask) / k

    Args:
        k: A number of entries, from 1 to all.

    Returns:
        One share per example, (B,); nan for an empty mask.

    Raises:
        ValueError: k is larger than the number of entries.

    Example:
        >>> import torch, attrfn.metrics
        >>> a = torch.tensor([[1.0, 3.0, 2.0]])
        >>> attrfn.metrics.top_k_intersection(a, torch.tensor([[True, True, False]]), k=1)
        tensor([1.])

    Reference:
        Theiner, Müller-Budack and Ewerth, Interpretable Semantic Photo Geolocation, 2022.
        https://arxiv.org/abs/2104.14995
    """
    m = _pooled(attributions, mask)
    if not is_count(k) or k > m.a.shape[1]:
        raise ValueError(f"k is {k!r}, expected an int from 1 to the {m.a.shape[1]} entries")
    return _result(attributions, m, m.share_of_top(k))


@better("higher")
@documented(Localized)
def localization_auc(attributions: Tree, mask: Tree) -> Tensor:
    """The area under the ROC curve of attributions as a classifier of the mask.

        AUC = (R - K (K + 1) / 2) / (K (n - K)),   R = sum of the average ranks of the K inside

    Returns:
        One area per example, (B,); nan for an empty or a full mask.

    Example:
        >>> import torch, attrfn.metrics
        >>> a = torch.tensor([[1.0, 3.0, 2.0]])
        >>> attrfn.metrics.localization_auc(a, torch.tensor([[False, True, False]]))
        tensor([1.])

    Reference:
        Fawcett, An introduction to ROC analysis, 2006.
        https://doi.org/10.1016/j.patrec.2005.10.010
    """
    m = _pooled(attributions, mask)
    ordered, order = m.a.sort(dim=-1)
    kind = torch.float64 if m.a.device.type != "mps" else torch.float32
    inside = m.inside.gather(-1, order).to(kind)
    k, n = inside.sum(-1), inside.shape[-1]
    ranks = (ranks_of_sorted(ordered.to(kind)) * inside).sum(-1)
    pairs = k * (n - k)
    area = (ranks - k * (k + 1) / 2) / undefined_where(pairs == 0, pairs)
    return _result(attributions, m, area)


def _result(attributions: Tree, m: _Map, t: Tensor) -> Tensor:
    return in_dtype_of(attributions, undefined_where(m.undefined, t))


def _pooled(attributions: Tree, mask: Tree, sign: Sign = "signed") -> _Map:
    """Attributions summed over the dimensions that only they have, and the mask, side by side."""
    leaves = map_leaves(attributions)
    parts, insides = [], []
    for m, a in zip(per_leaf(mask, attributions, leaves, "mask"), leaves, strict=True):
        inside = _checked(m, a)
        only = [d for d in range(1, a.ndim) if inside.shape[d] == 1 and a.shape[d] != 1]
        pooled = a.sum(only, keepdim=True) if only else a
        parts.append(pooled)
        insides.append(inside.expand(pooled.shape).to(a.device))
    found = side_by_side(parts)
    finite = found.isfinite().all(-1)
    rows = [i.reshape(i.shape[0], i.shape[1:].numel()) for i in insides]
    return _Map(signed(found, sign), torch.cat(rows, 1), finite)


def _checked(mask: object, a: Tensor) -> Tensor:
    """A mask as booleans with as many dimensions as the attributions."""
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        given = f"tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask has a {given}, expected booleans, such as mask > 0.5")
    if not broadcasts(mask, a.shape):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, which does not broadcast to the shape of the "
            f"attributions, {tuple(a.shape)}"
        )
    # A mask (B, H, W) for maps (B, C, H, W) with C = B would be taken for one of the channels.
    if 2 <= mask.ndim == a.ndim - 1 and mask.shape[0] == a.shape[0] > 1:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} for attributions of shape {tuple(a.shape)}, which "
            "could also mean one mask for each example: add the missing dimensions with "
            "mask[:, None] or mask[None]"
        )
    return mask.reshape(*[1] * (a.ndim - mask.ndim), *mask.shape) != 0
