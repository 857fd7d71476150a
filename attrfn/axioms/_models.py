"""Axioms that compare two models: sums, other ways to write a function, other units."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn._explain.baseline import fill_baselines
from attrfn._explain.forms import documented
from attrfn._explain.introspect import is_over_distribution
from attrfn._explain.options import Arguments
from attrfn._explain.tree import each, flatten, require_floating
from attrfn._torch.typing import Baselines, Leaves, Method, ModelFn, Target, Tree
from attrfn.axioms._case import AxiomOptions, case_of, differences, largest


@documented(AxiomOptions, Arguments, scores=None)
def linearity(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    other: ModelFn,
    weights: tuple[float, float] = (1.0, 1.0),
    target: Target = None,
    baselines: Baselines = None,
) -> Tensor:
    """Linearity: a sum of models gets the sum of their attributions.

        gap = max |A(a f + b g) - a A(f) - b A(g)|

    A theorem for `gradient`, `input_x_gradient`, `integrated_gradients`, `deep_lift`,
    `feature_ablation`, `shapley_values`, `shapley_value_sampling` and `kernel_shap` with one key.

    Not for `saliency`, and not for `lime` with its default surrogate, the lasso.

    Args:
        other: g, of the same inputs and with outputs like those of f.
        weights: a and b.

    Returns:
        One gap per example, (B,), at least 0, in units of the attributions.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, g, x = lambda x: x.sum(1), lambda x: -(x**2).sum(1), torch.tensor([[2.0, 3.0]])
        >>> attrfn.axioms.linearity(f, x, attrfn.gradient, other=g)
        tensor([0.])
        >>> attrfn.axioms.linearity(f, x, attrfn.saliency, other=g)
        tensor([2.])

    Reference:
        Shapley, A Value for n-Person Games, 1953 (additivity); Sundararajan, Taly and Yan, 2017,
        section 3.
    """
    a, b = weights
    c = case_of(model_fn, inputs, method, target, baselines)
    both = functools.partial(_combined, c.model(), c.model(other), a, b)
    parts = each(lambda s, t: a * s + b * t, c.maps(), c.maps(other))
    return largest(differences(c.maps(both), parts))


def _combined(f: ModelFn, g: ModelFn, a: float, b: float, *z: Tree) -> Any:
    return a * f(*z) + b * g(*z)


@documented(AxiomOptions, Arguments, scores=None)
def implementation_invariance(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    other: ModelFn,
    target: Target = None,
    baselines: Baselines = None,
) -> Tensor:
    """Implementation invariance: equal functions get equal attributions, however they are written.

        gap = max |A(f) - A(g)|,   f(z) = g(z) for all z

    A theorem for everything that only evaluates or differentiates the model: `gradient`,
    `saliency`, `input_x_gradient`, `integrated_gradients`, `feature_ablation`, `occlusion`,
    `shapley_values`, `shapley_value_sampling`, `kernel_shap`, `lime`, `rise`.

    Not for `lrp`, `deep_lift`, `guided_backprop` and `deconvolution`, whose rules go by operations.

    Args:
        other: g, which computes the same function as f in another way. That it does is the caller's
            word.

    Returns:
        One gap per example, (B,), at least 0, in units of the attributions.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, g = lambda x: (x[:, 0] + x[:, 1]) ** 2, lambda x: x.sum(1) * x.sum(1)
        >>> x = torch.tensor([[2.0, 3.0]])
        >>> attrfn.axioms.implementation_invariance(f, x, attrfn.gradient, other=g)
        tensor([0.])

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017, section 2.2.
    """
    c = case_of(model_fn, inputs, method, target, baselines)
    return largest(differences(c.maps(other), c.maps()))


@documented(AxiomOptions, Arguments, scores=None)
def scale_invariance(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    scale: Baselines = 2.0,
    shift: Baselines = None,
    target: Target = None,
    baselines: Baselines = None,
) -> Tensor:
    """Affine scale invariance: the units in which features are measured do not matter.

        gap = max |A(g, c x + d, c x0 + d) - A(f, x, x0)|,   g(z) = f((z - d) / c)

    A theorem for `input_x_gradient`, `integrated_gradients`, `deep_lift`, `feature_ablation`,
    `occlusion`, `shapley_values`, `shapley_value_sampling`, `kernel_shap`.

    Not for `gradient` and `saliency`, which are per unit of the feature, and not for `lime`.

    Args:
        scale: c, a number, a tensor that broadcasts to the input, or a pytree prefix of those; no
            element is 0.
        shift: d, likewise; needs a method with the option ``baselines``.

    Returns:
        One gap per example, (B,), at least 0, in units of the attributions.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, x = lambda x: (x**2).sum(1), torch.tensor([[2.0, 3.0]])
        >>> attrfn.axioms.scale_invariance(f, x, attrfn.input_x_gradient, scale=4.0)
        tensor([0.])
        >>> attrfn.axioms.scale_invariance(f, x, attrfn.gradient, scale=4.0)
        tensor([4.5000])

    Reference:
        Friedman and Moulin, Three Methods to Share Joint Costs or Surplus, 1999; Sundararajan and
        Najmi, The Many Shapley Values for Model Explanation, 2020.
    """
    c = case_of(model_fn, inputs, method, target, baselines)
    require_floating(c.x)
    if is_over_distribution(method):
        raise ValueError(
            "method draws its baselines from a pool, expected one that takes a baseline per example"
        )
    factor = fill_baselines(scale, inputs, c.x, "scale")
    offset = fill_baselines(shift, inputs, c.x, "shift")
    if isinstance(scale, (int, float)) and (scale == 0 or not math.isfinite(scale)):
        raise ValueError(f"scale is {scale!r}, expected a finite number other than 0")
    options = {}
    x0 = c.bound.get("baselines")
    if x0 is not None or shift is not None:
        moved = _moved(fill_baselines(x0, inputs, c.x), factor, offset)
        options["baselines"] = c.rebuild(moved)
    # A partial, so that what has a row per example in the model, c and d follows the batch.
    g = functools.partial(_in_units, c.model(), factor, offset)
    return largest(differences(c.maps(g, _moved(c.x, factor, offset), **options), c.maps()))


def _moved(x: Leaves, scale: Leaves, shift: Leaves) -> Leaves:
    affine: Callable[..., Tensor] = lambda t, c, d: t * c + d  # noqa: E731
    return each(affine, x, scale, shift)


def _in_units(f: ModelFn, scale: Leaves, shift: Leaves, *z: Tree) -> Any:
    """``g(z) = f((z - d) / c)``."""
    leaves, rebuild = flatten(z)
    return f(*rebuild(each(torch.div, each(torch.sub, leaves, shift), scale)))
