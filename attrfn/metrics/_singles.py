"""What each feature does alone, compared with its score."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._explain.forms import form_of
from attrfn._torch.typing import ModelFn, Tree, Unpack
from attrfn.metrics._checks import number
from attrfn.metrics._correlation import correlation
from attrfn.metrics._direction import better
from attrfn.metrics._options import ScoreOptions
from attrfn.metrics._scores import Scored, scored


@better("higher")
@form_of(scored)
def faithfulness_estimate(
    model_fn: ModelFn, inputs: Tree, attributions: Tree, **options: Unpack[ScoreOptions]
) -> Tensor:
    """Faithfulness estimate: how scores go with what the output loses without each feature.

        r = pearson over features k of ( a_k ,  f(x) - f(x with k := x0) )

    Returns:
        One correlation per example, (B,); nan where it is undefined.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> f, x = lambda x: x @ w, torch.ones(1, 4)
        >>> attrfn.metrics.faithfulness_estimate(f, x, torch.tensor([[4.0, 3.0, 1.0, 2.0]]))
        tensor([0.8000])

    Reference:
        Alvarez-Melis and Jaakkola, Towards Robust Interpretability with Self-Explaining Neural
        Networks, 2018. https://arxiv.org/abs/1806.07538
    """
    s = scored("faithfulness_estimate", model_fn, inputs, attributions, **options)
    # The values themselves, and not their changes, tell how large their rounding is.
    return s.number(-correlation(s.scores, _without_each(s).T, s.eps))


@better("higher")
@form_of(scored)
def monotonicity(
    model_fn: ModelFn, inputs: Tree, attributions: Tree, **options: Unpack[ScoreOptions]
) -> Tensor:
    """Monotonicity: how often the output does not fall while features come back.

        M = share of k with f_k - f_{k-1} >= 0,
        f_k = f(x0 with the k features of least |a| := x),   k = 0..n

    A step within the rounding of the outputs counts as 0. The paper asks whether M is 1.

    Returns:
        One share per example, (B,), in [0, 1].

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([3.0, -1.0, 2.0])
        >>> attrfn.metrics.monotonicity(lambda x: x @ w, torch.ones(1, 3), w[None])
        tensor([0.6667])

    Reference:
        Arya et al., One Explanation Does Not Fit All: A Toolkit and Taxonomy of AI Explainability
        Techniques, 2019. https://arxiv.org/abs/1909.03012
    """
    s = scored("monotonicity", model_fn, inputs, attributions, **options)
    values = _with_first(s, s.magnitude_ranks(descending=False))
    rounding = 4 * torch.finfo(s.p.dtype).eps * values.abs().amax(0)
    share = (values.diff(dim=0) >= -rounding).to(values.dtype).mean(0)
    return s.number(_if_finite(values, share))


@better("lower")
@form_of(scored)
def effective_complexity(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    tolerance: float,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Effective complexity: how many of the top features are enough for the output.

        least k with (f(x) - f(x0 with the k features of largest |a| := x))^2 <= tolerance

    Args:
        tolerance: The squared change of the output that is accepted, at least 0.

    Returns:
        One count per example, (B,), from 0 to n.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> f, x = lambda x: x @ w, torch.ones(1, 4)
        >>> attrfn.metrics.effective_complexity(f, x, w[None], tolerance=1.0)
        tensor([3.])

    Reference:
        Nguyen and Martínez, On quantitative aspects of model interpretability, 2020.
        https://arxiv.org/abs/2007.07584
    """
    _check_tolerance(tolerance)
    s = scored("effective_complexity", model_fn, inputs, attributions, **options)
    values = _with_first(s, s.magnitude_ranks(descending=True))
    enough = (s.p.full - values).square() <= tolerance
    least = (enough.cumsum(0) == 0).sum(0)
    return s.number(_if_finite(values, least.to(values.dtype)))


@better("lower")
@form_of(scored)
def dummy_violations(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    tolerance: float = 1e-5,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """How many features have a score without an effect, or an effect without a score.

        number of k for which exactly one holds:
        |a_k| <= tolerance,   |f(x) - f(x with k := x0)| <= tolerance

    The paper calls it non-sensitivity.

    Args:
        tolerance: What counts as 0, at least 0, in units of the output.

    Returns:
        One count per example, (B,), from 0 to n.

    Example:
        >>> import torch, attrfn.metrics
        >>> f = lambda x: 3 * x[:, 0] - x[:, 1]
        >>> attrfn.metrics.dummy_violations(f, torch.ones(1, 3), torch.tensor([[3.0, 0.0, 1.0]]))
        tensor([2.])

    Reference:
        Nguyen and Martínez, On quantitative aspects of model interpretability, 2020.
        https://arxiv.org/abs/2007.07584
    """
    _check_tolerance(tolerance)
    s = scored("dummy_violations", model_fn, inputs, attributions, **options)
    changes = s.p.full - _without_each(s)
    wrong = (s.scores.abs() <= tolerance) != (changes.T.abs() <= tolerance)
    return s.number(_if_finite(changes, wrong.sum(1).to(changes.dtype)))


def _without_each(s: Scored) -> Tensor:
    """Values without feature k, (n, B)."""
    ids = torch.arange(s.n, device=s.p.device)
    return s.values(s.n, lambda i: (ids[i, None] != ids)[:, None])


def _with_first(s: Scored, rank: Tensor) -> Tensor:
    """Values with the first k features alone, k = 0..n, (n + 1, B)."""
    ids = torch.arange(s.n, device=s.p.device)[:, None, None]
    return torch.cat([s.values(s.n, lambda i: rank < ids[i]), s.p.full[None]])


def _if_finite(values: Tensor, t: Tensor) -> Tensor:
    """Nan for an example with a nan among its values: comparisons would call it false."""
    return t.masked_fill(~values.isfinite().all(0), torch.nan)


def _check_tolerance(tolerance: float) -> None:
    number("tolerance", tolerance, lambda t: t >= 0, "a number of at least 0")
