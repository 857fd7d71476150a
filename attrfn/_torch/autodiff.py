"""The one pull-back: values and gradients of rows that do not interact."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from attrfn._torch import pytree
from attrfn._torch.compiling import is_compiling, unreadable
from attrfn._torch.decomposed import Decomposed
from attrfn._torch.layouts import FlatNorms, unmistaken
from attrfn._torch.one_run import shared_run
from attrfn._torch.private import (
    NODE_WITHOUT_DERIVATIVE,
    in_transform,
    in_transform_or_traced,
    transform_level,
)
from attrfn._torch.ranks import refuse_second
from attrfn._torch.typing import Leaves
from attrfn._torch.warn import warn


def transforming() -> bool:
    """Whether values cannot be read: in torch.func transforms, torch.compile, export or make_fx."""
    return in_eager_transform() or unreadable()


def in_eager_transform() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp ...) surrounds this call in eager mode."""
    return not is_compiling() and in_transform()


def transforms() -> int:
    """How many torch.func transforms surround this call in eager mode."""
    return 0 if is_compiling() else transform_level()


def keeps_graph(create_graph: bool | None) -> bool:
    """Whether the result keeps the graph of the parameters.

    Inside a transform only the caller knows whether ``.backward()`` will reach through its result,
    as through that of ``torch.func.grad`` under vmap. So the graph is kept there in grad mode.
    """
    return bool(create_graph) or (in_transform_or_traced() and torch.is_grad_enabled())


def twice_differentiable(create_graph: bool) -> contextlib.AbstractContextManager[object]:
    """Decomposed operations where the result may be differentiated again, or batched by vmap."""
    if create_graph or in_eager_transform():
        return Decomposed()
    # Compiled and exported code has no graph of nodes in which unmistaken finds batch norms.
    return FlatNorms() if unreadable() else contextlib.nullcontext()


def values_and_gradients(
    f: Callable[..., Tensor], x: Leaves, *, create_graph: bool = False
) -> tuple[Tensor, Leaves]:
    """Values ``f(*x)`` and their gradients by one backward pass.

    The rows are independent, so the gradient of the sum holds each row's own gradient.

    Args:
        f: From leaves of shape (R, ...) to values of shape (R,), or any shape.
        x: The leaves.
        create_graph: Let the result be differentiated by ``.backward()``; inside a torch.func
            transform or torch.compile it always can be.

    Returns:
        The values and one gradient per leaf.
    """
    with twice_differentiable(create_graph):
        # torch.func.vjp records its backward pass, which a surrounding transform differentiates.
        # Without one, autograd.grad records nothing and so takes less time and memory.
        if transforming():
            run = None if is_compiling() else shared_run()
            if run is not None and (known := run.known(f, x)) is not None:
                return known
            values, pull = torch.func.vjp(f, *x)[:2]
            return values, tuple(pull(torch.ones_like(values)))
        return _autograd(f, x, create_graph)


def push_forward(f: Callable[..., Leaves], x: Leaves, tangents: Leaves) -> tuple[Leaves, Leaves]:
    """Values ``f(*x)`` and their directional derivatives ``J t``.

    The derivative of the pull-back, which is linear in the cotangent: J t = d/du [u -> J^T u]^T t.
    """
    # Not forward mode: torch counts its levels for the whole process, so that two threads that open
    # one at the same time fail, or get wrong results.
    with Decomposed(), contextlib.nullcontext() if is_compiling() else gradients_allowed():
        x, tangents = (x, tangents) if is_compiling() else normal_tensors((x, tangents))
        y, pull = torch.func.vjp(f, *x)[:2]
        pull_back = torch.func.vjp(pull, tuple(map(torch.zeros_like, y)))[1]
        return y, pull_back(tangents)[0]


def _autograd(f: Callable[..., Tensor], x: Leaves, create_graph: bool) -> tuple[Tensor, Leaves]:
    # The caller may be in no_grad or in inference mode, as code that predicts usually is.
    with torch.inference_mode(False), torch.enable_grad():
        z = tuple(_leaf(t, create_graph) for t in x)
        run = None if create_graph else shared_run()
        if run is None:
            values = f(*z)
            if create_graph:
                refuse_second()
            grads = _pull(values, z, create_graph)
        else:
            values, leaves = run.around(f, z)
            if run.probing and run.served:
                grads = tuple(map(torch.zeros_like, z))
            else:
                grads = _pull(values, leaves, False, again=bool(run.served))
    return (values, grads) if create_graph else (values.detach(), grads)


def autograd_leaves(x: Leaves) -> Leaves:
    """Detached tensors that require a gradient."""
    with torch.inference_mode(False):
        return tuple([_leaf(t, False) for t in x])


def gradients_inside(
    f: Callable[[], tuple[Tensor, Leaves]], *, create_graph: bool = False
) -> tuple[Leaves, Leaves]:
    """The tensors from which a function starts a graph, and the gradients with respect to them.

    For eager code without a surrounding transform.

    Args:
        f: Makes leaves of autograd while it runs; returns its values, and those leaves.
        create_graph: Let the results be differentiated.
    """
    with torch.inference_mode(False), torch.enable_grad():
        values, z = f()
        grads = _pull(values, z, create_graph)
        return (z if create_graph else tuple([t.detach() for t in z])), grads


def _pull(values: Tensor, z: Leaves, create_graph: bool, again: bool = False) -> Leaves:
    """The gradients of the values' sum; zeros, and a warning, where there are none.

    Where the graph serves another call, its results stay (``again``).
    """
    if not values.requires_grad:
        warn_constant()
        return tuple(map(torch.zeros_like, z))
    with unmistaken(values, z, keep=create_graph):
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            values,
            z,
            torch.ones_like(values),
            retain_graph=create_graph or again,
            create_graph=create_graph,
            allow_unused=True,
        )
    if all(g is None for g in found):
        if _undifferentiable(values):
            refuse_undifferentiable()
        warn_constant()
    return tuple([torch.zeros_like(t) if g is None else g for g, t in zip(found, z, strict=True)])


def batched_pull(values: Tensor, z: Leaves, cotangents: Tensor) -> Leaves:
    """The gradients of several sums of values, (S, ...) each; the graph stays.

    Args:
        values: Computed by a graph that starts at z.
        z: Leaves.
        cotangents: The weights of the values in each sum, (S, *values.shape).
    """
    if not values.requires_grad:
        return tuple([t.new_zeros(len(cotangents), *t.shape) for t in z])
    with unmistaken(values, z):
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            *(values, z, cotangents), retain_graph=True, is_grads_batched=True, allow_unused=True
        )
    none = [t.new_zeros(1).expand(len(cotangents), *t.shape) for t in z]
    return tuple([o if g is None else g for g, o in zip(found, none, strict=True)])


def refuse_undifferentiable() -> NoReturn:
    """Raise where a gradient ends at an operation that torch cannot differentiate."""
    raise ValueError(
        "the model has an operation without a derivative, such as a quantised layer, so no "
        "gradient reaches its inputs: explain the model as it was before it was quantised, or use "
        "a perturbation method such as feature_ablation"
    )


def _undifferentiable(values: Tensor) -> bool:
    """Whether an operation without a derivative is in the graph of some values."""
    todo: list[Any] = [values.grad_fn]
    visited: set[Any] = {None}
    while todo:
        node = todo.pop()
        if node in visited or node is None:
            continue
        if node.name() == NODE_WITHOUT_DERIVATIVE:
            return True
        visited.add(node)
        todo.extend([parent for parent, _ in node.next_functions])
    return False


def normal_tensors(tree: Any) -> Any:
    """The same tree without inference tensors, which autograd refuses to save for backward."""
    if transforming():
        return tree
    return pytree.tree_map_only(Tensor, lambda t: t.clone() if t.is_inference() else t, tree)


def gradients_allowed() -> contextlib.AbstractContextManager[object]:
    """Leave inference mode, if it is on."""
    return torch.inference_mode(False) if in_inference() else contextlib.nullcontext()


def in_inference() -> bool:
    """Whether inference mode is on, in which no tensor may leave for autograd."""
    return not is_compiling() and torch.is_inference_mode_enabled()


def _leaf(t: Tensor, create_graph: bool) -> Tensor:
    """A new node for each leaf, so that a tensor given twice has two gradients."""
    if create_graph and t.requires_grad:
        return t.view_as(t)  # still part of the user's graph, through which .backward() passes
    return (t.clone() if t.is_inference() else t).detach().requires_grad_()


def warn_constant() -> None:
    """Say that gradients are zero because nothing differentiable leads to the output."""
    warn(
        "the explained output does not depend on what is explained through differentiable "
        "operations, so its attributions are zero: look for .detach(), torch.no_grad(), argmax or "
        "a cast to integers in the model or the target"
    )
