"""The path that a model takes at the inputs and at the baselines.

A mask, an index or a number that is read from a tensor depends on the inputs without a derivative.
Where it is the same at the baselines it is a constant, and DeepLIFT is complete. Where it is not,
the model takes another path there, and nothing tells which input the difference belongs to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attrfn._rules.errors import refuse_branch, refuse_route
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.tags import Route
from attrfn._torch.autodiff import normal_tensors, transforming
from attrfn._torch.typing import Leaves


def _same(a: Any, b: Any) -> bool:
    """Whether two values, or all of two sequences, are equal."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(_same(v, w) for v, w in zip(a, b, strict=True))
    return bool((a == b) is True or getattr(a == b, "all", bool)())


def _same_at(route: Route, at_x0: dict[int, Any]) -> bool:
    """Whether the baselines take the same path at an operation."""
    if route.turn not in at_x0:
        return False
    given = at_x0[route.turn]
    if route.read:
        return _same(route.found, given)
    if len(route.found) != len(given):
        return False
    return all(v is None or _same(v, w) for v, w in zip(route.found, given, strict=True))


def check_routes(run: Replay, x0: Leaves, again: Callable[[Leaves, Record], Any]) -> None:
    """Refuse a replay in which a value without a derivative differs at the baselines.

    Args:
        run: The replay.
        x0: The baselines.
        again: Runs the model on marked rows in a recorded run.
    """
    # The recorded run on the baselines could not know what the replay would find without a
    # derivative. So it is repeated in the rare case, for these values alone.
    record = Record(run.table, [], [], False, run.scope)
    record.wanted = frozenset([route.turn for route in run.routes])
    fails = contextlib.suppress(RuntimeError, ValueError, IndexError)
    with fails, torch.inference_mode(False), torch.no_grad():
        again(record.add(x0 if transforming() else normal_tensors(x0)), record)
    for route in run.routes:
        if not _same_at(route, record.kept):
            (refuse_branch if route.read else refuse_route)(route.op, route.where, run.table.name)
