"""Relative stability: changes of attributions over those of inputs, outputs or a layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._explain.forms import form_of
from attrfn._explain.tree import each, flatten
from attrfn._torch.typing import Layer, Leaves, Method, ModelFn, Tree, Unpack
from attrfn.metrics._around import (
    Perturb,
    Point,
    Quotient,
    Samples,
    again,
    around,
    finish,
    largest,
    norm_over,
    ratio,
)
from attrfn.metrics._checks import number
from attrfn.metrics._direction import better
from attrfn.metrics._options import AgainOptions, Nearby
from attrfn.metrics._scores import floating


@better("lower")
@form_of(again, Nearby)
def relative_input_stability(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    radius: float = 0.05,
    n_samples: int = 10,
    eps: float = 1e-6,
    same_prediction: bool = True,
    perturb: Perturb | None = None,
    **options: Unpack[AgainOptions],
) -> Tensor:
    """Relative input stability: the relative change of the attributions over that of the inputs.

        max_s ||(A(x) - A(x_s)) / A(x)|| / max(||(x - x_s) / x||, eps)

    Entries of A(x) and x that are 0 count as eps, as in the code of the paper, and then dominate:
    prefer :func:`attrfn.metrics.sensitivity_max` for ReLU nets and images with black pixels.

    Returns:
        One number per example, (B,); nan where no sample is left.

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> f, x = lambda x: 3 * x, torch.full((1, 1), 2.0)
        >>> stability = attrfn.metrics.relative_input_stability
        >>> stability(f, x, attrfn.input_x_gradient).round(decimals=3)
        tensor([1.])

    Reference:
        Agarwal et al., Rethinking Stability for Attribution-based Explanations, 2022.
        https://arxiv.org/abs/2203.06877
    """

    def size(x: Point, s: Point) -> Tensor:
        return norm_over(_relative(x.x, s.x, eps))

    table = around(
        "relative_input_stability",
        _relative_to(size, eps, same_prediction),
        model_fn,
        inputs,
        method,
        Samples(radius, n_samples, perturb),
        outputs=same_prediction,
        **options,
    )
    return finish(flatten(inputs)[0], largest(table))


@better("lower")
@form_of(again, Nearby)
def relative_output_stability(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    radius: float = 0.05,
    n_samples: int = 10,
    eps: float = 1e-6,
    same_prediction: bool = True,
    perturb: Perturb | None = None,
    **options: Unpack[AgainOptions],
) -> Tensor:
    """Relative output stability: the relative change of the attributions over that of the outputs.

        max_s ||(A(x) - A(x_s)) / A(x)|| / max(||h(x) - h(x_s)||, eps)

    h is the tensor of all outputs, which should be logits. Entries of A(x) that are 0 count as eps,
    and then dominate.

    Returns:
        One number per example, (B,); nan where no sample is left.

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> f, x = lambda x: 3 * x, torch.full((1, 1), 2.0)
        >>> stability = attrfn.metrics.relative_output_stability
        >>> stability(f, x, attrfn.input_x_gradient).round(decimals=3)
        tensor([0.1670])

    Reference:
        Agarwal et al., Rethinking Stability for Attribution-based Explanations, 2022.
        https://arxiv.org/abs/2203.06877
    """

    def size(x: Point, s: Point) -> Tensor:
        return norm_over((x.outputs - s.outputs,))

    table = around(
        "relative_output_stability",
        _relative_to(size, eps, same_prediction),
        model_fn,
        inputs,
        method,
        Samples(radius, n_samples, perturb),
        outputs=True,
        **options,
    )
    return finish(flatten(inputs)[0], largest(table))


@better("lower")
@form_of(again, Nearby)
def relative_representation_stability(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    layer: Layer,
    radius: float = 0.05,
    n_samples: int = 10,
    eps: float = 1e-6,
    same_prediction: bool = True,
    perturb: Perturb | None = None,
    **options: Unpack[AgainOptions],
) -> Tensor:
    """Relative representation stability: the same over the relative change of a layer.

        max_s ||(A(x) - A(x_s)) / A(x)|| / max(||(L(x) - L(x_s)) / L(x)||, eps)

    Entries of A(x) and L(x) that are 0 count as eps, and then dominate: choose a layer before its
    ReLU.

    Args:
        layer: L: a module, its qualified name, or a list of either.

    Returns:
        One number per example, (B,); nan where no sample is left.

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
        >>> stability = attrfn.metrics.relative_representation_stability
        >>> stability(model, torch.randn(5, 3), attrfn.gradient, layer="0", target=1).shape
        torch.Size([5])

    Reference:
        Agarwal et al., Rethinking Stability for Attribution-based Explanations, 2022.
        https://arxiv.org/abs/2203.06877
    """

    def size(x: Point, s: Point) -> Tensor:
        return norm_over(_relative(x.layer, s.layer, eps))

    table = around(
        "relative_representation_stability",
        _relative_to(size, eps, same_prediction),
        model_fn,
        inputs,
        method,
        Samples(radius, n_samples, perturb),
        outputs=same_prediction,
        layer=layer,
        **options,
    )
    return finish(flatten(inputs)[0], largest(table))


def _relative_to(
    size: Callable[[Point, Point], Tensor], eps: float, same_prediction: bool
) -> Quotient:
    """The relative change of the attributions over a size; -inf for a sample that is left out."""
    number("eps", eps, lambda e: 0 < e < math.inf, "a finite number above 0")

    def quotient(x: Point, s: Point) -> Tensor:
        change = norm_over(_relative(x.attributions, s.attributions, eps))
        found = ratio(change, size(x, s).clamp(min=eps))
        if not same_prediction:
            return found
        same = x.outputs.argmax(-1) == s.outputs.argmax(-1)
        return found.masked_fill(~same, -torch.inf)

    return quotient


def _relative(x: Leaves, s: Leaves, eps: float) -> Leaves:
    """``(x - s) / x``, where an x of 0 counts as eps."""

    def leaf(x: Tensor, s: Tensor) -> Tensor:
        x = floating(x)
        return (x - floating(s)) / x.masked_fill(x == 0, eps)

    return each(leaf, x, s)
