"""What is explained of a text, and the result of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import attrfn
from attrfn._explain.explain import explain
from attrfn._torch.typing import Method, ModelFn
from attrfn.text._adapter import Adapter
from attrfn.text._parts_type import Parts, TextAttribution
from attrfn.text._removal import Removal
from attrfn.text._scores import ADDITIVE, Score

# Methods whose values are linear in the outputs: those of a sum of scores are the sum of theirs.
LINEAR: tuple[Method, ...] = (
    attrfn.gradient,
    attrfn.input_x_gradient,
    attrfn.integrated_gradients,
    attrfn.deep_lift,
    attrfn.lrp,
    attrfn.feature_ablation,
    attrfn.occlusion,
    attrfn.shapley_values,
    attrfn.shapley_value_sampling,
    attrfn.kernel_shap,
)


class Plan(NamedTuple):
    """What is explained.

    Attributes:
        model: The model.
        parts: The prompt.
        answer: (1, N).
        foil: (1, N), or None.
        other: Another answer, (1, M), or None.
        score: The score.
        remove: How parts are removed, or None.
        default: The removal of a game if that is None.
        whole: Whether to explain the whole answer only.
        context: Whether the answer's tokens are parts too.
        batch: How many rows, or outputs, run at once, or None.
    """

    model: Adapter
    parts: Parts
    answer: Tensor
    foil: Tensor | None
    other: Tensor | None
    score: Score
    remove: Removal | None
    default: Callable[[], Removal]
    whole: bool
    context: bool
    batch: int | None

    def sums(self, method: Method) -> bool:
        """Whether the total of a method is the sum of its rows."""
        return self.score in ADDITIVE and is_linear(method)


def is_linear(method: Method) -> bool:
    """Whether a method is known to be linear in the outputs, itself or at a layer."""
    inner = method.func if isinstance(method, functools.partial) else method
    if hasattr(inner, "moved_to"):
        inner = getattr(inner, "__wrapped__", inner)
    return any(inner is m for m in LINEAR)


def result(
    method: Method,
    plan: Plan,
    values: Tensor,
    scores: Tensor,
    empty: Tensor | None,
    stderr: Tensor | None = None,
) -> TextAttribution:
    """A result of values (K, n): those of each token, and of the whole answer where there is one.

    Where a score of the user's gives one number, K is 1.
    """
    n = plan.answer.shape[1]
    if plan.whole or len(values) < n:
        rows, total = slice(-1, None), values[-1]
    else:
        rows = slice(0, n)
        summed = len(values) == n or plan.sums(method)
        total = values[rows].sum(0) if summed else values[n]
    return TextAttribution(
        values=values[rows],
        total=total,
        scores=scores[rows],
        empty=None if empty is None else empty[rows],
        parts=plan.parts.labels,
        answer=(),
        spans=plan.parts.spans,
        stderr=None if stderr is None else stderr[rows],
    )


def outputs(fn: ModelFn, x: Tensor) -> Tensor:
    """What a model function returns, run on a private copy of the model."""
    p = explain(fn, x, None, differentiated=False, forward_only=True)
    with torch.no_grad():
        found: Tensor = p.model(x)
    return found
