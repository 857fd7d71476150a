"""Values of a ReLU, which make half of the work of some LRP rules needless.

Rules that tell signs apart run an operation on the positive and on the negative part of its input.
After a ReLU the negative part is zero, and nothing passes back where the value is zero. That stays
so in what moves or pools such values.
"""

from __future__ import annotations

from typing import Any

from attrfn._rules import ops
from attrfn._rules.call import Call, tensors


def _always(run: Any, call: Call) -> bool:
    return True


def _from_zero(run: Any, call: Call) -> bool:
    """``hardtanh`` from zero on, as ReLU6 is."""
    low, high = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    return bool(low == 0 and high > 0)


def _as_given(run: Any, call: Call) -> bool:
    """Whether all tensors that an operation gets are rectified."""
    if not run.compiling and not run.rectified.known:
        return False
    return all(run.is_rectified(t) for _, t in tensors(call.args, call.kwargs))


def _padded(run: Any, call: Call) -> bool:
    """Padding with copies, or with a number that is not negative."""
    return not (call.argument(3, "value") or 0) < 0 and _as_given(run, call)


_POOLS = "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"
_MOVES = {*ops.MOVES.split(), *_POOLS.split(), *[f"adaptive_{name}" for name in _POOLS.split()]}

RECTIFYING = {
    **dict.fromkeys(_MOVES - {"where", "masked_fill", "constant_pad_nd"}, _as_given),
    **dict.fromkeys(["dropout", "dropout1d", "dropout2d", "dropout3d"], _as_given),
    **dict.fromkeys(("relu", "relu6"), _always),
    "hardtanh": _from_zero,
    "pad": _padded,
}
"""By operation, whether a call returns such values."""
