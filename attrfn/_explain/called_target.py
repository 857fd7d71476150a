"""Targets that are functions: what they bind and return tells of rows, as the model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from attrfn._torch.explanation import current
from attrfn._torch.guard import called

F = TypeVar("F", bound=Callable[..., Any])


def noted(target: F) -> F:
    """The target, which the call of a method notes."""
    if (one := current()) is not None:
        one.targets.append(target)
    return target


def called_target(name: str, target: Callable[..., Any], outputs: Any) -> Any:
    """What the target makes of the outputs."""
    value = called(name, target, outputs)
    if (one := current()) is not None and one.outputs is not None:
        one.outputs.append(value)
    return value
