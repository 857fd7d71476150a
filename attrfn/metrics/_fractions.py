"""What is lost without the top features, and what they hold alone: metrics of ERASER."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attrfn._explain.forms import form_of
from attrfn._torch.typing import ModelFn, Tree, Unpack
from attrfn.metrics._checks import number
from attrfn.metrics._direction import better
from attrfn.metrics._options import ScoreOptions
from attrfn.metrics._scores import Scored, scored


@better("higher")
@form_of(scored)
def comprehensiveness(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    fractions: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.5),
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Comprehensiveness: what the output loses without its top features.

        C = mean over p of  f(x) - f(x with the top ceil(p n) features := x0)

    The paper takes f to be the probability of the predicted class:
    ``target=lambda out: out.softmax(-1)[:, c]``.

    Args:
        fractions: The shares p of features, above 0 and at most 1; at least one feature is taken.

    Returns:
        One mean per example, (B,), in units of the output.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> f, x = lambda x: x @ w, torch.ones(1, 4)
        >>> attrfn.metrics.comprehensiveness(f, x, w[None], fractions=(0.25, 0.5))
        tensor([5.5000])

    Reference:
        DeYoung et al., ERASER: A Benchmark to Evaluate Rationalized NLP Models, 2020.
        https://arxiv.org/abs/1911.03429
    """
    s = scored("comprehensiveness", model_fn, inputs, attributions, **options)
    return _mean_drop(s, fractions, keep=False)


@better("lower")
@form_of(scored)
def sufficiency(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    fractions: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.5),
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Sufficiency: what the output loses if only its top features are left.

        S = mean over p of  f(x) - f(x0 with the top ceil(p n) features := x)

    The paper takes f to be the probability of the predicted class:
    ``target=lambda out: out.softmax(-1)[:, c]``.

    Args:
        fractions: The shares p of features, above 0 and at most 1; at least one feature is taken.

    Returns:
        One mean per example, (B,), in units of the output.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> f, x = lambda x: x @ w, torch.ones(1, 4)
        >>> attrfn.metrics.sufficiency(f, x, w[None], fractions=(0.25, 0.5))
        tensor([4.5000])

    Reference:
        DeYoung et al., ERASER: A Benchmark to Evaluate Rationalized NLP Models, 2020.
        https://arxiv.org/abs/1911.03429
    """
    s = scored("sufficiency", model_fn, inputs, attributions, **options)
    return _mean_drop(s, fractions, keep=True)


def _mean_drop(s: Scored, fractions: Sequence[float], *, keep: bool) -> Tensor:
    tops = torch.tensor(counts(fractions, s.n), device=s.p.device)[:, None, None]
    rank = s.ranks("most")
    found = s.values(len(tops), lambda i: (rank < tops[i]) == keep)
    return s.number((s.p.full - found).mean(0))


def counts(fractions: Sequence[float], n: int) -> list[int]:
    """How many of n features the shares are, at least one.

    Raises:
        ValueError: Fractions are empty, or one is outside of (0, 1].
    """
    fits, expected = (lambda p: 0 < p <= 1), "a number above 0 and at most 1"
    found = [number("one of fractions", p, fits, expected) for p in fractions]
    if not found:
        raise ValueError("fractions is empty, expected at least one number above 0 and at most 1")
    # 0.07 * 100 is above 7 in floating point.
    return [max(1, math.ceil(p * n - 1e-9)) for p in found]
