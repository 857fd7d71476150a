"""Products of many factors along a dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values


def prod(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``y = x_1 ... x_n``: the mean over changing the factors from first to last, and back.

    y - y0 = sum_i (x_i - x0_i) [p_i(x) q_i(x0) + p_i(x0) q_i(x)] / 2, with the products p_i of the
    factors before the i-th and q_i of those after it.
    """
    y: Tensor = call(*x)
    dim = call.argument(1, "dim")
    a, a0 = (t.reshape(-1) if dim is None else t for t in (x[0].to(y.dtype), x0[0].to(y.dtype)))
    axis = 0 if dim is None or a.ndim == 0 else dim
    (p, q), (p0, q0) = _before_and_after(a, axis), _before_and_after(a0, axis)
    along = (p * q0 + p0 * q) / 2

    def surrogates(t: Values) -> list[Tensor]:
        return [(along * (t[0].to(y.dtype).reshape(a.shape) - a)).sum(axis).reshape(y.shape)]

    return run.graft(y, surrogates, z, x)


def equal_shares(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """LRP: one n-th of the relevance to each of n factors."""
    y: Tensor = call(*x)
    dim, ndim = call.argument(1, "dim"), x[0].ndim
    n: Any = x[0].numel() if dim is None or ndim == 0 else x[0].shape[dim]
    if call.name == "cumprod" and ndim:
        shape = [-1 if d == dim % ndim else 1 for d in range(ndim)]
        n = torch.arange(1, n + 1, device=x[0].device).reshape(shape)
    return run.graft(y, lambda t: [call(t[0]) / n], z, x)


def cumprod(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """``y_k = y_(k-1) x_k``, step by step."""
    factors = (input if dtype is None else input.to(dtype)).unbind(dim)
    found = [factors[0]]
    for factor in factors[1:]:
        found.append(found[-1] * factor)
    return torch.stack(found, dim)


def _before_and_after(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The products of what comes before each element, and of what comes after it."""
    if x.ndim == 0:
        x = x[None]
    one = torch.ones_like(x.narrow(axis, 0, 1))
    rest = x.shape[axis] - 1
    before = torch.cat([one, x.narrow(axis, 0, rest)], axis).cumprod(axis)
    after = torch.cat([one, x.narrow(axis, 1, rest).flip(axis)], axis).cumprod(axis).flip(axis)
    return before, after
