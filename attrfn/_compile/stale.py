"""Attributes of a model whose changes torch.compile does not notice: watched, or refused."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from attrfn._model.source import source
from attrfn._torch.private import BUFFERS, MODULES, PARAMETERS
from attrfn._torch.typing import ModelFn

_FOLLOWED = (list, tuple, dict)
_DEEPEST = 8


def check_attributes(model_fn: ModelFn) -> None:
    """Refuse attributes that compiled code would keep as they are now.

    Raises:
        TypeError: A module keeps tensors in a container other than a list, tuple or dict.
    """
    for module, name, value in _attributes(model_fn):
        if why := _stale(value):
            raise TypeError(
                f"{type(module).__name__}.{name} {why}, whose changes compiled code would not "
                "follow: keep it in a list or dict, or register a tensor as a buffer"
            )


class Watch:
    """The lists and dicts in tuples of a model's attributes, which torch.compile does not guard."""

    def __init__(self, model_fn: ModelFn) -> None:
        self.lists = [
            found for _, _, value in _attributes(model_fn) for found in _in_tuples(value, False)
        ]
        self.held = self._held()

    def changed(self) -> bool:
        """Whether they hold something else than when this was last asked."""
        if not self.lists:
            return False
        before, self.held = self.held, self._held()
        return len(before) != len(self.held) or any(
            a is not b and not _same(a, b) for a, b in zip(before, self.held, strict=True)
        )

    def _held(self) -> list[Any]:
        return [v for found in self.lists for v in (len(found), *found, *_parts(found))]


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal numbers or strings."""
    return type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b


def _in_tuples(value: Any, inside: bool, depth: int = 0) -> Iterable[Any]:
    """The lists and dicts in a value that are inside of a tuple."""
    if depth > _DEEPEST or isinstance(value, (nn.Module, Tensor)):
        return
    if inside and isinstance(value, (list, dict)):
        yield value
    for part in _parts(value):
        yield from _in_tuples(part, inside or type(value) is tuple, depth + 1)


def _attributes(model_fn: Any) -> Iterable[tuple[nn.Module, str, Any]]:
    """The attributes of all modules in a model function."""
    for model in model_fn if isinstance(model_fn, (list, tuple)) else (model_fn,):
        src = source(model)
        for module in () if src is None else src.module.modules():
            for name, value in module.__dict__.items():
                if name not in (PARAMETERS, BUFFERS, MODULES):
                    yield module, name, value


def _stale(value: Any, depth: int = 0) -> str:
    if depth > _DEEPEST or isinstance(value, (nn.Module, Tensor)):
        return ""
    parts = list(_parts(value))
    if type(value) not in _FOLLOWED and any(_holds_tensor(v) for v in parts):
        return f"holds tensors in a {type(value).__name__}"
    return next((why for v in parts if (why := _stale(v, depth + 1))), "")


def _holds_tensor(value: Any, depth: int = 0) -> bool:
    if isinstance(value, nn.Module) or depth > _DEEPEST:
        return False
    return isinstance(value, Tensor) or any(_holds_tensor(v, depth + 1) for v in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    """What a container holds that is copied for compiled code; nothing for other values."""
    if isinstance(value, (list, tuple, set, deque)):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, types.SimpleNamespace):
        return vars(value).values()
    if isinstance(value, functools.partial):
        return (*value.args, *value.keywords.values())
    return ()
