"""The change of softmax, log-softmax and logsumexp, in closed form.

As exp, sum and quotient they would need one shift for x and x0. With scores 30 apart the factors
grow like exp(30) and cancel; those of the logarithmic mean lie between 0 and 1 for every shift.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._rules.call import Call
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._rules.slopes import change


def softmax(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """The change in closed form, with the logarithmic mean L = (y - y0) / (log y - log y0).

    y - y0 = L (x - x0 - D),   D = sum(L (x - x0)) / sum(L),  because sum(y - y0) = 0.
    """
    y: Tensor = call(*x)
    dim = _softmax_dim(call, y.ndim)
    mean = _logarithmic_mean(x[0], x0[0], dim)
    total = mean.sum(dim, keepdim=True)

    def surrogates(t: Values) -> list[Tensor]:
        grown = mean * change(t[0], x[0])
        return [grown - mean * (grown.sum(dim, keepdim=True) / total)]

    def back(g: Tensor) -> list[Tensor]:
        return [mean * (g - (mean * g).sum(dim, keepdim=True) / total)]

    return run.graft(y, surrogates, z, x, back)


def logsumexp(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``y - y0 = D`` of :func:`softmax`."""
    y: Tensor = call(*x)
    dim = call.argument(1, "dim")
    keepdim = bool(call.argument(2, "keepdim", False))
    mean = _logarithmic_mean(x[0], x0[0], dim)
    share = mean / mean.sum(dim, keepdim=True)

    def surrogates(t: Values) -> list[Tensor]:
        return [(share * change(t[0], x[0])).sum(dim, keepdim=keepdim)]

    return run.graft(y, surrogates, z, x)


def log_softmax(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``x - logsumexp(x)``."""
    y: Tensor = call(*x)
    dim = _softmax_dim(call, y.ndim)
    mean = _logarithmic_mean(x[0], x0[0], dim)
    share = mean / mean.sum(dim, keepdim=True)

    def surrogates(t: Values) -> list[Tensor]:
        d = change(t[0], x[0])
        return [d - (share * d).sum(dim, keepdim=True)]

    return run.graft(y, surrogates, z, x)


def _logarithmic_mean(x: Tensor, x0: Tensor, dim: Any) -> Tensor:
    """(p - p0) / (log p - log p0) of the softmax p of x and p0 of x0; p where they agree."""
    logs, logs0 = (_log_probabilities(t.to(wide(t.dtype)), dim) for t in (x, x0))
    higher = torch.maximum(logs, logs0)
    u = torch.minimum(logs, logs0) - higher
    # (e^u - 1) / u tends to 1; below the type's resolution the quotient is rounding only.
    small = u >= -torch.finfo(u.dtype).eps
    shrunk = torch.where(small, 1.0, torch.expm1(u) / torch.where(small, 1.0, u))
    return higher.exp() * shrunk


def _log_probabilities(x: Tensor, dim: Any) -> Tensor:
    """``log softmax``, finite at masked positions, so that no difference is NaN."""
    # A quarter of the least number: differences of two such values must not overflow.
    low = torch.finfo(x.dtype).min / 4
    logs = x.log_softmax(dim) if isinstance(dim, int) else x - x.logsumexp(dim, keepdim=True)
    return torch.where(x == -torch.inf, low, logs)


def _softmax_dim(call: Call, ndim: int) -> int:
    dim = call.argument(1, "dim")
    if dim is None:
        return 0 if ndim in (0, 1, 3) else 1
    return int(dim)
