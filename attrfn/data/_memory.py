"""Errors that say that memory ran out."""

from __future__ import annotations

import torch

from attrfn._copies.memory import out_of_memory


def is_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one that it was made of, says that memory ran out."""
    return error is not None and (out_of_memory(error) or is_of_memory(error.__cause__))


def let_go(error: BaseException | None) -> None:
    """Free the tensors of a run that failed, which the frames of its error hold."""
    while error is not None:
        error.__traceback__, error = None, error.__cause__
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
