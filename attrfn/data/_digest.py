"""Digests of models, methods and options: whether a run is the one that a folder was begun with.

A digest covers what a value is made of: parameters, buffers and numbers of modules, the code of
functions and what they close over or read from globals, tensors, arrays, numbers and texts. An
object of another kind counts by its class and its attributes.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import hashlib
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

import optree
import torch
from torch import Tensor, nn

from attrfn._torch.say import say

_DEEPEST = 8  # values within values; what lies deeper is rarely a part of the model
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")
_SCALARS = (bool, int, float, complex, str, bytes, type(None), slice, torch.dtype, torch.device)
_LIBRARIES = {"torch", "numpy", "optree", "builtins", "math", "functools"}


def digest(value: Any) -> str:
    """The SHA-256 of what a value is made of, in hexadecimal."""
    return _Visit().of(value).hash.hexdigest()


def modules_of(value: Any) -> list[nn.Module]:
    """The modules that a function or an object reaches, the outermost ones."""
    return _Visit(reads=False).of(value).modules


def first_parameter(model_fn: Any) -> Tensor | None:
    """The first floating parameter of a model, whose device and type its inputs should have."""
    found = (p for m in modules_of(model_fn) for p in m.parameters())
    return next((p for p in found if p.is_floating_point() and not p.is_meta), None)


def device_of(model_fn: Any) -> torch.device | None:
    """Where the parameters of a model are; None without any."""
    first = first_parameter(model_fn)
    return None if first is None else first.device


def dtype_of(model_fn: Any) -> torch.dtype | None:
    """The type of the parameters of a model; None without any."""
    first = first_parameter(model_fn)
    return None if first is None else first.dtype


def described(value: Any) -> Any:
    """A value as a manifest shows it: itself if it is simple, else its name and its digest."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    # Not the text of the value: a function has the address of its memory in it.
    if isinstance(value, (Tensor, type)) or not callable(value):
        shown = say(value) if not _has_functions(value) else type(value).__name__
    else:
        inner = value
        while isinstance(inner, functools.partial):
            inner = inner.func
        shown = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{_ADDRESS.sub('', shown)} #{digest(value)[:16]}"


def _update(hashed: Any, t: Tensor) -> None:
    """Hash the bytes of a tensor, without a copy where it is on the CPU and contiguous."""
    t = t.detach().cpu()
    t = (t.to_dense() if t.layout is not torch.strided else t).resolve_conj().contiguous()
    if size := t.numel() * t.element_size():
        hashed.update((ctypes.c_char * size).from_address(t.data_ptr()))


def _has_functions(value: Any) -> bool:
    return any(callable(leaf) for leaf in optree.tree_leaves(value))


def _shown(value: Any) -> str:
    """A simple value; of a device its kind, because each rank has a GPU of its own."""
    return value.type if isinstance(value, torch.device) else repr(value)


class _Visit:
    """A walk through a value, which hashes what it meets.

    Args:
        reads: Whether the bytes of tensors count, which takes time.
    """

    def __init__(self, *, reads: bool = True) -> None:
        self.hash = hashlib.sha256()
        self.modules: list[nn.Module] = []
        self._reads = reads
        self._seen: dict[int, tuple[int, Any]] = {}  # the values too, so that no id comes again

    def of(self, value: Any) -> _Visit:
        self._add(value, _DEEPEST)
        return self

    def _text(self, *texts: object) -> None:
        for text in texts:
            self.hash.update(f"{text}\0".encode())

    def _add(self, value: Any, depth: int) -> None:
        if isinstance(value, _SCALARS) or value is Ellipsis:
            self._text(type(value).__name__, _shown(value))
            return
        if id(value) in self._seen:
            self._text("again", self._seen[id(value)][0])
            return
        self._seen[id(value)] = (len(self._seen), value)
        self._text(type(value).__module__, type(value).__qualname__)
        if depth < 0:
            return
        for part in self._parts(value):
            self._add(part, depth - 1)

    def _parts(self, value: Any) -> Iterator[Any]:
        """What a value is made of; its bytes and names are hashed here."""
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self.modules.append(value)
            self._module(value)
        elif isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
            self._text(getattr(value, "__module__", ""), getattr(value, "__qualname__", value))
        elif isinstance(value, Mapping):
            yield from (part for item in value.items() for part in item)
        elif isinstance(value, (list, tuple)):
            yield from value
        elif isinstance(value, (set, frozenset)):
            yield from sorted(value, key=repr)
        elif hasattr(value, "tobytes") and hasattr(value, "dtype"):  # an array of numpy
            self._text(value.dtype, getattr(value, "shape", ()))
            self.hash.update(value.tobytes() if self._reads else b"")
        else:
            yield dict(getattr(value, "__dict__", {}))

    def _tensor(self, t: Tensor) -> None:
        self._text(tuple(t.shape), t.dtype)
        if self._reads and not t.is_meta:
            _update(self.hash, t)

    def _module(self, module: nn.Module) -> None:
        self._text(_ADDRESS.sub("", repr(module)) if self._reads else "")
        for name, part in module.named_modules():
            self._text(name, type(part).__module__, type(part).__qualname__, part.training)
            for key, value in sorted(vars(part).items()):
                if isinstance(value, _SCALARS) and not key.startswith("_"):
                    self._text(key, _shown(value))
        for tensors in (module.named_parameters(), module.named_buffers()):
            for name, t in tensors:
                self._text(name)
                self._tensor(t)

    def _function(self, f: types.FunctionType) -> Iterator[Any]:
        self._text(f.__module__, f.__qualname__)
        library = (f.__module__ or "").split(".")[0]
        if library in _LIBRARIES:
            return
        for cell in f.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # the variable has no value yet
                self._text("empty")
        yield from (f.__defaults__, f.__kwdefaults__)
        if library != "attrfn":  # whose version the manifest has
            for name in self._code(f.__code__):
                yield f.__globals__.get(name)

    def _code(self, code: types.CodeType) -> list[str]:
        """Hash what a function does; returns the global names that it reads."""
        self._text(code.co_code.hex(), code.co_names, code.co_varnames)
        names = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names += self._code(constant)
            else:  # the order of a set changes from process to process
                unordered = isinstance(constant, frozenset)
                self._text(repr(sorted(map(repr, constant)) if unordered else constant))
        return list(dict.fromkeys(names))
