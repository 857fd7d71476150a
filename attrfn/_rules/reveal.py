"""RevealCancel: inputs that raise an activation and inputs that lower it get separate multipliers.

The change of a linear operation's output from the baseline is the sum of its positive and negative
contributions, d+ and d-. A nonlinear f of it changes by y+ + y-:

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
from attrfn._rules.difference import elementwise
from attrfn._rules.linear import CONVOLUTIONS, DENSE, statistics, weighted
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.rescale import DIFFERENCE
from attrfn._rules.run import Values
from attrfn._rules.slopes import derivative, quotient
from attrfn._rules.table import Op, Rules, own_derivative
from attrfn._torch import pytree

# A linear operation knows d+ and d-, and the next nonlinear one needs them. Between the two may be
# moves, sums and batch norms. So each of these notes the contributions of its output in `run.made`,
# computed from those of its input, and the nonlinear operation looks them up; without a note the
# rescale rule applies. So the linear operation returns its own value and derivative, for operations
# that ask for no contributions; those that do pass everything back through the contributions alone.
# As in every rule, the derivative is by z and the coefficients are of x, so contributions come in
# pairs: `up` as a function of z, which is differentiated, and `up_x`, its value at x, which is
# subtracted so that zero is added.


class Contributions(NamedTuple):
    """The positive and negative contributions to a tensor's change, of z and of x."""

    up: Tensor
    down: Tensor
    up_x: Tensor
    down_x: Tensor


def _signs(z: Tensor, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """``z - x0`` where x rose and where it fell; half to each where it did neither."""
    d = torch.where(x0.isinf() & (x == x0), 0.0, z - x0)
    half = torch.where(x == x0, 0.5, 0.0).to(d.dtype)
    return d * ((x > x0) + half), d * ((x < x0) + half)


def _complex(call: Call) -> bool:
    """Whether a call has complex numbers, which neither rise nor fall: the rescale rule holds."""
    return any(t.is_complex() for t in call.values)


def _contributions(
    run: Replay, make: Callable[[Values], tuple[Tensor, Tensor]], z: Values, x: Values
) -> Contributions:
    up, down = make(z)
    at_x = (up.detach(), down.detach()) if run.at_x is None else make(x)
    return Contributions(up, down, *at_x)


def _linear(run: Record | Replay, call: Call) -> Any:
    op = weighted(call)
    if op is None or _complex(call):
        return DIFFERENCE[call.name].apply(run, call)

    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        _, w, _ = op.tensors()
        w_up, w_down = w.clamp(min=0), w.clamp(max=0)

        def make(values: Values) -> tuple[Tensor, Tensor]:
            rose, fell = _signs(values[0], x[0], x0[0])
            return (
                op(rose, w_up, None) + op(fell, w_down, None),
                op(rose, w_down, None) + op(fell, w_up, None),
            )

        out: Tensor = call(z[0])
        run.made.put(out, _contributions(run, make, z, x))
        return out

    return run.primitive(call, rule)


def _sum(run: Record | Replay, call: Call) -> Any:
    if call.in_place or len(call.kwargs) or _complex(call):
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
    """An operation that moves values moves their contributions likewise."""
    out = own_derivative(run, call)
    known = run.made.get(call.values[0])
    if known is None or len(call.places) > 1 or call.in_place:
        return out
    if call.name in ("add", "sub"):
        # A constant added to a value leaves its change as it is, unless it broadcasts it.
        if call.places[0] == (0, None) and out.shape == known.up.shape:
            run.made.put(out, known)
        return out
    moved = [pytree.tree_leaves(call(contribution)) for contribution in known]
    for leaf, *contributions in zip(pytree.tree_leaves(out), *moved, strict=True):
        run.made.put(leaf, Contributions(*contributions))
    return out


def _batch_norm(run: Record | Replay, call: Call) -> Any:
    out = DIFFERENCE["batch_norm"].apply(run, call)
    known = run.made.get(call.values[0])
    if known is None or len(call.places) > 1:
        return out
    _, var, gain, _, eps = statistics(call)
    scale = torch.rsqrt(var + eps) if gain is None else gain * torch.rsqrt(var + eps)
    scale = scale.reshape([1, -1] + [1] * (out.ndim - 2))
    # A negative scale swaps the two.
    same, swapped = scale.clamp(min=0), scale.clamp(max=0)
    up, down, up_x, down_x = known
    run.made.put(
        out,
        Contributions(
            up * same + down * swapped,
            down * same + up * swapped,
            up_x * same + down_x * swapped,
            down_x * same + up_x * swapped,
        ),
    )
    return out


def _activation(run: Record | Replay, call: Call) -> Any:
    if _complex(call):
        return DIFFERENCE[call.name].apply(run, call)
    known = run.made.get(call.values[0]) if len(call.places) == 1 else None
    return run.primitive(call, functools.partial(_cancelling, known))


def _cancelling(
    known: Contributions | None, run: Replay, call: Call, z: Values, x: Values, x0: Values
) -> Tensor:
    if known is None:
        return elementwise(run, call, z, x, x0)
    y: Tensor = call(x[0])
    up, down, p, n = known
    t0 = x0[0]
    with_up, with_down, with_both = call(t0 + p), call(t0 + n), call(t0 + p + n)
    # Where p (or n) vanishes, the quotient is 0 / 0: its limit is a mean of two derivatives.
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
