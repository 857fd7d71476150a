"""Answers and foils as token ids (1, N)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._torch.say import say


def token_ids(value: Any, name: str, device: torch.device | None = None) -> Tensor:
    """Token ids (B, N) from a tensor or a list; (N,) is one row.

    Raises:
        TypeError: These are not integers.
        ValueError: There are no tokens.
    """
    try:
        ids = torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError):
        ids = torch.zeros(1)
    if not ids.numel():
        raise ValueError(f"{name} is {say(value)}, expected at least one token id")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.ndim > 2:
        raise TypeError(f"{name} is {say(value)}, expected token ids, integers (1, N)")
    return ids.reshape(1, -1).long() if ids.ndim < 2 else ids.long()


def foil_ids(value: Any, answer: Tensor) -> Tensor:
    """The ids of a foil, which is as long as the answer.

    Raises:
        ValueError: Its length is different.
    """
    foil = token_ids(value, "foil", answer.device)
    if foil.shape[1] != answer.shape[1] or foil.shape[0] not in (1, answer.shape[0]):
        raise ValueError(
            f"foil has {foil.shape[1]} tokens, expected {answer.shape[1]} as the answer: text.game "
            "takes an answer of any length as other="
        )
    return foil
