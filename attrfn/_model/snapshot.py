"""Whether a run has changed a private copy, so that the next run may or may not reuse it."""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict, defaultdict, deque
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
    def of(state: dict[str, Any], dicts: list[dict[str, Any]]) -> Snapshot:
        """Take a snapshot of a private copy's attributes, and of the dicts among them."""
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


class Contents(NamedTuple):
    """A container of a private copy, and what it held when it was built.

    Its parts are compared by identity: no code of theirs runs, and a part that is a container has
    contents of its own.
    """

    container: Any
    held: list[Any]

    @staticmethod
    def of(container: Any) -> Contents:
        """Note the contents of a list, dict, set, deque, bytearray or namespace."""
        return Contents(container, _held(container))

    def unchanged(self) -> bool:
        """Whether it still holds the same objects in the same order."""
        now = _held(self.container)
        return len(now) == len(self.held) and all(map(operator.is_, now, self.held))


def _held(container: Any) -> list[Any]:
    """Keys, values and attributes; by methods of Python's own types, as subclasses may differ."""
    held: list[Any] = []
    if isinstance(container, OrderedDict):  # dict does not know its order
        held += [*OrderedDict.keys(container), *OrderedDict.values(container)]
    elif isinstance(container, dict):
        held += [*dict.keys(container), *dict.values(container)]
        if isinstance(container, defaultdict):
            held.append(container.default_factory)
    else:
        kinds: Any = (list, set, deque, bytearray)
        for kind in kinds:
            if isinstance(container, kind):
                held += kind.__iter__(container)
    attributes = attributes_of(container)
    if attributes:
        held += [*attributes, *attributes.values()]
    return held


def attributes_of(container: Any) -> dict[str, Any] | None:
    """The attributes of a namespace or of an instance of a subclass; None if it can have none."""
    try:
        found: dict[str, Any] | None = object.__getattribute__(container, "__dict__")
    except AttributeError:
        return None
    return found


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
