"""What a run notes about the tensors that it meets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from attrfn._rules.call import Call, members
from attrfn._rules.ops import PACKINGS
from attrfn._rules.table import Constant, Rules
from attrfn._rules.tags import Memory, Tags
from attrfn._torch import pytree
from attrfn._torch.compiling import is_compiling
from attrfn._torch.layouts import HasRules


class Notes(HasRules):
    """A mode with notes on tensors, told apart by identity.

    Args:
        table: The rules.
    """

    def __init__(self, table: Rules) -> None:
        super().__init__()
        self.table = table
        self.compiling = is_compiling()
        self.inputs: tuple[Tensor, ...] = ()
        self.marked = Tags("depends")  # depends on the inputs
        self.constants = Tags("constant")  # depends on them, but counts as a constant
        self.made = Tags("made")  # how a value was made, for rules that look back
        self.inverse = Tags("inverse")  # 1 / s for some s
        self.raw = Tags("raw")  # an input, only moved, shifted or scaled since
        self.free = Tags("free")  # does not depend on the inputs
        self.written = Memory()  # what was written in place
        self.chains = Tags("chain")  # how a value was made, element by element, for LRP
        self.rectified = Tags("rectified")  # not negative, and its zeros pass nothing back
        self.writes = 0  # in place, of values that depend on the inputs
        self.has_first_rule = False  # the table has a rule for where the inputs are read

    def add(self, leaves: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Mark new views of the inputs, and return them."""
        # The caller's own objects must stay unmarked: a model may also hold one in a closure, where
        # it counts as a constant.
        views = self.inputs = tuple([t.view_as(t) for t in leaves])
        self.has_first_rule = self.table.linear is not None and self.table.linear.first is not None
        for t in views:
            self.marked.put(t)
            if self.has_first_rule:
                self.raw.put(t)
        return views

    def mark(self, out: Any, call: Call) -> Any:
        """Mark what an operation returned or wrote, and return it."""
        if isinstance(out, Tensor):
            self.follow(out)
        elif out is None and call.args:  # x[...] = y
            if isinstance(call.args[0], Tensor):
                self.follow(call.args[0])
        elif not self.compiling:
            # While torch.compile traces, members of a tuple cannot be marked; `hidden` recognises
            # them by their gradient.
            for leaf in members(out):
                if leaf.is_floating_point() or call.name not in PACKINGS:
                    self.follow(leaf)
        return out

    def follow(self, t: Tensor) -> None:
        """Mark a tensor."""
        self.marked.put(t)

    def as_constant(self, value: Any) -> Constant:
        """A value as a constant, also for the rules of operations that use it later."""
        for t in pytree.tree_leaves(value):
            if isinstance(t, Tensor):
                self.constants.put(t)
        return Constant(value)

    def wrote(self, t: Tensor) -> None:
        """Note that a tensor has been written in place with a value that depends on the inputs."""
        # The object stays the same while its value changes, so notes on the old value go. A write
        # into a view changes the tensor under it and its other views, which now depend on the
        # inputs too; compiled code shows that by their gradient.
        self.made.drop(t)
        self.chains.drop(t)
        self.writes += 1
        if not self.compiling:
            self.written.put(t)

    def rectify(self, t: Tensor) -> None:
        """Note that no element is negative, and zeros pass nothing back, as after a ReLU."""
        self.rectified.put(t, self._writes_into(t))

    def is_rectified(self, t: Tensor) -> bool:
        """Whether :meth:`rectify` was told of a tensor, and nothing was written since."""
        at = self.rectified.get(t)
        return at is not None and bool(at == self._writes_into(t))

    def _writes_into(self, t: Tensor) -> int:
        return self.writes if self.compiling else self.written.times(t)

    def shares_memory(self, t: Tensor) -> bool:
        """Whether a tensor lies in memory that was written, and mark it then."""
        if self.constants.get(t) or not self.written.holds(t):
            return False
        self.follow(t)
        return True

    def start_of(self, node: Any) -> Tensor:
        """The value at which a chain starts, see :mod:`attrfn._rules.chains`."""
        value: Tensor = node.value
        return value
