"""Checks of options that are numbers."""

from __future__ import annotations

from collections.abc import Callable


def number(name: str, value: object, fits: Callable[[float], bool], expected: str) -> float:
    """An int or a float that fits.

    Raises:
        ValueError: It is not a number, or does not fit.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    return value
