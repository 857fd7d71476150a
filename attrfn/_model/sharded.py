"""Models whose weights are spread over several processes.

``fully_shard`` keeps a shard of each parameter. Before a module runs, a hook gathers the weights
and puts them into the user's own modules; after it, and after its backward pass, another one takes
them away. The hooks know the user's modules, and a private copy shares them. So the parameters of a
private copy are read from the user's modules at each use, as they are then.

A tensor parallel model keeps its shards, and hooks turn what enters and leaves a module into
DTensors and back. Its private copies are like any other.

In both the processes have to do the same: what they decide by themselves, they decide together.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._model.classes import Forward, Intervention
from attrfn._model.parameters import shared, shares
from attrfn._model.snapshot import Contents
from attrfn._torch import pytree, ranks
from attrfn._torch.autodiff import in_eager_transform
from attrfn._torch.explanation import current
from attrfn._torch.private import PARAMETERS, no_overrides, slots
from attrfn._torch.private_distributed import (
    FLAT_WEIGHTS,
    fsdp_parts,
    fsdp_reset,
    fsdp_resets,
    fsdp_running,
    fsdp_state,
)


class Sharded:
    """What a private copy of such a model needs while it runs.

    Args:
        frozen: Whether its parameters are detached.

    Attributes:
        states: Those of ``fully_shard``; none in a model that is tensor parallel alone.
        gathered: By id, the modules whose parameters hooks put in their places.
    """

    def __init__(self, frozen: bool) -> None:
        self.frozen = frozen
        self.states: list[Any] = []
        self.gathered: dict[int, nn.Module] = {}
        self.meshes: list[Any] = []

    @staticmethod
    def of_hooks(known: Sharded | None, hooks: Mapping[Any, Any], frozen: bool) -> Sharded | None:
        """What is known after a module with some hooks; None for other hooks."""
        found = [state for state in map(fsdp_state, hooks.values()) if state is not None]
        if not found:
            return known
        one = Sharded(frozen) if known is None else known
        for state in found:
            if not fsdp_resets(state):
                raise RuntimeError(
                    f"torch {torch.__version__} cannot reset a model of fully_shard after a run "
                    "that ends early: use torch >= 2.13, or explain the model before it is sharded"
                )
            if any(state is other for other in one.states):
                continue
            one.states.append(state)
            for module, part in fsdp_parts(state):
                one.gathered[id(module)] = module
                one.share(part)
        return one

    @staticmethod
    def of_part(known: Sharded | None, part: Tensor, frozen: bool) -> Sharded:
        """What is known after a parameter that is a DTensor."""
        one = Sharded(frozen) if known is None else known
        one.share(part)
        return one

    def share(self, part: Any) -> None:
        """Note the processes that share a DTensor."""
        mesh = part.device_mesh
        if not any(mesh is known for known in self.meshes):
            self.meshes.append(mesh)
            ranks.note(mesh)

    def attributes(self, module: nn.Module, snapshots: list[Any]) -> dict[str, Any]:
        """What a private copy of a module has in place of the attributes that were copied."""
        if id(module) not in self.gathered:
            return {}
        live = Live(module, self.frozen)
        snapshots.append(Contents.of(live))
        return {PARAMETERS: live}

    def kind(self, module: nn.Module, cls: Any) -> Any:
        """The class of a private copy of a module."""
        recurrent = id(module) in self.gathered and isinstance(module, nn.RNNBase)
        return with_list(cls) if recurrent else cls

    def check(self) -> None:
        """Refuse what such a model cannot do.

        Raises:
            ValueError: A transform of torch.func surrounds the run, or its result shall be
                differentiated.
        """
        if in_eager_transform():
            raise ValueError(
                "the model is sharded over processes, whose messages no transform of torch.func "
                "can carry: call the method outside of vmap and grad, with batching='fold', or "
                "explain the model before it is sharded"
            )
        one = current()
        if one is None:
            return
        if not one.groups:  # a copy that an earlier call has made
            for mesh in self.meshes:
                ranks.note(mesh)
        if not self.states:
            return
        one.once = True
        if not self.frozen:
            ranks.refuse_second()
        if self.reset not in one.ends:
            one.ends.append(self.reset)

    def run(self, model: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a private copy, and give the user's modules their shards back if it fails."""
        self.check()
        try:
            out = model(*args, **kwargs)
        except BaseException:
            self.reset()
            raise
        if current() is None and not torch.is_grad_enabled():
            self.reset()
        return out

    def reset(self) -> None:
        """Give all modules their shards back, also those in the middle of a run."""
        for state in self.states:
            fsdp_reset(state)

    def around(self, intervention: Intervention) -> Intervention:
        """An intervention whose values can be differentiated, wherever the rest of the run leads.

        A gradient may leave a sharded module by a value inside of it, and not by what it returns.
        """
        if not self.states:
            return intervention

        def held(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                return self.hold(forward(*args, **kwargs))

            self.hold((args, kwargs))
            return intervention(run, args, kwargs)

        return held

    def hold(self, value: Any) -> Any:
        """Have the weights gathered again when a gradient reaches a value."""
        if torch.is_grad_enabled():
            gather = fsdp_running(self.states)
            for t in pytree.tree_leaves(value):
                if isinstance(t, Tensor) and t.requires_grad:
                    for before in gather:
                        t.register_hook(before)  # type: ignore[no-untyped-call]
        return value


class Live(dict[str, Tensor | None]):
    """The parameters of a private copy, read from the user's module at each use.

    Args:
        module: The user's module.
        frozen: Detach them.
    """

    def __init__(self, module: nn.Module, frozen: bool) -> None:
        super().__init__(slots(module, PARAMETERS))
        self.of = module
        self.frozen = frozen
        self.own: set[str] = set()  # what the model itself has put here

    def __getitem__(self, name: str) -> Tensor | None:
        found = super().__getitem__(name)
        return found if name in self.own else self._now(slots(self.of, PARAMETERS)[name])

    def __setitem__(self, name: str, value: Tensor | None) -> None:
        self.own.add(name)
        super().__setitem__(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        """The parameter of a name."""
        try:
            return self[name]
        except KeyError:
            return default

    def values(self) -> Any:
        """The parameters."""
        return [self[name] for name in self]

    def items(self) -> Any:
        """The parameters and their names."""
        return [(name, self[name]) for name in self]

    def _now(self, p: Tensor | None) -> Tensor | None:
        if p is None or not self.frozen:
            return p
        with no_overrides():  # a mode sees what the model does
            if shares(p):
                return shared(p, linked=False)
            return p.detach() if p.requires_grad else p


@functools.lru_cache(maxsize=256)
def with_list(cls: Any) -> Any:
    """A subclass of a recurrent layer of torch that makes its list of weights when it runs."""
    weights, names = FLAT_WEIGHTS

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__[weights] = [getattr(self, name) for name in self.__dict__[names]]
        return cls.forward(self, *args, **kwargs)

    body = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), body)
