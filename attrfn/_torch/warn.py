"""Warnings that name the line of the user's call."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

from attrfn._torch.compiling import is_compiling

_INSIDE = tuple(f"{Path(file).parent}{os.sep}" for file in (Path(__file__).parent, torch.__file__))


def warn(message: str) -> None:
    """A UserWarning at the first frame outside attrfn and torch; none inside torch.compile."""
    if is_compiling():
        return
    # warnings.warn has skip_file_prefixes since Python 3.12 only.
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _inside(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _inside(filename: str) -> bool:
    return filename.startswith(_INSIDE)
