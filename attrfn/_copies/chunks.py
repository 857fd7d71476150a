"""Chunks of copies: as many at once as the user asks for, or as memory holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from attrfn._copies.batch import is_count, is_one_of
from attrfn._copies.memory import (
    Peak,
    budget,
    keep_pages,
    most_on_cpu,
    out_of_memory,
    unmeasured_copies,
)
from attrfn._copies.progress import bar
from attrfn._copies.rows import check_rows
from attrfn._copies.sizes import Took, equal, fitting, fitting_on_cpu, rows_on_cpu
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import constant_result, is_compiling, makes_fakes
from attrfn._torch.explanation import current
from attrfn._torch.ranks import together
from attrfn._torch.say import say
from attrfn._torch.typing import Batching, ChunkSize, Leaves
from attrfn._torch.units import active_units, using

# Elements up to which the draws or masks of all chunks are made at once: 4 MiB in float32, for one
# call in place of one for each chunk.
_MADE_AT_ONCE = 2**20
# With a backward pass a chunk on a CPU may take this many times the budget: the results wait for
# the backward pass and leave the caches in any case.
ROOM_WITH_BACKWARD = 4
# Copies left from which a large batch runs some rows at a time (attrfn._explain.in_parts): fewer do
# not pay for the comparison with the whole batch, a forward pass.
_PARTS_PAY = 4
# Chunks up to which compiling a whole loop says nothing.
_MOST_UNROLLED = 8
# Bytes below which a result is not counted while a chunk is measured. A model makes many such
# results, and each takes as long to count as a large one.
_NEGLIGIBLE = 2**17
T = TypeVar("T")


class Chunks(NamedTuple):
    """How many copies of a batch are evaluated at once, and in which way.

    Attributes:
        size: ``None`` (all), a number, or ``"auto"``: as many as memory holds, or caches and some
            more on a CPU (:mod:`attrfn._copies.sizes`), which is known or measured on the first
            chunk; if memory runs out, half as many. Inside a transform ``"auto"`` means all.
        batching: ``"fold"`` into the batch, ``"vmap"`` or ``"loop"`` (one by one).
        progress: Show a bar.
        label: The text of the bar.
        backward: Whether a backward pass follows, which keeps the results of operations.
        passes: The number of passes of the model whose results a copy keeps.
    """

    size: ChunkSize | Ask
    batching: Batching
    progress: bool
    label: str
    backward: bool = True
    passes: int = 1


class Demand(NamedTuple):
    """What a method asks of :func:`over_chunks`: copies of the batch, and the results they keep."""

    copies: int
    backward: bool
    passes: int


class Ask:
    """In place of a size: :func:`over_chunks` answers with the demand and evaluates nothing."""


class _Answer(BaseException):
    """Carries a demand from :func:`over_chunks` past the method to :func:`demand_of`."""

    # An exception, because no value could stand for the missing result: methods check sums and
    # solve equations. A BaseException, because a method or a model may catch Exception.

    def __init__(self, to: Ask, demand: Demand) -> None:
        super().__init__()
        self.to = to
        self.demand = demand


def demand_of(run: Callable[[Any], object]) -> Demand | None:
    """What a method first asks of :func:`over_chunks`; None if it does not call that.

    Args:
        run: Calls the method with the ``chunk_size`` that it is given.
    """
    ask = Ask()
    try:
        run(ask)
    except _Answer as answer:
        if answer.to is not ask:  # of a demand that surrounds this one
            raise
        return answer.demand
    return None


def over_chunks(
    evaluate: Callable[[slice], T],
    merge: Callable[[T, T], T],
    n: int,
    chunks: Chunks,
    device: torch.device,
    one_copy: Took | None = None,
    x: Leaves = (),
) -> T:
    """``evaluate(0..a) + evaluate(a..b) + ... + evaluate(y..n)`` with ``merge`` for the plus.

    Args:
        evaluate: From a slice of 0..n to its result. If memory runs out and the size is ``"auto"``,
            it is called again with a shorter slice; the results so far stay.
        merge: From the result so far and the next one to both together.
        n: The number of copies, at least 1.
        chunks: How many at once.
        device: The device whose memory counts.
        one_copy: The bytes that a copy takes if they are known; else the first chunk is measured.
        x: The tensors that are copied: they tell the size of a first chunk that is measured, and
            the rows of a copy.

    Raises:
        ValueError: The size is not a count, or the batching is none of the three.
    """
    if isinstance(chunks.size, Ask):
        raise _Answer(chunks.size, Demand(n, chunks.backward, chunks.passes))
    check_chunks(chunks)
    if is_compiling():
        _say_unrolled(n, chunks)
    if device.type == "cpu" and not is_compiling():
        keep_pages()
    one = current()
    if one is not None and n > 1 and chunks.batching == "fold" and chunks.size != 1:
        if not (one.one_by_one or transforming() or makes_fakes()):
            with using(None):  # whose passes say nothing to an explanation
                check_rows(one, evaluate, n, len(x[0]) if x and x[0].ndim else 0)
        if one.one_by_one:
            chunks = chunks._replace(size=1)
    rows = None if one is None else one.rows
    try:
        if not chunks.progress or is_compiling():
            return _run(evaluate, merge, n, chunks, device, one_copy, x, lambda count: None)
        with bar(n, chunks.label) as advance:
            return _run(evaluate, merge, n, chunks, device, one_copy, x, advance)
    finally:
        if one is not None:
            one.rows = rows


def check_chunks(chunks: Chunks) -> None:
    """Refuse a size that is not a count, and an unknown way of batching."""
    if isinstance(chunks.size, Ask):
        return
    if not is_one_of(chunks.batching, "fold", "vmap", "loop"):
        raise ValueError(f"batching is {say(chunks.batching)}, expected 'fold', 'vmap' or 'loop'")
    if not (chunks.size is None or is_one_of(chunks.size, "auto") or is_count(chunks.size)):
        raise ValueError(
            f"chunk_size is {say(chunks.size)}, expected None (all at once), 'auto' (what memory "
            "holds) or the number of copies of the batch that are evaluated at once, an int of at "
            "least 1"
        )


def at_once(make: Callable[[slice], Leaves], n: int, elements: int) -> Callable[[slice], Leaves]:
    """The same function of slices, which calls ``make`` once for all if the result is small.

    Args:
        make: From a slice of 0..n to tensors (S, ...).
        n: The number of copies.
        elements: About how many elements the tensors of all copies have.
    """
    # Draws at once win 2.0 to 2.3: gradient_shap of the MLP, batch 1, chunk_size=8, in
    # benchmarks/special_cases_earn_their_place.py.
    if elements > _MADE_AT_ONCE:
        return make
    of_all = make(slice(0, n))
    return lambda i: tuple([t[i] for t in of_all])


def add(a: Leaves, b: Leaves) -> Leaves:
    """The sum of two tuples of tensors, a merge."""
    return tuple([s + t for s, t in zip(a, b, strict=True)])


# The loop is plain Python, which compiled code unrolls. In eager mode "auto" adapts in two ways.
# While the bytes of a copy are unknown, a chunk is measured as it runs, and the size of the others
# follows, by the rule of sizes.py; a first chunk that holds all copies is not measured. And if
# memory runs out all the same, the same copies run again, half as many at once, and the size stays
# there: what ran before does not run again. Sizes follow from bytes, and never from values or
# clocks.
def _run(
    evaluate: Callable[[slice], T],
    merge: Callable[[T, T], T],
    n: int,
    chunks: Chunks,
    device: torch.device,
    one_copy: Took | None,
    x: Leaves,
    advance: Callable[[int], object],
) -> T:
    adapts = chunks.size == "auto" and chunks.batching != "loop" and not transforming()
    size = n if chunks.size in (None, "auto") else int(chunks.size)  # type: ignore[arg-type]
    size = 1 if chunks.batching == "loop" else size
    if adapts:
        fit = (
            copies_that_fit(one_copy, budget(device), device, x)
            if one_copy
            else unmeasured_copies(x)
        )
        size = max(1, fit)
    known, units = one_copy is not None, active_units()
    done: list[T] = []  # the result so far, once there is one
    start = 0
    while start < n:
        i = slice(start, min(start + (equal(n - start, size) if adapts else size), n))
        if units is not None:
            units.chunk(n, size)
        if not adapts:
            new = evaluate(i)  # not inside of try, which compiled code would have to trace
        else:
            try:
                if known or i.stop == n:
                    new = evaluate(i)
                else:
                    new, size = _measured(evaluate, i, n - i.stop, device, x)
                    known = True
            except Exception as error:
                if size == 1 or together() or not out_of_memory(error):
                    raise
                size = (i.stop - i.start + 1) // 2
                continue
        done = [merge(done[0], new)] if done else [new]
        start = i.stop
        advance(i.stop - i.start)
    return done[0]


def _say_unrolled(n: int, chunks: Chunks) -> None:
    """Warn where code that the user compiles has many chunks, before torch.compile unrolls them."""
    size = n if chunks.size in (None, "auto") else int(chunks.size)  # type: ignore[arg-type]
    count = n if chunks.batching == "loop" else -(-n // size)
    if count > _MOST_UNROLLED:
        _warn_of_unrolled(chunks.label, int(count))


@constant_result
def _warn_of_unrolled(label: str, count: int) -> None:
    """Runs while torch.compile traces."""
    warnings.warn(
        f"torch.compile unrolls the {count} chunks of {label} into one graph, whose compilation "
        f"takes about {count} times as long as that of one: use attrfn.compile, which compiles one "
        "chunk, or a larger chunk_size",
        UserWarning,
        stacklevel=2,
    )


def _measured(
    evaluate: Callable[[slice], T], i: slice, left: int, device: torch.device, x: Leaves
) -> tuple[T, int]:
    """The result of a chunk, and how many of those left fit by the bytes that it took."""
    least = min(budget(device) // 64, _NEGLIGIBLE)
    with Peak(least) as peak:
        new = evaluate(i)
    # Results below ``least`` were not counted, so the chunk is taken to hold that much at least.
    copies = i.stop - i.start
    took = Took(max(peak.bytes, least) // copies, max(peak.largest, least) // copies)
    on_cpu = device.type == "cpu"
    room = budget(device) * (ROOM_WITH_BACKWARD if peak.has_graph and on_cpu else 1)
    size = copies_that_fit(took, room, device, x)
    in_parts = on_cpu and peak.has_graph and size == copies == 1 and left >= _PARTS_PAY
    if in_parts and (one := current()) is not None:
        one.rows = rows_on_cpu(took, room, len(x[0]), most_on_cpu()) if x and x[0].ndim else None
        one.rows_agree = False
    return new, size


def copies_that_fit(took: Took, room: int, device: torch.device, x: Leaves) -> int:
    """How many copies run at once; on an accelerator the room is all that counts."""
    if device.type != "cpu":
        return fitting(took, room)
    rows = len(x[0]) if x and x[0].ndim else 0
    return fitting_on_cpu(took, room, rows, most_on_cpu())
