"""Which end of a metric is the better one, as a mark on the metric."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
End = Literal["higher", "lower"]


def better(end: End | None) -> Callable[[F], F]:
    """Mark a metric: its attribute ``better`` is ``"higher"``, ``"lower"`` or None."""

    def mark(metric: F) -> F:
        metric.better = end  # type: ignore[attr-defined]
        return metric

    return mark


def better_end(metric: Callable[..., Any]) -> End | None:
    """The mark of a metric, or of the one that it binds; None if there is none."""
    while isinstance(metric, functools.partial) and not hasattr(metric, "better"):
        metric = metric.func
    end: End | None = getattr(metric, "better", None)
    return end
