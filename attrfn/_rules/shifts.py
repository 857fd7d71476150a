"""Maxima that a model detaches, as in ``x - x.detach().amax()``, which keeps exp from overflow.

The value of a softmax or of a logarithm of a sum does not depend on such a shift, so models cut its
gradient. For DeepLIFT the shift is a value like any other: with its derivative every operation has
its exact rule, and the sum is complete whether or not the shift cancels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attrfn._rules import ops
from attrfn._rules.call import Call, members
from attrfn._rules.names import getter
from attrfn._rules.tags import Tags

_MAXIMA = frozenset(["amax", "amin", "max", "min", "scatter_reduce", "index_reduce"])
_MOVES = frozenset(ops.MOVES.split())
_DATA = getter("data")


def is_maximum(call: Call) -> bool:
    """Whether a call takes maxima or minima."""
    return call.name in _MAXIMA


class Shifts:
    """What one run knows of maxima, and of tensors that were detached before their maximum is."""

    def __init__(self) -> None:
        self.maxima = Tags("maximum")
        self.attached = Tags("attached")  # the tensor that another one was detached from
        self.any_attached = False

    @property
    def active(self) -> bool:
        """Whether any maximum or detached tensor is known, or may be."""
        return bool(self.maxima.known) or self.any_attached or self.maxima.compiling

    def detach(self, call: Call) -> Tensor | None:
        """The value of ``t.detach()`` where t is a maximum; for any other t it notes the origin."""
        t = call.values[0]
        known = call.func == _DATA or getattr(call.func, "__name__", "") == "detach"
        if not known or not t.requires_grad:
            return None
        if self.maxima.get(t):
            return t.view_as(t)
        out: Tensor = call.func(*call.args, **call.kwargs)
        self.attached.put(out, t)
        self.any_attached = True
        return out

    def attach(self, call: Call) -> Call:
        """A call with the tensors that its arguments were detached from, if all of them were."""
        found = [self.attached.get(v) for v in call.values]
        if any(t is None for t in found):
            return call
        args, kwargs = call.filled(found)
        return call._replace(args=tuple(args), kwargs=kwargs)

    def note(self, out: Any, call: Call) -> list[Tensor]:
        """Note maxima, wherever they are moved; what moves of detached tensors would be without."""
        some = self.maxima.known or self.maxima.compiling
        moves = some and call.name in _MOVES and all(self.maxima.get(v) for v in call.values)
        if moves or is_maximum(call):
            for t in members(out):
                self.maxima.put(t)
        attached = self.attach(call) if self.any_attached and call.name in _MOVES else call
        if attached is call or not isinstance(out, Tensor):
            return []
        moved: Tensor = attached.func(*attached.args, **attached.kwargs)
        self.attached.put(out, moved)
        return [moved]
