"""Checks of derivatives of attributions: in the inputs and in the parameters."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from attrfn._torch.typing import Tree
from attrfn.testing._trial import Failed, Trial, detached, difference, weighted, weights_like


def jvp(t: Trial) -> None:
    """Forward-mode derivatives of the attributions are those by finite differences."""
    x, model = t.inputs(), t.build()
    given, direction = t.options(x), t.like(x, 2)

    def f(x: Tensor) -> Tree:
        return t.method(model, x, **given)

    right = difference(lambda h: detached(f(x + h * direction)))
    value, found = torch.func.jvp(f, (x,), (direction,))[:2]
    t.close(value, f(x), "the attributions in torch.func.jvp")
    t.close(found, right, "torch.func.jvp of the attributions", t.slopes)


def grad(t: Trial) -> None:
    """Derivatives of the attributions in the inputs are those by finite differences."""
    x, model = t.inputs(), t.build()
    given, direction = t.options(x), t.like(x, 2)
    weights = weights_like(t, detached(t.method(model, x, **given)))

    def f(x: Tensor, **options: Any) -> Tensor:
        return weighted(t.method(model, x, **given, **options), weights)

    right = difference(lambda h: f(x + h * direction).detach())
    slope = torch.func.grad(f)(x)
    t.said(slope, "torch.func.grad of the attributions")
    t.close((slope * direction).sum(), right, "torch.func.grad of the attributions", t.slopes)
    if t.graph is not None:
        leaf = x.clone().requires_grad_()
        score = f(leaf, **t.graph) + 0 * leaf.sum()  # constant attributions have no graph
        found = torch.autograd.grad(score, leaf)[0]
        t.close(found, slope, f"backward with {_said(t.graph)}")


def parameters(t: Trial) -> None:
    """Derivatives of the attributions in the parameters are those by finite differences."""
    x, model = t.inputs(), t.build()
    given, start = t.options(x), {k: p.detach() for k, p in model.named_parameters()}
    weights = weights_like(t, detached(t.method(model, x, **given)))
    directions = {k: t.like(p, 20 + i) for i, (k, p) in enumerate(start.items())}

    def f(params: dict[str, Tensor]) -> Tensor:
        bound = functools.partial(torch.func.functional_call, model, params)
        return weighted(t.method(bound, x, **given), weights)

    def along(h: float) -> Tensor:
        return f({k: p + h * directions[k] for k, p in start.items()}).detach()

    right = difference(along)
    if t.informative and right == 0:
        raise Failed("the derivative in the parameters is 0")
    slopes = torch.func.grad(f)(start)
    found = torch.stack([(slopes[k] * directions[k]).sum() for k in start]).sum()
    t.close(found, right, "torch.func.grad in the parameters", t.slopes)
    if t.graph is not None:
        model.requires_grad_(True)
        score = weighted(t.method(model, x, **given, **t.graph), weights)
        if score.requires_grad:
            torch.autograd.backward(score)
        # A parameter without influence (a bias after the layer) may keep None.
        reached = {
            k: torch.zeros_like(p) if p.grad is None else p.grad
            for k, p in model.named_parameters()
        }
        t.close(reached, slopes, f"backward with {_said(t.graph)} to the parameters")


def _said(options: dict[str, Any]) -> str:
    return ", ".join([f"{k}={v}" for k, v in options.items()]) or "no option"
