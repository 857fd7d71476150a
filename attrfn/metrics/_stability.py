"""Relative stability: changes of attributions over those of inputs, outputs or a layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._explain.forms import documented, form_of
from attrfn._explain.options import Arguments
from attrfn._explain.tree import each, flatten
from attrfn._torch.typing import (
    ChunkSize,
    Key,
    Layer,
    Leaves,
    Method,
    ModelFn,
    Target,
    Tree,
    Unpack,
)
from attrfn.metrics._around import (
    Perturb,
    Point,
    Quotient,
    Samples,
    around,
    finish,
    largest,
    norm_over,
    ratio,
)
from attrfn.metrics._checks import number
from attrfn.metrics._direction import better
from attrfn.metrics._options import Explained, RelativeOptions
from attrfn.metrics._scores import floating


@documented(Explained, RelativeOptions, Arguments)
def relative(
    label: str,
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    of: Callable[[Point], Leaves] | None,
    *,
    radius: float = 0.05,
    n_samples: int = 10,
    eps: float = 1e-6,
    same_prediction: bool = True,
    perturb: Perturb | None = None,
    target: Target = None,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
    layer: Layer | None = None,
) -> Tensor:
    """The relative change of attributions over that of a part of the points, or of the outputs."""
    table = around(
        label,
        _quotient(of, eps, same_prediction),
        model_fn,
        inputs,
        method,
        Samples(radius, n_samples, perturb),
        outputs=same_prediction or of is None,
        layer=layer,
        target=target,
        key=key,
        chunk_size=chunk_size,
        progress=progress,
    )
    return finish(flatten(inputs)[0], largest(table))


@better("lower")
@form_of(relative)
def relative_input_stability(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    **options: Unpack[RelativeOptions],
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
    return relative("relative_input_stability", model_fn, inputs, method, lambda p: p.x, **options)


@better("lower")
@form_of(relative)
def relative_output_stability(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    **options: Unpack[RelativeOptions],
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
    return relative("relative_output_stability", model_fn, inputs, method, None, **options)


@better("lower")
@form_of(relative)
def relative_representation_stability(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    layer: Layer,
    **options: Unpack[RelativeOptions],
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
    of = ("relative_representation_stability", model_fn, inputs, method)
    return relative(*of, lambda p: p.layer, layer=layer, **options)


def _quotient(of: Callable[[Point], Leaves] | None, eps: float, same_prediction: bool) -> Quotient:
    """The relative change of the attributions over a size; -inf for a sample that is left out."""
    number("eps", eps, lambda e: 0 < e < math.inf, "a finite number above 0")

    def quotient(x: Point, s: Point) -> Tensor:
        change = norm_over(_relative(x.attributions, s.attributions, eps))
        moves = (x.outputs - s.outputs,) if of is None else _relative(of(x), of(s), eps)
        found = ratio(change, norm_over(moves).clamp(min=eps))
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
