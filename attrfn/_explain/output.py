"""Outputs of a model as one or several numbers per example, or as one for the whole batch."""

from __future__ import annotations

from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._explain.target import Chosen, select
from attrfn._torch.precision import widest


class Outcome(NamedTuple):
    """Explained values.

    Attributes:
        values: (S * B, K...) of S copies of a batch; or (S,), one for each copy.
        per_batch: Whether there is one value for a whole batch.
        dtype: The dtype of attributions of integer inputs.
    """

    values: Tensor
    per_batch: bool
    dtype: torch.dtype


def outcome(outputs: Any, chosen: Chosen, batch: int, copies: int, name: str) -> Outcome:
    """The explained values of what a model returned for ``copies`` copies of a batch.

    Args:
        outputs: A tensor, an array or a number.
        chosen: A checked target; ``None`` explains every output.
        batch: B, at least 1.
        copies: S.
        name: The target's name for messages.

    Raises:
        TypeError: The outputs are of another kind.
        ValueError: Their shape fits neither the rows nor the copies.
    """
    rows = copies * batch
    if callable(chosen):
        outputs, dtype = _tensor(chosen(outputs), f"callable {name}", name)
        if outputs.numel() not in (copies, rows):
            raise ValueError(
                f"the callable {name} returned shape {tuple(outputs.shape)} for {rows} row(s), "
                "expected one value per row, or one for the whole batch: it sees several copies "
                "of the batch at once, so bind per-example tensors with functools.partial, or use "
                "chunk_size=1"
            )
        per_batch = outputs.ndim == 0 or outputs.numel() < rows
        return Outcome(outputs.reshape(-1), per_batch, dtype)
    outputs, dtype = _tensor(outputs, "explained function", name)
    if chosen is not None:
        return Outcome(select(outputs, chosen, rows, name), False, dtype)
    # Where one example and one copy leave both readings open, a tensor with a dimension 0 counts as
    # one value per row, and a number as one for the batch.
    if outputs.ndim and outputs.shape[0] == rows:
        outputs = outputs.reshape(rows) if outputs.numel() == rows else outputs
        return Outcome(outputs, False, dtype)
    if outputs.numel() == copies:
        return Outcome(outputs.reshape(copies), True, dtype)
    raise ValueError(
        f"the explained function returned shape {tuple(outputs.shape)} for {rows} row(s), expected "
        "the rows in dimension 0, or one value for the whole batch: a model that cannot take "
        "several copies of the batch at once needs chunk_size=1, another axis order a callable "
        f"{name}"
    )


def _tensor(value: Any, giver: str, name: str) -> tuple[Tensor, torch.dtype]:
    """Numbers and arrays as tensors, and the dtype of attributions.

    Integers are differences later: in the widest type they are exact.
    """
    if isinstance(value, Number) and not isinstance(value, complex):
        number = torch.tensor(float(value), dtype=torch.float64)  # type: ignore[arg-type]
        return number, number.dtype
    if not isinstance(value, Tensor) and hasattr(value, "__array__"):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the {giver} returned a {type(value).__name__}, expected a tensor, an array or a "
            f"number: give {name} as a callable that picks one, such as lambda out: out[0][:, 1]"
        )
    if value.is_complex():
        raise TypeError(
            f"the {giver} returned {value.dtype}, expected real numbers: take .abs() or .real"
        )
    if value.is_floating_point():
        return value, value.dtype
    return value.to(widest(value.device)), torch.get_default_dtype()
