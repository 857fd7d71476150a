"""Max pooling and the maximum along a dimension under the rules of DeepLIFT."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._rules.slopes import Function, change, finite, quotient
from attrfn._torch.compiling import is_compiling


def picked(
    run: Replay,
    value: Tensor,
    z: Tensor,
    x: Tensor,
    x0: Tensor,
    pick: Function,
    pick0: Function,
) -> Tensor:
    """The rule of maxima; ``pick`` takes the elements that win at x, ``pick0`` those at x0."""
    # With top = max(y, y0), the gain top - y0 belongs to the winner at x, and the loss y - top to
    # the winner at x0. Each is divided by the change of its element, so that multiplier times
    # change gives it back. Where the winner and y did not change, the derivative 1 is left.
    y, y0, before, after = (finite(t) for t in (pick(x), pick0(x0), pick(x0), pick0(x)))
    top = torch.maximum(y, y0)
    gain = quotient(top - y0, y - before, (y == y0).to(y.dtype))
    loss = quotient(y - top, after - y0, torch.zeros_like(y))

    def surrogates(t: Values) -> list[Tensor]:
        dz = change(t[0], x)
        return [gain * pick(dz) + loss * pick0(dz)]

    return run.graft(value, surrogates, (z,), (x,))


def max_pool(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Any:
    """Max pooling: the rule of maxima, with the positions that pooling itself returns."""
    n = 1 if "1d" in call.name else 2 if "2d" in call.name else 3
    function = getattr(F, f"{'adaptive_' if 'adaptive' in call.name else ''}max_pool{n}d")
    (y, at), (_, at0) = (_pooled(call, function, t) for t in (x[0], x0[0]))

    at, at0 = (_stored(t) for t in (at, at0))

    def pick(positions: Tensor) -> Function:
        return lambda t: t.flatten(-n).gather(-1, positions.flatten(-n)).reshape(positions.shape)

    out = picked(run, y, z[0], x[0], x0[0], pick(at), pick(at0))
    return (out, at) if _gives_indices(call) else out


def _stored(positions: Tensor) -> Tensor:
    """The same positions, which compiled code keeps in memory."""
    # Inductor would write the arithmetic that finds them into every index that uses them, and take
    # longer to simplify those than to compile all else: deep_lift_shap of the CNN, in
    # benchmarks/compile_time.py. It stores what as_strided views.
    if not is_compiling():
        return positions
    t = positions.contiguous()
    return t.as_strided(t.shape, t.stride())


def _gives_indices(call: Call) -> bool:
    adaptive = "adaptive" in call.name
    if call.name.endswith("with_indices") or (adaptive and not inspect.isfunction(call.func)):
        return True  # only the functions of torch.nn.functional leave the indices out
    return bool(call.argument(2 if adaptive else 6, "return_indices", False))


def _pooled(call: Call, function: Callable[..., Any], x: Tensor) -> Any:
    args, kwargs = call.filled([x])
    last = 2 if "adaptive" in call.name else 6
    kwargs.pop("return_indices", None)
    return function(*args[:last], **kwargs, return_indices=True)


def amax(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """The maximum (or minimum) along one dimension: the rule of maxima."""
    sign = -1.0 if call.name == "amin" else 1.0
    dim = call.argument(1, "dim")
    axis = int(dim[0] if isinstance(dim, (tuple, list)) else dim)
    zs, xs, x0s = (sign * t for t in (z[0], x[0], x0[0]))
    at, at0 = xs.argmax(axis, keepdim=True), x0s.argmax(axis, keepdim=True)

    def pick(positions: Tensor) -> Function:
        return lambda t: t.gather(axis, positions)

    out = sign * picked(run, pick(at)(xs), zs, xs, x0s, pick(at), pick(at0))
    return out if call.argument(2, "keepdim", False) else out.squeeze(axis)
