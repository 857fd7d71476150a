"""Sampling methods say when their results are mostly noise."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import makes_fakes
from attrfn._torch.typing import Leaves
from attrfn._torch.warn import warn

MOST_EVALUATIONS = 8192
"""Of the model, for an example with the default number of samples: seconds for a small network."""

MOST_ERROR = 0.25
"""As a share of the values, above which a result is mostly noise."""


def is_sample(found: Tensor) -> bool:
    """Whether results (S, ...) of S draws tell an error, and whether it can be read."""
    return len(found) > 1 and found.numel() > 0 and not transforming()


def warn_uncertain(
    name: str, values: Tensor, errors: Tensor, option: str, like: Tensor | None = None
) -> None:
    """Warn where the standard errors of an example are more than a quarter of its values.

    Both are compared as roots of mean squares over everything but the examples, (R, ...).

    Args:
        name: The method.
        values: What it found.
        errors: The standard errors of that.
        option: The option with its value, which makes the error smaller.
        like: Outputs of the model, whose rounding counts as no error.
    """
    if transforming() or makes_fakes() or not values.numel():
        return
    with torch.no_grad():
        size, error = _mean_square(values), _mean_square(errors)
        wrong = error > MOST_ERROR**2 * size
        if like is not None:
            wrong = wrong & (error.sqrt() > 64 * torch.finfo(like.dtype).eps * like.abs().max())
        if bool(wrong.any()):
            share = float((error / size)[wrong].max()) ** 0.5
            warn(
                f"{name} has standard errors of {share:.0%} of its values with {option} (roots of "
                "mean squares), so the values are mostly noise: give a larger number"
            )


def squares(samples: Leaves) -> Tensor:
    """The sum of the squares of samples (S, B, ...), over all but the examples, (B,)."""
    found = [
        torch.linalg.vector_norm(t.detach(), dim=(0, *range(2, t.ndim)), dtype=wide(t.dtype)) ** 2
        for t in samples
    ]
    return torch.stack(found).sum(0)


def warn_of_spread(name: str, means: Leaves, total: Tensor, n: int) -> None:
    """Warn as :func:`warn_uncertain`, from the means of n samples and the sum of their squares.

    Args:
        name: The method.
        means: Over the samples, (B, ...) each.
        total: The :func:`squares` of all samples, (B,).
        n: The number of samples.
    """
    if n < 2:
        return
    with torch.no_grad():
        size = squares(tuple([t[None] for t in means]))
        error = (total / n - size).clamp_min(0) / (n - 1)
        warn_uncertain(name, size.sqrt()[:, None], error.sqrt()[:, None], f"n_samples={n}")


def _mean_square(t: Tensor) -> Tensor:
    return t.flatten(1).square().mean(1) if t.ndim > 1 else t.square()
