"""Functions that an instance of a module has in place of its methods.

A library that wraps ``module.forward`` often writes a function that remembers the module, or its
old forward. A private copy with this function would run the user's own module.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from attrfn._torch.private_compiler import uncompiled


def twin(f: types.FunctionType, memo: dict[int, Any], own: Callable[[Any], Any]) -> Any:
    """The same function, whose closure holds private copies of modules.

    Args:
        f: The function. What its closure holds besides modules and functions, such as a counter,
            stays shared.
        memo: From the id of an original to its copy.
        own: From a module or a function to its private copy.
    """
    if (eager := uncompiled(f)) is not f:  # torch.compile(module.forward), see `PrivateCopy.module`
        return own(eager)
    cells = f.__closure__ or ()
    reach = [_reaches_module(cell, set()) for cell in cells]
    if not any(reach):
        return f
    if id(f) not in memo:
        pairs = list(zip(cells, reach, strict=True))
        closure = tuple([types.CellType() if holds else cell for cell, holds in pairs])
        new = types.FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, closure)
        new.__kwdefaults__ = f.__kwdefaults__
        new.__dict__.update(f.__dict__)
        memo[id(f)] = new  # before the closure is filled, which may hold the function itself
        for old, cell in zip(cells, closure, strict=True):
            if cell is not old:
                cell.cell_contents = own(old.cell_contents)
    return memo[id(f)]


def _reaches_module(value: Any, seen: set[int]) -> bool:
    """Whether a private copy of a value of a closure is another one."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    parts: tuple[Any, ...] = ()
    if isinstance(value, types.CellType):
        try:
            parts = (value.cell_contents,)
        except ValueError:  # the variable has no value yet
            return False
    elif isinstance(value, types.MethodType):
        return isinstance(value.__self__, nn.Module)
    elif isinstance(value, types.FunctionType):
        parts = value.__closure__ or ()
    elif isinstance(value, functools.partial):
        parts = (value.func, *value.args, *value.keywords.values())
    return isinstance(value, nn.Module) or any(_reaches_module(part, seen) for part in parts)
