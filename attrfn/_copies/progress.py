"""The progress of a method: a bar of tqdm, or a line on stderr where tqdm is not installed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(
    total: int | None, label: str, unit: tuple[str, str] = ("copy", "copies")
) -> Iterator[Callable[[int], object]]:
    """Show rate and remaining time; yields ``advance(n)``, which reports n finished copies.

    Args:
        total: How many there are, None if that is unknown.
        label: What is running.
        unit: What is counted: one, and many.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError:
        try:
            yield _line(total, label, unit[1])
        finally:
            print(file=sys.stderr, flush=True)
        return
    with tqdm(total=total, desc=label, unit=unit[0]) as shown:
        yield shown.update


def _line(total: int | None, label: str, units: str) -> Callable[[int], None]:
    start, done = time.monotonic(), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        rate = done / max(time.monotonic() - start, 1e-9)
        left = f", {rate:.1f}/s" if done else ""
        if done and total is not None:
            left += f", {(total - done) / rate:.0f} s left"
        of = "" if total is None else f"/{total}"
        print(f"\r{label}: {done}{of} {units}{left}", end="", file=sys.stderr, flush=True)

    advance(0)
    return advance


@contextlib.contextmanager
def steps(
    total: int | None, label: str, shown: bool, unit: tuple[str, str] = ("copy", "copies")
) -> Iterator[Callable[[int], object]]:
    """:func:`bar` if it is wanted, else a report that does nothing."""
    if not shown:
        yield lambda n: None
        return
    with bar(total, label, unit) as advance:
        yield advance
