"""RevealCancel: what pushes an activation up and what pulls it down have multipliers of their own.

The change of a linear operation's output from the baseline is parted into what its inputs add and
what they take away, d+ and d-; a nonlinear f of it then changes by

    y+ = [f(t0 + d+) - f(t0) + f(t0 + d- + d+) - f(t0 + d-)] / 2     m+ = y+ / d+
    y- = [f(t0 + d-) - f(t0) + f(t0 + d+ + d-) - f(t0 + d+)] / 2     m- = y- / d-

Elsewhere the rescale rule holds.

Reference:
    Shrikumar, Greenside and Kundaje, Learning Important Features Through Propagating Activation
    Differences, 2017.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._rules import ops
from attrfn._rules.call import Call
from attrfn._rules.difference import derivative, elementwise, quotient
from attrfn._rules.linear import CONVOLUTIONS, DENSE, statistics, weighted
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.rescale import DIFFERENCE
from attrfn._rules.run import Values
from attrfn._rules.table import Op, Rules, own_derivative
from attrfn._torch import pytree


class Contributions(NamedTuple):
    """The two parts of a tensor's change from the baseline, as functions of z and of x."""

    up: Tensor
    down: Tensor
    up_at: Tensor
    down_at: Tensor

    def all_of(self, f: Callable[[Tensor], Any]) -> Any:
        """The parts after a linear operation."""
        return Contributions(*map(f, self))


def _signs(z: Tensor, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Z - x0 where x rose and where it fell; half to each where it did neither."""
    d = z - x0
    half = torch.where(x == x0, 0.5, 0.0).to(d.dtype)
    return d * ((x > x0) + half), d * ((x < x0) + half)


def _contributions(
    run: Replay, make: Callable[[Values], tuple[Tensor, Tensor]], z: Values, x: Values
) -> Contributions:
    up, down = make(z)
    at = (up.detach(), down.detach()) if run.at_x is None else make(x)
    return Contributions(up, down, *at)


def _linear(run: Record | Replay, call: Call) -> Any:
    op = weighted(call)
    if op is None:
        return DIFFERENCE[call.name].apply(run, call)

    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        _, w, _ = op.tensors()
        w_up, w_down = w.clamp(min=0), w.clamp(max=0)

        def make(values: Values) -> tuple[Tensor, Tensor]:
            rose, fell = _signs(values[0], x[0], x0[0])
            return (
                op.apply(rose, w_up, None) + op.apply(fell, w_down, None),
                op.apply(rose, w_down, None) + op.apply(fell, w_up, None),
            )

        out: Tensor = call(z[0])
        run.made.put(out, _contributions(run, make, z, x))
        return out

    return run.primitive(call, rule)


def _sum(run: Record | Replay, call: Call) -> Any:
    if call.in_place or len(call.kwargs):
        return own_derivative(run, call)
    if len(call.places) == 1:
        return _moved(run, call)

    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        sign = 1.0 if call.name == "add" else -1.0

        def make(values: Values) -> tuple[Tensor, Tensor]:
            a_up, a_down = _signs(values[0], x[0], x0[0])
            b_up, b_down = _signs(sign * values[1], sign * x[1], sign * x0[1])
            return a_up + b_up, a_down + b_down

        out: Tensor = call(*z)
        run.made.put(out, _contributions(run, make, z, x))
        return out

    return run.primitive(call, rule)


def _moved(run: Record | Replay, call: Call) -> Any:
    """What brings values to other places does so to their parts."""
    out = own_derivative(run, call)
    known = run.made.get(call.values[0])
    if known is None or len(call.places) > 1 or call.in_place:
        return out
    if call.name in ("add", "sub"):
        parts = known if call.places[0] == (0, None) and _same(out, known.up) else None
        if parts is not None:
            run.made.put(out, parts)
        return out
    moved = [pytree.tree_leaves(call(part)) for part in known]
    for leaf, *parts in zip(pytree.tree_leaves(out), *moved, strict=True):
        run.made.put(leaf, Contributions(*parts))
    return out


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape


def _batch_norm(run: Record | Replay, call: Call) -> Any:
    out = DIFFERENCE["batch_norm"].apply(run, call)
    known = run.made.get(call.values[0])
    if known is None or len(call.places) > 1:
        return out
    _, var, gain, _, eps = statistics(call)
    scale = torch.rsqrt(var + eps) if gain is None else gain * torch.rsqrt(var + eps)
    scale = scale.reshape([1, -1] + [1] * (out.ndim - 2))
    s_up, s_down = scale.clamp(min=0), scale.clamp(max=0)
    up, down, up_at, down_at = known
    run.made.put(
        out,
        Contributions(
            up * s_up + down * s_down,
            down * s_up + up * s_down,
            up_at * s_up + down_at * s_down,
            down_at * s_up + up_at * s_down,
        ),
    )
    return out


def _activation(run: Record | Replay, call: Call) -> Any:
    parts = run.made.get(call.values[0]) if len(call.places) == 1 else None
    return run.primitive(call, functools.partial(_cancelling, parts))


def _cancelling(
    parts: Contributions | None, run: Replay, call: Call, z: Values, x: Values, x0: Values
) -> Tensor:
    if parts is None:
        return elementwise(run, call, z, x, x0)
    y: Tensor = call(x[0])
    up, down, p, n = parts
    t0 = x0[0]
    with_up, with_down, with_both = call(t0 + p), call(t0 + n), call(t0 + p + n)
    y_up = 0.5 * (with_up - call(t0) + with_both - with_down)
    y_down = 0.5 * (with_down - call(t0) + with_both - with_up)
    near_up = 0.5 * (derivative(lambda t: call(t), t0) + derivative(lambda t: call(t), t0 + n))
    near_down = 0.5 * (derivative(lambda t: call(t), t0) + derivative(lambda t: call(t), t0 + p))
    return y + quotient(y_up, p, near_up) * (up - p) + quotient(y_down, n, near_down) * (down - n)


_MOVES = frozenset(ops.MOVES.split())

REVEAL_CANCEL = Rules(
    "deep_lift",
    {
        **DIFFERENCE,
        **{name: op._replace(apply=_moved) for name, op in DIFFERENCE.items() if name in _MOVES},
        **{
            name: DIFFERENCE[name]._replace(apply=_linear)
            for name in (DENSE + " " + CONVOLUTIONS).split()
        },
        **{name: DIFFERENCE[name]._replace(apply=_sum) for name in ("add", "sub")},
        **{
            name: DIFFERENCE[name]._replace(apply=_activation)
            for name in ops.ELEMENTWISE.split()
            if DIFFERENCE[name].kind == "elementwise"
            and name not in ("rsqrt", "reciprocal", "abs", "absolute", *ops.STEPS)
        },
        "batch_norm": Op("linear (evaluation mode)", _batch_norm),
    },
    complete=True,
)
