"""Completeness: whether attributions sum to the change of the output."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.black_box import as_tensors, fit_for
from attrfn._explain.explain import explain
from attrfn._explain.feature_scores import scored
from attrfn._explain.features import features
from attrfn._explain.forms import documented
from attrfn._explain.options import Arguments, GraphOptions
from attrfn._explain.shared import mark_of, refuse_laid_out
from attrfn._explain.tree import batch_size, flatten, row_total
from attrfn._torch.autodiff import transforming
from attrfn._torch.typing import Baselines, Method, ModelFn, Target, Tree


@documented(Arguments, GraphOptions, scores=None)
def completeness_delta(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    scores: Literal["divided", "shared"] | Method | None = None,
    create_graph: bool = False,
) -> Tensor:
    """How far attributions are from completeness: their sum minus the change of the output.

        delta = sum(A) - (f(x) - f(x0))

    Args:
        attributions: Any pytree of tensors (B, ...), also of a layer.
        feature_mask: The feature of each element, for attributions in which the elements of a
            feature share its score: each score counts once. ``None`` sums all elements.
        scores: "divided", "shared", or the method, as for :func:`feature_scores`.
        n_features: The ids are 0 to ``n_features - 1``; needed inside torch.compile.

    Returns:
        One gap per example, (B,), in units of the output.

    Raises:
        ValueError: Attributions whose elements share scores come without their ``feature_mask``,
            or ``scores`` is needed.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: (x**2).sum(1)
        >>> x = torch.ones(1, 2)
        >>> attrfn.completeness_delta(f, x, attrfn.integrated_gradients(f, x)).abs().item() < 1e-6
        True

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017.
    """
    inputs = fit_for(baselines, as_tensors(inputs))
    p = explain(model_fn, inputs, target, create_graph=create_graph, differentiated=False)
    leaves, _ = flatten(attributions, "attributions")
    refuse_laid_out(leaves)
    if batch_size(leaves, "attributions") != p.batch:
        raise ValueError(
            f"attributions has {leaves[0].shape[0]} examples in dimension 0, expected {p.batch} as "
            "in inputs"
        )
    given = leaves
    if feature_mask is not None:
        leaves = (scored(attributions, feature_mask, scores, n_features),)
    elif mark_of(leaves) == "shared":
        raise ValueError(
            "attributions has scores that several elements share, and feature_mask is None: give "
            "the feature_mask that the method had, so that each score counts once"
        )
    x0 = fill_baselines(baselines, inputs, p.x)
    if feature_mask is not None and [t.shape for t in given] == [t.shape for t in p.x]:
        x0 = features(feature_mask, inputs, p.x, n_features).kept(x0)
    differentiable = create_graph or transforming()
    with torch.set_grad_enabled(create_graph or (differentiable and torch.is_grad_enabled())):
        change = p.values(p.x) - p.values(x0)
    # Scores of half precision add up to a gap that is only rounding, unless they are summed wider.
    delta = (row_total(leaves, wide) - change).to(change.dtype)
    return delta if differentiable else delta.detach()
