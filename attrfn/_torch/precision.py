"""The library's own arithmetic, which torch.autocast of the model must not round."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function compute in the precision of its tensors, even under torch.autocast.

    autocast lowers matrix products to half precision, and the sums here add many small numbers.

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
    """The widest floating type of a device, for sums that cancel."""
    # MPS has no float64.
    return torch.float32 if device.type == "mps" else torch.float64
