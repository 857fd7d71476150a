"""The library's own arithmetic under torch.autocast, which is meant for the model's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function of tensors compute in their own precision, also under torch.autocast.

    Args:
        function: One of its positional arguments is a tensor; its device says which autocast.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        device = next(t.device.type for t in args if isinstance(t, Tensor))
        if not _autocasts(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4

    def _autocasts(device: str) -> bool:
        return torch.is_autocast_enabled(device)

else:

    def _autocasts(device: str) -> bool:
        if device == "cpu":
            return torch.is_autocast_cpu_enabled()
        return torch.is_autocast_enabled()


einsum = full_precision(torch.einsum)
matmul = full_precision(torch.matmul)


def widest(device: torch.device) -> torch.dtype:
    """The widest type of a device, for sums that cancel."""
    return torch.float32 if device.type == "mps" else torch.float64
