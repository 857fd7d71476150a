"""Whether a run has changed a private copy, so that the next run may or may not reuse it."""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._torch.private import version

DICTS = (dict, OrderedDict)
"""The types of dicts that a module has by itself, for its hooks and members."""


class Snapshot(NamedTuple):
    """The attributes of a private copy when it was built, and the contents of its dicts."""

    state: dict[str, Any]
    values: list[Any]
    # Most dicts of a module are empty, and any() of them all is the cheapest question.
    empty_dicts: list[dict[str, Any]]
    filled_dicts: list[tuple[dict[str, Any], list[Any]]]

    @staticmethod
    def of(state: dict[str, Any]) -> Snapshot:
        """Take a snapshot of a private copy's attributes."""
        dicts = [v for v in state.values() if type(v) in DICTS]
        return Snapshot(
            state,
            list(state.values()),
            [d for d in dicts if not d],
            [(d, list(d.values())) for d in dicts if d],
        )

    def unchanged(self) -> bool:
        """Whether all values are still the same objects."""
        return (
            _same_objects(self.state, self.values)
            and not any(self.empty_dicts)
            and all(_same_objects(d, values) for d, values in self.filled_dicts)
        )


def is_unwritten(clone: Tensor, original: Tensor, written: int) -> bool:
    """Whether nothing was written into the clone of a buffer since its version ``written``."""
    # The version counts writes in place, but not those through .data or by some kernels, so the
    # values are compared, too. On an accelerator that would wait; a new copy does not.
    if version(clone) != written or clone.device.type != "cpu" or type(clone) is not Tensor:
        return False
    return clone.layout == torch.strided and torch.equal(clone, original)


def _same_objects(now: dict[str, Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now.values(), before))


@functools.lru_cache(maxsize=256)
def slots_of(cls: Any) -> tuple[str, ...]:
    """The attributes that a class of modules keeps outside of ``__dict__``, in ``__slots__``."""
    found = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    names = [(s,) if isinstance(s, str) else tuple(s) for s in found]
    return tuple([n for s in names for n in s if n not in ("__dict__", "__weakref__")])
