"""The state of generators of random numbers, which the library leaves as it was."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

DRAWING = threading.RLock()
"""Held while a model runs that draws numbers, because all threads share the generators."""

States = list[Tensor]


def _after_fork() -> None:
    global DRAWING
    DRAWING = threading.RLock()  # a thread may hold the other that does not exist in this process


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# Other threads may draw at any time. So an operation is told to draw by its name and by the state.
_NAMES = (
    *("rand", "normal", "bernoulli", "multinomial", "poisson", "binomial", "dropout", "uniform"),
    *("exponential", "geometric", "cauchy", "gamma", "dirichlet", "gumbel", "rrelu", "fractional"),
    *("attention", "lstm", "gru", "rnn_", "trunc", "orthogonal", "xavier", "kaiming"),
)


def default() -> list[torch.Generator]:
    """The default generators of the CPU and of CUDA, if that is in use."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return [torch.default_generator, *torch.cuda.default_generators]
    return [torch.default_generator]


def states(of: list[torch.Generator]) -> States:
    """The states of generators."""
    return [g.get_state() for g in of]


def restore(of: list[torch.Generator], before: States) -> None:
    """Put generators back into states that they had."""
    for generator, state in zip(of, before, strict=True):
        generator.set_state(state)


def seed(of: list[torch.Generator], number: int) -> None:
    """Seed generators."""
    for generator in of:
        generator.manual_seed(number)


def same(a: States, b: States) -> bool:
    """Whether nothing was drawn between two states."""
    return all(map(_equal, a, b))


@contextlib.contextmanager
def unmoved() -> Iterator[list[bool]]:
    """Put the default generators back at the end; the list is filled then, if they had moved."""
    of = default()
    before = states(of)
    moved: list[bool] = []
    try:
        yield moved
    finally:
        if not same(before, states(of)):
            restore(of, before)
            moved.append(True)


class Naming(TorchFunctionMode):
    """While active, find the first operation of this thread that draws numbers.

    Args:
        of: The generators.

    Attributes:
        name: Its name; empty as long as none was met.
    """

    def __init__(self, of: list[torch.Generator]) -> None:
        super().__init__()
        self.of = of
        self.name = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.name:
            return func(*args, **(kwargs or {}))
        before = states(self.of)
        out = func(*args, **(kwargs or {}))
        if not same(before, states(self.of)):
            name = resolve_name(func) or getattr(func, "__qualname__", "") or str(func)
            if not name.startswith("torch") or any(part in name.lower() for part in _NAMES):
                self.name = name
        return out


def _equal(a: Tensor, b: Tensor) -> bool:
    # torch.equal takes longer, and a surrounding transform would see it. A state has its counters
    # in the first bytes, with the first numbers of its table, which all change when it is
    # refilled; the second number of a pair of normal ones waits in the last bytes.
    n = a.numel()
    p, q, ends = a.data_ptr(), b.data_ptr(), min(n, 64)
    return ctypes.string_at(p, ends) == ctypes.string_at(q, ends) and ctypes.string_at(
        p + n - ends, ends
    ) == ctypes.string_at(q + n - ends, ends)
