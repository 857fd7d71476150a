"""Layer norm and RMS norm under the rules of DeepLIFT, and their statistics for all rules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._rules.call import Call
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values


def normalised(centred: bool) -> Callable[..., Tensor]:
    """Layer norm (c = x - mean) and RMS norm (c = x): n w + b, n = c / s, s^2 = mean(c^2) + eps.

    The product rule for c = n s and for c^2 (bars are means over x and x0):
    n - n0 = (c - c0 - n_ (s - s0)) / s_,   s - s0 = mean(c_ (c - c0)) / s_.
    """

    # A decomposition into mean, square, rsqrt and product has the same multipliers; a transformer
    # has two norms per block, and the closed form calls a fraction of the operations.
    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        if call.places != ((0, None),):
            refuse_unknown(call, run.table.name, "its weights depend on the inputs")
        y: Tensor = call(*x)
        dims, weight, eps = norm_arguments(call, centred)
        c, r = statistics_of(x[0], dims, eps, centred)
        c0, r0 = statistics_of(x0[0], dims, eps, centred)
        mean_c, mean_n, over_s = (c + c0) / 2, (c * r + c0 * r0) / 2, 2 * r * r0 / (r + r0)

        def surrogates(t: Values) -> list[Tensor]:
            d = (t[0] - x[0]).to(c.dtype)
            d = d - d.mean(dims, keepdim=True) if centred else d
            out = (d - mean_n * over_s * (mean_c * d).mean(dims, keepdim=True)) * over_s
            return [out if weight is None else out * weight]

        def back(g: Tensor) -> list[Tensor]:
            u = over_s * (g if weight is None else g * weight)
            u = u - mean_c * (over_s * (mean_n * u).mean(dims, keepdim=True))
            return [u - u.mean(dims, keepdim=True) if centred else u]

        return run.graft(y, surrogates, z, x, back)

    return rule


def norm_arguments(call: Call, centred: bool) -> tuple[tuple[int, ...], Tensor | None, float]:
    """The dimensions, weight and epsilon of a layer norm or RMS norm."""
    shape = call.argument(1, "normalized_shape")
    weight = call.argument(2, "weight")
    eps = call.argument(4 if centred else 3, "eps", 1e-5 if centred else None)
    eps = torch.finfo(call.values[0].dtype).eps if eps is None else eps
    return tuple(range(-len(shape), 0)), weight, eps


def statistics_of(
    x: Tensor, dims: tuple[int, ...], eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """``c`` and ``1 / s`` of :func:`normalised`."""
    x = x.to(wide(x.dtype))
    c = x - x.mean(dims, keepdim=True) if centred else x
    return c, torch.rsqrt(c.square().mean(dims, keepdim=True) + eps)
