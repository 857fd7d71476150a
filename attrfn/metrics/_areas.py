"""Areas under and over removal curves."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._explain.forms import form_of
from attrfn._torch.typing import Key, ModelFn, Tree, Unpack
from attrfn.metrics._direction import better
from attrfn.metrics._options import ScoreOptions
from attrfn.metrics._removal import abscissae, curve_of, normalized, numbers_gone
from attrfn.metrics._scores import First, Scored, scored


@better("lower")
@form_of(scored)
def deletion(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    n_steps: int = 50,
    normalize: bool = False,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Deletion: the area under the removal curve, most important features first.

        D = sum_s (t_{s+1} - t_s) (f_s + f_{s+1}) / 2,   t_s = k_s / n

    The paper takes f to be the probability of a class:
    ``target=lambda out: out.softmax(-1)[:, c]``. For blurred pixels give ``baselines=blurred``.
    ``1 - deletion(normalize=True)`` over superpixels, with ``pool="mean"`` and the mean colours as
    baselines, is IROF.

    Args:
        n_steps: S; at most the number of features.
        normalize: Divide by f(x).

    Returns:
        One area per example, (B,), in units of the output; nan where it is undefined.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> attrfn.metrics.deletion(lambda x: x @ w, torch.ones(1, 4), w[None])
        tensor([3.7500])

    Reference:
        Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box
        Models, 2018. https://arxiv.org/abs/1806.07421
        Rieger and Hansen, IROF: a low resource evaluation metric for explanation methods, 2020.
        https://arxiv.org/abs/2003.08747
    """
    s = scored("deletion", model_fn, inputs, attributions, **options)
    return _area_of(s, n_steps, normalize, insert=False)


@better("higher")
@form_of(scored)
def insertion(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    n_steps: int = 50,
    normalize: bool = False,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Insertion: the area under the insertion curve, most important features first.

        I = sum_s (t_{s+1} - t_s) (f_s + f_{s+1}) / 2,   f_s = f(x0 with the first k_s := x)

    The paper takes f to be the probability of a class:
    ``target=lambda out: out.softmax(-1)[:, c]``, and starts from a blurred image:
    ``baselines=blurred``.

    Args:
        n_steps: S; at most the number of features.
        normalize: Divide by f(x).

    Returns:
        One area per example, (B,), in units of the output; nan where it is undefined.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> attrfn.metrics.insertion(lambda x: x @ w, torch.ones(1, 4), w[None])
        tensor([6.2500])

    Reference:
        Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box
        Models, 2018. https://arxiv.org/abs/1806.07421
    """
    s = scored("insertion", model_fn, inputs, attributions, **options)
    return _area_of(s, n_steps, normalize, insert=True)


@better("higher")
@form_of(scored)
def symmetric_relevance_gain(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    n_steps: int = 50,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Symmetric relevance gain: how much more the output keeps if the least important go first.

        SRG = area of the removal curve, least first - area of the removal curve, most first

    It depends less on how features are replaced than either of the areas.

    Args:
        n_steps: S; at most the number of features.

    Returns:
        One difference of areas per example, (B,); 0 for constant attributions.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> srg = attrfn.metrics.symmetric_relevance_gain
        >>> srg(lambda x: x @ w, torch.ones(1, 4), w[None])
        tensor([2.5000])

    Reference:
        Blücher, Vielhaben and Strodthoff, Decoupling Pixel Flipping and Occlusion Strategy for
        Consistent XAI Benchmarks, 2024. https://arxiv.org/abs/2401.06654
    """
    s = scored("symmetric_relevance_gain", model_fn, inputs, attributions, **options)
    gone = numbers_gone(s, n_steps)
    most, least = s.ranks("most"), s.ranks("least")
    # Both curves start at f(x) and end at f(x0): 2 S rows in all. Where the orders are the same,
    # only rounding could tell the curves apart.
    inner = gone[1:-1]
    steps = torch.tensor([*inner, *inner, s.n], device=s.p.device)[:, None, None]
    first = torch.arange(len(steps), device=s.p.device)[:, None, None] < len(inner)
    found = s.values(
        len(steps), lambda i: torch.where(first[i], most >= steps[i], least >= steps[i])
    )
    a, b, end = found[: len(inner)], found[len(inner) : -1], found[-1:]
    start = s.p.full[None]
    areas = [_area(torch.cat([start, f, end]).T, abscissae(gone, s)) for f in (b, a)]
    return s.number((areas[0] - areas[1]) * (most != least).any(-1))


@better("higher")
@form_of(scored)
def aopc(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    n_steps: int = 50,
    first: First = "most",
    key: Key = 0,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """AOPC, the area over the perturbation curve: the mean drop of the output along the curve.

        AOPC = 1 / (S + 1) sum_{s=0..S} (f(x) - f_s)

    With the ids of patches as ``feature_mask`` it is region perturbation. The paper takes f to be
    the probability of a class: ``target=lambda out: out.softmax(-1)[:, c]``.

    Args:
        n_steps: S; at most the number of features.
        first: Which features go first: ``"most"``, ``"least"`` or ``"random"``.
        key: An int or a key of :mod:`attrfn.random`, (2,), or (B, 2); for a random order.

    Returns:
        One mean per example, (B,), in units of the output.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> attrfn.metrics.aopc(lambda x: x @ w, torch.ones(1, 4), w[None])
        tensor([6.])

    Reference:
        Samek et al., Evaluating the visualization of what a Deep Neural Network has learned, 2017.
        https://arxiv.org/abs/1509.06321
    """
    s = scored("aopc", model_fn, inputs, attributions, **options)
    _, values = curve_of(s, first, n_steps, key=key)
    return s.number((s.p.full[:, None] - values).mean(-1))


def _area_of(s: Scored, n_steps: int, normalize: bool, *, insert: bool) -> Tensor:
    fractions, values = curve_of(s, "most", n_steps, insert=insert)
    area = _area(values, fractions)
    return s.number(normalized(s, area) if normalize else area)


def _area(values: Tensor, fractions: Tensor) -> Tensor:
    return torch.trapezoid(values, fractions, dim=-1)
