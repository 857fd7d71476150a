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
