"""Sanity: whether attributions depend on what they should depend on, and on nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import is_integer
from attrfn._copies.progress import steps
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import explain
from attrfn._explain.forms import form_of
from attrfn._explain.tree import each, flatten, require_floating
from attrfn._random.keys import row_keys
from attrfn._torch.typing import Baselines, Leaves, Method, ModelFn, Target, Tree, Unpack
from attrfn.metrics._around import (
    Again,
    again,
    differences,
    finish,
    maps_of,
    norm_over,
    ratio,
)
from attrfn.metrics._direction import better
from attrfn.metrics._options import AgainOptions
from attrfn.metrics.similarity import ssim

Similarity = Callable[[Tree, Tree], Tensor]


@better("lower")
@form_of(again)
def input_invariance(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    shift: Baselines,
    **options: Unpack[AgainOptions],
) -> Tensor:
    """Input invariance: how much attributions change if model and inputs are shifted alike.

        ||A(g, x + c) - A(f, x)|| / ||A(f, x)||,   g(z) = f(z - c)

    g(x + c) = f(x), and so are their gradients. A method with baselines compares x + c with the
    same baselines as x: shift them in a method of your own if they should move.

    Args:
        shift: c, a number, a tensor that broadcasts to the input, or a pytree prefix of those.
        key: Nothing is drawn here.
        chunk_size: Without an effect: nothing is explained in copies.

    Returns:
        One number per example, (B,): 0 where the method is invariant, nan where A(f, x) is 0.

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> f, x = lambda x: x[:, 0] + 2 * x[:, 1], torch.tensor([[3.0, 1.0]])
        >>> attrfn.metrics.input_invariance(f, x, attrfn.gradient, shift=1.0)
        tensor([0.])
        >>> attrfn.metrics.input_invariance(f, x, attrfn.input_x_gradient, shift=1.0)
        tensor([0.6202])

    Reference:
        Kindermans et al., The (Un)reliability of saliency methods, 2017.
        https://arxiv.org/abs/1711.00867
    """
    a = again(model_fn, inputs, method, **options)
    require_floating(a.x)
    c = fill_baselines(shift, inputs, a.x, "shift")
    p = explain(
        model_fn, inputs, None, create_graph=a.keeps_graph, differentiated=False, name="shift"
    )
    # A partial, so that what has a row per example in the model and in c follows the batch.
    shifted = functools.partial(_shifted, p.model, c)
    with steps(2, "input_invariance", options.get("progress", False)) as advance:
        here = maps_of(method, model_fn, inputs, a.options)
        advance(1)
        there = maps_of(method, shifted, a.rebuild(each(torch.add, a.x, c)), a.options)
        advance(1)
    change = norm_over(_one(differences(there, here)))
    return finish(a.x, ratio(change, norm_over(_one(here)))[0])


def _shifted(f: ModelFn, c: Leaves, *z: Tree) -> Any:
    """``g(z) = f(z - c)``."""
    leaves, rebuild = flatten(z)
    return f(*rebuild(each(torch.sub, leaves, c)))


@better("lower")
@form_of(again)
def random_logit(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    n_classes: int,
    similarity: Similarity = ssim,
    **options: Unpack[AgainOptions],
) -> Tensor:
    """Random logit: how similar the attributions of the target are to those of another class.

        similarity(A(target), A(c)),   c ~ uniform over the other classes

    Args:
        n_classes: The number of classes, at least 2.
        similarity: ``similarity(a, b) -> (B,)``, such as those of
            :mod:`attrfn.metrics.similarity`; ``ssim`` needs maps (B, ..., H, W).
        target: A class, an int or an integer tensor () or (B,).
        chunk_size: Without an effect: nothing is explained in copies.

    Returns:
        One similarity per example, (B,).

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> from attrfn.metrics import similarity
        >>> w = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]])
        >>> attrfn.metrics.random_logit(
        ...     lambda x: x @ w.T,
        ...     torch.ones(1, 3),
        ...     attrfn.gradient,
        ...     target=0,
        ...     n_classes=2,
        ...     similarity=similarity.pearson,
        ... )
        tensor([0.9820])

    Reference:
        Sixt, Granz and Landgraf, When Explanations Lie: Why Many Modified BP Attributions Fail,
        2020. https://arxiv.org/abs/1912.09818
    """
    target = _class_of(options.get("target"))
    if not is_integer(n_classes) or n_classes < 2:
        raise ValueError(f"n_classes is {n_classes!r}, expected an int of at least 2")
    a = again(model_fn, inputs, method, **options)
    device = a.x[0].device
    other = 1 + random.randint(row_keys(options.get("key", 0), a.batch, device), (), n_classes - 1)
    other = (other + torch.as_tensor(target, device=device)) % n_classes
    with steps(2, "random_logit", options.get("progress", False)) as advance:
        here = _maps(a, target)
        advance(1)
        there = _maps(a, other.expand(a.batch))
        advance(1)
    return similarity(here, there)


def _maps(a: Again, target: Target) -> Tree:
    return a.method(a.model_fn, a.inputs, target=target)


def _class_of(target: Target) -> int | Tensor:
    if is_integer(target):
        return target  # type: ignore[return-value]
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if isinstance(target, Tensor) and target.dtype in kinds and target.ndim <= 1:
        return target.long()
    raise TypeError(
        f"target is {'None' if target is None else f'a {type(target).__name__}'}, expected a class "
        "for random_logit: an int or an integer tensor () or (B,)"
    )


def _one(leaves: Leaves) -> Leaves:
    """As one copy of the batch."""
    return tuple([t[None] for t in leaves])
