"""Philox 4x32-10 in plain tensor operations: words of a stream, from a key and a counter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attrfn._core.compiling import is_compiling

MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)  # less 2^32: products fit int64
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
SPLIT, FOLD, DRAW, LOW = 1, 2, 3, 4  # tags; LOW gives the low words of 64-bit draws
CHUNK = 2**17  # blocks made at once on a CPU, so that they stay in its cache


def philox(counter: tuple[Any, Any, Any, Any], k0: Tensor, k1: Tensor) -> list[Tensor]:
    """Rounds of c0, c1, c2, c3 = hi(b c2) ^ c1 ^ k0, lo(b c2), hi(a c0) ^ c3 ^ k1, lo(a c0).

    With p = x (m - 2^32), which fits int64: hi(m x) = (p >> 32) + x and lo(m x) = p mod 2^32.
    A word of the counter is an int64 tensor, or an int for all elements; tensors come as c1 and
    c3, which meet the key before a product: compiled, products of an arange have 32 bits
    (https://github.com/pytorch/pytorch/issues/175966).
    """
    (a, b), (w0, w1) = _MULTIPLIERS, _WEYL
    c0, c1, c2, c3 = counter
    for i in range(_ROUNDS):
        p, q = a * c0, b * c2
        c0, c1, c2, c3 = (
            ((q >> 32) + c2) ^ c1 ^ ((k0 + i * w0) & MASK),
            q & MASK,
            ((p >> 32) + c0) ^ c3 ^ ((k1 + i * w1) & MASK),
            p & MASK,
        )
    return [c0, c1, c2, c3]


def generate(
    key: Tensor, shape: Sequence[int], tags: tuple[int, ...], finish: Callable[..., Tensor]
) -> Tensor:
    """finish(one word per element from the stream of each tag), of shape (*batch, *shape)."""
    n = math.prod(_checked(shape))
    blocks = (n + 3) // 4

    def part(start: int, stop: int) -> Tensor:
        c = torch.arange(start, stop, device=key.device)
        words = (philox((tag, c, 0, 0), key[..., :1], key[..., 1:]) for tag in tags)
        return finish(*(torch.stack(four, -1).flatten(-2) for four in words))

    step = max(1, 2 * CHUNK // max(1, key.numel()))
    if is_compiling() or key.device.type != "cpu" or blocks <= step:
        flat = part(0, blocks)
    else:
        flat = torch.cat([part(i, min(i + step, blocks)) for i in range(0, blocks, step)], -1)
    return flat[..., :n].reshape((*key.shape[:-1], *shape))


def cells(
    key: Tensor, shape: Sequence[int], wide: torch.dtype, finish: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """finish(k, p) of uniform integers k in [0, 2^p): p = 53 in float64, 24 in float32."""
    if wide == torch.float64:
        return generate(key, shape, (DRAW, LOW), lambda hi, lo: finish((hi << 21) | (lo >> 11), 53))
    return generate(key, shape, (DRAW,), lambda word: finish(word >> 8, 24))


def _checked(shape: Sequence[int]) -> Sequence[int]:
    if isinstance(shape, int):
        raise TypeError(f"shape must be a tuple of ints, got the int {shape}: write ({shape},).")
    if any(size < 0 for size in shape) or math.prod(shape) > 2**34:
        raise ValueError(
            f"shape must have sizes >= 0 and at most 2^34 elements, got {tuple(shape)}: "
            "for more, draw with several keys of attrfn.random.split."
        )
    return shape
