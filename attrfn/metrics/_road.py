"""ROAD: most against least important pixels, replaced by what their neighbours suggest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attrfn._explain.forms import form_of
from attrfn._explain.tree import flatten
from attrfn._torch.typing import Key, ModelFn, Tree, Unpack
from attrfn.metrics._checks import number
from attrfn.metrics._direction import better
from attrfn.metrics._fractions import counts
from attrfn.metrics._imputation import noisy_imputation
from attrfn.metrics._options import ScoreOptions
from attrfn.metrics._scores import imputer_keys, order_keys, scored

_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@better("higher")
@form_of(scored)
def road(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    fractions: Sequence[float] = _FRACTIONS,
    noise: float = 0.01,
    key: Key = 0,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """ROAD: the output without the least important pixels, minus that without the most important.

        mean over p of ( f(least ceil(p n) imputed) - f(most ceil(p n) imputed) ) / 2

    A removed pixel becomes the weighted mean of its neighbours (1/6 for sides, 1/12 for corners;
    removed neighbours are unknowns of the same equations), plus noise. So the shape of what was
    removed tells the model little. The paper counts correct predictions over a data set:
    ``target=functools.partial(correct, y=y)`` with
    ``correct = lambda out, y: (out.argmax(-1) == y).float()``.

    Args:
        inputs: A floating tensor (B, C, H, W).
        fractions: The shares p of features, above 0 and at most 1.
        noise: The standard deviation of the noise, in units of the inputs.
        key: An int or a key of :mod:`attrfn.random`, (2,), or (B, 2) with one for each example; for
            the noise.
        baselines: What replaces an image of which nothing is left.
        feature_mask: The feature of each element; ``None``: each pixel, over all channels.

    Returns:
        One difference per example, (B,), in units of the output.

    Raises:
        ValueError: The inputs are not one tensor (B, C, H, W).

    Example:
        >>> import torch, attrfn.metrics
        >>> f = lambda x: x[:, 0, 1, 1]
        >>> x = torch.tensor([[[[1.0, 2, 3], [4, 20, 6], [7, 8, 9]]]])
        >>> a = torch.zeros(1, 1, 3, 3).index_fill(2, torch.tensor(1), 1.0)
        >>> a[..., 0] = a[..., 2] = 0.0
        >>> attrfn.metrics.road(f, x, a, fractions=(1 / 9,), noise=0.0)
        tensor([7.5000])

    Reference:
        Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, 2022.
        https://arxiv.org/abs/2202.00449
    """
    number("noise", noise, lambda s: 0 <= s < math.inf, "a finite number of at least 0")
    leaves, rebuild = flatten(inputs)
    if len(leaves) != 1 or leaves[0].ndim != 4 or not leaves[0].is_floating_point():
        shapes = ", ".join([f"{tuple(t.shape)} of {t.dtype}" for t in leaves])
        raise ValueError(f"inputs has {shapes}, expected one floating tensor (B, C, H, W)")
    if options.get("feature_mask") is None:
        height, width = leaves[0].shape[2:]
        pixels = torch.arange(height * width, device=leaves[0].device).view(1, height, width)
        options["feature_mask"] = rebuild([pixels])
        options["n_features"] = options.get("n_features") or height * width
    s = scored("road", model_fn, inputs, attributions, **options)
    shares = counts(fractions, s.n)
    tops = torch.tensor([*shares, *shares], device=s.p.device)[:, None, None]
    first = torch.arange(len(tops), device=s.p.device)[:, None, None] < len(shares)
    most, least = s.ranks("most"), s.ranks("least")
    # Both sides of a share draw the same noise, which then says less about their difference.
    keys = imputer_keys(order_keys(key, s.p), len(shares)).repeat(2, 1, 1)

    def imputer(rows: Tree, removed: Tree, keys: Tensor) -> Tree:
        (x,), (gone,) = flatten(rows)[0], flatten(removed)[0]
        x0 = s.p.x0[0].repeat(x.shape[0] // max(s.p.batch, 1), 1, 1, 1)
        return rebuild([noisy_imputation(x, gone, keys, noise, x0)])

    def kept(i: slice) -> Tensor:
        return torch.where(first[i], most >= tops[i], least >= tops[i])

    found = s.values(len(tops), kept, imputer, keys)
    return s.number((found[len(shares) :] - found[: len(shares)]).mean(0) / 2)
