"""Bind a model function to private objects before it runs, so that the user's stay as they are."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._core.clone import run_clone
from attrfn._core.compiling import is_compiling
from attrfn._core.derive import transforming
from attrfn._core.shell import Shells, Tap
from attrfn._core.source import Source, find, foreign, source
from attrfn._core.typing import ModelFn

_COMPILES = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 6)


def bind(model_fn: ModelFn, *, frozen: bool, forward_only: bool = False) -> ModelFn:
    """The same function on private objects.

    Args:
        model_fn: Any model function; one with no module in sight is returned as it is.
        frozen: Detach the parameters (nothing will differentiate with respect to them).
        forward_only: Nothing at all will be differentiated: objects that a run leaves unchanged
            serve for the next one too.
    """
    src = source(model_fn)
    if src is None:
        return model_fn
    if forward_only and frozen and not transforming():
        return _forward_only(src)
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
    original: ModelFn = getattr(model_fn, "_torchdynamo_orig_callable", model_fn)
    return original


def _forward_only(src: Source) -> ModelFn:
    bare = src._replace(args=(), kwargs={})
    kept: list[tuple[Shells, ModelFn]] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        shells, model = kept.pop() if kept else _shells(bare, (), (), True, True)
        result = model(*args, **kwargs)
        if shells.unchanged():
            kept.append((shells, model))
        return result

    return functools.partial(run, *src.args, **src.kwargs)


def bind_source(
    src: Source, layers: Sequence[nn.Module | str], taps: Sequence[Tap], *, frozen: bool
) -> ModelFn:
    """Bind a source, with ``taps[i]`` around the forward of ``layers[i]``.

    Its bound arguments stay visible as those of a ``functools.partial``.
    """
    if is_compiling():
        return _compiled(src, layers, taps, frozen)
    bare = src._replace(args=(), kwargs={})

    def run(*args: Any, **kwargs: Any) -> Any:
        return _shells(bare, layers, taps, frozen)[1](*args, **kwargs)

    return functools.partial(run, *src.args, **src.kwargs)


def _shells(
    src: Source,
    layers: Sequence[nn.Module | str],
    taps: Sequence[Tap],
    frozen: bool,
    fused: bool = False,
) -> tuple[Shells, ModelFn]:
    """Shells for one run, so that every run starts from the user's state."""
    found = [find(src.module, layer) for layer in layers]
    taken = dict(zip(map(id, found), taps, strict=True))
    shells = Shells(frozen=frozen, taps=taken, fused=fused)
    for name, value in (src.params or {}).items():
        shells.replace(_tensor(src.module, name), value)
    module = shells.module(src.module)
    for layer, old in zip(layers, found, strict=True):
        if id(old) not in shells.memo:
            raise foreign(src.module, layer)
    shells.warn()
    return shells, module if src.method is None else types.MethodType(src.method, module)


def _compiled(
    src: Source, layers: Sequence[nn.Module | str], taps: Sequence[Tap], frozen: bool
) -> ModelFn:
    if not _COMPILES:
        raise RuntimeError(
            f"torch {torch.__version__} cannot compile attributions correctly: use torch >= 2.6 "
            "with torch.compile, or call the method without it"
        )
    bare = src._replace(args=(), kwargs={})

    def run(*args: Any, **kwargs: Any) -> Any:
        return run_clone(bare, tuple(layers), tuple(taps), frozen, args, kwargs)

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
