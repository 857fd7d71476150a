"""Warnings that name the line of the user's call."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])


def warn(message: str) -> None:
    """A UserWarning at the first frame outside attrfn and torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _inside(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _inside(filename: str) -> bool:
    return filename.startswith(_PACKAGE) or "/torch/" in filename.replace("\\", "/")
