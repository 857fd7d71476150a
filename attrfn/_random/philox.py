"""Philox 4x32-10 in plain tensor operations: words of a stream, from a key and a counter.

A counter-based generator has no state: a word is a function of the key and of its place. So draws
compile and map, and neither chunks nor devices change them. torch's own generators are state, and
they break compiled graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.say import say

Word = Any
"""An int64 tensor or an int, in [0, 2^32)."""

MASK = 0xFFFFFFFF
# The multipliers less 2^32. torch has no uint64, and the product of two words would overflow int64;
# with these factors, which are less than 2^31 in size, it does not.
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
# The steps of the key from round to round; they and the number of rounds are Salmon et al.'s.
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Tags, the first word of the counter: they keep the streams of one key apart. LOW has the low words
# of draws of 64 bits.
SPLIT, FOLD, DRAW, LOW = 1, 2, 3, 4
# Up to this many blocks come from Python's ints: ten rounds of kernels on few words cost more. That
# wins 1.5 to 1.6: gradient_shap of the MLP, batch 1, in
# benchmarks/special_cases_earn_their_place.py.
_FEW = 32
# Blocks made at once on a CPU. An int64 word of each is 1 MiB: the temporary tensors of the rounds
# stay in the cache, and the cost of a call is still small relative to its work. That wins 1.8 in
# random.normal of 4 million numbers, in the same table.
CHUNK = 2**17


def philox(counter: tuple[Word, Word, Word, Word], k0: Word, k1: Word) -> list[Word]:
    """Rounds of c0, c1, c2, c3 = hi(b c2) ^ c1 ^ k0, lo(b c2), hi(a c0) ^ c3 ^ k1, lo(a c0).

    With p = x (m - 2^32): hi(m x) = (p >> 32) + x and lo(m x) = p mod 2^32. A word is an int64
    tensor, or an int for all elements.
    """
    # The place of a word is c1 (and c3), and never c0 or c2: these are multiplied at once, and
    # Inductor computes the product of an arange and a constant in 32 bits
    # (https://github.com/pytorch/pytorch/issues/175966). c1 and c3 first meet the key.
    a, b = _MULTIPLIERS
    c0, c1, c2, c3 = counter
    for u, v in zip(*map(_schedule, (k0, k1), _WEYL), strict=True):
        p, q = a * c0, b * c2
        c0, c1, c2, c3 = (((q >> 32) + c2) ^ u ^ c1, q & MASK, ((p >> 32) + c0) ^ v ^ c3, p & MASK)
    return [c0, c1, c2, c3]


def _schedule(k: Word, step: int) -> Sequence[Word]:
    """A word of the key for each round."""
    # In eager mode all rounds in one operation; a compiler fuses ten, and needs no arange.
    if isinstance(k, int) or is_compiling():
        return [(k + i * step) & MASK for i in range(_ROUNDS)]
    steps = torch.arange(0, _ROUNDS * step, step, device=k.device)
    return list(((k[..., None] + steps) & MASK).unbind(-1))


def blocks(tag: Word, low: Word, high: Word, key: Tensor, n: int = 4) -> Tensor:
    """The first n words of the blocks (tag, low, 0, high), in a last dimension."""
    k0, k1 = key.unbind(-1)
    tensors = [w for w in (tag, low, high, k0, k1) if isinstance(w, Tensor)]
    readable = not transforming() and all(map(_is_on_cpu, tensors))
    tensors = list(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]
    shape = tensors[0].shape
    if not readable or shape.numel() > _FEW:
        return torch.stack([w.expand(shape) for w in philox((tag, low, 0, high), k0, k1)[:n]], -1)
    lists = iter([t.flatten().tolist() for t in tensors])
    words = [next(lists) if isinstance(w, Tensor) else repeat(w) for w in (tag, low, high)]
    found = [philox((t, i, 0, j), u, v)[:n] for t, i, j, u, v in zip(*words, *lists, strict=False)]
    return torch.tensor(found, dtype=torch.int64).reshape(*shape, n)


def _is_on_cpu(t: Tensor) -> bool:
    """Whether values can be read at once; a device is asynchronous, a subclass may hold none."""
    return type(t) is Tensor and t.device.type == "cpu"


def generate(
    key: Tensor, shape: Sequence[int], tags: tuple[int, ...], finish: Callable[..., Tensor]
) -> Tensor:
    """finish(one word per element from the stream of each tag), of shape (*batch, *shape)."""
    n = math.prod(_checked(shape))
    # Compiled code always makes some words too many: whether n is a multiple of 4 would be a guard.
    count = n // 4 + 1 if is_compiling() else (n + 3) // 4

    def segment(start: int, stop: int) -> Tensor:
        c, k = torch.arange(start, stop, device=key.device), key[..., None, :]
        if is_compiling() or len(tags) == 1:
            return finish(*(blocks(tag, c, 0, k).flatten(-2) for tag in tags))
        each = torch.tensor(tags, device=key.device).reshape(-1, *[1] * key.ndim)
        return finish(*blocks(each, c, 0, k).flatten(-2).unbind(0))

    step = max(1, 2 * CHUNK // max(1, key.numel()))
    if is_compiling() or key.device.type != "cpu" or count <= step:
        flat = segment(0, count)
    else:
        flat = torch.cat([segment(i, min(i + step, count)) for i in range(0, count, step)], -1)
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
    # Sizes of 0 do not count: torch multiplies the others for the strides. Compiled code takes the
    # plain product, because each of these comparisons would be a guard.
    sizes = shape if is_compiling() else [max(size, 1) for size in shape]
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"shape must be a tuple of ints, got {say(shape)}.")
    if any(size < 0 for size in shape) or math.prod(sizes) > 2**34:
        raise ValueError(
            f"shape must have sizes >= 0 and at most 2^34 elements, got {say(tuple(shape))}: "
            "for more, draw with several keys of attrfn.random.split."
        )
    return shape
