"""Values in messages: in one line, and cut."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_LONGEST = 60


def say(value: Any) -> str:
    """A value as messages show it: its text if that is short, else what it is."""
    kind = type(value).__name__
    try:
        if isinstance(value, Tensor) and (value.ndim or value.is_meta):
            return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
        text = repr(value)
    except Exception:  # nested tensors have no shape, and a class of the user's may have no text
        return f"a {kind}"
    if isinstance(value, str) and len(text) > _LONGEST:
        return f"{text[: _LONGEST - 3]}...'"
    if len(text) > _LONGEST or "\n" in text:
        shape = getattr(value, "shape", None)
        return f"a {kind}" if shape is None else f"a {kind} of shape {tuple(shape)}"
    return text
