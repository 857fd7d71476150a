"""Noisy linear imputation: removed pixels are weighted means of their neighbours, plus noise."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import wide
from attrfn._torch.autodiff import transforming

# Eager code looks after this many steps whether all rows are done, because that waits for a GPU.
_LOOK = 5


def impute(x: Tensor, removed: Tensor, x0: Tensor) -> Tensor:
    """Images (R, C, H, W) whose removed pixels solve ``x_i = sum_j w_ij x_j / sum_j w_ij``.

    The sums run over the up to eight neighbours, with weights 1/6 at the sides and 1/12 at the
    corners; neighbours that are removed are unknown, too.

    Args:
        x: The images.
        removed: Booleans of their shape.
        x0: What replaces an image of which nothing is left.
    """
    dtype = wide(x.dtype)
    nothing_left = removed.flatten(2).all(-1)[..., None, None]
    unknown = removed & ~nothing_left
    filled = torch.where(unknown, _solve(x.to(dtype), unknown), x.to(dtype))
    return torch.where(nothing_left, x0, filled.to(x.dtype))


def noisy_imputation(x: Tensor, removed: Tensor, keys: Tensor, noise: float, x0: Tensor) -> Tensor:
    """:func:`impute`, and normal noise on what was removed."""
    filled = impute(x, removed, x0)
    drawn = random.normal(keys, x.shape[1:], dtype=wide(x.dtype))
    return torch.where(removed, filled + (noise * drawn).to(x.dtype), filled)


def _solve(x: Tensor, unknown: Tensor) -> Tensor:
    """Conjugate gradients with a Jacobi preconditioner on all images at once."""
    # The matrix D - W on the unknown pixels is symmetric, and positive definite as long as one
    # pixel is left. A row that is done is frozen: its next steps would divide rounding by rounding.
    m = unknown.to(x.dtype)
    d = _neighbours(torch.ones_like(x[:1, :1])).clamp(min=1 / 12)
    known = x.masked_fill(unknown, 0)
    left = (1 - m).sum((-2, -1), keepdim=True).clamp(min=1)
    v = m * (known.sum((-2, -1), keepdim=True) / left)
    r = m * (_neighbours(known + v) - d * v)
    p = z = r / d
    rz = _dot(r, z)
    # The error of the solution is then far below the noise, and above rounding.
    least = rz * torch.finfo(x.dtype).eps
    for step in range(20 + 3 * max(x.shape[-2:])):
        going = rz > least
        if step % _LOOK == 0 and not transforming() and not bool(going.any()):
            break
        ap = m * (d * p - _neighbours(p))
        # A frozen row keeps its r, and so its r.z.
        alpha = torch.where(going, rz / torch.where(going, _dot(p, ap), 1), 0)
        v, r = torch.addcmul(v, alpha, p), torch.addcmul(r, alpha, ap, value=-1)
        z = r / d
        new = _dot(r, z)
        p, rz = torch.addcmul(z, new / torch.where(going, rz, 1), p), new
    return v


def _neighbours(t: Tensor) -> Tensor:
    """The weighted sum of the neighbours inside the image."""
    # The weights are [1, 2, 1] x [1, 2, 1] / 12 without their centre: one dimension at a time.
    framed = torch.nn.functional.pad(t, (1, 1, 1, 1))
    rows = torch.add(framed[..., :-2, :], framed[..., 1:-1, :], alpha=2) + framed[..., 2:, :]
    both = torch.add(rows[..., :-2], rows[..., 1:-1], alpha=2) + rows[..., 2:]
    return torch.sub(both / 12, t, alpha=1 / 3)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)
