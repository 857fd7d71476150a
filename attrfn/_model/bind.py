"""Bind a model function to private copies of its modules, so that the user's stay unchanged.

Hooks and patched modules are state: they survive exceptions, race between threads, and have no
effect after a first ``torch.compile(model)``. ``torch.func.functional_call`` swaps the parameters
of the user's module while it runs: two threads then get wrong results, and the module can stay
corrupted. So eager code runs on fresh module objects that share the parameters
(:mod:`attrfn._model.private_copy`). torch.compile cannot trace these for every model; compiled code
runs on a persistent clone (:mod:`attrfn._model.clone`).
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from attrfn._model.classes import Intervention
from attrfn._model.clone import run_clone
from attrfn._model.edits import inside, joined, one_each
from attrfn._model.hidden import check_hidden
from attrfn._model.parameters import refuse_writes
from attrfn._model.private_copy import PrivateCopy
from attrfn._model.running import check_sharded, intervene, run_watched
from attrfn._model.source import Source, find, foreign, shown, source
from attrfn._model.training import refuse_tied
from attrfn._model.uncompiled import eager_in_transforms
from attrfn._model.unloaded import refuse_unloaded
from attrfn._torch import checkpointing
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling, require_compiler
from attrfn._torch.explanation import current
from attrfn._torch.typing import ModelFn


def bind(model_fn: ModelFn, *, frozen: bool, forward_only: bool = False) -> ModelFn:
    """The same function on private copies of its modules.

    Args:
        model_fn: Any model function; a function without a visible module is returned as it is.
        frozen: Detach the parameters (nothing will differentiate with respect to them). Copies
            that a run leaves unchanged are reused by the next run.
        forward_only: Nothing will be differentiated, so that fused layers may run.

    Raises:
        RuntimeError: torch.compile traces this call, and this torch cannot compile it correctly.
        ValueError: The model would change, and cannot be copied.
    """
    if is_compiling():
        require_compiler()
    src = source(model_fn)
    if src is None:
        refuse_unloaded(model_fn, "model_fn")
        if not callable(model_fn):
            raise TypeError(
                f"model_fn is {shown(model_fn)}, expected a torch.nn.Module or another callable"
            )
        if not is_compiling():
            check_hidden(model_fn, frozen=frozen)
        return model_fn if is_compiling() else eager_in_transforms(model_fn)
    # Inside a transform copies may hold its wrapped tensors, which die with it, and no value tells
    # whether a run has changed a copy. So each run builds one.
    if frozen and not transforming():
        reused = Reused.of(src, fused=forward_only)
        return functools.partial(reused, *src.args, **src.kwargs)
    return bind_source(src, (), (), frozen=frozen)


class Reused:
    """A source with private copies that later runs reuse, if a run leaves them unchanged.

    Args:
        src: The source; its parameters are detached.
        fused: See :class:`PrivateCopy`.
        layers: The layers that can have interventions.
    """

    # A copy of a large convolutional net costs a part of its forward pass at batch 1; to ask if a
    # run has changed it costs a fraction of that, which wins 1.2: feature_ablation of EfficientNet,
    # batch 1, in benchmarks/special_cases_earn_their_place.py. A changed copy is dropped, so that a
    # model that counts its calls or updates statistics starts each run from the user's state.

    def __init__(
        self, src: Source, *, fused: bool = False, layers: Sequence[nn.Module | str] = ()
    ) -> None:
        self.src = src
        self.fused = fused
        self.layers = layers
        self.idle: list[_Built] = []  # a thread takes a copy out while it runs it

    @staticmethod
    def of(src: Source, *, fused: bool = False, layers: Sequence[nn.Module | str] = ()) -> Reused:
        """The copies that the call of a method has of a source, or new ones."""
        made = functools.partial(
            Reused, src._replace(args=(), kwargs={}), fused=fused, layers=layers
        )
        explanation = current()
        if explanation is None or src.params is not None or src.around:
            return made()
        # A method inside of another, such as that of a noise tunnel, is bound for each chunk. The
        # module of an entry is alive, so that no other one has its id.
        places = [id(find(src.module, one)) for one in layers]
        key = (id(src.module), src.method, fused, src.edits, *places)
        if key not in explanation.copies:
            explanation.copies[key] = made()
        found: Reused = explanation.copies[key]
        return found

    def prepare(self) -> None:
        """Build a private copy for the next run now."""
        if is_compiling():  # which runs a clone
            return
        self.idle.append(self._take()._replace(ready=True))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.run((), args, kwargs)

    def run(
        self, interventions: Sequence[Intervention], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the model with interventions at the layers."""
        now = inside(self.src, self.layers, interventions, args)
        if is_compiling():  # the unit of an attribution, whose surroundings are eager
            around = tuple(now.layers), tuple(now.interventions)
            out = run_clone(self.src, *around, True, now.args, kwargs)
            now.over()
            return out
        built = self._take()
        sites = [built.private.memo[id(find(self.src.module, layer))] for layer in now.layers]
        private = built.private
        if sites:
            intervene(private, sites, one_each(sites, now.interventions))
        try:
            if sites or private.sharded is not None:
                out = run_watched(private, built.model, now.args, kwargs, sites)
            else:
                out = built.model(*now.args, **kwargs)
            refuse_writes(private.shared, private.written)
            now.over()
            return out
        finally:
            for site in sites:
                site._attrfn_intervention = None
            self.idle.append(built._replace(ready=False))

    def _take(self) -> _Built:
        with contextlib.suppress(IndexError):  # no copy is idle
            built = self.idle.pop()
            if built.ready or built.private.unchanged():
                return built
        layers = [*self.layers, *[m for plan in self.src.edits for m in plan.modules]]
        interventions = [None] * len(layers)
        return _Built(
            *_private_copy(self.src, layers, interventions, True, self.fused), ready=False
        )


class _Built(NamedTuple):
    """A private copy of a model.

    Attributes:
        private: The walk that built it.
        model: The copy, as a model function.
        ready: Whether it is known to be unchanged: nothing ran since it was built or compared.
    """

    private: PrivateCopy
    model: ModelFn
    ready: bool


def prepare(model_fn: ModelFn) -> None:
    """Build the private copy of a bound function now, before a mode is active that would see it."""
    while isinstance(model_fn, functools.partial):
        model_fn = model_fn.func
    if isinstance(model_fn, Reused):
        model_fn.prepare()


def bind_source(
    src: Source,
    layers: Sequence[nn.Module | str],
    interventions: Sequence[Intervention],
    *,
    frozen: bool,
) -> ModelFn:
    """Bind a source, with ``interventions[i]`` around the forward of ``layers[i]``.

    Its bound arguments stay visible as those of a ``functools.partial``.
    """
    if is_compiling():
        require_compiler()
    unbound = src._replace(args=(), kwargs={})

    def run(*args: Any, **kwargs: Any) -> Any:
        now = inside(unbound, layers, interventions, args)
        at, around = now.layers, now.interventions
        if src.around:
            at, around = joined(src, at, around)
        # Also inside the unit of an attribution, whose surroundings are eager.
        if is_compiling():
            out = run_clone(unbound, tuple(at), tuple(around), frozen, now.args, kwargs)
        else:
            private, model = _private_copy(unbound, at, around, frozen)
            if at or private.sharded is not None:
                out = run_watched(private, model, now.args, kwargs, at)
            else:
                out = model(*now.args, **kwargs)
            refuse_writes(private.shared, private.written)
        now.over()
        return out

    return functools.partial(run, *src.args, **src.kwargs)


class Bare:
    """A source as a model function, in which :func:`attrfn._model.source.source` finds it.

    A source with other tensors is not one of the functions that it was made from.
    """

    def __init__(self, src: Source) -> None:
        self.attrfn_source = src

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on a private copy."""
        return bind_source(self.attrfn_source, (), (), frozen=False)(*args, **kwargs)


def _private_copy(
    src: Source,
    layers: Sequence[nn.Module | str],
    interventions: Sequence[Intervention | None],
    frozen: bool,
    fused: bool = False,
) -> tuple[PrivateCopy, ModelFn]:
    """A private copy and its model function for one run, which starts from the user's state."""
    if not checkpointing.watched:
        checkpointing.watch()
    found = [find(src.module, layer) for layer in layers]
    at = dict(zip(map(id, found), one_each(found, interventions), strict=True))
    private = PrivateCopy(frozen=frozen, interventions=at, fused=fused)
    private.clone_rescaled(src.module)
    for name, value in (src.params or {}).items():
        private.replace(_tensor(src.module, name), value)
    module = private.module(src.module)
    if private.rescales:
        refuse_tied(src.module)
    for layer, old in zip(layers, found, strict=True):
        if id(old) not in private.memo:
            raise foreign(src.module, layer)
    if private.sharded is not None:
        check_sharded(private, src)
        sites = [private.memo[id(old)] for old in found]
        intervene(private, sites, [site._attrfn_intervention for site in sites])
    private.warn()
    return private, module if src.method is None else types.MethodType(src.method, module)


def _tensor(module: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    try:
        tensor: Tensor = getattr(module.get_submodule(path), leaf)
    except AttributeError:
        raise ValueError(
            f"functional_call is bound to a tensor named {name!r}, expected the names of "
            f"parameters and buffers of {type(module).__name__}"
        ) from None
    return tensor
