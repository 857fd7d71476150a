"""Warnings that name the line of the user's call."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from attrfn._torch.compiling import is_compiling

_INSIDE = tuple(f"{Path(file).parent}{os.sep}" for file in (Path(__file__).parent, torch.__file__))


class _Thread(threading.local):
    said: set[str] | None = None  # warnings without their numbers, where each is said once


_THREAD = _Thread()


@contextlib.contextmanager
def each_once() -> Iterator[None]:
    """Say in this thread warnings that differ in their numbers alone once: for loops over data."""
    surrounding, _THREAD.said = _THREAD.said, set()
    try:
        yield
    finally:
        _THREAD.said = surrounding


def warn(message: str) -> None:
    """A UserWarning at the first frame outside attrfn and torch; none inside torch.compile."""
    if is_compiling():
        return
    if _THREAD.said is not None:
        kind = re.sub(r"[\d.]+", "", message)
        if kind in _THREAD.said:
            return
        _THREAD.said.add(kind)
    # warnings.warn has skip_file_prefixes since Python 3.12 only.
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _inside(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _inside(filename: str) -> bool:
    return filename.startswith(_INSIDE)
