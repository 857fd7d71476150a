"""Scores of features, whatever the method whose attributions they are made of."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from attrfn._explain.feature_scores import scored
from attrfn._explain.forms import documented
from attrfn._explain.options import FeatureOptions
from attrfn._torch.typing import Method, Tree


@documented(FeatureOptions, scores=None)
def feature_scores(
    attributions: Tree,
    feature_mask: Tree,
    *,
    scores: Literal["divided", "shared"] | Method | None = None,
    n_features: int | None = None,
) -> Tensor:
    """One score for each feature, from attributions of any method.

        s_k = sum_{j in feature k} A_j    where scores are divided among elements,
        s_k = A_j for any j in feature k  where the elements of a feature share its score

    Every method says by its attribute ``scores`` which of both its attributions are:
    ``attrfn.gradient.scores`` is "divided", ``attrfn.occlusion.scores`` is "shared".

    Args:
        attributions: A tensor (B, ...) or a pytree of those, of one explained output; for several
            use ``torch.vmap``.
        feature_mask: The feature of each element, as the method had it: integers that broadcast to
            the attributions, or a pytree prefix of those. ``None``: each element is a feature.
        scores: "divided", "shared", or the method. ``None`` reads the mark that results of methods
            carry until something is computed from them; without one, as inside transforms and
            compiled code, this option is needed.

    Returns:
        (B, n), in the order of the ids.

    Raises:
        TypeError: Attributions or mask are of an unknown kind.
        ValueError: Shapes do not fit, elements that should share a score differ, or ``scores`` is
            needed.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 2]
        >>> x, mask = torch.tensor([[2.0, 3.0, 4.0]]), torch.tensor([0, 0, 1])
        >>> attrfn.feature_scores(attrfn.feature_ablation(f, x, feature_mask=mask), mask)
        tensor([[6., 4.]])
        >>> attrfn.feature_scores(attrfn.input_x_gradient(f, x), mask)
        tensor([[12.,  4.]])
    """
    return scored(attributions, feature_mask, scores, n_features)
