"""Further decompositions: distances, quantiles, running sums of exponentials, complex numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._rules.decompositions import vector_norm


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, *_: Any, **__: Any) -> Tensor:
    """``|a_i - b_j|_p``."""
    return vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """``logsumexp`` of the first elements, of each number of them: (n, n) values in place of n."""
    if input.ndim == 0:
        return input.clone()
    rows = input.movedim(dim, -1)
    n = rows.shape[-1]
    later = torch.ones(n, n, dtype=torch.bool, device=input.device).triu(1)
    prefixes = rows.unsqueeze(-2).expand(*rows.shape, n).masked_fill(later, -torch.inf)
    return prefixes.logsumexp(-1).movedim(-1, dim)


def quantile(
    input: Tensor,
    q: Tensor | float,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Tensor:
    """A mean of two neighbours of the sorted values."""
    q = torch.as_tensor(q, dtype=input.dtype, device=input.device)
    rows = (input.reshape(-1) if dim is None else input.movedim(dim, -1)).sort(-1)[0]
    n = rows.shape[-1]
    place = q.reshape(-1) * (n - 1)
    lower, upper = place.floor().long(), place.ceil().long()
    share = place - lower
    if interpolation == "lower":
        share = torch.zeros_like(share)
    elif interpolation == "higher":
        share = (share > 0).to(share.dtype)
    elif interpolation == "nearest":
        share = (place.round() - lower).clamp(0, 1)
    elif interpolation == "midpoint":
        share = torch.full_like(share, 0.5)
    found = rows[..., lower] * (1 - share) + rows[..., upper] * share
    if keepdim:
        shape = [1] * input.ndim
        if dim is not None:
            shape = [1 if d == dim % input.ndim else k for d, k in enumerate(input.shape)]
        found = found.movedim(-1, 0).reshape(len(place), *shape)
    else:
        found = found.movedim(-1, 0)
    return found[0] if q.ndim == 0 else found


def polar(abs: Tensor, angle: Tensor) -> Tensor:
    """``abs * exp(i angle)``."""
    return torch.complex(abs * angle.cos(), abs * angle.sin())


def angle(input: Tensor) -> Tensor:
    """The angle of a complex number."""
    return torch.atan2(input.imag, input.real)


def softsign(input: Tensor) -> Tensor:
    """``z / (1 + |z|)``."""
    return input / (input.abs() + 1)
