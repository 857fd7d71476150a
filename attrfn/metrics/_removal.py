"""Removal curves: the model's value while features go or come in the order of their scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attrfn._explain.forms import form_of
from attrfn._explain.noise import count_of
from attrfn._torch.typing import Key, ModelFn, Tree, Unpack
from attrfn.metrics._direction import better
from attrfn.metrics._options import ScoreOptions
from attrfn.metrics._scores import First, Imputer, Scored, imputer_keys, order_keys, scored


class Curve(NamedTuple):
    """A removal curve.

    Attributes:
        fractions: The share of features that are gone (or inserted), (S + 1,).
        values: The model's values, (B, S + 1).
    """

    fractions: Tensor
    values: Tensor


@better(None)
@form_of(scored)
def removal_curve(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    first: First = "most",
    insert: bool = False,
    n_steps: int = 50,
    normalize: bool = False,
    imputer: Imputer | None = None,
    key: Key = 0,
    **options: Unpack[ScoreOptions],
) -> Curve:
    """The model's value while features are removed, or inserted, in the order of their scores.

        f_s = f(x with the first k_s features := x0),   k_s = floor(s n / S),   s = 0..S
        insert:  f_s = f(x0 with the first k_s features := x)

    Without a ``feature_mask`` this is pixel flipping, with the ids of patches region perturbation.

    Args:
        first: Which features go first: ``"most"``, ``"least"`` (by signed score) or ``"random"``.
            Equal scores keep the order of the ids.
        insert: Start from x0 and insert features.
        n_steps: S; at most the number of features.
        normalize: Divide by f(x).
        imputer: ``imputer(inputs, removed, keys) -> inputs``, what takes the place of removed
            features instead of baselines. It sees the rows of several copies of the batch;
            ``removed`` are booleans like the inputs, and keys are (R, 2).
        key: An int or a key of :mod:`attrfn.random`, (2,), or (B, 2) with one for each example; for
            a random order and for the imputer.

    Returns:
        The curve: fractions (S + 1,) and values (B, S + 1).

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> curve = attrfn.metrics.removal_curve(lambda x: x @ w, torch.ones(1, 4), w[None])
        >>> curve.values
        tensor([[10.,  6.,  3.,  1.,  0.]])

    Reference:
        Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
        Relevance Propagation, 2015. https://doi.org/10.1371/journal.pone.0130140
        Samek et al., Evaluating the visualization of what a Deep Neural Network has learned, 2017.
        https://arxiv.org/abs/1509.06321
    """
    s = scored("removal_curve", model_fn, inputs, attributions, **options)
    fractions, values = curve_of(s, first, n_steps, insert=insert, imputer=imputer, key=key)
    values = normalized(s, values) if normalize else values
    values = s.number(values)
    return Curve(fractions.to(values.dtype), values)


def curve_of(
    s: Scored,
    first: First,
    n_steps: int,
    *,
    insert: bool = False,
    imputer: Imputer | None = None,
    key: Key = 0,
) -> tuple[Tensor, Tensor]:
    """Fractions (S + 1,) and values (B, S + 1)."""
    moved = numbers_gone(s, n_steps)
    keys = order_keys(key, s.p)
    rank = s.ranks(first, keys)
    # f(x) is known, so S copies are left.
    inner = moved[:-1] if insert else moved[1:]
    steps = torch.tensor(inner, device=s.p.device)[:, None, None]
    for_imputer = None if imputer is None else imputer_keys(keys, len(inner))
    kept = (lambda i: rank < steps[i]) if insert else (lambda i: rank >= steps[i])
    found = s.values(len(inner), kept, imputer, for_imputer)
    full = s.p.full[None]
    values = torch.cat([found, full] if insert else [full, found])
    return abscissae(moved, s), values.T


def numbers_gone(s: Scored, n_steps: int) -> list[int]:
    """k_0 = 0, ..., k_S = n."""
    steps = min(count_of("n_steps", n_steps), s.n)
    return [i * s.n // steps for i in range(steps + 1)]


def abscissae(gone: list[int], s: Scored) -> Tensor:
    """The shares of the features that are gone, (S + 1,)."""
    # A quotient of integer tensors would be float32.
    return torch.tensor(gone, device=s.p.device).to(s.p.full.dtype) / s.n


def normalized(s: Scored, values: Tensor) -> Tensor:
    """Divided by f(x), nan where that is 0."""
    full = s.p.full.masked_fill(s.p.full == 0, torch.nan)
    return values / (full if values.ndim == 1 else full[:, None])
