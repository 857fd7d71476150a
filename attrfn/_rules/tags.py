"""What a run notes about tensors, by object and not by value."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from attrfn._torch.compiling import is_compiling
from attrfn._torch.private import memory_of


class Tags:
    """Values attached to tensors for one run.

    Tensors are told apart by identity.

    Args:
        name: The name of the tags.
    """

    def __init__(self, name: str) -> None:
        # While torch.compile traces, the values are attributes of the traced tensors. There, id(t)
        # of an argument becomes a guard, and every call with new parameters would compile again.
        self.attribute = f"_attrfn_{name}"
        self.compiling = is_compiling()
        # The tensor is kept with its value: if it were freed, another could get the same id.
        self.known: dict[int, tuple[Tensor, Any]] = {}

    def put(self, t: Tensor, value: Any = True) -> None:
        """Attach a value."""
        if self.compiling:
            setattr(t, self.attribute, value)
        else:
            self.known[id(t)] = (t, value)

    def get(self, t: Tensor) -> Any:
        """The value of a tensor, or None."""
        if self.compiling:
            return getattr(t, self.attribute, None)
        found = self.known.get(id(t))
        return None if found is None else found[1]

    def drop(self, t: Tensor) -> None:
        """Forget a tensor."""
        if not self.compiling:
            self.known.pop(id(t), None)
        elif getattr(t, self.attribute, None) is not None:
            setattr(t, self.attribute, None)


class Memory:
    """The memory of some tensors, which views share with them."""

    def __init__(self) -> None:
        # The tensors are kept: if one were freed, another could get its memory.
        self.known: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def put(self, t: Tensor) -> None:
        """Add the memory of a tensor."""
        at = memory_of(t)
        self.known[at] = t
        self.counts[at] = self.counts.get(at, 0) + 1

    def times(self, t: Tensor) -> int:
        """How often the memory of a tensor was added."""
        return self.counts.get(memory_of(t), 0) if self.counts else 0

    def holds(self, t: Tensor) -> bool:
        """Whether a tensor lies in this memory."""
        return memory_of(t) in self.known


class Route(NamedTuple):
    """What one operation got, or read, without a derivative.

    Attributes:
        turn: How many operations came before it.
        op: Its public name.
        where: The module and line that call it.
        found: The tensors, or the value that it read.
        read: Whether it read a value.
    """

    turn: int
    op: str
    where: str
    found: Any
    read: bool
