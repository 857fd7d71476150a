"""A model that is looked at, as the library runs it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from attrfn._explain.explain import explain
from attrfn._explain.tree import as_dicts
from attrfn._torch.typing import Leaves, ModelFn, Target, Tree


class Case(NamedTuple):
    """A model as the library runs it.

    Attributes:
        model_fn: The user's.
        inputs: The user's.
        target: The target, or the sum of the outputs.
        x: The leaves of the inputs, without a graph.
        rebuild: From leaves to the inputs' tree.
    """

    model_fn: ModelFn
    inputs: Tree
    target: Target
    x: Leaves
    rebuild: Callable[[Any], Tree]

    def values(self, x: Leaves, seed: int = 0) -> Tensor:
        """The outputs for some rows, (B, N), under a seed of the global random numbers."""
        used = {t.device for t in x if t.device.type == "cuda"}
        with torch.random.fork_rng(devices=used), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            model = explain(self.model_fn, self.rebuild(x), None, differentiated=False).model
            args = self.rebuild([t.clone() for t in x])
            called = isinstance(args, tuple) and not hasattr(args, "_fields")
            return rows_of(model(*args) if called else model(args), x[0].shape[0])


def rows_of(outputs: Any, batch: int) -> Tensor:
    """All floating outputs with the examples in dimension 0, side by side."""
    leaves = [t for t in optree.tree_leaves(as_dicts(outputs)) if isinstance(t, Tensor)]
    kept = [t for t in leaves if t.ndim and t.shape[0] == batch and not t.is_complex()]
    if not kept:
        said = [tuple(t.shape) for t in leaves] or type(outputs).__name__
        raise ValueError(f"outputs are {said} for {batch} examples, with no row for each example")
    wide = torch.float64 if all(t.dtype == torch.float64 for t in kept) else torch.float32
    return torch.cat([t.to(wide).reshape(batch, -1) for t in kept], 1)


def said(error: BaseException) -> str:
    """The class of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".split("\n")[0]


def root_of(model_fn: Any) -> nn.Module | None:
    """The module that a model function shows."""
    if isinstance(model_fn, nn.Module):
        return model_fn
    if isinstance(model_fn, types.MethodType):
        return root_of(model_fn.__self__)
    if isinstance(model_fn, functools.partial):
        first = model_fn.args[0] if model_fn.args else None
        return root_of(model_fn.func) or (first if isinstance(first, nn.Module) else None)
    return None
