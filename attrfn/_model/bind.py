"""Bind a model function to private objects before it runs, so that the user's stay as they are."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from attrfn._model.clone import run_clone
from attrfn._model.private_copy import Intervention, PrivateCopy
from attrfn._model.source import Source, find, foreign, source
from attrfn._torch import private_compiler
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling, require_compiler
from attrfn._torch.typing import ModelFn


def bind(model_fn: ModelFn, *, frozen: bool, forward_only: bool = False) -> ModelFn:
    """The same function on private objects.

    Args:
        model_fn: Any model function; one with no module in sight is returned as it is.
        frozen: Detach the parameters (nothing will differentiate with respect to them). Objects
            that a run leaves unchanged serve for the next one, too.
        forward_only: Nothing at all will be differentiated.

    Raises:
        RuntimeError: torch.compile traces this call, and this torch cannot compile it correctly.
    """
    if is_compiling():
        require_compiler()
    src = source(model_fn)
    if src is None:
        return model_fn
    if frozen and not transforming():
        again = Reused(src._replace(args=(), kwargs={}), fused=forward_only)
        return functools.partial(again, *src.args, **src.kwargs)
    return bind_source(src, (), (), frozen=frozen)


def uncompiled(model_fn: ModelFn) -> ModelFn:
    """The function behind ``torch.compile(function)``, whose operations no mode would see."""
    if isinstance(model_fn, functools.partial):
        inner = uncompiled(model_fn.func)
        if inner is model_fn.func:
            return model_fn
        return functools.partial(inner, *model_fn.args, **model_fn.keywords)
    if isinstance(model_fn, nn.Module):
        return model_fn
    return private_compiler.uncompiled(model_fn)


class Reused:
    """A source whose private serve for the next run, too, if a run has left them unchanged.

    Args:
        src: The source, whose parameters are detached.
        fused: See :class:`PrivateCopy`.
        layers: Where interventions may be.
    """

    def __init__(
        self, src: Source, *, fused: bool = False, layers: Sequence[nn.Module | str] = ()
    ) -> None:
        self.src = src
        self.fused = fused
        self.layers = layers
        self.kept: list[_Built] = []  # popped while they run, so that no two threads share one

    def prepare(self) -> None:
        """Have private ready."""
        self.kept.append(self._take()._replace(ready=True))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.run((), args, kwargs)

    def run(
        self, interventions: Sequence[Intervention], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the model with interventions at the layers."""
        kept = self._take()
        sites = [kept.private.memo[id(find(self.src.module, layer))] for layer in self.layers]
        for site, intervention in zip(sites, interventions, strict=False):
            site._attrfn_intervention = intervention
        try:
            return kept.model(*args, **kwargs)
        finally:
            for site in sites:
                site._attrfn_intervention = None
            self.kept.append(kept._replace(ready=False))

    def _take(self) -> _Built:
        with contextlib.suppress(IndexError):
            kept = self.kept.pop()
            if kept.ready or kept.private.unchanged():
                return kept
        interventions = [None] * len(self.layers)
        return _Built(
            *_private_copy(self.src, self.layers, interventions, True, self.fused), ready=False
        )


class _Built(NamedTuple):
    """PrivateCopy, the model made of them, and whether they were built or looked at since a run."""

    private: PrivateCopy
    model: ModelFn
    ready: bool


def prepare(model_fn: ModelFn) -> None:
    """Build the private objects of a bound function now, before a mode is active."""
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
        return _compiled(src, layers, interventions, frozen)
    bare = src._replace(args=(), kwargs={})

    def run(*args: Any, **kwargs: Any) -> Any:
        return _private_copy(bare, layers, interventions, frozen)[1](*args, **kwargs)

    return functools.partial(run, *src.args, **src.kwargs)


def _private_copy(
    src: Source,
    layers: Sequence[nn.Module | str],
    interventions: Sequence[Intervention | None],
    frozen: bool,
    fused: bool = False,
) -> tuple[PrivateCopy, ModelFn]:
    """PrivateCopy for one run, so that every run starts from the user's state."""
    found = [find(src.module, layer) for layer in layers]
    taken = dict(zip(map(id, found), interventions, strict=True))
    private = PrivateCopy(frozen=frozen, interventions=taken, fused=fused)
    for name, value in (src.params or {}).items():
        private.replace(_tensor(src.module, name), value)
    module = private.module(src.module)
    for layer, old in zip(layers, found, strict=True):
        if id(old) not in private.memo:
            raise foreign(src.module, layer)
    private.warn()
    return private, module if src.method is None else types.MethodType(src.method, module)


def _compiled(
    src: Source,
    layers: Sequence[nn.Module | str],
    interventions: Sequence[Intervention],
    frozen: bool,
) -> ModelFn:
    bare = src._replace(args=(), kwargs={})

    def run(*args: Any, **kwargs: Any) -> Any:
        return run_clone(bare, tuple(layers), tuple(interventions), frozen, args, kwargs)

    return functools.partial(run, *src.args, **src.kwargs)


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
