"""Outputs of a model as one or several numbers per example, or as one for the whole batch."""

from __future__ import annotations

from numbers import Integral, Number
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._explain.called_target import called_target
from attrfn._explain.said import complex_outputs, main_tensor, not_one_per_row, picks
from attrfn._explain.target import Chosen, select
from attrfn._torch.autodiff import transforming
from attrfn._torch.precision import widest
from attrfn._torch.warn import warn


class Outcome(NamedTuple):
    """Explained values.

    Attributes:
        values: (S * B, K...) of S copies of a batch; or (S,) or (1, K), for each copy.
        per_batch: Whether the values are those of a whole batch.
        dtype: That of the attributions of inputs that have no floating one.
        integers: Whether the model, or the target, returned integers.
    """

    values: Tensor
    per_batch: bool
    dtype: torch.dtype
    integers: bool = False


def outcome(outputs: Any, chosen: Chosen, batch: int, copies: int, name: str) -> Outcome:
    """The explained values of what a model returned for ``copies`` copies of a batch.

    Args:
        outputs: A tensor, an array or a number.
        chosen: A checked target; ``None`` explains every output.
        batch: B, at least 1.
        copies: S.
        name: The target's name for messages.

    Raises:
        TypeError: The outputs are of an unknown kind.
        ValueError: Their shape fits neither the rows nor the copies.
    """
    rows = copies * batch
    if callable(chosen):
        outputs, dtype, integers = _tensor(
            called_target(name, chosen, outputs), f"the callable {name}", name
        )
        if outputs.numel() not in (copies, rows):
            raise ValueError(not_one_per_row(outputs, rows, name, ", or one for the whole batch"))
        per_batch = outputs.ndim == 0 or outputs.numel() < rows
        return Outcome(outputs.reshape(-1), per_batch, dtype, integers)
    advice = picks(outputs, chosen)
    outputs, dtype, integers = _tensor(main_tensor(outputs), "model_fn", name, advice)
    if chosen is not None:
        return Outcome(select(outputs, chosen, rows, name), False, dtype, integers)
    # Where one example and one copy leave both readings open, a tensor with a dimension 0 counts as
    # one value per row, and a number as one for the batch.
    if outputs.ndim and outputs.shape[0] == rows:
        outputs = outputs.reshape(rows) if outputs.numel() == rows else outputs
        return Outcome(outputs, False, dtype, integers)
    if outputs.numel() == copies:
        return Outcome(outputs.reshape(copies), True, dtype, integers)
    if copies == 1 and outputs.ndim == 1:  # several values for the whole batch
        return Outcome(outputs[None], True, dtype, integers)
    raise ValueError(
        f"model_fn returned shape {tuple(outputs.shape)} for {rows} row(s), expected "
        "the rows in dimension 0, or one value for the whole batch: a model that cannot take "
        "several copies of the batch at once needs chunk_size=1, another axis order a callable "
        f"{name}"
    )


def _tensor(
    value: Any, giver: str, name: str, advice: str = "lambda out: out[0][:, 1]"
) -> tuple[Tensor, torch.dtype, bool]:
    """Numbers and arrays as floating tensors, the dtype of attributions, and whether of integers.

    Integers become the widest floating type: attributions are differences and shares of them, which
    an integer type could not hold, and the default type would round those above 2^24.
    """
    if isinstance(value, Number) and not isinstance(value, complex):
        number = torch.tensor(float(value), dtype=torch.float64)  # type: ignore[arg-type]
        if isinstance(value, Integral) and int(number) != int(value):
            _warn_rounded(giver)
        return number, number.dtype, isinstance(value, Integral)
    if not isinstance(value, Tensor) and hasattr(value, "__array__"):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{giver} returned a {type(value).__name__}, expected a tensor, an array or a "
            f"number: give {name} as a callable that picks one, such as {advice}"
        )
    if value.is_complex():
        raise TypeError(complex_outputs(value, giver, name))
    if value.is_floating_point():
        return value, value.dtype, False
    kind = widest(value.device)
    if not transforming() and value.numel() and _beyond(value, 2 / torch.finfo(kind).eps):
        _warn_rounded(giver)
    return value.to(kind), kind, True


def _beyond(value: Tensor, limit: float) -> bool:
    low, high = value.aminmax()
    return int(high) > limit or int(low) < -limit


def _warn_rounded(giver: str) -> None:
    warn(
        f"{giver} returned integers that floating numbers cannot hold exactly, so their last "
        "digits are lost: subtract a constant from them, or return smaller units"
    )
