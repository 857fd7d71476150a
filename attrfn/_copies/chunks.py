"""Chunks of copies: as many of them at once as asked for, or as memory holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from attrfn._copies.batch import is_count
from attrfn._copies.memory import Peak, budget, out_of_memory, unmeasured_copies
from attrfn._copies.progress import bar
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.typing import Batching, ChunkSize, Leaves

_SMALL = 2**20
_KEPT = 4  # times as much for what a backward pass needs, which leaves the caches anyway
_NOTHING = 2**17  # bytes, beside what a chunk may take
T = TypeVar("T")


class Chunks(NamedTuple):
    """How many copies of a batch are evaluated at once, and in which way.

    Attributes:
        size: ``None`` (all), a number, or ``"auto"``: what memory holds, known or measured on the
            first chunk; where memory runs out it halves. Inside a transform ``"auto"`` means all.
        batching: ``"fold"`` into the batch, ``"vmap"`` or ``"loop"`` (one by one).
        progress: Show a bar.
        label: What the bar says.
        backward: Whether a backward pass follows, for which results of operations are kept.
        passes: How many times as much as one pass of the model a copy keeps.
    """

    size: ChunkSize | Ask
    batching: Batching
    progress: bool
    label: str
    backward: bool = True
    passes: int = 1


class Demand(NamedTuple):
    """What a method asks of :func:`over_chunks`: its copies of the batch, and what they keep."""

    copies: int
    backward: bool
    passes: int


class Ask:
    """In the place of a size: :func:`over_chunks` answers with the demand and evaluates nothing."""


class _Answer(BaseException):
    """Carries a demand from :func:`over_chunks` past the method, which has no use for it.

    No result could stand for the missing one: methods check their sums, and solve equations.
    """

    def __init__(self, to: Ask, demand: Demand) -> None:
        super().__init__()
        self.to = to
        self.demand = demand


def demand_of(run: Callable[[Any], object]) -> Demand | None:
    """What a method asks of :func:`over_chunks` first; None where it never gets there.

    Args:
        run: Calls the method with the ``chunk_size`` that it is given.
    """
    ask = Ask()
    try:
        run(ask)
    except _Answer as answer:
        if answer.to is not ask:
            raise
        return answer.demand
    return None


def over_chunks(
    part: Callable[[slice], T],
    merge: Callable[[T, T], T],
    n: int,
    chunks: Chunks,
    device: torch.device,
    one_copy: int = 0,
    x: Leaves = (),
) -> T:
    """``part(0..a) + part(a..b) + ... + part(y..n)`` with ``merge`` for the plus.

    Args:
        part: From a slice of 0..n to its result; where memory runs out and the size is ``"auto"``
            it is called again with a shorter slice, and the results so far are kept.
        merge: From the result so far and the next one to both together.
        n: The number of copies, at least 1.
        chunks: How many at once.
        device: Where the memory is.
        one_copy: The bytes that a copy takes, if they are known and not to be measured.
        x: What is copied: the first chunk is measured, and has as many copies as usually fit.

    Raises:
        ValueError: The size is no count, or the batching none of the three.
    """
    if isinstance(chunks.size, Ask):
        raise _Answer(chunks.size, Demand(n, chunks.backward, chunks.passes))
    if chunks.batching not in ("fold", "vmap", "loop"):
        raise ValueError(f"batching is {chunks.batching!r}, expected 'fold', 'vmap' or 'loop'")
    if chunks.size not in (None, "auto") and not is_count(chunks.size):
        raise ValueError(
            f"chunk_size is {chunks.size!r}, expected None (all at once), 'auto' (what memory "
            "holds) or the number of copies of the batch that are evaluated at once, an int of at "
            "least 1"
        )
    if not chunks.progress or is_compiling():
        return _run(part, merge, n, chunks, device, one_copy, x, lambda count: None)
    with bar(n, chunks.label) as advance:
        return _run(part, merge, n, chunks, device, one_copy, x, advance)


def at_once(make: Callable[[slice], Leaves], n: int, elements: int) -> Callable[[slice], Leaves]:
    """From slices to what ``make`` gives for them, made in one go where that is small.

    Args:
        make: From a slice of 0..n to tensors (S, ...).
        n: The number of copies.
        elements: How many elements the tensors of all copies have, about.
    """
    # Draws in one go win 2.0 to 2.3: gradient_shap of the MLP, batch 1, chunk_size=8, in
    # benchmarks/special_cases_earn_their_place.py.
    if elements > _SMALL:
        return make
    whole = make(slice(0, n))
    return lambda i: tuple([t[i] for t in whole])


def add(a: Leaves, b: Leaves) -> Leaves:
    """The sum of two tuples of tensors, a merge."""
    return tuple([s + t for s, t in zip(a, b, strict=True)])


def _run(
    part: Callable[[slice], T],
    merge: Callable[[T, T], T],
    n: int,
    chunks: Chunks,
    device: torch.device,
    one_copy: int,
    x: Leaves,
    advance: Callable[[int], object],
) -> T:
    adapts = chunks.size == "auto" and chunks.batching != "loop" and not transforming()
    size = n if chunks.size in (None, "auto") else int(chunks.size)  # type: ignore[arg-type]
    size = 1 if chunks.batching == "loop" else size
    if adapts:
        size = budget(device) // one_copy if one_copy else unmeasured_copies(x)
        size = max(1, size)
    done: list[T] = []
    start = 0
    while start < n:
        i = slice(start, min(start + size, n))
        if adapts:
            try:
                measured = not one_copy and i.stop < n
                least = min(budget(device) // 64, _NOTHING) if measured else 0
                with Peak(least) if measured else contextlib.nullcontext() as peak:
                    new = part(i)
            except Exception as error:
                if size == 1 or not out_of_memory(error):
                    raise
                size = (i.stop - i.start + 1) // 2
                continue
            if peak is not None:
                one_copy = max(max(peak.bytes, least) // (i.stop - i.start), 1)
                room = budget(device) * (_KEPT if peak.kept and device.type == "cpu" else 1)
                size = max(1, room // one_copy)
        else:
            new = part(i)
        done = [merge(done[0], new)] if done else [new]
        start = i.stop
        advance(i.stop - i.start)
    return done[0]
