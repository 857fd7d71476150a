"""Attributes of a model whose changes compiled code would not follow, which are refused."""

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
        TypeError: A module keeps a list or dict in a tuple, or tensors in another container.
    """
    src = source(model_fn)
    for module in () if src is None else src.module.modules():
        for name, value in module.__dict__.items():
            if name not in (PARAMETERS, BUFFERS, MODULES) and (why := _stale(value)):
                raise TypeError(
                    f"{type(module).__name__}.{name} {why}, whose changes compiled code would not "
                    "follow: keep it in a list or dict, or register a tensor as a buffer"
                )


def _stale(value: Any, depth: int = 0) -> str:
    if depth > _DEEPEST or isinstance(value, (nn.Module, Tensor)):
        return ""
    parts = list(_parts(value))
    if type(value) is tuple and any(isinstance(v, (list, dict)) and len(v) for v in parts):
        return "is a tuple with a list or dict in it"
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
