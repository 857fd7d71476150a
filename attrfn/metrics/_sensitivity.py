"""Sensitivity: how much attributions change when the inputs change little."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._explain.forms import documented, form_of
from attrfn._explain.options import Arguments
from attrfn._explain.tree import flatten
from attrfn._torch.typing import ChunkSize, Key, Method, ModelFn, Target, Tree, Unpack
from attrfn.metrics._around import (
    Perturb,
    Point,
    Quotient,
    Samples,
    again,
    around,
    differences,
    finish,
    largest,
    norm_over,
    ratio,
)
from attrfn.metrics._checks import number
from attrfn.metrics._direction import better
from attrfn.metrics._maps import undefined_where
from attrfn.metrics._options import AgainOptions, ChangeOptions, Explained, SampleOptions


@documented(Explained, ChangeOptions, Arguments)
def changes(
    label: str,
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    radius: float = 0.02,
    n_samples: int = 10,
    norm: float = 2,
    normalize: bool = True,
    perturb: Perturb | None = None,
    target: Target = None,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> Tensor:
    """The changes of the attributions at samples around the inputs, (S, B)."""
    return around(
        label,
        _change(norm, normalize),
        model_fn,
        inputs,
        method,
        Samples(radius, n_samples, perturb),
        target=target,
        key=key,
        chunk_size=chunk_size,
        progress=progress,
    )


@better("lower")
@form_of(changes)
def sensitivity_max(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    **options: Unpack[ChangeOptions],
) -> Tensor:
    """Max-sensitivity: the largest change of the attributions around the inputs.

        max_s ||A(x_s) - A(x)|| / ||A(x)||,   x_s = x + u,   u ~ U(-r, r) for each element

    The paper has no denominator: ``normalize=False``. The norm runs over all tensors of an example.

    Returns:
        One number per example, (B,).

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> f, x = lambda x: 2 * x[:, 0] + x[:, 1], torch.ones(1, 2)
        >>> attrfn.metrics.sensitivity_max(f, x, attrfn.gradient)
        tensor([0.])

    Reference:
        Yeh et al., On the (In)fidelity and Sensitivity of Explanations, 2019.
        https://arxiv.org/abs/1901.09392
    """
    table = changes("sensitivity_max", model_fn, inputs, method, **options)
    return finish(flatten(inputs)[0], table.amax(0))


@better("lower")
@form_of(changes)
def sensitivity_avg(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    **options: Unpack[ChangeOptions],
) -> Tensor:
    """Average sensitivity: the mean change of the attributions around the inputs.

        mean_s ||A(x_s) - A(x)|| / ||A(x)||,   x_s = x + u,   u ~ U(-r, r) for each element

    Returns:
        One number per example, (B,).

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> f, x = lambda x: 2 * x[:, 0] + x[:, 1], torch.ones(1, 2)
        >>> attrfn.metrics.sensitivity_avg(f, x, attrfn.gradient)
        tensor([0.])

    Reference:
        Bhatt, Weller and Moura, Evaluating and Aggregating Feature-based Model Explanations, 2020.
        https://arxiv.org/abs/2005.00631
    """
    table = changes("sensitivity_avg", model_fn, inputs, method, **options)
    return finish(flatten(inputs)[0], table.mean(0))


@better("lower")
@form_of(again, SampleOptions)
def local_lipschitz(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    radius: float = 0.1,
    n_samples: int = 10,
    perturb: Perturb | None = None,
    **options: Unpack[AgainOptions],
) -> Tensor:
    """A lower bound of the local Lipschitz constant of the attributions.

        max_s ||A(x_s) - A(x)|| / ||x_s - x||,   x_s = x + u,   u ~ U(-r, r) for each element

    Returns:
        One number per example, (B,), in units of the attributions over those of the inputs. Samples
        that are x itself are left out; nan where none is left.

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> f, x = lambda x: (x**2).sum(1), torch.ones(1, 2)
        >>> attrfn.metrics.local_lipschitz(f, x, attrfn.gradient).round(decimals=3)
        tensor([2.])

    Reference:
        Alvarez-Melis and Jaakkola, On the Robustness of Interpretability Methods, 2018.
        https://arxiv.org/abs/1806.08049
    """

    def quotient(x: Point, s: Point) -> Tensor:
        change = norm_over(differences(s.attributions, x.attributions))
        distance = norm_over(differences(s.x, x.x))
        return ratio(change, distance).masked_fill(distance == 0, -torch.inf)

    table = around(
        "local_lipschitz",
        quotient,
        model_fn,
        inputs,
        method,
        Samples(radius, n_samples, perturb),
        **options,
    )
    return finish(flatten(inputs)[0], largest(table))


def _change(norm: float, normalize: bool) -> Quotient:
    """The norm of the change of the attributions, over that of the attributions if asked for."""
    number("norm", norm, lambda p: p >= 1, "a number of at least 1, or math.inf")

    def quotient(x: Point, s: Point) -> Tensor:
        change = norm_over(differences(s.attributions, x.attributions), norm)
        if not normalize:
            return undefined_where(~change.isfinite(), change)
        return ratio(change, norm_over(x.attributions, norm))

    return quotient
