"""The run whose operations have the model's values and the derivatives of the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.errors import refuse_mixed, refuse_path, refuse_unknown, refuse_unrecorded
from attrfn._rules.graft import Back, grafted, pulled, scaled
from attrfn._rules.hidden_relus import graph, refuse_hidden_relus
from attrfn._rules.ops import READS
from attrfn._rules.run import Rule, Run, Seen, Values
from attrfn._rules.table import Rules, Stopped
from attrfn._rules.tags import Tags
from attrfn._torch import pytree
from attrfn._torch.autodiff import transforming
from attrfn._torch.private import in_transform, is_differentiated, level_of, transform_level

Parts = Callable[[Any], Sequence[Tensor]]


class Replay(Run):
    """While active, operations have their values and the rules' derivatives.

    Args:
        table: The rules.
        calls: See :class:`Run`.
        at: What a run on the inputs saw; None takes x = z, which is right for one derivative.
        base: What a run on the baselines saw; None for rules without baselines. While a rule runs,
            ``before`` is what its operation returned there.
    """

    def __init__(
        self,
        table: Rules,
        calls: list[str],
        at: list[Seen] | None,
        base: list[Seen] | None,
        scope: Sequence[Any] = (),
    ) -> None:
        super().__init__(table, calls, scope)
        self.at = at
        self.base = base
        self.first_order = at is None and not transforming()
        self.before: Any = None
        self.unseen = False  # what the model returns here: it may be rounded differently
        self.relus: set[Any] = set()  # their nodes in the graph, of rules for ReLU alone
        self.cut = Tags("cut")  # depends on the inputs without a derivative

    def follow(self, t: Tensor) -> None:
        """Mark a tensor, and note whether it has a derivative."""
        self.marked.put(t)
        if not t.requires_grad:
            self.cut.put(t)
            self.any_cut = True
        elif self.any_cut:
            self.cut.drop(t)

    def untracked(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same where one derivative is all: most calls are ``relu(x)``."""
        if (
            self.first_order
            and len(args) == 1
            and all(v is False or v is None for v in kwargs.values())
        ):
            found = self.find(func)
            if found is None:
                return func(*args, **kwargs)
            spelling, op = found
            if op.first_order is not None and spelling.name == "relu" and spelling.pure is None:
                self.calls.append(spelling.name)
                return op.first_order(self, args[0])
        return super().untracked(func, args, kwargs)

    def primitive(self, call: Call, rule: Rule) -> Any:
        """An operation with a rule."""
        i = len(self.calls)
        self.calls.append(call.name)
        z = call.values
        x = [t.detach() for t in z] if self.at is None else _entry(self.at, i, call, z)[1]
        if self.base is None:
            return rule(self, call, z, x, ())
        _, x0, self.before = _entry(self.base, i, call, z)
        return rule(self, call, z, x, x0)

    def constant(self, call: Call) -> Stopped:
        """An operation whose value counts as a constant."""
        i = len(self.calls)
        self.calls.append(call.name)
        if self.at is not None:
            return self.stop(_entry(self.at, i, call, ())[2])
        return self.stop(call(*[t.detach() for t in call.values]))

    def composite(self, call: Call, function: Callable[..., Any]) -> Any:
        """An operation written out in others: its own value, their derivatives."""
        i = len(self.calls)
        self.calls.append(call.name)
        parts = self.within(function, *call.args, **call.kwargs)
        if self.first_order and self.unseen and isinstance(parts, Tensor):
            return parts
        if self.at is None:
            return self.grafted(call(*[t.detach() for t in call.values]), parts, parts)
        value, first = _entry(self.at, i, call, ())[2]
        return self.grafted(value, parts, first)

    def grafted(self, value: Any, parts: Any, first: Any) -> Any:
        """The value with the derivative of the parts, in every floating tensor of an output."""
        values, spec = pytree.tree_flatten(value)
        now, before = pytree.tree_leaves(parts), pytree.tree_leaves(first)
        leaves = [
            self.graft(v, lambda t: [t], p, b)
            if isinstance(v, Tensor) and v.is_floating_point()
            else v
            for v, p, b in zip(values, now, before, strict=True)
        ]
        return pytree.tree_unflatten(leaves, spec)

    def graft(
        self, value: Tensor, parts: Parts, z: Values, x: Values, back: Back | None = None
    ) -> Tensor:
        """``value + sum_k s_k(z) - s_k(x)``: the value, with the derivative of the parts by z.

        Args:
            value: What the operation returns.
            parts: From the operation's arguments to s_1, s_2 ...
            z: The arguments now.
            x: The arguments as the first run saw them.
            back: The parts transposed, which saves their values where one derivative is all.
        """
        if self.first_order and back is not None:
            return pulled(value, back, *z)
        now = [s.to(value.dtype) for s in parts(z)]
        if self.first_order:
            return grafted(value, *now)
        before = [s.detach() for s in now] if self.at is None else parts(x)
        for s, s0 in zip(now, before, strict=True):
            value = value + (s - s0.to(value.dtype))
        return value

    def scale(self, value: Tensor, m: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """``value + m (z - x)``: the value, with the derivative m by z, element by element."""
        m = m.to(value.dtype)
        return scaled(value, z, m) if self.first_order else value + m * (z - x)

    def unknown(self, call: Call) -> Any:
        """Refuse an operation without a rule if a derivative passes through it."""
        if self.table.complete and call.name in READS and call.values[0].is_floating_point():
            refuse_mixed(call, self.table.name)
        out = call.func(*call.args, **call.kwargs)
        if self.table.strict and any(v.requires_grad for v in call.values) and _has_graph(out):
            refuse_unknown(call, self.table.name)
        return self.mark(out, call)

    def check(self, call: Call) -> None:
        """Refuse a call where values with and without derivative meet."""
        if not self.any_cut:
            return
        values = call.values
        live = [v.requires_grad for v in values]
        for v in values if self.table.strict else ():
            if v.requires_grad and self.cut.get(v):  # made inside a custom autograd.Function
                refuse_unrecorded(v, call.func, self.table.name)
        if self.table.complete and any(live) and not all(live):
            refuse_mixed(call, self.table.name)

    def returned(self, outputs: Any) -> None:
        """Look at what the model returned."""
        super().returned(outputs)
        for t in pytree.tree_leaves(outputs) if self.table.strict and self.any_cut else ():
            if isinstance(t, Tensor) and t.requires_grad and self.cut.get(t):
                refuse_unrecorded(t, None, self.table.name)

    def finished(self, outputs: Any) -> None:
        """Look at the graph behind some outputs, after the run."""
        if not self.table.strict and not transforming():
            seen = self.relus if self.first_order else None
            refuse_hidden_relus(outputs, self.inputs, seen, self.table.name)

    def look(self, t: Tensor, func: Any) -> None:
        """Refuse a tensor that was made of the inputs by something that no mode sees."""
        if in_transform():
            unseen = _of_this_level(t)
        else:
            marked = [m for m, _ in self.marked.known.values()]
            roots = {m.grad_fn for m in marked if m.grad_fn is not None}
            unseen = any(node in roots for node in graph([t.grad_fn], roots))
        if unseen:
            refuse_unrecorded(t, func, self.table.name)


def _entry(seen: list[Seen], i: int, call: Call, z: Sequence[Tensor]) -> Seen:
    """What another run saw at this call."""
    if i >= len(seen) or seen[i][0] != call.name or len(seen[i][1]) != len(z):
        refuse_path(call, None if i >= len(seen) else seen[i][0])
    return seen[i]


def _has_graph(out: Any) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves(out))


def _of_this_level(t: Tensor) -> bool:
    """Whether a tensor depends on what the innermost torch.func transform differentiates by."""
    return level_of(t) == transform_level() and is_differentiated(t)
