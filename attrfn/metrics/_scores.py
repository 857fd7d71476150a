"""Scores of features, their order, and the model's values when some of the features are gone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import flat_rows, wide
from attrfn._copies.chunks import Chunks, at_once
from attrfn._explain.baseline import broadcasts
from attrfn._explain.features import Features, masked_features
from attrfn._explain.forms import documented
from attrfn._explain.masked import Masked, masked
from attrfn._explain.options import BlackBox, PerturbationOptions
from attrfn._explain.rows import like_rows
from attrfn._explain.tree import each
from attrfn._random.keys import row_keys, sample_keys
from attrfn._torch.autodiff import transforming
from attrfn._torch.precision import widest
from attrfn._torch.typing import (
    Baselines,
    Batching,
    ChunkSize,
    FeatureMask,
    Key,
    Leaves,
    ModelFn,
    Target,
    Tree,
)
from attrfn.metrics._options import ScoreOptions, Scores

First = Literal["most", "least", "random"]
Imputer = Callable[[Tree, Tree, Tensor], Tree]
Pool = Literal["sum", "mean"]

# The streams of a key, as in attrfn._explain.noise: changing one changes the numbers of every user.
_ORDER, _IMPUTE = 0, 1


class Scored(NamedTuple):
    """A model function, its inputs and the scores of their features.

    Attributes:
        p: The model function and its inputs; ``p.full`` is f(x), (B,).
        parts: The features.
        leaves: The attributions, like the leaves of the inputs; each element has its share of the
            score of its feature.
        scores: a, (B, n).
    """

    p: Masked
    parts: Features
    leaves: Leaves
    scores: Tensor

    @property
    def n(self) -> int:
        """The number of features."""
        return self.parts.n

    @property
    def eps(self) -> float:
        """The rounding of values and scores, relative to their size."""
        return max(torch.finfo(d).eps for d in (self.p.dtype, self.leaves[0].dtype))

    def ranks(self, first: First = "most", keys: Tensor | None = None) -> Tensor:
        """The place of each feature in the order, (1 or B, n); ties keep the order of the ids."""
        if first not in ("most", "least", "random"):
            raise ValueError(f"first is {first!r}, expected 'most', 'least' or 'random'")
        if first == "random" and keys is not None:
            order = random.permutation(random.fold_in(keys, _ORDER), self.n)
        else:
            order = _order(self.scores, descending=first == "most")
        return _places(order)

    def magnitude_ranks(self, *, descending: bool) -> Tensor:
        """The place of each feature by its absolute score, (B, n)."""
        return _places(_order(self.scores.abs(), descending=descending))

    def values(
        self,
        copies: int,
        kept: Callable[[slice], Tensor],
        imputer: Imputer | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The model's values (copies, B) where only some of the features are those of x.

        Args:
            copies: The number of copies of the batch.
            kept: From a slice of them to booleans (S, 1 or B, n).
            imputer: What replaces the others; None: the baselines.
            keys: The keys of the imputer, (copies, 1 or B, 2).
        """
        if imputer is None or keys is None:
            return self.p.over(copies, lambda i: self.parts.masks(kept(i)))

        def points(i: slice) -> Leaves:
            return self._imputed(self.parts.masks(kept(i)), imputer, keys[i])

        elements = copies * sum(t.numel() for t in self.p.x)
        found = at_once(points, copies, elements)
        # The model may write into its inputs.
        return self.p.at(copies, lambda i: tuple([t.clone() for t in found(i)]))

    def _imputed(self, masks: Leaves, imputer: Imputer, keys: Tensor) -> Leaves:
        copies, p = keys.shape[0], self.p
        x = flat_rows(tuple([t.expand(copies, *t.shape) for t in p.x]))
        gone = each(lambda m, t: ~m.expand(copies, *t.shape), masks, p.x)
        rows = keys.expand(copies, p.batch, 2).reshape(-1, 2)
        with allow_graph(p):
            found = imputer(p.rebuild(x), p.rebuild(flat_rows(gone)), rows)
        return like_rows(found, p.x, copies, "imputer")

    def number(self, t: Tensor) -> Tensor:
        """Results (B, ...), nan for an example whose attributions are not finite."""
        bad = ~self.scores.isfinite().all(-1).reshape(-1, *[1] * (t.ndim - 1))
        return self.p.number(t.masked_fill(bad, torch.nan))


def _order(scores: Tensor, *, descending: bool) -> Tensor:
    return torch.argsort(scores, dim=-1, descending=descending, stable=True)


def _places(order: Tensor) -> Tensor:
    """The place of each entry of a permutation: its inverse, without a second sort."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.zeros_like(order).scatter(-1, order, places)


@documented(Scores, ScoreOptions, BlackBox, PerturbationOptions)
def scored(
    label: str,
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: FeatureMask = None,
    n_features: int | None = None,
    pool: Pool = "sum",
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Scored:
    """Check what all metrics that replace features have in common, and evaluate f(x)."""
    if pool not in ("sum", "mean"):
        raise ValueError(f"pool is {pool!r}, expected 'sum' or 'mean'")
    chunks = Chunks(chunk_size, batching, progress, label, backward=False)
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    if p.per_batch or p.full.ndim != 1:
        raise ValueError(
            f"the explained function returns {_kind_of(p)}, expected one scalar for each example: "
            "choose one with target"
        )
    p, parts = masked_features(p, feature_mask, inputs, n_features)
    if parts.n == 0:
        raise ValueError("inputs has no feature, expected at least one element in each example")
    leaves = tuple(map(p.detached, like_inputs(attributions, inputs, p.x)))
    if pool == "mean":
        ones = tuple([torch.ones_like(t)[None] for t in leaves])
        # A feature without elements, which n_features allows, has the score 0 in any case.
        shares = parts.elements(1 / parts.sums(ones)[0].clamp(min=1))
        leaves = each(torch.mul, leaves, shares)
    return Scored(p, parts, leaves, parts.sums(tuple([t[None] for t in leaves]))[0])


def _kind_of(p: Masked) -> str:
    if p.per_batch:
        return "one value for the whole batch"
    return f"{p.full.shape[1:].numel()} values per example"


def like_inputs(attributions: Tree, inputs: Tree, x: Leaves) -> Leaves:
    """Attributions with the shapes of the inputs, in one type to sum in.

    Raises:
        TypeError: They are not tensors of numbers.
        ValueError: Their form is not that of the inputs.
    """
    entries, form = optree.tree_flatten(attributions)
    # With other keys in a dict, tensors of one shape would be taken for each other.
    if len(entries) != len(x) or (len(x) > 1 and form != optree.tree_structure(inputs)):
        raise ValueError(
            f"attributions is a tree of {len(entries)} tensor(s), expected the structure of the "
            f"inputs, which has {len(x)} tensor(s)"
        )
    found = [_expanded(a, t) for a, t in zip(entries, x, strict=True)]
    common = functools.reduce(torch.promote_types, [t.dtype for t in found])
    return tuple([t.to(common) for t in found])


def _expanded(a: Any, x: Tensor) -> Tensor:
    if not isinstance(a, Tensor) or a.is_complex():
        raise TypeError(
            f"attributions has a {a.dtype if isinstance(a, Tensor) else type(a).__name__}, "
            "expected tensors of real numbers"
        )
    # With fewer dimensions a map (B, H, W) would be taken for one of the channels if B = C.
    if a.ndim != x.ndim or not broadcasts(a, x.shape) or a.shape[0] != x.shape[0]:
        raise ValueError(
            f"attributions has shape {tuple(a.shape)} for an input of shape {tuple(x.shape)}, "
            "expected as many dimensions, each of the input's size or, after the first, of size 1: "
            "sum over dimensions that the input lacks, and insert missing ones with unsqueeze"
        )
    return floating(a).to(x.device).expand(x.shape)


def floating(a: Tensor) -> Tensor:
    """In a floating type to sum in."""
    return a.to(wide(a.dtype)) if a.is_floating_point() else a.to(widest(a.device))


def flat(t: Tensor) -> Tensor:
    """(S, B, ...) to (S, B, elements)."""
    return t.reshape(*t.shape[:2], t.shape[2:].numel())


def allow_graph(p: Masked) -> torch.set_grad_enabled:
    """Grad mode for functions of the user: as for the model."""
    return torch.set_grad_enabled(p.create_graph or (transforming() and torch.is_grad_enabled()))


def order_keys(key: Key, p: Masked) -> Tensor:
    """The keys of a call, (1 or B, 2)."""
    return row_keys(key, p.batch, p.device)


def imputer_keys(keys: Tensor, copies: int) -> Tensor:
    """The keys of an imputer, (copies, 1 or B, 2)."""
    return sample_keys(keys, slice(0, copies), _IMPUTE)
