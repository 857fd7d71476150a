"""Numbers to draw: checked copies of the caller's arguments, and the limit of a colour scale."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from attrfn.viz._canvas import need

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array: TypeAlias = "Tensor | ArrayLike"


def numbers(value: Array, name: str, shapes: dict[int, str], *, finite: bool = True) -> Tensor:
    """A float64 copy on the CPU, without graph.

    Args:
        value: A real tensor of any device and dtype, or an argument for ``numpy.asarray``.
        name: The argument's name for messages.
        shapes: The allowed numbers of dimensions, each with its shape in words.
        finite: Whether NaN and infinities are refused.

    Raises:
        TypeError: The values are not real numbers.
        ValueError: The number of dimensions is not allowed, there is no value, or one is NaN or
            infinite where ``finite`` is set.
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(
                f"{name} has dtype {value.dtype}, expected real numbers: draw .real or .abs()"
            )
        # A copy even if the type is right: what is drawn must not change with the caller's tensor.
        data = value.detach().cpu().to(torch.float64, copy=True)
    else:
        data = _from_array_like(value, name)
    if data.ndim not in shapes:
        raise ValueError(
            f"{name} has shape {tuple(data.shape)}, expected {' or '.join(shapes.values())}: "
            "index or reshape it first"
        )
    if data.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(data.shape)} and holds no value, expected at least one: "
            "leave it out or explain a batch that is not empty"
        )
    wrong = int((~torch.isfinite(data)).sum())
    if wrong and finite:
        raise ValueError(
            f"{name} holds {wrong} of {data.numel()} values that are NaN or infinite, expected "
            "finite numbers: find where they arise, or draw torch.nan_to_num of it"
        )
    return data


def _from_array_like(value: ArrayLike, name: str) -> Tensor:
    np = need("numpy")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is a {type(value).__name__} that is not an array ({error}), expected a tensor "
            "or numbers: give rows of equal length"
        ) from None
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} is a {type(value).__name__} of {array.dtype}, expected a tensor of real "
            "numbers: convert it with torch.as_tensor"
        )
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def percentile(value: float, name: str = "outlier_percentile") -> float:
    """The checked percentile, above 0 and at most 100."""
    if not 0 < value <= 100:
        raise ValueError(
            f"{name} is {value}, expected a number above 0 and at most 100: 100 lets the scale "
            "reach the largest value"
        )
    return float(value)


def limit(values: Tensor, at: float = 100.0) -> float:
    """The nearest-rank percentile ``at`` of |values|: where a zero-centred scale ends.

    Where the percentile is 0 (sparse maps), it is the largest |value|; it is 0.0 only if all values
    are zero or subnormal.
    """
    # Values of subnormal size are rounding errors: a scale made for them would show noise.
    # The nearest rank is one of the values. An interpolated percentile would depend on how far the
    # next one is, and so on the very outliers that it is to leave out.
    size = values.abs().flatten()
    rank = min(size.numel(), max(1, math.ceil(at / 100 * size.numel())))
    tiny = torch.finfo(torch.float64).tiny
    for candidate in (float(size.kthvalue(rank).values), float(size.max())):
        if candidate >= tiny:
            return candidate
    return 0.0


def signed(value: float, digits: int = 2) -> str:
    """``value`` with its sign (a real minus) and ``digits`` significant digits."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    text = re.sub(r"e([+-])0*", lambda e: "e" + e[1].strip("+"), f"{rounded:+.6g}")
    return text.replace("-", "\N{MINUS SIGN}")


def plain(value: float, digits: int = 6) -> str:
    """``value`` with at most ``digits`` significant digits and a real minus."""
    text = re.sub(r"e([+-])0*", lambda e: "e" + e[1].strip("+"), f"{value:.{digits}g}")
    return text.replace("-", "\N{MINUS SIGN}")
