"""Similarities of two maps: functions ``(a, b) -> (B,)`` of trees of tensors (B, ...)."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._explain.tree import flatten
from attrfn._torch.precision import widest
from attrfn._torch.typing import Tree
from attrfn.metrics._correlation import average_ranks, correlation, is_constant
from attrfn.metrics._maps import flat_maps, in_dtype_of

__all__ = ["cosine", "pearson", "spearman", "ssim"]

_WINDOW = 7
_K1, _K2 = 0.01, 0.03


def pearson(a: Tree, b: Tree) -> Tensor:
    """Pearson's correlation of two maps.

        r = sum (a - mean a)(b - mean b) / sqrt(sum (a - mean a)^2 sum (b - mean b)^2)

    Args:
        a: A tensor (B, ...) or a pytree of those.
        b: A tree of the same shapes.

    Returns:
        One number in [-1, 1] per example, (B,); nan where a map is constant up to rounding.

    Raises:
        TypeError: A leaf is not a tensor of real numbers.
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 4.0]]))
        tensor([0.9820])
    """
    x, y, eps = _pair(a, b)
    return in_dtype_of(a, correlation(x, y, eps))


def spearman(a: Tree, b: Tree) -> Tensor:
    """Spearman's rank correlation of two maps: Pearson's of their average ranks.

    Args:
        a: A tensor (B, ...) or a pytree of those.
        b: A tree of the same shapes.

    Returns:
        One number in [-1, 1] per example, (B,); nan where a map is constant up to rounding.

    Raises:
        TypeError: A leaf is not a tensor of real numbers.
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 4.0]]))
        tensor([1.])
    """
    x, y, eps = _pair(a, b)
    kind = widest(x.device)
    bad = is_constant(x, eps) | is_constant(y, eps) | ~(x + y).isfinite().all(-1)
    r = correlation(average_ranks(x.to(kind)), average_ranks(y.to(kind)), eps)
    return in_dtype_of(a, r.masked_fill(bad, torch.nan))


def cosine(a: Tree, b: Tree) -> Tensor:
    """The cosine of the angle between two maps.

        cos = sum a b / sqrt(sum a^2 sum b^2)

    Args:
        a: A tensor (B, ...) or a pytree of those.
        b: A tree of the same shapes.

    Returns:
        One number in [-1, 1] per example, (B,); nan where a map is zero.

    Raises:
        TypeError: A leaf is not a tensor of real numbers.
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([0.6000])
    """
    x, y, _ = _pair(a, b)
    kind = widest(x.device)
    # Maps of tiny numbers would vanish when they are squared; their scale does not count.
    x, y = _scaled(x.to(kind)), _scaled(y.to(kind))
    return in_dtype_of(a, (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt())


def ssim(a: Tree, b: Tree) -> Tensor:
    """The structural similarity of two maps, the mean over windows of 7 x 7 pixels.

        SSIM = (2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2))
        C1 = (0.01 R)^2,   C2 = (0.03 R)^2,   R = the range of the numbers of both maps

    Means, variances and covariances (n - 1) are those of uniform windows inside the map, as in
    scikit-image. Channels count as separate maps, with one range.

    Args:
        a: A tensor (B, ..., H, W), H and W at least 7.
        b: A tensor of the same shape.

    Returns:
        One number per example, (B,), at most 1; nan where both maps are one constant.

    Raises:
        TypeError: A map is not a tensor of real numbers.
        ValueError: The shapes differ, or the maps are not images of this size.

    Example:
        >>> import torch
        >>> x = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> ssim(x, x)
        tensor([1.])

    Reference:
        Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.
    """
    x, y, _ = _pair(a, b)
    if not isinstance(a, Tensor) or a.ndim < 3 or min(a.shape[-2:]) < _WINDOW:
        shape = tuple(a.shape) if isinstance(a, Tensor) else "a tree"
        raise ValueError(
            f"ssim got maps of shape {shape}, expected one tensor (B, ..., H, W) with H and W at "
            f"least {_WINDOW}: use pearson, spearman or cosine for other maps"
        )
    kind = widest(x.device)
    both = torch.cat([x, y], -1)
    span = (both.amax(-1) - both.amin(-1)).to(kind)[:, None, None, None]
    planes = a.shape[1:-2].numel()
    u, v = (t.to(kind).reshape(t.shape[0], planes, *a.shape[-2:]) for t in (x, y))
    per_window = _ssim(u, v, (_K1 * span) ** 2, (_K2 * span) ** 2)
    return in_dtype_of(a, per_window.flatten(1).mean(1))


def _ssim(x: Tensor, y: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    # The variance as mean(x^2) - mean(x)^2 loses digits where the mean is large.
    shift = x.mean((1, 2, 3), keepdim=True)
    u, v = x - shift, y - shift
    mu, mv = _means(u), _means(v)
    n = _WINDOW**2 / (_WINDOW**2 - 1)
    su, sv = n * (_means(u * u) - mu * mu), n * (_means(v * v) - mv * mv)
    suv = n * (_means(u * v) - mu * mv)
    mx, my = mu + shift, mv + shift
    return ((2 * mx * my + c1) * (2 * suv + c2)) / ((mx**2 + my**2 + c1) * (su + sv + c2))


def _means(t: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(t, _WINDOW, stride=1)


def _scaled(t: Tensor) -> Tensor:
    """Divided by the largest absolute number; nan where that is 0."""
    size = t.abs().amax(-1, keepdim=True)
    return t / size.masked_fill(size == 0, torch.nan)


def _pair(a: Tree, b: Tree) -> tuple[Tensor, Tensor, float]:
    """Two maps as (B, N), and the larger of their roundings."""
    x, dtypes = flat_maps(a, "a")
    y, others = flat_maps(b, "b")
    here, there = ([tuple(t.shape) for t in flatten(m)[0]] for m in (a, b))
    if here != there:
        raise ValueError(
            f"a has the shapes {here[:3]} and b {there[:3]}, expected maps of the same shapes"
        )
    return x, y, max(torch.finfo(d).eps for d in (*dtypes, *others))
