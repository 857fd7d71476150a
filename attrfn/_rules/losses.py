"""Decompositions of losses, as torch.nn.functional and exported graphs call them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

_REDUCTIONS = ("none", "mean", "sum")  # aten gives an index into these


def mse_loss(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
    """``(x - t)^2``, averaged or summed."""
    return _reduced((input - target).square(), *args, **options)


def l1_loss(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
    """``|x - t|``, averaged or summed."""
    return _reduced((input - target).abs(), *args, **options)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: Any = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``-log_softmax(x)[t]``, for class indices t."""
    # aten has (reduction: int, ignore_index, label_smoothing) where functional has size_average,
    # ignore_index and reduce. `type(...) is int` excludes the booleans of functional.
    if type(size_average) is int:
        label_smoothing, reduce = reduce or 0.0, None
    if target.is_floating_point() or label_smoothing:
        raise NotImplementedError("cross_entropy has a rule for class indices without smoothing")
    logs = F.log_softmax(input, 1 if input.ndim > 1 else 0)
    how = _reduction(size_average, reduce, reduction)
    return F.nll_loss(logs, target, weight, ignore_index=ignore_index, reduction=how)


def _reduced(
    loss: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: Any = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    if weight is not None:
        raise NotImplementedError("a loss with weights has no rule")
    how = _reduction(size_average, reduce, reduction)
    return loss.mean() if how == "mean" else loss.sum() if how == "sum" else loss


def _reduction(size_average: Any, reduce: Any, reduction: Any) -> str:
    """The name of a reduction; where functional has ``size_average``, aten has its number."""
    number = size_average if type(size_average) is int else reduction
    if isinstance(number, int):
        return _REDUCTIONS[number]
    if size_average is None and reduce is None:
        return str(reduction)
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: Any = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """``(1 - t) x + (1 + (w - 1) t) softplus(-x)`` with the weight w of the positive class."""
    # aten has (pos_weight, reduction: int) where functional has size_average and reduce.
    if type(reduce) is int:
        pos_weight, size_average, reduce, reduction = size_average, None, None, reduce
    positive = 1.0 if pos_weight is None else 1 + (pos_weight - 1) * target
    loss = (1 - target) * input + positive * F.softplus(-input)
    loss = loss if weight is None else loss * weight
    return _reduced(loss, size_average, reduce, reduction)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *args: Any, **options: Any
) -> Tensor:
    """``-t log p - (1 - t) log(1 - p)``, with logarithms of at least -100."""
    hit, miss = (t.log().clamp(min=-100.0) for t in (input, 1 - input))
    loss = -(target * hit + (1 - target) * miss)
    return _reduced(loss if weight is None else loss * weight, *args, **options)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: Any = "mean",
    beta: float = 1.0,
) -> Tensor:
    """The Huber loss divided by beta; the distance for beta = 0."""
    if type(size_average) is int:  # aten has (reduction: int, beta)
        beta, reduce = 1.0 if reduce is None else reduce, None
    loss = (input - target).abs() if beta == 0 else _huber(input - target, beta) / beta
    return _reduced(loss, size_average, reduce, reduction)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: Any = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """``d^2 / 2`` up to |d| = delta, and its tangent further on."""
    loss = _huber(input - target, delta)
    return _reduced(loss if weight is None else loss * weight, reduction=reduction)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: Any = "mean",
    log_target: bool = False,
) -> Tensor:
    """``t (log t - x)``."""
    loss = target.exp() * (target - input) if log_target else target.xlogy(target) - target * input
    if reduction == "batchmean":
        return loss.sum() / input.shape[0]
    return _reduced(loss, size_average, reduce, reduction)


def _huber(d: Tensor, delta: float) -> Tensor:
    # Without a branch on values, which no rule could follow.
    return (d.square() - (d.abs() - delta).relu().square()) / 2
