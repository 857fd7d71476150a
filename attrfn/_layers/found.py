"""What the tensors of a layer's value are, by a run of the model on another number of examples."""

from __future__ import annotations

import enum
from typing import Any

from torch import Tensor


class Found(enum.Enum):
    """What a tensor of a layer's value is."""

    ROWS = "it has the examples in dimension 0"
    OTHER = "its sizes follow the number of examples in another way"
    CONSTANT = "its sizes do not depend on the number of examples"
    UNKNOWN = "as many rows as examples, of a model that runs with no other number of examples"
    NOTHING = "it is not a floating tensor"


def kinds(leaves: list[Any], batch: int, others: list[Any] | None, size: int) -> list[Found]:
    """What each tensor is, by those for another number of examples; None if no run is possible."""

    def kind(t: Any, u: Any) -> Found:
        if not is_floating(t):
            return Found.NOTHING
        is_row = t.ndim > 0 and len(t) == batch
        if others is None:
            return Found.OTHER if not is_row else Found.ROWS if batch == 1 else Found.UNKNOWN
        if is_row and isinstance(u, Tensor) and u.ndim == t.ndim and len(u) == size:
            return Found.ROWS
        same = isinstance(u, Tensor) and u.shape == t.shape
        return Found.CONSTANT if same and t.numel() else Found.OTHER

    pairs = zip(leaves, leaves if others is None else others, strict=True)
    return [kind(t, u) for t, u in pairs]


def is_floating(t: Any) -> bool:
    """Whether this is a tensor of real or complex numbers."""
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
