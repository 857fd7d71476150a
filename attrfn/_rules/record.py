"""The first runs, on the inputs and on the baselines: what each operation with a rule got."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.run import Rule, Run, Seen
from attrfn._rules.table import Rules, Stopped
from attrfn._torch.private import version


class Record(Run):
    """While active, what the rules will need of this run is written down.

    Args:
        table: The rules.
        calls: See :class:`Run`.
        seen: The name, arguments and (of what is written out) values of each call in order.
        values: Whether what is written out runs as it is, too.
        copies: Keep copies of the arguments, which no operation in place can overwrite.
    """

    def __init__(
        self,
        table: Rules,
        calls: list[str],
        seen: list[Seen],
        values: bool,
        scope: Sequence[Any] = (),
        copies: bool = True,
    ) -> None:
        super().__init__(table, calls, scope)
        self.seen = seen
        self.values = values
        self.copies = copies
        self.versions: list[tuple[Tensor, int]] = []

    def primitive(self, call: Call, rule: Rule) -> Any:
        """An operation with a rule."""
        self.calls.append(call.name)
        out = call.func(*call.args, **call.kwargs)
        if self.copies:
            self.seen.append((call.name, tuple([v.clone() for v in call.values]), None))
            return out
        self.seen.append((call.name, call.values, out if isinstance(out, Tensor) else None))
        self.versions.extend([(t, version(t)) for t in call.values])
        if isinstance(out, Tensor):
            self.versions.append((out, version(out)))
        return out

    def overwritten(self) -> bool:
        """Whether something that was written down has been changed in place since."""
        return any(version(t) != before for t, before in self.versions)

    def constant(self, call: Call) -> Stopped:
        """An operation whose value counts as a constant."""
        value = call.func(*call.args, **call.kwargs)
        self.calls.append(call.name)
        self.seen.append((call.name, (), value))
        return self.stop(value)

    def composite(self, call: Call, function: Callable[..., Any]) -> Any:
        """An operation written out in others."""
        place = len(self.seen)
        self.calls.append(call.name)
        self.seen.append((call.name, (), None))
        parts = self.within(function, *call.args, **call.kwargs)
        single = isinstance(parts, Tensor)
        if single and not self.values:
            return parts
        value = parts if single and self.compiling else call(*call.values)
        self.seen[place] = (call.name, (), (value, parts))
        return value
