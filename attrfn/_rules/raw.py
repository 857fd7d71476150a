"""Where the inputs of a model are read, under a rule that asks nothing of them."""

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
    """An op where a rule without regard to x stands where the inputs are read.

    What has only been moved, shifted or scaled since is "raw": its gradient is relevance, and not
    relevance divided by activation. Every other operation gets x + x (z - x) for a raw z.
    """

    def apply(run: Record | Replay, call: Call) -> Any:
        raw = [bool(run.raw.get(v)) for v in call.values]
        if not any(raw) or (by_rule and weighted(call) is not None):
            return op.apply(run, call)
        if call.in_place:
            refuse_unknown(call, run.table.name)
        if name in _MOVES and all(raw):
            out = op.apply(run, call)
            for t in pytree.tree_leaves(out):
                if isinstance(t, Tensor):
                    run.raw.put(t)
            return out
        if call.places == ((0, None),) and _shifts(name, call):
            out = run.primitive(call, _passed)
            run.raw.put(out)
            return out
        values = [_cooked(run, v) if r else v for v, r in zip(call.values, raw, strict=True)]
        args, kwargs = call.filled(values)
        return op.apply(run, call._replace(args=tuple(args), kwargs=kwargs))

    return op._replace(apply=apply)


def _cooked(run: Record | Replay, value: Tensor) -> Tensor:
    """The value, whose gradient times itself is the gradient of the raw one."""
    call = Call(torch.clone, (value,), {}, ((0, None),), "clone")
    out: Tensor = run.mark(run.primitive(call, _converted), call)
    return out


def _shifts(name: str, call: Call) -> bool:
    """Whether a call shifts or scales its first argument, and keeps its shape."""
    if name == "batch_norm":
        return not call.argument(5, "training", False)
    if name not in _SHIFTS:
        return False
    (value,) = call.values
    shapes = [t.shape for _, t in tensors(call.args, call.kwargs)]
    return bool(torch.broadcast_shapes(*shapes) == value.shape)  # type: ignore[no-untyped-call]


def _passed(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    y: Tensor = call(x[0])
    return run.graft(y, lambda t: [t[0]], z, x)


def _converted(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    return x[0] + x[0] * (z[0] - x[0])
