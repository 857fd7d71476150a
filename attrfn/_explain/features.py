"""Features: which elements of the inputs are replaced together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import is_count, is_integer
from attrfn._explain.baseline import broadcasts, per_leaf
from attrfn._explain.masked import Masked
from attrfn._explain.shared import marked
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import unreadable
from attrfn._torch.guard import refuse_unusual
from attrfn._torch.say import say
from attrfn._torch.typing import Leaves, Tree


class Features(NamedTuple):
    """The features of a batch.

    Attributes:
        n: Their number.
        ids: Per leaf of the inputs the feature of each element, (1 or B, ...) with as many
            dimensions as the leaf; or an int, where each element is a feature: the id of the first.
        x: The leaves of the inputs.
        fixed: Whether some elements may belong to no feature and keep their value: their id is n.
    """

    n: int
    ids: tuple[Tensor | int, ...]
    x: Leaves
    fixed: bool = False

    def masks(self, z: Tensor, fixed: bool = True) -> Leaves:
        """Rows of feature values (S, 1 or B, n) as those of elements, (S, 1 or B, ...) per leaf.

        Args:
            z: The values.
            fixed: The value of the elements that are fixed.
        """
        if self.fixed:
            z = torch.nn.functional.pad(z, (0, 1), value=fixed)
        return tuple([_pick(z, i, x) for i, x in zip(self.ids, self.x, strict=True)])

    def kept(self, x0: Leaves) -> Leaves:
        """Baselines (1 or B, ...) that leave the fixed elements as they are."""
        if not self.fixed:
            return x0
        leaves = zip(self.ids, self.x, x0, strict=True)
        return tuple([b if isinstance(i, int) else b.where(i < self.n, x) for i, x, b in leaves])

    def elements(self, scores: Tensor) -> Leaves:
        """Scores of the features (R, K..., n) as those of elements, (R, K..., ...) per leaf.

        Raises:
            ValueError: The features differ from row to row, but the scores are of the whole batch.
        """
        if self.fixed:
            scores = torch.nn.functional.pad(scores, (0, 1))
        leaves = [self._elements(scores, i, x) for i, x in zip(self.ids, self.x, strict=True)]
        return marked(leaves, "shared" if self._shared() else "divided")

    def sums(self, leaves: Leaves) -> Tensor:
        """Sums over the elements of each feature, leaves (S, B, ...) to (S, B, n)."""
        # Not written in place: inside vmap the total may lack the dimension that a leaf has.
        n = self.n + self.fixed
        total = leaves[0].new_zeros((*leaves[0].shape[:2], n))
        for t, ids in zip(leaves, self.ids, strict=True):
            if isinstance(ids, int):
                flat = t.flatten(2) if t.ndim > 2 else t[..., None]
                rest = n - ids - flat.shape[2]
                total = total + torch.nn.functional.pad(flat, (ids, rest))
            else:
                index = _rows(ids.expand(t.shape[1:])).expand(t.shape[0], -1, -1)
                total = total.scatter_add(2, index, t.reshape(index.shape))
        return total[..., : self.n] if self.fixed else total

    def _shared(self) -> bool:
        """Whether a feature has several elements, where that can be read."""
        masks = [(i, x) for i, x in zip(self.ids, self.x, strict=True) if isinstance(i, Tensor)]
        if transforming() or not masks:
            return False
        if self.n < sum(x.shape[1:].numel() for x in self.x):
            return True
        ids = [_rows(i.expand(i.shape[0], *x.shape[1:])) for i, x in masks]
        rows = max(map(len, ids))
        together = torch.cat([i.expand(rows, i.shape[1]) for i in ids], 1).sort(1).values
        same = (together.diff(dim=1) == 0) & (together[:, 1:] < self.n)
        return bool(same.any())

    def _elements(self, scores: Tensor, ids: Tensor | int, x: Tensor) -> Tensor:
        shape = (*scores.shape[:-1], *x.shape[1:])
        if isinstance(ids, int):
            return scores[..., ids : ids + x.shape[1:].numel()].reshape(shape)
        # Elements of an expanded tensor share memory, so that the user could not write into it.
        if ids.shape[0] == 1:
            return scores[..., ids[0]].expand(shape).contiguous()
        if scores.shape[0] != ids.shape[0]:
            raise ValueError(
                f"feature_mask has {ids.shape[0]} rows, expected 1 for a model that returns one "
                "value for the whole batch"
            )
        flat = scores.flatten(1, -2) if scores.ndim > 2 else scores[:, None]
        index = _rows(ids)[:, None].expand(-1, flat.shape[1], -1)
        by_element = flat.gather(2, index).reshape(*scores.shape[:-1], *ids.shape[1:])
        return by_element.expand(shape).contiguous()


def features(
    mask: Tree, inputs: Tree, x: Leaves, n_features: int | None, name: str = "feature_mask"
) -> Features:
    """The features of a mask of ids; without one each element of each leaf is a feature.

    Args:
        mask: Integers that broadcast to the inputs, or a prefix tree of those; equal ids are one
            feature, in different tensors too. Elements with negative ids are fixed.
        inputs: The inputs' tree.
        x: Its leaves.
        n_features: The ids are 0 to ``n_features - 1``; ``None`` counts those that occur, in their
            order (gaps do not matter).
        name: The mask's name for messages.

    Raises:
        TypeError: The mask does not hold integers.
        ValueError: It does not broadcast to the inputs, or has ids outside of ``n_features``.
    """
    if n_features is not None and not _is_number(n_features):
        raise ValueError(f"n_features is {say(n_features)}, expected an int of at least 0")
    if mask is None:
        return _each_element(x, n_features)
    ids = [_ids(m, t, name) for m, t in zip(per_leaf(mask, inputs, x, name), x, strict=True)]
    if n_features is None:
        n, ids, fixed = _counted(ids, name)
    else:
        n, fixed = n_features, _check_range(ids, n_features, name)
    # The id n has a column of its own where values of features become those of elements.
    return Features(n, tuple([i.where(i >= 0, n) for i in ids] if fixed else ids), x, fixed)


def masked_features(
    p: Masked, mask: Tree, inputs: Tree, n_features: int | None
) -> tuple[Masked, Features]:
    """The features of a mask, and the model function with baselines that leave fixed elements."""
    these = features(mask, inputs, p.x, n_features)
    return (p._replace(x0=these.kept(p.x0)) if these.fixed else p), these


def _each_element(x: Leaves, n_features: int | None) -> Features:
    # The ids of a leaf are consecutive, so that the first one says all: masks and sums are then
    # slices and reshapes, without tensors of indices.
    sizes = [t.shape[1:].numel() for t in x]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if n_features not in (None, sum(sizes)):
        raise ValueError(
            f"n_features is {n_features}, expected {sum(sizes)}, because without a feature_mask "
            "each element of the inputs is a feature"
        )
    return Features(sum(sizes), tuple(starts), x)


def _ids(mask: object, t: Tensor, name: str) -> Tensor:
    if isinstance(mask, int) and not isinstance(mask, bool):
        mask = torch.tensor(mask, device=t.device)
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"{name} has a {type(mask).__name__} for inputs of shape {tuple(t.shape)}, expected "
            "a tensor of integers, the feature that each element belongs to"
        )
    refuse_unusual(mask, name)
    if mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
        raise TypeError(
            f"{name} is a tensor of {mask.dtype}, expected integers, the feature that each element "
            "belongs to: use .long()"
        )
    if not broadcasts(mask, t.shape):
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)} for inputs of shape {tuple(t.shape)}, "
            "expected a shape that broadcasts to the input's"
        )
    missing = t.ndim - mask.ndim
    return mask.to(t.device, torch.int64).reshape(*[1] * missing, *mask.shape)


def _counted(ids: list[Tensor], name: str) -> tuple[int, list[Tensor], bool]:
    """The number of different ids, each id's place among them, and whether some are negative."""
    if unreadable():
        raise ValueError(
            f"{name} is given without n_features inside torch.compile or a tracer, where ids "
            "cannot be counted: number the features from 0 and give n_features"
        )
    try:
        known = torch.unique(torch.cat([i.flatten() for i in ids]))
        negative = int((known < 0).sum())
        # searchsorted warns where what it looks up is not contiguous
        places = [torch.searchsorted(known, i.contiguous()) - negative for i in ids]
        return len(known) - negative, places, negative > 0
    except RuntimeError as error:
        # Inside vmap this fails only where the mask itself is mapped over: the number of ids would
        # be a shape that depends on values. No public question tells the two cases apart.
        if not transforming():
            raise
        raise ValueError(
            f"{name} is given without n_features inside torch.func.vmap over it, where ids cannot "
            "be counted: number the features from 0 and give n_features"
        ) from error


def _check_range(ids: list[Tensor], n: int, name: str) -> bool:
    """Whether ids are negative, or may be where they cannot be read."""
    if transforming():
        return True
    least = 0
    for i in ids:
        if i.numel() and int(i.max()) >= n:
            raise ValueError(
                f"{name} has ids up to {int(i.max())}, expected at most {n - 1} with n_features="
                f"{n}: without n_features any ids will do"
            )
        least = min(least, int(i.min())) if i.numel() else least
    return least < 0


def _pick(z: Tensor, ids: Tensor | int, x: Tensor) -> Tensor:
    if isinstance(ids, int):
        return z[..., ids : ids + x.shape[1:].numel()].reshape(*z.shape[:2], *x.shape[1:])
    if ids.shape[0] == 1:
        return z[..., ids[0]]
    rows = z.expand(z.shape[0], ids.shape[0], z.shape[2])
    index = _rows(ids).expand(z.shape[0], -1, -1)
    return rows.gather(2, index).reshape(z.shape[0], *ids.shape)


def _is_number(value: object) -> bool:
    return is_count(value) or (is_integer(value) and value == 0)


def _rows(ids: Tensor) -> Tensor:
    """(R, ...) -> (R, elements)."""
    return ids.reshape(ids.shape[0], ids.shape[1:].numel())
