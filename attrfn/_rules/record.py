"""The recorded runs, on the inputs and on the baselines: what each operation with a rule got."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.ops import READS
from attrfn._rules.run import Entry, Rule, Run
from attrfn._rules.table import Constant, Rules
from attrfn._torch.private import version


class Record(Run):
    """While active, record what the rules will need of this run.

    Args:
        table: The rules.
        calls: See :class:`Run`.
        entries: Grows by one :data:`Entry` with every call that has a rule.
        keep_values: Whether a decomposed operation also runs as it is, for its own value.
        clone: Record clones of the arguments, which no later write can change.
    """

    # The replay needs, for its n-th call with a rule, what the n-th call got here. So calls are
    # matched by their order, and `_entry` in `replay` compares the names: a model that branches on
    # values is refused, not explained wrongly. Of an operation with a rule its arguments are
    # recorded, with their own dependence on the inputs (that is what makes second derivatives
    # right). Of a decomposed operation the entry holds its own value and that of the decomposition,
    # whose operations follow as entries; of a constant one, its value. Without clones a later write
    # may change what an entry holds; autograd's version counters show it, and
    # `gradients_by_rules` then records a second time, with clones.

    def __init__(
        self,
        table: Rules,
        calls: list[str],
        entries: list[Entry],
        keep_values: bool,
        scope: Sequence[Any] = (),
        clone: bool = True,
    ) -> None:
        super().__init__(table, calls, scope)
        self.entries = entries
        self.keep_values = keep_values
        self.clone = clone
        self.wanted: frozenset[int] = frozenset()  # turns whose arguments to keep
        self.kept: dict[int, Any] = {}
        self.versions: list[tuple[Tensor, int]] = []

    def primitive(self, call: Call, rule: Rule) -> Any:
        """An operation with a rule."""
        self.calls.append(call.name)
        out = call.func(*call.args, **call.kwargs)
        if self.clone:
            self.entries.append((call.name, tuple([v.clone() for v in call.values]), None))
            return out
        self.entries.append((call.name, call.values, out if isinstance(out, Tensor) else None))
        self.versions.extend([(t, version(t)) for t in call.values])
        if isinstance(out, Tensor):
            self.versions.append((out, version(out)))
        return out

    def check(self, call: Call) -> Call:
        """Keep the arguments of a call if they are wanted."""
        self.turn += 1
        if self.turn in self.wanted:
            self.kept[self.turn] = [v.clone() for v in call.values]
        return call

    def unknown(self, call: Call) -> Any:
        """An operation without a rule; keep what it reads if that is wanted."""
        out = super().unknown(call)
        if call.name in READS:
            self.turn += 1
            if self.turn in self.wanted:
                self.kept[self.turn] = out
        return out

    def overwritten(self) -> bool:
        """Whether a recorded tensor has been written in place since."""
        return any(version(t) != before for t, before in self.versions)

    def constant(self, call: Call) -> Constant:
        """Run an operation whose value counts as a constant."""
        value = call.func(*call.args, **call.kwargs)
        self.calls.append(call.name)
        self.entries.append((call.name, (), value))
        return self.as_constant(value)

    def composite(self, call: Call, function: Callable[..., Any]) -> Any:
        """Run the decomposition of an operation, and the operation itself if that is needed."""
        # The entry comes before those of the operations inside, as the replay meets them.
        place = len(self.entries)
        self.calls.append(call.name)
        self.entries.append((call.name, (), None))
        decomposed = self.within(function, *call.args, **call.kwargs)
        single = isinstance(decomposed, Tensor)
        if single and not self.keep_values:
            return decomposed
        # Compiled code rounds differently in any case, so there the decomposition's value serves.
        value = decomposed if single and self.compiling else call(*call.values)
        self.entries[place] = (call.name, (), (value, decomposed))
        return value
