"""Whether a model has the derivatives that methods take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import binds_rows
from attrfn._explain.explain import explain
from attrfn._torch.typing import Leaves
from attrfn.testing._draw import normal
from attrfn.testing._model_case import Case, said
from attrfn.testing._model_report import Finding


def derivatives(c: Case, deterministic: bool) -> Iterator[Finding]:
    """Gradients, forward mode, vmap and second derivatives of a model."""
    if not deterministic:
        yield Finding("gradient", None, "not checked, because the outputs are random")
        return
    floating = [i for i, t in enumerate(c.x) if t.is_floating_point()]
    if len(floating) < len(c.x):
        text = "integer inputs have no gradient: explain an embedding layer, or perturb"
        yield Finding("gradient", None, text)
        return
    directions = tuple([normal(*t.shape, seed=5 + i).to(t) for i, t in enumerate(c.x)])

    def f(*x: Tensor, target: Any = c.target) -> Tensor:
        return explain(c.model_fn, c.rebuild(x), target, create_graph=True).values(x)

    first = _gradient(c, f, directions)
    yield first
    yield _works("forward mode", lambda: torch.func.jvp(f, c.x, directions)[1])
    if binds_rows(c.model_fn, c.x[0].shape[0]):
        yield Finding("vmap", None, "not checked: tensors of the examples are bound to the model")
    else:
        of_one = _first(c.target)
        one = torch.vmap(lambda *x: f(*[t[None] for t in x], target=of_one)[0])
        yield _works("vmap", lambda: one(*c.x))
    if first.good:
        yield _second(c, f, directions)


def _first(target: Any) -> Any:
    """The target of one example."""
    of_each = isinstance(target, list) or (isinstance(target, Tensor) and target.ndim > 0)
    return target[0] if of_each else target


def _works(name: str, run: Callable[[], Tensor]) -> Finding:
    try:
        run()
    except Exception as error:
        return Finding(name, False, said(error))
    return Finding(name, True, "works")


def _gradient(c: Case, f: Callable[..., Tensor], directions: Leaves) -> Finding:
    """The gradient against finite differences along a direction."""
    leaves = [t.clone().requires_grad_() for t in c.x]
    try:
        values = f(*leaves)
        if not values.requires_grad:
            return Finding("gradient", False, "the output has no gradient: perturb instead")
        grads = _grads(values.sum(), leaves)
    except Exception as error:
        return Finding("gradient", False, said(error))
    if any(g is not None and not torch.isfinite(g).all() for g in grads):
        return Finding("gradient", False, "the gradient is not finite")
    steps = (1e-5, 1e-6, 1e-7) if c.x[0].dtype == torch.float64 else (1e-2, 1e-3, 1e-4)
    for i, (g, d) in enumerate(zip(grads, directions, strict=True)):
        slope = torch.zeros_like(values) if g is None else (g * d).reshape(len(d), -1).sum(1)
        where = f"input {i}: " if len(c.x) > 1 else ""
        changes = [_slope(f, c.x, i, d, step) for step in steps]
        if any(_agree(slope, change) for change in changes):
            continue
        if not float(slope.abs().max()) and float(changes[0].abs().max()):
            text = f"{where}the output changes, and the gradient is 0: a step hides it"
            return Finding("gradient", False, text)
        return Finding("gradient", *_verdict(where, values, changes, steps))
    unread = [str(i) for i, g in enumerate(grads) if g is None or not g.any()]
    if unread:
        return Finding("gradient", True, f"exists; that of input {', '.join(unread)} is 0")
    return Finding("gradient", True, "exists, and agrees with finite differences")


def _slope(f: Callable[..., Tensor], x: Leaves, i: int, d: Tensor, step: float) -> Tensor:
    """The slope along d by a difference of so many times d."""
    return (_moved(f, x, i, step * d) - _moved(f, x, i, -step * d)) / (2 * step)


def _agree(slope: Tensor, other: Tensor) -> bool:
    size = max(float(other.abs().max()), float(slope.abs().max()), 1e-3)
    return float((slope - other).abs().max()) <= 0.1 * size


def _verdict(
    where: str, values: Tensor, changes: list[Tensor], steps: tuple[float, ...]
) -> tuple[bool | None, str]:
    """What it means that no difference gives the gradient."""
    # A detached path leaves the same error at all steps, and at a jump the difference of the values
    # itself stays. Kinks, as of ReLU, and rounding change both from step to step.
    apart = [
        2 * step * float(change.abs().max()) for step, change in zip(steps, changes, strict=True)
    ]
    rounding = 1e3 * torch.finfo(values.dtype).eps * max(float(values.abs().max()), 1.0)
    if any(_agree(changes[k - 1], changes[k]) and apart[k] > rounding for k in (1, 2)):
        return False, f"{where}not what finite differences give: a detached path"
    if apart[2] > max(0.5 * apart[0], rounding):
        return False, f"{where}not what finite differences give: a jump"
    return None, f"{where}not checked: kinks and rounding change finite differences; try float64"


def _grads(value: Tensor, leaves: list[Tensor], create_graph: bool = False) -> list[Tensor | None]:
    """Gradients, None for what was not used."""
    found = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return list(found)


def _moved(f: Callable[..., Tensor], x: Leaves, i: int, by: Tensor) -> Tensor:
    with torch.no_grad():
        return f(*[t + by if k == i else t for k, t in enumerate(x)]).detach()


def _second(c: Case, f: Callable[..., Tensor], directions: Leaves) -> Finding:
    leaves = [t.clone().requires_grad_() for t in c.x]
    try:
        grads = _grads(f(*leaves).sum(), leaves, create_graph=True)
        kept = [(g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None]
        again = _grads(torch.stack(kept).sum() + 0 * leaves[0].sum(), leaves)
        second = [t for t in again if t is not None]
    except Exception as error:
        return Finding("second derivative", False, said(error))
    if not any(bool(t.any()) for t in second):
        text = "0: the model is piecewise linear, and so are penalties on its gradient"
        return Finding("second derivative", None, text)
    return Finding("second derivative", True, "exists")
