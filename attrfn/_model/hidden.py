"""Modules that a model function calls without showing them: in closures, globals and objects.

Such a module runs as it is, because a function cannot be bound to a private copy. One that would
change while it runs is refused before anything runs.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from attrfn._model.sharded import Sharded
from attrfn._model.training import changes, mixes, warn_mixing
from attrfn._torch import checkpointing
from attrfn._torch.explanation import current
from attrfn._torch.private import MODULES, slots
from attrfn._torch.private_distributed import PRE_HOOKS

_DEEPEST = 4  # functions that call functions; what lies deeper is rarely a part of the model
_MOST = 256  # longer containers are data
_LIBRARIES = {"torch", "attrfn", "optree", "numpy"}


def check_hidden(model_fn: Any, *, frozen: bool) -> None:
    """Warn of hidden modules that mix rows, and refuse those that would change.

    Args:
        model_fn: A model function.
        frozen: Nothing will differentiate with respect to parameters.

    Raises:
        ValueError: A hidden module in training mode has statistics that move, one has weights that
            it rescales, or one is sharded and its result shall be differentiated.
    """
    inner = model_fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    if (getattr(inner, "__module__", None) or "").startswith("attrfn."):
        return  # a half of a model, which runs on private copies
    mixing: list[nn.Module] = []
    seen: set[int] = set()
    one = current()
    sharded: Sharded | None = None
    for root in _modules_of(model_fn, _DEEPEST, seen):
        if isinstance(root, torch.Generator):
            if one is not None:
                one.watch(root)
            continue
        for module in _parts(root, seen):
            _refuse_change(module)
            if mixes(module):
                mixing.append(module)
            if hooks := module.__dict__.get(PRE_HOOKS):
                sharded = Sharded.of_hooks(sharded, hooks, frozen)
    if sharded is not None:
        sharded.check()
    if not checkpointing.watched:
        checkpointing.watch()
    warn_mixing(mixing)


def _parts(root: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """A module and those in it that were not seen before."""
    stack: list[nn.Module] = [root]
    while stack:
        module = stack.pop()
        yield module
        scripted = isinstance(module, torch.jit.ScriptModule)
        children = module.children() if scripted else slots(module, MODULES).values()
        for child in children:
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                stack.append(child)


def _refuse_change(module: nn.Module) -> None:
    if why := changes(module):
        raise ValueError(
            f"model_fn calls a {type(module).__name__} through a closure, a global name or "
            f"an object, where attrfn cannot copy it, and {why}: give the module itself, a "
            "functools.partial or a bound method of it, or call model.eval() first"
        )


def hidden_modules(model_fn: Any) -> Iterator[nn.Module]:
    """The modules that a function or an object reaches."""
    for found in _modules_of(model_fn, _DEEPEST, set()):
        if isinstance(found, nn.Module):
            yield found


def _modules_of(value: Any, depth: int, seen: set[int]) -> Iterator[nn.Module | torch.Generator]:
    """The modules and generators of random numbers that a function or an object reaches."""
    if id(value) in seen or depth < 0 or value is None:
        return
    seen.add(id(value))
    if isinstance(value, (nn.Module, torch.Generator)):
        yield value
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _modules_of(part, depth - 1, seen)
    elif isinstance(value, types.MethodType):
        yield from _modules_of(value.__func__, depth - 1, seen)
        yield from _modules_of(value.__self__, depth - 1, seen)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, depth - 1, seen)
    elif isinstance(value, (list, tuple, set)):
        for part in value if len(value) <= _MOST else ():
            yield from _modules_of(part, depth - 1, seen)
    elif isinstance(value, dict):
        for part in value.values() if len(value) <= _MOST else ():
            yield from _modules_of(part, depth - 1, seen)
    elif type(value).__module__.startswith("attrfn."):
        return  # such as the part of a split model after a layer, which runs on private copies
    elif not isinstance(value, (type, types.ModuleType, torch.Tensor)):
        for part in getattr(value, "__dict__", {}).values():
            yield from _modules_of(part, depth - 1, seen)
        if callable(value) and isinstance(value.__call__, types.MethodType):
            yield from _modules_of(value.__call__.__func__, depth - 1, seen)


def _of_function(
    function: types.FunctionType, depth: int, seen: set[int]
) -> Iterator[nn.Module | torch.Generator]:
    if (function.__module__ or "").split(".")[0] in _LIBRARIES:
        return
    cells: list[Any] = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # the variable has no value yet
            cells.append(cell.cell_contents)
    for default in (
        *cells,
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
    ):
        yield from _modules_of(default, depth, seen)
    for name in _globals_of(function.__code__):
        yield from _modules_of(function.__globals__.get(name), depth, seen)


@functools.lru_cache(maxsize=256)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The global names that a function reads, and those of the functions written inside it."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _globals_of(constant)
    return tuple(dict.fromkeys(names))
