"""``module:function``: what is written in Python, by its name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from typing import Any

from torch import nn

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")


def is_reference(text: str) -> bool:
    """Whether a text has the form ``module:function``."""
    return _REFERENCE.fullmatch(text) is not None


def locate(reference: str, what: str) -> Any:
    """The object of a module; modules of the current folder count.

    Args:
        reference: Such as ``package.module:name``.
        what: What messages call it.

    Raises:
        ValueError: There is no such module or name.
    """
    module, _, path = reference.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # a script has its own folder there
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{what} is {reference!r}, and no module {module!r} is in this folder or installed: "
            "run attrfn in the folder that holds it"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "write it there"
            raise ValueError(f"{what} is {reference!r}, and there is no {name!r}: {hint}")
        found = getattr(found, name)
    return found


def needs_nothing(value: Any) -> bool:
    """Whether a value is a function or a class that can be called without arguments."""
    if isinstance(value, nn.Module) or not callable(value):
        return False
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # built in
        return False
    # A function of any number of inputs is a model; a class of modules passes them on to nn.Module.
    rest: tuple[object, ...] = (inspect.Parameter.VAR_KEYWORD,)
    if isinstance(value, type):
        rest += (inspect.Parameter.VAR_POSITIONAL,)
    return all(p.default is not p.empty or p.kind in rest for p in parameters)
