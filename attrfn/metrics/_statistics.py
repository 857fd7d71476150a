"""Statistics of attributions alone: how concentrated they are."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._torch.typing import Tree
from attrfn.metrics._direction import better
from attrfn.metrics._maps import flat_maps, in_dtype_of, undefined_where


@better("higher")
def sparseness(attributions: Tree) -> Tensor:
    """Sparseness: the Gini index of the absolute attributions.

        G = sum_k (2 k - n - 1) a_(k) / (n sum_k a_(k)),   a_(1) <= ... <= a_(n) sorted |A|

    Args:
        attributions: A tensor (B, ...) or a pytree of those.

    Returns:
        One index per example, (B,): 0 for a flat map, 1 - 1/n for a single entry, nan for zeros.

    Raises:
        TypeError: A leaf is not a tensor of real numbers.
        ValueError: There are no elements.

    Example:
        >>> import torch, attrfn.metrics
        >>> attrfn.metrics.sparseness(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([0.2500])

    Reference:
        Chalasani et al., Concise Explanations of Neural Networks using Adversarial Training, 2020.
        https://arxiv.org/abs/1810.06583
    """
    a, _ = flat_maps(attributions)
    a = a.abs()
    n = a.shape[1]
    weights = torch.arange(1 - n, n, 2, device=a.device).to(a.dtype) / n
    total = a.sum(-1)
    index = (a.sort(-1).values * weights).sum(-1) / total
    return in_dtype_of(attributions, undefined_where(~total.isfinite(), index))


@better("lower")
def complexity(attributions: Tree) -> Tensor:
    """Complexity: the entropy of the shares of the absolute attributions.

        H = - sum_k p_k ln p_k,   p_k = |a_k| / sum_j |a_j|

    Args:
        attributions: A tensor (B, ...) or a pytree of those.

    Returns:
        One entropy per example, (B,), in nats: 0 for a single entry, ln n for a flat map, nan for
        zeros.

    Raises:
        TypeError: A leaf is not a tensor of real numbers.
        ValueError: There are no elements.

    Example:
        >>> import torch, attrfn.metrics
        >>> attrfn.metrics.complexity(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([1.2799])

    Reference:
        Bhatt, Weller and Moura, Evaluating and Aggregating Feature-based Model Explanations, 2020.
        https://arxiv.org/abs/2005.00631
    """
    a, _ = flat_maps(attributions)
    share = a.abs()
    share = share / share.sum(-1, keepdim=True)
    return in_dtype_of(attributions, torch.special.entr(share).sum(-1))
