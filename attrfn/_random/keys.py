"""One key for all rows of a batch, or one for each: (1, 2) or (B, 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn import random
from attrfn._torch.typing import Key


def row_keys(key: Key, batch: int, device: torch.device) -> Tensor:
    """A key (2,) shared by all examples as (1, 2), or keys (B, 2) with one for each.

    Raises:
        TypeError: It is no int and no integer tensor.
        ValueError: It has another shape.
    """
    words = random.as_key(key, device)
    if words.ndim == 1:
        return words[None]
    if words.ndim != 2 or words.shape[0] != batch:
        raise ValueError(
            f"key has shape {tuple(words.shape)}, expected (2,), or ({batch}, 2) with one key for "
            "each example"
        )
    return words


def sample_keys(keys: Tensor, i: slice, stream: int) -> Tensor:
    """Keys of the samples i of a stream, (S, 1 or B, 2): the same for any chunking."""
    samples = torch.arange(i.start, i.stop, device=keys.device)
    return random.fold_in(random.fold_in(keys, stream), samples[:, None])
