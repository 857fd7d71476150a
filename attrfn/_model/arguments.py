"""Private copies of the arguments that a model function binds, because a run may change them.

A cache of keys and values grows, and a state is written in place. Each run gets copies, so that it
starts from what the user gave, and the user's objects stay as they were. Tensors are cloned, and
containers and objects made again around the clones. What has no state of its own, such as a
function, or is copied elsewhere, as modules are, is shared.
"""

from __future__ import annotations

import enum
import functools
import io
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._model.bound import alias, rows_of
from attrfn._model.source import is_functional

_ATOMS = frozenset(
    {int, float, complex, bool, str, bytes, range, slice, type(None), type(...)}
    | {torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format}
)
_SHARED = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    enum.Enum,
    io.IOBase,
    nn.Module,
    weakref.ref,
    type(threading.Lock()),
    type(threading.RLock()),
)
# Of Python's C API: the type was made by a class statement (or by newer extensions).
_HEAP_TYPE = 1 << 9
# Objects of other extensions in C, such as tokenizers, are shared.
_TAKEN_APART = sys.stdlib_module_names | {"numpy"}
OnTensor = Callable[[Tensor], Tensor]


def own_arguments(bound: Any) -> Any:
    """A partial with private copies of its arguments; other functions as they are."""
    if not isinstance(bound, functools.partial) or not (bound.args or bound.keywords):
        return bound
    return Copies(own_tensor)(bound)


def compiled_arguments(bound: Any) -> Any:
    """The same for code that torch.compile traces, which can clone tensors alone.

    Raises:
        TypeError: The partial binds an object, which the compiled code would change.
    """
    if not isinstance(bound, functools.partial) or not (bound.args or bound.keywords):
        return bound
    args = [_compiled(a) for a in bound.args]
    return functools.partial(
        bound.func, *args, **{k: _compiled(v) for k, v in bound.keywords.items()}
    )


def _compiled(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return value if is_functional(value) else compiled_arguments(value)
    if isinstance(value, Tensor):
        return value if isinstance(value, nn.Parameter) else value.clone()
    if type(value) is tuple:
        return tuple([_compiled(v) for v in value])
    if type(value) is list:
        return [_compiled(v) for v in value]
    if type(value) is dict:
        return {k: _compiled(v) for k, v in value.items()}
    if hasattr(value, "update") and not isinstance(value, (type, nn.Module, dict, set)):
        raise TypeError(
            f"the model function binds a {type(value).__name__}, which torch.compile cannot copy, "
            "so compiled code would change it: make the object inside the model function, or "
            "call the method without torch.compile"
        )
    return value


def own_tensor(t: Tensor) -> Tensor:
    """A tensor that a run may write into."""
    # torch refuses to write into a tensor whose elements share memory, and its clone is larger.
    if t.layout == torch.strided and any(
        s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True)
    ):
        return t.clone() if t.is_inference() else t if rows_of(t) is None else alias(t, None)
    return t.clone()


def is_object(value: Any) -> bool:
    """Whether a value is an object whose attributes may hold tensors."""
    return not (type(value) in _ATOMS or isinstance(value, (Tensor, *_SHARED)) or _opaque(value))


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors that an object holds, at any depth."""
    found: list[Tensor] = []

    def add(t: Tensor) -> Tensor:
        found.append(t)
        return t

    Copies(add)(value)
    return found


class Copies:
    """Copies of values, one per object, so that what two places share stays shared.

    Args:
        on_tensor: What to do with each tensor; parameters are shared.
    """

    def __init__(self, on_tensor: OnTensor) -> None:
        self.on_tensor = on_tensor
        # The values are kept, too, because a number of id() is given again to new objects.
        self.memo: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        """The copy of a value."""
        kind = type(value)
        if kind in _ATOMS:
            return value
        if id(value) not in self.memo:
            self.memo[id(value)] = (value, self._copy(value, kind))
        return self.memo[id(value)][1]

    def _copy(self, value: Any, kind: type) -> Any:
        if isinstance(value, Tensor):
            return value if isinstance(value, nn.Parameter) else self.on_tensor(value)
        if isinstance(value, _SHARED) or _opaque(value) or kind.__module__.startswith("attrfn."):
            return value  # the library's own objects are private already
        if kind is tuple:
            return tuple(map(self, value))
        if kind is functools.partial:
            if is_functional(value):
                return value
            args, kwargs = map(self, value.args), {k: self(v) for k, v in value.keywords.items()}
            return functools.partial(self(value.func), *args, **kwargs)
        if isinstance(value, torch.Generator):
            new = torch.Generator(value.device)
            new.set_state(value.get_state())
            return new
        try:
            return self._remade(value)
        except Exception as error:
            raise TypeError(
                f"the model function binds a {kind.__name__}, which cannot be copied "
                f"({_short(error)}), so a run could change it: bind tensors or containers of them, "
                "or make the object inside the model function"
            ) from error

    def _remade(self, value: Any) -> Any:
        """A copy by the means of pickle, which knows the parts of any object."""
        # copy.deepcopy would not let the tensors be replaced, and fails on those with a graph.
        parts: list[Any] = []
        file = io.BytesIO()
        _Pickler(file, value, parts).dump(value)
        file.seek(0)
        return _Unpickler(file, [self(part) for part in parts]).load()


class _Pickler(pickle.Pickler):
    """Takes an object apart; what is copied in another way, or shared, becomes a number."""

    def __init__(self, file: io.BytesIO, top: Any, parts: list[Any]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.top = top
        self.parts = parts

    def persistent_id(self, value: Any) -> Any:
        """The number of a part, or None for what pickle should take apart."""
        if value is self.top or type(value) in (str, int, float, bool, bytes, type(None)):
            return None
        if isinstance(value, (Tensor, torch.Generator, *_SHARED)) or _opaque(value):
            self.parts.append(value)
            return len(self.parts) - 1
        return None

    def reducer_override(self, value: Any) -> Any:
        """All attributes of a plain object, even if its class leaves some out for files."""
        kind: Any = type(value)
        own = getattr(object, "__getstate__", None)  # since Python 3.11
        if (
            getattr(kind, "__getstate__", own) is own
            or kind.__reduce_ex__ is not object.__reduce_ex__
            or kind.__reduce__ is not object.__reduce__
            or isinstance(value, (list, dict, set, tuple, str, int, float, bytes))
        ):
            return NotImplemented
        state = vars(value) if own is None else own(value)
        return object.__new__, (kind,), state, None, None, _set_state


class _Unpickler(pickle.Unpickler):
    """Puts an object together again around its parts."""

    def __init__(self, file: io.BytesIO, parts: list[Any]) -> None:
        super().__init__(file)
        self.parts = parts

    def persistent_load(self, pid: Any) -> Any:
        """The part of a number."""
        return self.parts[pid]


def _set_state(value: Any, state: Any) -> None:
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    value.__dict__.update(attributes or {})
    for name, part in (slots or {}).items():
        object.__setattr__(value, name, part)


def _opaque(value: Any) -> bool:
    """Whether a value belongs to an extension in C, whose objects hold no tensors of torch."""
    kind = type(value)
    if kind.__flags__ & _HEAP_TYPE or isinstance(value, (Tensor, torch.Generator)):
        return False
    return kind.__module__.split(".")[0] not in _TAKEN_APART


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
