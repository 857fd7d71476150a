"""Where a model reads its inputs, under a rule that shares relevance without regard to them.

Everywhere else the gradient is relevance divided by the value. A rule such as flat gives relevance
to a value of zero too, which no quotient can hold. So the form changes at the inputs: a value that
has only been moved, shifted or scaled since the inputs is *raw*, and its gradient is relevance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._rules import ops
from attrfn._rules.call import Call, tensors
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.linear import weighted
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._rules.table import Op
from attrfn._torch import pytree

_MOVES = frozenset([*ops.MOVES.split(), *ops.DROPOUTS.split()])
_SHIFTS = frozenset(["add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"])


def reading(name: str, op: Op, by_rule: bool) -> Op:
    """An op that treats raw values as above.

    Moves of raw values give raw values, and so do shifts and scalings, which pass relevance on
    unchanged. A linear operation by rule takes its rule ``first``. Any other operation gets
    ``x + x (z - x)`` for a raw z, whose gradient g becomes the relevance x g.
    """

    def apply(run: Record | Replay, call: Call) -> Any:
        raw = [bool(run.raw.get(v)) for v in call.values]
        if not any(raw) or (by_rule and weighted(call) is not None):
            return op.apply(run, call)
        if call.in_place:
            refuse_unknown(call, run.table.name)
        real = not _has_complex(call)
        if name in _MOVES and all(raw) and real:
            out = op.apply(run, call)
            for t in pytree.tree_leaves(out):
                if isinstance(t, Tensor):
                    run.raw.put(t)
            return out
        if call.places == ((0, None),) and real and _shifts(name, call):
            out = run.primitive(call, _passed)
            run.raw.put(out)
            return out
        values = [_convert(run, v) if r else v for v, r in zip(call.values, raw, strict=True)]
        args, kwargs = call.filled(values)
        return op.apply(run, call._replace(args=tuple(args), kwargs=kwargs))

    return op._replace(apply=apply)


def _has_complex(call: Call) -> bool:
    """Whether a call makes complex numbers, whose relevance is that of their parts together."""
    for v in (*call.args, *call.kwargs.values()):
        kind = v.dtype if isinstance(v, Tensor) else v
        if isinstance(v, complex) or (isinstance(kind, torch.dtype) and kind.is_complex):
            return True
    return False


def _convert(run: Record | Replay, value: Tensor) -> Tensor:
    """A raw value as one whose gradient is relevance divided by it."""
    call = Call(torch.clone, (value,), {}, ((0, None),), "clone")
    out: Tensor = run.mark(run.primitive(call, _times_value), call)
    return out


def _shifts(name: str, call: Call) -> bool:
    """Whether a call shifts or scales its first argument, and keeps its shape."""
    if name == "batch_norm":
        return not call.argument(5, "training", False)  # scales and shifts each channel
    if name not in _SHIFTS:
        return False
    (value,) = call.values
    shapes = [t.shape for _, t in tensors(call.args, call.kwargs)]
    return bool(torch.broadcast_shapes(*shapes) == value.shape)  # type: ignore[no-untyped-call]


def _passed(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    y: Tensor = call(x[0])
    return run.graft(y, lambda t: [t[0]], z, x)


def _times_value(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    return x[0] + x[0] * (z[0] - x[0])
