"""Hypothesis, imported where it is used, and numbers that depend on a seed alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attrfn import random

M = TypeVar("M", bound=nn.Module)


def hypothesis() -> Any:
    """The package hypothesis.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import hypothesis
    except ImportError:
        raise ImportError(
            "attrfn.testing draws its models with hypothesis, which is not installed: "
            "pip install 'attrfn[testing]'"
        ) from None
    return hypothesis


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that depend on the arguments alone."""
    return random.normal(random.key(seed), shape, dtype=torch.float64).to(dtype)


def seeded(build: Callable[[], M], seed: int, dtype: torch.dtype = torch.float64) -> M:
    """A module with parameters of a seed, in evaluation mode; the global numbers stay."""
    # torch.manual_seed would reseed every accelerator as well.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build().to(dtype).eval()
