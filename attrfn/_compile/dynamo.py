"""How torch.compile is called, and its errors in the user's terms."""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from attrfn._torch.private_compiler import (
    GUARDED_BUILTINS,
    GUARDS_OF_IDENTITY,
    RAISED,
    guard_failures,
    guarded_package,
    mode_options,
    recompile_limit,
)
from attrfn._torch.say import say

_FRAME = re.compile(r'File "(.+)", line (\d+)')
_NOT_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
# The starts of the names of guards on the library itself, on optree and on Python.
_LASTING = (guarded_package("attrfn"), guarded_package("optree"), GUARDED_BUILTINS)
_IN_CLONE = "._CLONES."


def needed_guards(guards: Sequence[Any]) -> list[bool]:
    """Which of torch.compile's guards are checked before each call: those that can fail."""
    # Many guards ask whether functions and classes of the library, of optree and of Python are
    # still the same. These never fail, and to leave them out wins 1.1 to 1.2: layer_activation of
    # the MLP, batch 1, compiled, in benchmarks/special_cases_earn_their_place.py. Guards on a clone
    # stay, because its attributes may be the user's objects.
    return [
        _IN_CLONE in guard.name
        or guard.guard_type not in GUARDS_OF_IDENTITY
        or not guard.name.startswith(_LASTING)
        for guard in guards
    ]


def settings(
    backend: str | Callable[..., Any], mode: str | None, dynamic: bool | None
) -> dict[str, Any]:
    """New arguments for ``torch.compile``, which empties the dict of options that it is given.

    Raises:
        RuntimeError: The mode is unknown.
        ValueError: The backend would ignore it.
    """
    how: dict[str, Any] = {"backend": backend, "dynamic": dynamic}
    # torch.compile takes a mode or options, not both. A mode of Inductor is a set of options, which
    # the filter of guards can join; other backends have no such list.
    if mode is not None and backend != "inductor":
        if isinstance(backend, str) and mode != "default":
            raise ValueError(
                f"mode is {say(mode)} and backend is {say(backend)}, which has no modes: leave "
                "out one of them (modes are those of 'inductor')"
            )
        return how | {"mode": mode}
    options: dict[str, Any] = {"guard_filter_fn": needed_guards}
    if mode is not None:
        options |= mode_options(mode, dynamic)
    return how | {"options": options}


def parameters(method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a method; none if its signature is unknown."""
    try:
        takes = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(takes.items())[2:])


def check_options(method: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse unknown options by name; the compiler's error would not name them.

    Raises:
        TypeError: The method does not have an option of this name.
    """
    takes = parameters(method)
    if not takes or any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    for option in options:
        if option not in takes:
            near = difflib.get_close_matches(option, takes, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{option} is not an option of {_name(method)}, expected some of "
                f"{', '.join(takes)}{hint}"
            )


def too_often(method: Callable[..., Any], code: types.CodeType) -> str:
    """One sentence: what changed from call to call."""
    reasons = guard_failures(code) or ["unknown"]
    changed = reasons[-1].strip().splitlines()[0]
    limit, times = recompile_limit()
    return (
        f"{_name(method)} of this model was compiled {times} times, because something changes from "
        f"call to call (last: {changed}): keep it the same, give it as a tensor, or raise {limit}"
    )


def _name(method: Callable[..., Any]) -> str:
    return getattr(method, "__name__", type(method).__name__)


def not_captured(method: Callable[..., Any], error: Exception) -> str:
    """One sentence: what could not be captured, and where in the user's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line.split(RAISED, 1)[1] for line in lines if RAISED in line]
    why = (raised or lines or [type(error).__name__])[0]
    frames = [found for line in lines if (found := _FRAME.match(line))]
    users = [found for found in frames if not found[1].startswith(_NOT_USERS)]
    # The frames are in the order of the calls: the last of the user's is the nearest to the cause.
    place = f" ({Path(users[-1][1]).name}, line {users[-1][2]})" if users else ""
    name = _name(method)
    return (
        f"torch.compile cannot capture {name} of this model in one graph: {why}{place}; call "
        f"{name} itself, which runs, or set TORCH_LOGS=graph_breaks to see more"
    )
