"""Draws from distributions as functions of a key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from attrfn._random.erfinv import erfinv
from attrfn._random.keys import Device, as_key
from attrfn._random.philox import DRAW, LOW, cells, generate
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import guarded
from attrfn._torch.say import say


@guarded
def bits(key: Tensor | int, shape: Sequence[int] = (), *, device: Device = None) -> Tensor:
    """Draw 32-bit words.

    Args:
        key: An int or a key tensor of shape (*batch, 2).
        shape: The shape of one draw; a longer draw starts with the shorter one.
        device: Where to draw. None: where the key is.

    Returns:
        An int64 tensor of shape (*batch, *shape) with values in [0, 2^32).

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> bits(0, (2,))
        tensor([3381718825, 1782871206])
    """
    return generate(as_key(key, device), shape, (DRAW,), lambda word: word)


@guarded
def uniform(
    key: Tensor | int,
    shape: Sequence[int] = (),
    *,
    dtype: torch.dtype = torch.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
    device: Device = None,
) -> Tensor:
    """Draw from the uniform distribution: minval + (maxval - minval) k / 2^p, k in [0, 2^p).

    p is 53 for float64, else 24, of the same leading bits. A value that rounds up to ``maxval``
    becomes the number below it.

    Args:
        key: An int or a key tensor of shape (*batch, 2).
        shape: The shape of one draw; a longer draw starts with the shorter one.
        dtype: float16 and bfloat16 are drawn in float32 and rounded.
        minval: The least value.
        maxval: The upper bound; all values are below it.
        device: Where to draw. None: where the key is.

    Returns:
        A tensor of shape (*batch, *shape).

    Raises:
        TypeError, ValueError: If an argument is not as above, or ``minval`` exceeds ``maxval``.

    Example:
        >>> uniform(0, (4,))
        tensor([0.7874, 0.4151, 0.6046, 0.4268])
    """
    key, wide = as_key(key, device), _wide(dtype)
    for name, bound in (("minval", minval), ("maxval", maxval)):
        _check_bound(name, bound, dtype)
    if minval > maxval:
        raise ValueError(f"minval must not exceed maxval, got {minval} > {maxval}: swap them.")
    if maxval - minval > torch.finfo(wide).max:
        raise ValueError(
            f"maxval - minval must be finite in {wide}, got {minval} and {maxval}: scale the draw."
        )
    top = _largest_below(minval, maxval, dtype, key.device)

    def place(k: Tensor, p: int) -> Tensor:
        x = minval + (maxval - minval) * 2.0**-p * k.to(wide)
        return torch.minimum(x.to(dtype), top)

    return cells(key, shape, wide, place)


@guarded
def normal(
    key: Tensor | int,
    shape: Sequence[int] = (),
    *,
    dtype: torch.dtype = torch.float32,
    device: Device = None,
) -> Tensor:
    """Draw from the standard normal distribution: sqrt(2) erfinv(2 u - 1), u = (k + 1/2) / 2^p.

    u is the centre of a cell of ``uniform``, so a draw is finite: at most 5.42 (float64: 8.29).

    Args:
        key: An int or a key tensor of shape (*batch, 2).
        shape: The shape of one draw; a longer draw starts with the shorter one.
        dtype: float16 and bfloat16 are drawn in float32 and rounded.
        device: Where to draw. None: where the key is.

    Returns:
        A tensor of shape (*batch, *shape).

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> normal(0, (4,))
        tensor([ 0.7973, -0.2144,  0.2654, -0.1846])
    """
    wide = _wide(dtype)

    def quantile(k: Tensor, p: int) -> Tensor:
        centre = (2 * k + (1 - 2**p)).to(wide) * 2.0**-p  # 2 u - 1: an odd integer < 2^p, exact
        return (math.sqrt(2) * erfinv(centre)).to(dtype)

    return cells(as_key(key, device), shape, wide, quantile)


@guarded
def bernoulli(
    key: Tensor | int, p: Tensor | float, shape: Sequence[int] = (), *, device: Device = None
) -> Tensor:
    """Draw True with probability p: uniform(key) < p.

    Args:
        key: An int or a key tensor of shape (*batch, 2).
        p: A float in [0, 1], or a tensor that broadcasts to (*batch, *shape).
        shape: The shape of one draw; a longer draw starts with the shorter one.
        device: Where to draw. None: where the key is.

    Returns:
        A bool tensor of shape (*batch, *shape).

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> bernoulli(0, 0.5, (4,))
        tensor([False,  True, False,  True])
    """
    u = uniform(key, shape, device=device)
    if isinstance(p, Tensor):
        sizes = zip(reversed(p.shape), reversed(u.shape), strict=False)
        if p.ndim > u.ndim or any(a not in (1, b) for a, b in sizes):
            raise ValueError(
                f"p must broadcast to the draw's shape {tuple(u.shape)}, got {tuple(p.shape)}: "
                "pass shape=tuple(p.shape)."
            )
        if not transforming() and not bool(((p >= 0) & (p <= 1)).all()):
            raise ValueError("p must be in [0, 1], got a tensor with others: pass probabilities.")
    elif _is_no_number(p):
        raise TypeError(f"p must be a number or a tensor, got {say(p)}: pass a probability.")
    elif not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}: pass a probability.")
    return u < p


@guarded
def randint(key: Tensor | int, shape: Sequence[int], high: int, *, device: Device = None) -> Tensor:
    """Draw integers in [0, high): floor(high r / 2^64), r of 64 bits, so the bias is below 2^-33.

    Args:
        key: An int or a key tensor of shape (*batch, 2).
        shape: The shape of one draw; a longer draw starts with the shorter one.
        high: An int from 1 to 2^31.
        device: Where to draw. None: where the key is.

    Returns:
        An int64 tensor of shape (*batch, *shape).

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> randint(0, (4,), 10)
        tensor([7, 4, 6, 4])
    """
    given: object = high
    if isinstance(given, bool) or not isinstance(given, (int, Integral)):
        raise TypeError(f"high must be an int, got {say(high)}: pass an int from 1 to 2^31.")
    if not 1 <= high <= 2**31:
        raise ValueError(f"high must be from 1 to 2^31, got {high}: draw from bits instead.")
    return generate(
        as_key(key, device),
        shape,
        (DRAW, LOW),
        lambda hi, lo: (hi * high + ((lo * high) >> 32)) >> 32,
    )


@guarded
def permutation(key: Tensor | int, n: int, *, device: Device = None) -> Tensor:
    """Draw a permutation of 0, ..., n - 1: the stable argsort of n words of 63 bits.

    Args:
        key: An int or a key tensor of shape (*batch, 2).
        n: The number of integers to permute.
        device: Where to draw. None: where the key is.

    Returns:
        An int64 tensor of shape (*batch, n).

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> permutation(0, 5)
        tensor([1, 3, 2, 4, 0])
    """
    if isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)):
        raise TypeError(f"n must be an int, got {say(n)}: pass a number of indices.")
    # 63 bits, because int64 has a sign. Two equal words would favour the order of the indices; in a
    # thousand words that has a chance of 2^-44.
    words = generate(as_key(key, device), (n,), (DRAW, LOW), lambda hi, lo: (hi << 31) | (lo >> 1))
    return torch.argsort(words, dim=-1, stable=True)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in, which holds all integers below 2^p exactly."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(
            f"dtype must be float16, bfloat16, float32 or float64, got {say(dtype)}: "
            "draw integers with attrfn.random.randint."
        )
    return torch.float64 if dtype == torch.float64 else torch.float32


def _is_no_number(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, (int, float, Real))


def _check_bound(name: str, value: float, dtype: torch.dtype) -> None:
    if _is_no_number(value):
        raise TypeError(f"{name} must be a number, got {say(value)}: pass a float.")
    if not abs(value) <= torch.finfo(dtype).max:
        raise ValueError(f"{name} must be finite in {dtype}, got {value}: pass another bound.")


def _largest_below(low: float, high: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The number of the dtype below high (nextafter, for all dtypes), but at least low."""
    wide, info = _wide(dtype), torch.finfo(dtype)
    least, top = (torch.full((), x, dtype=dtype, device=device).to(wide) for x in (low, high))
    # Older versions of torch have no nextafter of half precision. 0.625 eps |top| is 5/8 to 5/4 of
    # a unit in the last place, so that top - step rounds to the number below.
    step = 0.625 * info.eps * (top.abs() + info.tiny)
    return torch.maximum(least, top - step).to(dtype)
