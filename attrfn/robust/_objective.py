"""What an attack raises, as one scalar for each example."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from attrfn._copies.batch import is_one_of, wide
from attrfn._explain.target import Chosen, IndexPerExample, choose
from attrfn._torch.autodiff import transforming
from attrfn._torch.say import say
from attrfn._torch.typing import Target

Objective: TypeAlias = Literal["cross_entropy", "margin", "target"] | Callable[[Any], Tensor]


def as_target(objective: Objective, target: Target, batch: int) -> tuple[Target, str, int]:
    """An objective as a target of the model, its name in messages, and its sign.

    Raises:
        TypeError: The target is not a class.
        ValueError: The objective is of an unknown kind, or the target is not as long as the
            batch.
    """
    if callable(objective):
        return objective, "objective", 1
    if is_one_of(objective, "target"):
        return target, "target", -1
    if not is_one_of(objective, *_RISES):
        raise ValueError(
            f"objective is {say(objective)}, expected 'cross_entropy', 'margin', 'target' or a "
            "callable outputs -> (B,)"
        )
    label = label_of(target, batch, f"objective={objective!r}")
    # A partial, so that the label follows the copies of the batch.
    return functools.partial(_RISES[objective], label=label), "target", 1


def label_of(target: Target, batch: int, asked_by: str) -> IndexPerExample:
    """The class of each example.

    Raises:
        TypeError: The target is not one class for each example.
    """
    chosen: Chosen = None if target is None else choose(target, batch)
    if isinstance(chosen, tuple) and not isinstance(chosen, IndexPerExample) and len(chosen) == 1:
        (index,) = chosen
        if isinstance(index, int):
            return IndexPerExample(torch.full((batch, 1), index), (index,), (index,))
    if isinstance(chosen, IndexPerExample) and chosen.rows.shape[1] == 1:
        return chosen
    raise TypeError(
        f"target is {say(target)}, expected a class for {asked_by}: an int or an integer tensor () "
        "or (B,); use objective='target' or a callable for other targets"
    )


def _odds(outputs: Any, *, label: IndexPerExample) -> Tensor:
    """``log sum_{j != y} exp z_j - z_y``, of which the cross-entropy is log(1 + exp).

    Both rise together: their gradients have one direction, and the same points are best. But the
    gradient of the cross-entropy vanishes, or loses the part of z_y, where a model is certain.
    """
    z, others = _logits(outputs, label)
    return others.logsumexp(1) - z


def _margin(outputs: Any, *, label: IndexPerExample) -> Tensor:
    """``max_{j != y} z_j - z_y``."""
    z, others = _logits(outputs, label)
    return others.amax(1) - z


_RISES: dict[str, Callable[..., Tensor]] = {"cross_entropy": _odds, "margin": _margin}


def _logits(outputs: Any, label: IndexPerExample) -> tuple[Tensor, Tensor]:
    """The logit of the class of each row, (R,), and all logits with -inf in its place, (R, K)."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the model returned {shape}, expected logits (B, K) with at least two classes: use "
            "objective='target', or a callable objective, for other outputs"
        )
    outputs = outputs.to(wide(outputs.dtype))
    y = index_of(label, outputs)
    return outputs.gather(1, y)[:, 0], outputs.scatter(1, y, -torch.inf)


def index_of(label: IndexPerExample, outputs: Tensor) -> Tensor:
    """The index of the class of each row among outputs (R, K), (R, 1).

    Raises:
        ValueError: There is no such class, where values can be read.
    """
    y, n = label.rows.to(outputs.device), outputs.shape[1]
    if not transforming() and y.is_inference():
        y = y.clone()  # autograd refuses to save an inference tensor
    if label.low is None or label.high is None:
        return torch.where(y < 0, y + n, y)
    if label.low[0] < -n or label.high[0] >= n:
        wrong = label.low[0] if label.low[0] < -n else label.high[0]
        raise ValueError(f"target is {wrong} for {n} classes, expected {-n} to {n - 1}")
    return y if label.low[0] >= 0 else torch.where(y < 0, y + n, y)
