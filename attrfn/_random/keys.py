"""Keys: made from integers, split, folded with indices, and broadcast to the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attrfn._random.philox import FOLD, MASK, SPLIT, blocks, generate
from attrfn._torch.guard import guarded
from attrfn._torch.typing import Key

Device = torch.device | str | None


@guarded
def key(seed: int, *, device: Device = None) -> Tensor:
    """Make a key from an integer: its low 64 bits as two words.

    Args:
        seed: Any int, also a negative one.
        device: Where the key and all draws with it are.

    Returns:
        The key, an int64 tensor of shape (2,).

    Raises:
        TypeError: If ``seed`` is not an int.

    Example:
        >>> key(7)
        tensor([7, 0])
    """
    return as_key(seed, device)


@guarded
def as_key(key: Tensor | int, device: Device = None) -> Tensor:
    """Normalise a ``key`` argument, an int or a tensor of words, to a key tensor.

    Args:
        key: An int, or an integer tensor of shape (..., 2) whose leading dimensions batch keys.
        device: Where to put the key. None: a tensor stays where it is.

    Returns:
        The key, an int64 tensor of shape (..., 2).

    Raises:
        TypeError: If ``key`` is neither an int nor an integer tensor.
        ValueError: If the last dimension of ``key`` is not 2.

    Example:
        >>> as_key(-1)
        tensor([4294967295, 4294967295])
    """
    if isinstance(key, Tensor) and _is_integer(key):
        if key.ndim == 0 or key.shape[-1] != 2:
            raise ValueError(
                f"key must have shape (..., 2), got {tuple(key.shape)}: make keys from a tensor "
                "of seeds with attrfn.random.fold_in(0, seeds)."
            )
        return key.to(device=device, dtype=torch.int64)
    if not isinstance(key, int) or isinstance(key, bool):
        raise TypeError(
            "key must be an int or an integer tensor of shape (..., 2), got "
            f"{_kind(key)}: make one with attrfn.random.key(seed)."
        )
    words = (key & MASK, (key >> 32) & MASK)
    return torch.stack([torch.full((), w, dtype=torch.int64, device=device) for w in words])


@guarded
def split(key: Tensor | int, n: int = 2) -> Tensor:
    """Derive n independent keys from each key.

    Args:
        key: An int or a key tensor of shape (*batch, 2).
        n: The number of keys; a longer split starts with the shorter one.

    Returns:
        Keys of shape (*batch, n, 2).

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> a, b = split(0)
        >>> a.shape, torch.equal(a, b)
        (torch.Size([2]), False)
    """
    return generate(as_key(key), (n, 2), (SPLIT,), lambda word: word)


@guarded
def fold_in(key: Tensor | int, data: Tensor | int) -> Tensor:
    """Derive a key from a key and an integer, such as the index of a sample or an example.

    Args:
        key: An int or a key tensor of shape (*batch, 2).
        data: An int or an integer tensor; its low 64 bits count.

    Returns:
        Keys of shape (*broadcast(batch, data.shape), 2).

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> keys = fold_in(0, torch.arange(5))
        >>> keys.shape, torch.equal(keys[3], fold_in(0, 3))
        (torch.Size([5, 2]), True)
    """
    if not (_is_integer(data) if isinstance(data, Tensor) else isinstance(data, int)):
        raise TypeError(
            f"data must be an int or an integer tensor, got {_kind(data)}: convert it to int64."
        )
    key = as_key(key, data.device if isinstance(data, Tensor) and isinstance(key, int) else None)
    data = data.to(torch.int64) if isinstance(data, Tensor) else data
    return blocks(FOLD, data & MASK, (data >> 32) & MASK, key, 2)


def row_keys(key: Key, batch: int, device: torch.device) -> Tensor:
    """A key (2,) shared by all examples as (1, 2), or keys (B, 2) with one for each.

    Raises:
        TypeError: The key is neither an int nor an integer tensor.
        ValueError: It has another shape.
    """
    words = as_key(key, device)
    if words.ndim == 1:
        return words[None]
    if words.ndim != 2 or words.shape[0] != batch:
        raise ValueError(
            f"key has shape {tuple(words.shape)}, expected (2,), or ({batch}, 2) with one key for "
            "each example"
        )
    return words


def sample_keys(keys: Tensor, i: slice, stream: int) -> Tensor:
    """Keys of the samples i of a stream, (S, 1 or B, 2)."""
    # Each sample has a key by its index, so that neither the chunks nor the batch change a draw.
    samples = torch.arange(i.start, i.stop, device=keys.device)
    return fold_in(fold_in(keys, stream), samples[:, None])


def sample_keys_of(keys: Tensor, i: slice, streams: Sequence[int]) -> tuple[Tensor, ...]:
    """:func:`sample_keys` of some streams, made in one go."""
    samples = torch.arange(i.start, i.stop, device=keys.device)
    each = fold_in(keys, torch.tensor(streams, device=keys.device)[:, None])
    return fold_in(each[:, None], samples[:, None]).unbind()


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _kind(x: object) -> str:
    return f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
