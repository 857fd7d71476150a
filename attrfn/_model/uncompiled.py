"""Functions of ``torch.compile`` as they run uncompiled."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from attrfn._torch import private_compiler
from attrfn._torch.autodiff import in_eager_transform
from attrfn._torch.decomposed import is_decomposing
from attrfn._torch.typing import ModelFn


def uncompiled(model_fn: Any) -> ModelFn:
    """The function that ``torch.compile(function)`` compiles: a mode sees its operations."""
    if isinstance(model_fn, (list, tuple)):  # the models of an ensemble
        models: Any = [uncompiled(model) for model in model_fn]
        found: ModelFn = models
        return found
    if isinstance(model_fn, functools.partial):
        inner = uncompiled(model_fn.func)
        if inner is model_fn.func:
            return model_fn
        return functools.partial(inner, *model_fn.args, **model_fn.keywords)
    if isinstance(model_fn, nn.Module):
        return model_fn
    return private_compiler.uncompiled(model_fn)


def eager_in_transforms(model_fn: ModelFn) -> ModelFn:
    """A function of ``torch.compile`` as one that runs uncompiled where compiled code cannot run.

    That is inside transforms of torch.func, and for second derivatives.
    """
    eager: ModelFn = uncompiled(model_fn)
    if eager is model_fn:
        return model_fn
    if isinstance(model_fn, functools.partial):
        inner = eager_in_transforms(model_fn.func)
        return functools.partial(inner, *model_fn.args, **model_fn.keywords)

    def run(*args: Any, **kwargs: Any) -> Any:
        plain = in_eager_transform() or is_decomposing()
        return (eager if plain else model_fn)(*args, **kwargs)

    return run


def one_of(model_fn: Any) -> ModelFn:
    """A model function, or the first one of an ensemble."""
    found: ModelFn = model_fn[0] if isinstance(model_fn, (list, tuple)) else model_fn
    return found
