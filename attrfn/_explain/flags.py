"""Flags: options that are True or False, and nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import explained
from attrfn._torch.guard import guarded
from attrfn._torch.say import say as say

F = TypeVar("F", bound=Callable[..., Any])


def flags_of(parameters: Iterable[inspect.Parameter]) -> tuple[str, ...]:
    """The names of the parameters whose default is True or False."""
    return tuple([p.name for p in parameters if isinstance(p.default, bool)])


def check_flags(flags: Iterable[str], options: Mapping[str, Any]) -> None:
    """Refuse a value other than True and False for any of the flags among the options.

    Raises:
        TypeError: With the option's name.
    """
    for name in flags:
        if name in options and type(options[name]) is not bool:
            # attrfn.compile says so in the graph that it makes, where no one differentiates.
            if name == "create_graph" and options[name] is None and is_compiling():
                continue
            raise TypeError(f"{name} is {say(options[name])}, expected True or False")


def checks_flags(function: F) -> F:
    """Let a function refuse wrong values of its flags, which are keyword-only, and name arguments.

    A method is also one explanation (:mod:`attrfn._torch.explanation`); see
    :mod:`attrfn._torch.guard` for the errors.
    """
    parameters = inspect.signature(function).parameters
    flags = flags_of(parameters.values())
    if "model_fn" in parameters:
        key = parameters.get("key")
        function = explained(function, None if key is None else key.default)
    return guarded(function, functools.partial(check_flags, flags) if flags else None)
