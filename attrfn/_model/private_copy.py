"""Private copies of modules: the user's tensors in fresh Python objects that a run may change.

One walk over the module tree makes an object per module. What a forward pass may change is copied:
the attributes, the dicts of hooks (some models register hooks in their first run), containers and
buffers. Parameters are shared, or detached, so that no graph of theirs is recorded. A memo by
identity keeps reused and tied modules one object. Objects that are neither modules, tensors nor
containers are shared. ``copy.deepcopy`` would copy them, too; it is 2 to 10 times slower, and fails
on locks and on tensors with a graph.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._model.classes import Intervention, intervened, no_fast_path, without_fast_path
from attrfn._model.closures import twin
from attrfn._model.offloaded import is_hook, own_hook
from attrfn._model.parameters import Shared, shared, shares
from attrfn._model.sharded import Sharded
from attrfn._model.snapshot import (
    DICTS,
    Contents,
    Snapshot,
    attributes_of,
    is_unwritten,
    slots_of,
)
from attrfn._model.training import mixes, refuse_scripted, warn_mixing
from attrfn._torch.compiling import makes_fakes, unreadable
from attrfn._torch.explanation import current
from attrfn._torch.private import (
    BUFFERS,
    COMPILED_CALL,
    COMPILED_MODULE,
    MODULES,
    PARAMETERS,
    slots,
    version,
)
from attrfn._torch.private_distributed import PRE_HOOKS, is_dtensor

_IMMUTABLE = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
CONTAINERS = (list, dict, set, deque, bytearray, types.SimpleNamespace)
# torch.compile guards on each value of a container that it reads, at each call. So a longer one,
# such as a vocabulary, is not copied for compiled code, which then reads the entries that it needs.
MOST_GUARDED = 64
# Attributes of each module; the walk treats the dicts among them itself.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}


class PrivateCopy:
    """One walk over a module tree that builds a private copy per module and keeps ties and reuse.

    Args:
        frozen: Detach the parameters.
        interventions: From ``id(module)`` to ``intervention(forward, args, kwargs)``, which runs
            in place of that module's ``forward``.
        fused: Leave the fused path of encoder layers on, for runs without derivatives and
            interventions.
        guarded: Protect the user's parameters from what a run writes.
    """

    def __init__(
        self,
        *,
        frozen: bool,
        interventions: Mapping[int, Intervention | None] | None = None,
        fused: bool = False,
        guarded: bool = True,
    ) -> None:
        self.frozen = frozen
        self.interventions = dict(interventions or {})
        self.fused = fused
        self.guarded = guarded
        # From the id of an original to its copy. The caller holds the originals as long.
        self.memo: dict[int, Any] = {}
        self.mixing: list[nn.Module] = []
        self.snapshots: list[Snapshot | Contents] = []
        self.buffers: list[tuple[Tensor, Tensor, int]] = []
        self.shared: list[Shared] = []
        self.written: list[int] = []
        self.rescales = False  # whether an embedding has max_norm
        self.shares = guarded and not (
            unreadable() or makes_fakes()
        )  # a tracer must meet the user's tensors
        self.reusable = True
        self.sharded: Sharded | None = None  # of a model that several processes share

    def module(self, module: nn.Module) -> Any:
        """The private copy of one module and of everything below it."""
        key = id(module)
        if key in self.memo:
            return self.memo[key]
        # A scripted module is code in C++, whose parts cannot be copied from Python.
        if isinstance(module, torch.jit.ScriptModule):
            refuse_scripted(module)
            return module
        # torch.compile(module): its copy is eager, because modes and transforms do not reach
        # into compiled code.
        if (inner := slots(module, MODULES).get(COMPILED_MODULE)) is not None:
            if key in self.interventions:
                self.interventions[id(inner)] = self.interventions[key]
            new = self.memo[key] = self.module(inner)
            return new
        cls: Any = type(module)
        new = object.__new__((intervened if key in self.interventions else without_fast_path)(cls))
        self.memo[key] = new  # before the walk goes on, because modules may refer to each other
        state, dicts = self._attributes(module)
        if self.sharded is not None:
            object.__setattr__(new, "__class__", self.sharded.kind(module, type(new)))
        state[COMPILED_CALL] = None  # module.compile() runs compiled code in place of forward
        no_fast_path(cls, state, self.fused)
        if key in self.interventions:
            state["_attrfn_intervention"] = self.interventions[key]
            state["_attrfn_forward"] = state.pop("forward", None)
        object.__setattr__(new, "__dict__", state)  # whatever __setattr__ the class has
        for name in slots_of(cls):
            if hasattr(module, name):
                self.reusable = False  # no snapshot looks there
                object.__setattr__(new, name, self.value(getattr(module, name)))
        self.snapshots.append(Snapshot.of(state, dicts))
        if mixes(module):
            self.mixing.append(module)
        return new

    def _attributes(self, module: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Copies of the attributes of a module, and the dicts that it has by itself."""
        state = module.__dict__.copy()
        dicts: list[dict[str, Any]] = []
        for name, value in module.__dict__.items():
            kind: Any = type(value)
            if kind in _IMMUTABLE:
                continue
            if name not in _OF_EVERY_MODULE:
                state[name] = self.value(value)
            elif kind in DICTS:  # most are empty, and a new one is made faster than a copy
                new = state[name] = kind() if not value else self._members(name, value)
                dicts.append(new)
            elif kind is set:
                state[name] = value.copy()
        for name in (PARAMETERS, BUFFERS, MODULES):
            if type(state.get(name)) not in DICTS:  # of a class of its own, or not there yet
                state[name] = self._members(name, slots(module, name))
        if self.sharded is not None:
            state |= self.sharded.attributes(module, self.snapshots)
        self.rescales |= state.get("max_norm") is not None
        return state, dicts

    def _members(self, name: str, members: dict[str, Any]) -> dict[str, Any]:
        """Copies of the parameters, buffers or submodules of a module; its hooks are shared."""
        if name == PARAMETERS:
            return {k: self.parameter(p) for k, p in members.items()}
        if name == BUFFERS:
            return {k: self.buffer(b) for k, b in members.items()}
        if name == MODULES:
            return {k: None if m is None else self.module(m) for k, m in members.items()}
        if name == PRE_HOOKS:
            self.sharded = Sharded.of_hooks(self.sharded, members, self.frozen)
        return members.copy()

    def parameter(self, p: Tensor | None) -> Tensor | None:
        """A parameter that shares the user's memory (one per parameter, which keeps ties)."""
        if p is None:
            return None
        key = id(p)
        if key not in self.memo:
            linked = p.requires_grad and not self.frozen
            if self.shares and shares(p):
                new = self.memo[key] = shared(p, linked=linked)
                self.shared.append(new)
                self.written.append(version(new) if linked else 0)
            else:
                self.memo[key] = p.detach() if self.frozen and p.requires_grad else p
                if is_dtensor(p):
                    self.sharded = Sharded.of_part(self.sharded, p, self.frozen)
        found: Tensor = self.memo[key]
        return found

    def buffer(self, b: Tensor | None) -> Tensor | None:
        """A copy, because forward passes write into buffers."""
        if b is None:
            return None
        key = id(b)
        if key not in self.memo:
            clone = self.memo[key] = b.detach().clone() if self.frozen else b.clone()
            self.buffers.append((clone, b, version(clone)))
        new: Tensor = self.memo[key]
        return new

    def clone_rescaled(self, root: nn.Module) -> None:
        """Clone the weights that an embedding rescales, where :class:`Shared` cannot in time."""
        if self.frozen and self.shares:
            return
        for module in root.modules():
            if module.__dict__.get("max_norm") is not None:
                for p in module.parameters(recurse=False):
                    self.memo[id(p)] = (p.detach() if self.frozen else p).clone()

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Use ``new`` in place of the parameter or buffer ``old``."""
        self.memo[id(old)] = new

    def value(self, value: Any) -> Any:
        """The copy of an attribute: modules, tensors and containers are copied, others shared."""
        kind: Any = type(value)
        if kind in _IMMUTABLE:
            return value
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, nn.Parameter):
            return self.parameter(value)
        if isinstance(value, Tensor):
            return self.buffer(value)
        if kind is tuple:
            immutable = _IMMUTABLE.issuperset(map(type, value))
            return value if immutable else tuple(map(self.value, value))
        if isinstance(value, CONTAINERS):
            return self.container(value)
        # As an attribute, a method still belongs to the user's module.
        if kind is types.MethodType and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.module(value.__self__))
        if kind is types.FunctionType and value.__closure__:
            return twin(value, self.memo, self.value)
        if kind is torch.Generator:
            if (one := current()) is not None:
                one.watch(value)
            return value
        if kind is functools.partial:
            keywords = {k: self.value(v) for k, v in value.keywords.items()}
            new = functools.partial(self.value(value.func), *self.value(value.args), **keywords)
            self.snapshots.append(Contents.of(new.keywords))
            return new
        return own_hook(value, self.memo) if is_hook(kind) else value

    def container(self, old: Any) -> Any:
        """A copy of a list, dict, set or the like, one per object, with copies of its values."""
        if not self.guarded and isinstance(old, (list, dict)) and len(old) > MOST_GUARDED:
            return old
        if id(old) not in self.memo:
            kind: Any = type(old)
            new = self.memo[id(old)] = copy.copy(old)
            if isinstance(old, list):
                new[:] = map(self.value, old)
            elif isinstance(old, dict):
                for k, v in old.items():  # the update of a Counter would add
                    dict.__setitem__(new, k, self.value(v))
            elif isinstance(old, (set, deque)):
                new.clear()
                (new.update if isinstance(old, set) else new.extend)(map(self.value, old))
            attributes = attributes_of(old)
            if attributes is old:  # a dict whose items are its attributes
                object.__setattr__(new, "__dict__", new)
            elif attributes:
                new.__dict__.update({k: self.value(v) for k, v in attributes.items()})
            if slots_of(kind):
                self.reusable = False  # no snapshot looks there
            self.snapshots.append(Contents.of(new))
        return self.memo[id(old)]

    def unchanged(self) -> bool:
        """Whether a run left everything as it was built, so that the copy may run again."""
        return (
            self.reusable
            and all(snapshot.unchanged() for snapshot in self.snapshots)
            and all(is_unwritten(*buffer) for buffer in self.buffers)
            and not any(p.owned for p in self.shared)
        )

    def warn(self) -> None:
        """Warn if a module mixes rows."""
        warn_mixing(self.mixing)
