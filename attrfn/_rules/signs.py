"""Linear operations on the positive and negative parts of their input and weights.

``p(.) = max(., 0)`` and ``n(.) = min(., 0)``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Linear = Callable[..., Tensor]


def positive_part(op: Linear, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """``op(p(x), p(w), p(b)) + op(n(x), n(w))``, what raises the value."""
    b = None if b is None else b.clamp(min=0)
    return by_sign(op, x, w.clamp(min=0), b, w.clamp(max=0))


def negative_part(op: Linear, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """``op(p(x), n(w), n(b)) + op(n(x), p(w))``, what lowers the value."""
    b = None if b is None else b.clamp(max=0)
    return by_sign(op, x, w.clamp(max=0), b, w.clamp(min=0))


def by_sign(op: Linear, x: Tensor, w: Tensor, b: Tensor | None, other: Tensor) -> Tensor:
    """``op(p(x), w, b) + op(n(x), other)``."""
    if getattr(op, "rectified", False):  # of a ReLU's values, half of the work is for nothing
        return op(x, w, b)
    return op(x.clamp(min=0), w, b) + op(x.clamp(max=0), other, None)
