"""Hooks that bring a module's weights and take them away, such as those of accelerate.

Such a hook gets the module as an argument, so it works on a private copy: it puts parameters into
the copy's, and takes them out again. Its own notes, such as which tied weights are there now, would
be shared between threads, and a run that is left early would leave them behind. So a private copy
has hooks with notes of their own. The tensors in them are shared.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

_OF_HOOKS = ("init_hook", "pre_forward", "post_forward", "detach_hook")


@functools.lru_cache(maxsize=256)
def is_hook(cls: Any) -> bool:
    """Whether objects of a class are such hooks."""
    return all(hasattr(cls, name) for name in _OF_HOOKS)


def _is_one(value: Any) -> bool:
    kind: Any = type(value)
    return is_hook(kind)


def own_hook(hook: Any, memo: dict[int, Any]) -> Any:
    """A copy of a hook with notes of its own.

    Args:
        hook: The hook.
        memo: From the id of an original to its copy, for what several hooks share.
    """
    if id(hook) in memo:
        return memo[id(hook)]
    new = memo[id(hook)] = copy.copy(hook)
    for name, value in vars(hook).items():
        if type(value) in (dict, set) or isinstance(value, (list, tuple)):
            new.__dict__[name] = _notes(value, memo)
    return new


def _notes(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    new: Any = value
    if type(value) is dict:  # of tied weights, by their place and device
        new = {k: dict(v) if type(v) is dict else v for k, v in value.items()}
    elif type(value) is set:
        new = set(value)
    elif type(value) in (list, tuple) and any(map(_is_one, value)):
        new = type(value)([own_hook(v, memo) if _is_one(v) else v for v in value])
    memo[id(value)] = new
    return new
