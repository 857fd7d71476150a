"""How many copies of a batch run at once: a rule of bytes and shapes, and never of a clock.

The same call takes the same chunks, and so gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

# Rows that a chunk on a CPU has, although they leave the caches: one image alone takes 1.1 to 1.2
# times as long as one among eight, because each chunk reads the weights again.
_ROWS = 8
# Bytes of the largest single result up to which there are more rows than the caches hold. The C
# library gives blocks of 32 MiB back to the system when they are freed, and each of their pages
# costs a fault when it is written again.
_LARGEST = 2**24


class Took(NamedTuple):
    """The bytes that one copy of the batch takes.

    Attributes:
        bytes: Of all results that live at once.
        largest: Of the largest result.
    """

    bytes: int
    largest: int


def fitting(took: Took, room: int) -> int:
    """How many copies fit into the room, at least one."""
    return max(1, room // max(1, took.bytes))


def fitting_on_cpu(took: Took, room: int, rows: int, free: int) -> int:
    """How many copies a CPU takes: what the room in its caches holds, or a few rows if it is less.

    Args:
        took: What one copy takes.
        room: The bytes that the caches hold.
        rows: The examples of the batch, 0 if they are unknown.
        free: The bytes that may be used at all.
    """
    few = _ROWS // rows if rows else 0
    few = min(few, _LARGEST // max(1, took.largest), free // max(1, took.bytes))
    return max(fitting(took, min(room, free)), few)


def rows_on_cpu(took: Took, room: int, rows: int, free: int) -> int | None:
    """How many rows of a copy that does not fit a CPU takes at once; None: all of them."""
    # In parts that glibc's blocks hold, a batch of 16 images of 224 x 224 takes 0.7 of the time:
    # integrated_gradients of EfficientNet, batch 16, in benchmarks/real_models.py.
    if took.largest <= _LARGEST:
        return None
    few = fitting_on_cpu(Took(took.bytes // rows, took.largest // rows), room, 1, free)
    return equal(rows, few) if few < rows else None


def equal(n: int, size: int) -> int:
    """The first size of as many chunks as ``size`` makes of n copies, all about equal."""
    return -(-n // -(-n // size))
