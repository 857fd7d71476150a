"""Binding under torch.compile: functional_call on a private clone.

Fresh private on every call do not trace on every model. So a constant function makes the clone once,
while torch.compile traces, on the real objects, and returns its name: the name is a constant of the
graph, the clone is reached through an attribute and guarded like any other module. The parameters
are those of the user's module at every call, so training does not recompile.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from attrfn._model.private_copy import Intervention, PrivateCopy
from attrfn._model.source import Source, find, foreign, unwrapped_name
from attrfn._torch.compiling import constant
from attrfn._torch.private import OF_STATE_DICTS


class _Clones:
    """Clones by name; an entry goes when the module that it was made of goes."""


class _Clone(NamedTuple):
    module: nn.Module
    sites: tuple[Any, ...]


class _Caller(nn.Module):
    """Runs a method other than forward, so that functional_call can run it."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = module
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(self.inner, *args, **kwargs)


_CLONES = _Clones()
_SHORT = 64  # a guard for each value
_DICTS = tuple(
    [k for k, v in vars(nn.Module()).items() if isinstance(v, dict) and k not in OF_STATE_DICTS]
)
_numbers = count()


@constant
def _clone(module: nn.Module, state: tuple[Any, ...], method: Any, *layers: Any) -> str:
    """Make the clone and return its name; the graph is guarded on ``state``."""
    found = [find(module, layer) for layer in layers]
    private = PrivateCopy(frozen=False, interventions={id(layer): None for layer in found})
    new = private.module(module)
    for layer, old in zip(layers, found, strict=True):
        if id(old) not in private.memo:
            raise foreign(module, layer)
    sites = tuple([private.memo[id(old)] for old in found])
    name = f"clone_{next(_numbers)}"
    setattr(_CLONES, name, _Clone(new if method is None else _Caller(new, method), sites))
    weakref.finalize(module, _CLONES.__dict__.pop, name, None)
    return name


def _plain_state(module: nn.Module) -> tuple[Any, ...]:
    """The flags and numbers of a module, and those of its hooks: another one is another graph."""
    return tuple(
        [
            tuple(v) if k in _DICTS else _plain_value(v)
            for k, v in module.__dict__.items()
            if k not in OF_STATE_DICTS
        ]
    )


def _plain_value(value: Any) -> Any:
    """What is plain of a value, of containers if they are short."""
    if isinstance(value, float):
        return value.hex()  # a symbol, once it has changed, is no argument of a constant function
    if isinstance(value, (bool, int, str)):
        return value
    if type(value) in (list, tuple) and len(value) <= _SHORT:
        return tuple([_plain_value(v) for v in value])
    if type(value) in (dict, OrderedDict) and len(value) <= _SHORT:
        return tuple([(_plain_value(k), _plain_value(v)) for k, v in value.items()])
    return None


def run_clone(
    src: Source,
    layers: tuple[nn.Module | str, ...],
    interventions: tuple[Intervention, ...],
    frozen: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a source's clone with the source's present parameters and with interventions at its layers."""
    plain_state = tuple([_plain_state(m) for m in src.module.modules()])
    clone = getattr(_CLONES, _clone(src.module, plain_state, src.method, *layers))
    tensors: dict[str, Tensor] = {}
    for name, p in src.module.named_parameters():
        tensors[name] = p.detach() if frozen else p
    for name, b in src.module.named_buffers():
        tensors[name] = b.clone()
    for name, t in (src.params or {}).items():
        tensors[name] = t
    prefix = "" if src.method is None else "inner."
    tensors = {prefix + unwrapped_name(name): t for name, t in tensors.items()}
    for site, intervention in zip(clone.sites, interventions, strict=True):
        site._attrfn_intervention = intervention
    try:
        return functional_call(clone.module, tensors, args, kwargs)
    finally:
        for site in clone.sites:
            site._attrfn_intervention = None
