"""Private private of a module: the user's tensors in fresh Python objects that may change."""

from __future__ import annotations

import copy
import functools
import operator
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrfn._torch.private import (
    BUFFERS,
    COMPILED_CALL,
    COMPILED_MODULE,
    FUSED_LAYER,
    MODULES,
    NESTED_TENSOR,
    PARAMETERS,
    BatchNorm,
    Dropout,
    slots,
    version,
)
from attrfn._torch.warn import warn

_CONSTANT = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
_CONTAINERS = (list, dict, set, deque, bytearray, types.SimpleNamespace)
_DICTS = (dict, OrderedDict)
_BARE = frozenset(nn.Module().__dict__) - {"training"}

Forward = Callable[..., Any]
Intervention = Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]


class PrivateCopy:
    """One walk over a module tree that builds a private copy per module and keeps ties and reuse.

    Args:
        frozen: Detach the parameters, so that no graph of theirs is recorded.
        interventions: From ``id(module)`` to the callable ``intervention(forward, args, kwargs)`` that runs in place
            of that module's ``forward``.
        fused: Leave the fused path of encoder layers on, for runs without derivatives and interventions.
    """

    def __init__(
        self,
        *,
        frozen: bool,
        interventions: Mapping[int, Intervention | None] | None = None,
        fused: bool = False,
    ) -> None:
        self.frozen = frozen
        self.interventions = dict(interventions or {})
        self.fused = fused
        self.memo: dict[int, Any] = {}
        self.noisy: list[str] = []
        self.snapshots: list[Snapshot] = []
        self.buffers: list[tuple[Tensor, Tensor, int]] = []
        self.reusable = True

    def module(self, module: nn.Module) -> Any:
        """The private copy of one module and of everything below it."""
        key = id(module)
        if key in self.memo:
            return self.memo[key]
        if isinstance(module, torch.jit.ScriptModule):
            return module
        if (inner := slots(module, MODULES).get(COMPILED_MODULE)) is not None:
            if key in self.interventions:
                self.interventions[id(inner)] = self.interventions[key]
            new = self.memo[key] = self.module(inner)
            return new
        cls: Any = type(module)
        new = object.__new__(
            (_intervened if key in self.interventions else _without_fast_path)(cls)
        )
        self.memo[key] = new
        state = dict(module.__dict__)
        for name, value in module.__dict__.items():
            kind = type(value)
            if kind in _CONSTANT:
                continue
            if name not in _BARE:
                state[name] = self.value(value)
            elif kind in _DICTS:  # hooks may be registered while the model runs
                state[name] = value.copy() if value else kind()
            elif kind is set:
                state[name] = value.copy()
        state[PARAMETERS] = {k: self.parameter(p) for k, p in slots(module, PARAMETERS).items()}
        state[BUFFERS] = {k: self.buffer(b) for k, b in slots(module, BUFFERS).items()}
        state[MODULES] = {
            k: None if m is None else self.module(m) for k, m in slots(module, MODULES).items()
        }
        state[COMPILED_CALL] = None
        _no_fast_path(cls, state, self.fused)
        if key in self.interventions:
            state["_attrfn_intervention"] = self.interventions[key]
            state["_attrfn_forward"] = state.pop("forward", None)
        object.__setattr__(new, "__dict__", state)
        self.snapshots.append(Snapshot.of(state))
        if module.training and _mixes_or_draws(module):
            self.noisy.append(cls.__name__)
        return new

    def parameter(self, p: Tensor | None) -> Tensor | None:
        """The parameter itself, or its detached twin (one per parameter, so that ties stay)."""
        if p is None:
            return None
        key = id(p)
        if key not in self.memo:
            self.memo[key] = p.detach() if self.frozen and p.requires_grad else p
        new: Tensor = self.memo[key]
        return new

    def buffer(self, b: Tensor | None) -> Tensor | None:
        """A copy, because forward passes write into buffers."""
        if b is None:
            return None
        key = id(b)
        if key not in self.memo:
            copy = self.memo[key] = b.detach().clone() if self.frozen else b.clone()
            self.buffers.append((copy, b, version(copy)))
        new: Tensor = self.memo[key]
        return new

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Let ``new`` stand for the parameter or buffer ``old``."""
        self.memo[id(old)] = new

    def value(self, value: Any) -> Any:
        """A plain attribute: modules, tensors and containers are renewed, the rest is shared."""
        kind = type(value)
        if kind in _CONSTANT:
            return value
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, nn.Parameter):
            return self.parameter(value)
        if isinstance(value, Tensor):
            return self.buffer(value)
        if kind is tuple:
            plain = all(type(v) in _CONSTANT for v in value)
            return value if plain else tuple(map(self.value, value))
        if isinstance(value, _CONTAINERS):
            self.reusable = False
            return self.container(value)
        if kind is types.MethodType and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.module(value.__self__))
        if kind is functools.partial:
            return functools.partial(
                self.value(value.func), *self.value(value.args), **self.value(value.keywords)
            )
        return value

    def container(self, old: Any) -> Any:
        """A copy of a list, dict, set or the like, one per object, with its values renewed."""
        if id(old) not in self.memo:
            new = self.memo[id(old)] = copy.copy(old)
            if isinstance(old, list):
                new[:] = map(self.value, old)
            elif isinstance(old, dict):
                new.update({k: self.value(v) for k, v in old.items()})
            elif isinstance(old, types.SimpleNamespace):
                new.__dict__.update({k: self.value(v) for k, v in vars(old).items()})
        return self.memo[id(old)]

    def unchanged(self) -> bool:
        """Whether a run left everything as it was built, so that the private may run again."""
        return (
            self.reusable
            and all(kept.unchanged() for kept in self.snapshots)
            and all(_is_copy(*copy) for copy in self.buffers)
        )

    def warn(self) -> None:
        """Warn if a module that draws numbers or ties rows together is in training mode."""
        if self.noisy:
            warn(
                f"the model is in training mode and holds {self.noisy[0]}, so its rows are random "
                "or depend on each other and attributions are not reproducible: call model.eval()"
            )


class Snapshot(NamedTuple):
    """What a private copy held when it was built: its attributes, and what is in its dicts."""

    state: dict[str, Any]
    values: list[Any]
    empty: list[dict[str, Any]]
    full: list[tuple[dict[str, Any], list[Any]]]

    @staticmethod
    def of(state: dict[str, Any]) -> Snapshot:
        """Look at a private copy's attributes."""
        dicts = [v for v in state.values() if type(v) in _DICTS]
        return Snapshot(
            state,
            list(state.values()),
            [d for d in dicts if not d],
            [(d, list(d.values())) for d in dicts if d],
        )

    def unchanged(self) -> bool:
        """Whether all of it is the same object still."""
        return (
            _same(self.state, self.values)
            and not any(self.empty)
            and all(_same(d, values) for d, values in self.full)
        )


def _is_copy(copy: Tensor, of: Tensor, written: int) -> bool:
    """Whether nothing has been written into a copy, by ``.data`` or a kernel that says nothing.

    To ask that of an accelerator would wait for it; a new copy does not.
    """
    if version(copy) != written or copy.device.type != "cpu" or type(copy) is not Tensor:
        return False
    return copy.layout == torch.strided and torch.equal(copy, of)


def _same(now: dict[str, Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now.values(), before))


def _mixes_or_draws(module: nn.Module) -> bool:
    """Whether a module in training mode ties rows together or draws random numbers."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    if isinstance(module, Dropout):
        return module.p > 0
    return isinstance(module, (BatchNorm, nn.RReLU))


@functools.lru_cache(maxsize=256)
def _intervened(cls: Any) -> Any:
    """A subclass whose forward runs inside the intervention of its instance (and keeps ``isinstance``)."""
    base = _without_fast_path(cls)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self._attrfn_forward
        run = functools.partial(base.forward, self) if own is None else own
        intervention = self._attrfn_intervention
        return run(*args, **kwargs) if intervention is None else intervention(run, args, kwargs)

    return _subclass(base, forward)


@functools.lru_cache(maxsize=256)
def _without_fast_path(cls: Any) -> Any:
    """MultiheadAttention takes a fused path that hides its parts if query is key: go round it.

    Where a mode is active, it goes round that path itself, and the mode is shown self-attention.
    """
    if not issubclass(cls, nn.MultiheadAttention):
        return cls

    def forward(self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
        if not torch.overrides.has_torch_function((query,)):
            key = key.view_as(key) if key is query else key
            value = value.view_as(value) if value is query else value
        return cls.forward(self, query, key, value, *args, **kw)

    return _subclass(cls, forward)


def _subclass(cls: type[nn.Module], forward: Forward) -> type[nn.Module]:
    body = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return types.new_class(cls.__name__, (cls,), exec_body=lambda ns: ns.update(body))


def _no_fast_path(cls: type[nn.Module], state: dict[str, Any], fused: bool) -> None:
    """Fused encoder layers skip their parts and answer padded rows differently: switch off."""
    # Left on they win 1.1: feature_ablation of the transformer, batch 16, in
    # benchmarks/special_cases_earn_their_place.py.
    if issubclass(cls, nn.TransformerEncoderLayer) and not fused:
        state[FUSED_LAYER] = 0
    if issubclass(cls, nn.TransformerEncoder):
        state |= dict.fromkeys(NESTED_TENSOR, False)
