"""The unit that ``attrfn.compile`` compiles: one pass of the model over the rows of a chunk.

All that surrounds a pass stays eager: targets, masks, draws, the loop over chunks and its sums. So
a graph contains no numbers of steps, samples or features, and what it costs to compile is what the
model's own pass costs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import current
from attrfn._torch.private import in_transform


class Units(Protocol):
    """What runs the units of a method.

    Attributes:
        draws: Whether the model has been found to draw random numbers.
    """

    draws: bool

    def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        sizes: tuple[int, ...],
        create_graph: bool,
    ) -> Any:
        """``function(*args)``, compiled once for all numbers of rows.

        Args:
            function: A function of a module. It returns tensors and flags.
            args: Tensors, model functions and flags; a tensor that is not (R, ...) and depends on
                the size of the batch is (S, B, ...).
            sizes: R, or S and B: the sizes that change from call to call.
            create_graph: Whether the results may be differentiated.
        """

    def copies(self, n: int, batch: int, fits: Callable[[], bool]) -> int:
        """How many copies of the batch have to run where n are wanted.

        Args:
            n: The number of copies.
            batch: The number of examples.
            fits: Whether the model takes two rows where it takes one.
        """

    def chunk(self, n: int, size: int) -> None:
        """Note that a loop over n copies takes this many at once."""


class _Thread(threading.local):
    units: Units | None = None


_THREAD = _Thread()


def active_units() -> Units | None:
    """What runs units in this thread, or None where everything runs as it is."""
    if is_compiling():
        return None
    units = _THREAD.units
    if units is None or in_transform():
        return None
    one = current()
    if one is not None and one.draws:  # whose runs get the same numbers
        units.draws = True
        return None
    return units


@contextlib.contextmanager
def using(units: Units | None) -> Iterator[None]:
    """Let the passes of a method run in units; None turns that off."""
    surrounding, _THREAD.units = _THREAD.units, units
    try:
        yield
    finally:
        _THREAD.units = surrounding


def padded(points: Sequence[Tensor], copies: int) -> tuple[Tensor, ...]:
    """(S, B, ...) padded with the last copy to this many."""
    missing = copies - points[0].shape[0]
    if missing <= 0:
        return tuple(points)
    return tuple([torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in points])
