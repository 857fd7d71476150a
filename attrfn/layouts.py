"""Layouts of layers: frames, tokens, windows and packed steps, with the examples in dimension 0.

The functions are for the option ``reshape`` of class activation maps. Those that keep every element
are also for the option ``rows`` of methods at layers and neurons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.utils import rnn

from attrfn._copies.batch import is_integer
from attrfn._explain.flags import say
from attrfn._explain.noise import count_of

__all__ = ["channels_last", "frames", "padded", "tokens", "windows"]


def frames(n: int) -> Callable[[Tensor], Tensor]:
    """Frames that are folded into the batch, as videos.

        (B n, C, ...) -> (B, C, n, ...),   row b n + t is frame t of example b

    Args:
        n: The number of frames of each example.

    Returns:
        A function for ``reshape`` or ``rows``.

    Raises:
        ValueError: ``n`` is not a positive int; or, when called, it does not divide the rows.

    Example:
        >>> import torch
        >>> frames(5)(torch.zeros(15, 4, 7, 7)).shape
        torch.Size([3, 4, 5, 7, 7])
    """
    count_of("n", n)

    def videos(a: Tensor) -> Tensor:
        _check(a, a.ndim >= 2 and len(a) % n == 0, f"(B * {n}, C, ...)")
        return a.reshape(-1, n, *a.shape[1:]).transpose(1, 2)

    return videos


def tokens(
    height: int | None = None, width: int | None = None, *, skip: int = 0
) -> Callable[[Tensor], Tensor]:
    """Tokens of a vision transformer as an image.

        (B, skip + height width, C) -> (B, C, height, width),   row by row

    Args:
        height: Rows of the image in tokens; ``None`` for a square.
        width: Columns of the image in tokens; ``None`` for those that the height leaves.
        skip: The leading tokens that are not part of the image: 1 for a class token, more for
            registers. They are dropped, so that with ``skip`` the function fits ``reshape`` only.

    Returns:
        A function for ``reshape``, and for ``rows`` if nothing is skipped.

    Raises:
        ValueError: A number is not an int in its range; or, when called, the tokens are not as many
            as the image has.

    Example:
        >>> import torch
        >>> tokens(skip=1)(torch.zeros(2, 197, 8)).shape
        torch.Size([2, 8, 14, 14])
    """
    for value, name in ((height, "height"), (width, "width")):
        if value is not None:
            count_of(name, value)
    if not is_integer(skip) or skip < 0:
        raise ValueError(f"skip is {say(skip)}, expected an int of at least 0")

    def images(a: Tensor) -> Tensor:
        n = a.shape[1] - skip if a.ndim == 3 else 0
        rows = height or (math.isqrt(max(n, 0)) if width is None else n // width)
        columns = width or (rows if height is None else n // height)
        size = f"{height or 'height'} * {width or 'width'}"
        _check(a, n > 0 and rows * columns == n, f"(B, {skip} + {size}, C)")
        return a[:, skip:].mT.reshape(len(a), -1, rows, columns)

    return images


def windows(height: int, width: int, size: int, *, shift: int = 0) -> Callable[[Tensor], Tensor]:
    """Windows of a Swin transformer that are folded into the batch, as an image.

        (B windows, size size, C) -> (B, C, height, width)

    Args:
        height: Rows of the image in tokens.
        width: Columns of the image in tokens. Where the size does not divide the height or width,
            the image was padded below and on the right, and the padding is dropped.
        size: Side of a window.
        shift: How far the image was rolled up and left before it was cut, ``size // 2`` in every
            second block.

    Returns:
        A function for ``reshape``, and for ``rows`` if there is no padding. It also takes windows
        (B windows, size, size, C).

    Raises:
        ValueError: A number is not an int in its range; or, when called, the rows are not the
            windows of such images.

    Example:
        >>> import torch
        >>> windows(56, 56, 7)(torch.zeros(2 * 64, 49, 96)).shape
        torch.Size([2, 96, 56, 56])
    """
    for value, name in ((height, "height"), (width, "width"), (size, "size")):
        count_of(name, value)
    if not is_integer(shift) or not 0 <= shift < size:
        raise ValueError(f"shift is {say(shift)}, expected an int from 0 to {size - 1}")
    down, across = -(-height // size), -(-width // size)

    def images(a: Tensor) -> Tensor:
        inner = tuple(a.shape[1:-1])
        fits = inner in ((size * size,), (size, size)) and len(a) % (down * across) == 0
        _check(a, fits, f"(B * {down * across}, {size} * {size}, C)")
        parts = a.reshape(-1, down, across, size, size, a.shape[-1]).permute(0, 5, 1, 3, 2, 4)
        whole = parts.reshape(-1, a.shape[-1], down * size, across * size)
        whole = whole.roll((shift, shift), (2, 3)) if shift else whole
        return whole[:, :, :height, :width]

    return images


def channels_last(a: Tensor) -> Tensor:
    """Images with the channels last, as those between the blocks of torchvision's Swin.

        (B, ..., C) -> (B, C, ...)

    Args:
        a: The value of the layer.

    Returns:
        The same with the channels in dimension 1.

    Raises:
        ValueError: It has fewer than three dimensions.

    Example:
        >>> import torch
        >>> channels_last(torch.zeros(2, 7, 7, 96)).shape
        torch.Size([2, 96, 7, 7])
    """
    _check(a, a.ndim >= 3, "(B, ..., C)")
    return a.movedim(-1, 1)


def padded(value: Any) -> Tensor:
    """The steps of a packed sequence, or of what a recurrent layer returns, as (B, T, ...).

    Args:
        value: A ``PackedSequence``, or a tuple with one, such as the output of ``nn.LSTM``.

    Returns:
        The sequences, filled up with zeros at their ends.

    Raises:
        TypeError: The value contains no packed sequence.

    Example:
        >>> import torch
        >>> packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
        >>> padded(packed).shape
        torch.Size([2, 3, 2])
    """
    parts = (value,) if isinstance(value, rnn.PackedSequence) else value
    for part in parts if isinstance(parts, (tuple, list)) else ():
        if isinstance(part, rnn.PackedSequence):
            return rnn.pad_packed_sequence(part, batch_first=True)[0]
    raise TypeError(f"value is {say(value)}, expected a PackedSequence or a tuple with one")


def _check(a: Tensor, fits: bool, form: str) -> None:
    if not fits:
        raise ValueError(f"the layer's value has shape {tuple(a.shape)}, expected {form}")
