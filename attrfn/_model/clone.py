"""Binding under torch.compile: functional_call on a private clone.

torch.compile cannot trace the private copies of eager code for every model. So a constant function
makes a clone once, from the real objects, while torch.compile traces. It returns the name of the
clone: the name is a constant of the graph, and the clone is reached through an attribute and
guarded like any other module. The parameters are those of the user's module at each call, so that
training does not recompile. functional_call is safe here: it changes the clone, and only while
torch.compile traces.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from attrfn._model.classes import Intervention
from attrfn._model.edits import one_each
from attrfn._model.offloaded import is_hook
from attrfn._model.private_copy import MOST_GUARDED, PrivateCopy
from attrfn._model.source import Source, find, foreign, unwrapped_name
from attrfn._torch.compiling import constant_result
from attrfn._torch.devices import HOOK
from attrfn._torch.private import OF_STATE_DICTS
from attrfn._torch.private_distributed import is_dtensor


class _Clones:
    """Clones by name; an entry is deleted together with the module from which it was made."""


class _Clone(NamedTuple):
    module: nn.Module
    sites: tuple[Any, ...]
    parts: tuple[Any, ...]  # the copies of all modules, in the order of the original's modules()


class _Caller(nn.Module):
    """Has a method of the module as its forward, because functional_call runs forward only."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = module
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(self.inner, *args, **kwargs)


_CLONES = _Clones()
_DICT_ATTRIBUTES = tuple(
    [k for k, v in vars(nn.Module()).items() if isinstance(v, dict) and k not in OF_STATE_DICTS]
)
_numbers = count()


@constant_result
def _clone(module: nn.Module, state: tuple[Any, ...], method: Any, *layers: Any) -> str:
    """Make the clone and return its name.

    ``state`` is not read: torch.compile guards the arguments of a constant function, so another
    state is another graph with another clone.
    """
    found = [find(module, layer) for layer in layers]
    private = PrivateCopy(
        frozen=False, interventions={id(layer): None for layer in found}, guarded=False
    )
    new = private.module(module)
    for layer, old in zip(layers, found, strict=True):
        if id(old) not in private.memo:
            raise foreign(module, layer)
    sites = tuple([private.memo[id(old)] for old in found])
    parts = tuple([private.memo.get(id(m)) for m in module.modules()])
    name = f"clone_{next(_numbers)}"
    setattr(_CLONES, name, _Clone(new if method is None else _Caller(new, method), sites, parts))
    weakref.finalize(module, _CLONES.__dict__.pop, name, None)
    return name


@constant_result
def _moving(module: nn.Module) -> str:
    """What brings the weights of a model when it runs; empty if they are there."""
    for m in module.modules():
        kind: Any = type(m.__dict__.get(HOOK))
        if is_hook(kind) and any(p.is_meta for p in m.parameters()):
            return "hooks bring the weights"
        if any(is_dtensor(p) for p in m.parameters(recurse=False)):
            return "processes that share the weights exchange values"
    return ""


def _guarded_state(module: nn.Module) -> tuple[Any, ...]:
    """The flags and numbers of a module, and which hooks and submodules it has."""
    return tuple(
        [
            tuple(v) if k in _DICT_ATTRIBUTES else _guarded_value(v)
            for k, v in module.__dict__.items()
            if k not in OF_STATE_DICTS
        ]
    )


def _guarded_value(value: Any) -> Any:
    """The numbers and strings in a value, and in short containers; None for the rest."""
    if isinstance(value, float):
        # torch.compile makes a float that has changed a symbol, which constant functions refuse.
        return value.hex()
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, functools.partial):
        return tuple([_guarded_value(v) for v in (value.args, value.keywords)])
    if isinstance(value, types.SimpleNamespace):
        value = value.__dict__
    if isinstance(value, (list, tuple, deque)) and len(value) <= MOST_GUARDED:
        return tuple([_guarded_value(v) for v in value])
    if isinstance(value, dict) and len(value) <= MOST_GUARDED:
        return tuple([(_guarded_value(k), _guarded_value(v)) for k, v in value.items()])
    return None


def _holds_tensors(value: Any) -> bool:
    """Whether an attribute is a plain tensor, or a list, tuple or dict with one."""
    if isinstance(value, Tensor):
        return True
    if type(value) in (list, tuple):
        return any(map(_holds_tensors, value))
    return type(value) is dict and any(map(_holds_tensors, value.values()))


def _fresh(value: Any) -> Any:
    """The same with clones of the tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is list:
        return [_fresh(v) for v in value]
    if type(value) is tuple:
        return tuple([_fresh(v) for v in value])
    return {k: _fresh(v) for k, v in value.items()} if type(value) is dict else value


def run_clone(
    src: Source,
    layers: tuple[nn.Module | str, ...],
    interventions: tuple[Intervention, ...],
    frozen: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a source's clone with the source's parameters of now and interventions at its layers."""
    if moving := _moving(src.module):
        raise ValueError(
            f"{moving} while the model runs, which torch.compile cannot trace: call the method "
            "without torch.compile"
        )
    state = tuple([_guarded_state(m) for m in src.module.modules()])
    clone = getattr(_CLONES, _clone(src.module, state, src.method, *layers))
    tensors: dict[str, Tensor] = {}
    for name, p in src.module.named_parameters():
        tensors[name] = p.detach() if frozen else p
    for prefix, m in src.module.named_modules():
        if getattr(m, "max_norm", None) is not None:  # an embedding, which rescales its weights
            for name, p in m.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                tensors[full] = (p.detach() if frozen else p).clone()
    for name, b in src.module.named_buffers():
        tensors[name] = b.clone()  # the model may write into it
    for name, t in (src.params or {}).items():
        tensors[name] = t
    prefix = "" if src.method is None else "inner."
    tensors = {prefix + unwrapped_name(name): t for name, t in tensors.items()}
    around = one_each(clone.sites, interventions)
    for site, intervention in zip(clone.sites, around, strict=True):
        site._attrfn_intervention = intervention
    plain = [
        (part, name, value)
        for part, m in zip(clone.parts, src.module.modules(), strict=True)
        for name, value in m.__dict__.items()
        if part is not None and name not in _DICT_ATTRIBUTES and _holds_tensors(value)
    ]
    for part, name, value in plain:
        setattr(part, name, _fresh(value))
    try:
        return functional_call(clone.module, tensors, args, kwargs)
    finally:
        for site in clone.sites:
            site._attrfn_intervention = None
        for part, name, _ in plain:
            setattr(part, name, None)
