"""A target that sets one output against another."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor

from attrfn._explain.said import main_tensor
from attrfn._explain.target import choose, select
from attrfn._model.bound import per_example, rows_of, shared
from attrfn._torch.typing import Target


def contrast(a: Target, b: Target) -> Target:
    """A target: how much more the model says ``a`` than ``b``, f_a(x) - f_b(x).

    Args:
        a: An int, a tuple of ints and slices, an integer tensor (B,) with one for each example, or
            a list of ints or of tuples of ints.
        b: Another one.

    Returns:
        A target for any method.

    Example:
        >>> import torch, attrfn
        >>> model, x = torch.nn.Linear(3, 4), torch.randn(5, 3)
        >>> why = attrfn.gradient(model, x, target=attrfn.contrast(2, 0))
        >>> torch.allclose(why, (model.weight[2] - model.weight[0]).expand(5, 3))
        True
    """
    # Tensors are bound by a partial, in which they follow copies of the batch.
    return functools.partial(_difference, a=_marked(a), b=_marked(b))


def _marked(target: Target) -> Target:
    """A tensor with an index for each example says so; one with a single index is for all."""
    if isinstance(target, list):  # a list does not follow copies of the batch
        with contextlib.suppress(TypeError, ValueError):
            indices: Tensor = per_example(torch.tensor(target))
            return indices
    if not isinstance(target, Tensor) or target.ndim != 1 or rows_of(target) is not None:
        return target
    said: Tensor = shared(target) if len(target) == 1 else per_example(target)
    return said


def _difference(outputs: Any, a: Target, b: Target) -> Tensor:
    def of(target: Target, name: str) -> Tensor:
        if isinstance(target, Tensor) and target.ndim == 2:
            target = [tuple(index) for index in target.tolist()]
        return select(outputs, choose(target, rows, name), rows, name)

    rows = len(main_tensor(outputs))
    return of(a, "a") - of(b, "b")
