"""Runs of a model in which operations on values that depend on the inputs have a rule.

An operation y = f(x) with a rule becomes ``y(x) + r(z - x)``, r linear. Here x is the value that
the operation got in the recorded run on the inputs, and z the value that it gets in the replay. At
z = x the result is y. Its derivative by z is the rule's. Its derivative by a tensor on which both x
and z depend is that of f, because the two paths through r cancel. So attributions by rules can be
differentiated again, and correctly. Where they are not, the recorded run is left out, and x is z
detached.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attrfn._rules.call import Call, Place, tensors
from attrfn._rules.deferred import Kept
from attrfn._rules.errors import refuse_hidden
from attrfn._rules.moved import moved_here
from attrfn._rules.names import PASSIVE, Spelling
from attrfn._rules.notes import Notes
from attrfn._rules.ops import PATTERNED, SIDE_BY_SIDE
from attrfn._rules.table import Constant, Op, Rules
from attrfn._rules.tags import Tags
from attrfn._torch import pytree
from attrfn._torch.autodiff import transforms
from attrfn._torch.compiling import unreadable
from attrfn._torch.private import in_transform, memory_of

Values = Sequence[Tensor]
Rule = Callable[[Any, Call, Values, Values, Values], Any]
"""From the operation's arguments z, x and x0 (empty without baselines) to its output."""

Entry = tuple[str, tuple[Tensor, ...], Any]
"""What a run records of one call: the operation, its arguments and its value, see `Record`."""

_FIRST_RULE = "with a rule for where the inputs are read"
_WITH_RULES = "in attrfn.with_rules"


class Run(Notes):
    """While active, follow values that depend on marked tensors, and apply rules to them.

    Args:
        table: The rules.
        calls: Grows by one with every call that has a rule.
        scope: The rules of the modules that are running, the innermost last.
    """

    def __init__(self, table: Rules, calls: list[str], scope: Sequence[Any] = ()) -> None:
        super().__init__(table)
        self.calls = calls
        self.scope = scope
        self.transforms = transforms()
        self.traced = unreadable()
        self.ops: dict[Any, tuple[Spelling, Op] | None] = {}
        self.any_cut = False  # some value depends on the inputs without a derivative
        self.read = False  # the rule for where the inputs are read has been applied
        self.in_vjp = False  # a vjp by the inputs surrounds this run
        self.defers = False  # rules may wait for the backward pass
        self.keeps: dict[int, list[Kept]] = {}  # by memory, what they need
        self.turn = 0  # how many operations were checked, or read a value

    # torch calls this once for each torch function that the model calls, and switches the mode off
    # while it runs: a function that Python writes as several operations, such as attention, arrives
    # as one call. Two or three runs of the model come through here. `Record` notes what the
    # operations with rules get on the baselines x0 and on the inputs x; `Replay` then returns the
    # model's values with the rules' derivatives. What depends on the inputs is followed here, by
    # marks on tensor objects: a call with a marked argument returns marked tensors. Neither values
    # nor `requires_grad` can tell the same. A parameter that is being trained requires a gradient
    # and does not depend on the inputs, and inside vmap a tensor that does may report False. Tensor
    # objects stay the same in eager mode, under vmap and while torch.compile traces. There, though,
    # some calls never arrive (unpacking, x.mT), so that `places` recognises their results by a
    # gradient in a vjp around the run.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Two calls of five ask for shapes, dtypes and the like. Compiled code cannot hash every
        # function, so it takes the long way.
        if not self.compiling and func in PASSIVE:
            return func(*args, **kwargs)
        if func is Tensor.unflatten:  # it calls super(), which torch.compile cannot trace
            func = torch.unflatten
        if not self.table.strict:
            return self.untracked(func, args, kwargs)
        places = self.places(args, kwargs, func)
        if not places:
            return self.independent(func, args, kwargs)
        found = self.find(func)
        if found is None:
            return self.unknown(Call(func, args, kwargs, places, getattr(func, "__name__", "")))
        spelling, op = found
        if spelling.name in PATTERNED:  # the other arguments give a shape or type, no values
            places = tuple([p for p in places if p == (0, None)])
        if not op.follows or not places:
            return func(*args, **kwargs)
        if spelling.name in SIDE_BY_SIDE:
            return self.side_by_side(func, args, kwargs)
        call = Call(func, args, kwargs, places, spelling.name, spelling.writes)
        return self.by_rule(call, spelling, op)

    def by_rule(self, call: Call, spelling: Spelling, op: Op) -> Any:
        """A call of an operation that has a rule, with marked values among its arguments."""
        places = call.places
        numbers = [t.is_floating_point() or t.is_complex() for t in call.values]
        if not any(numbers):
            return self.unknown(call)  # indices and masks have no derivative
        if op.checked:
            call = self.check(call)
        else:
            self.unchecked(call)
        if not all(numbers):
            call = call._replace(places=tuple(itertools.compress(places, numbers)))
        # A write into a raw tensor has to go through `pure`, which carries the mark over.
        natively = op.native and not (call.in_place and self.has_first_rule)
        if natively and call.in_place:
            self.settle(call.args[0])
        out = op.apply(self, call) if natively else self.pure(call, spelling, op)
        if isinstance(out, Constant):
            return out.value
        if call.in_place:
            self.wrote(call.args[0])
        if self.signed and op.rectifies is not None and op.rectifies(self, call):
            self.rectify(out)
        return self.mark(out, call)

    def transforming(self) -> bool:
        """As ``autodiff.transforming``, which asks more than can change during a run."""
        return self.traced or in_transform()

    def find(self, func: Any) -> tuple[Spelling, Op] | None:
        """The op of a torch function, or None."""
        if self.compiling:
            return self.table.find(func)
        if func not in self.ops:
            self.ops[func] = self.table.find(func)
        return self.ops[func]

    def untracked(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Rules for some operations only, whether or not their arguments depend on the inputs."""
        # Guided backpropagation leaves other operations as they are. A ReLU of values that do not
        # depend on the inputs passes nothing back to them, so nothing needs to be marked.
        found = self.find(func)
        if found is None:
            return func(*args, **kwargs)
        places: tuple[Place, ...] = ((0, None),) if args else (("input", None),)
        call = Call(func, args, kwargs, places, found[0].name, found[0].writes)
        return self.pure(call, *found)

    def places(self, args: tuple[Any, ...], kwargs: dict[str, Any], func: Any) -> tuple[Place, ...]:
        """Where the marked tensors are among the arguments."""
        # This runs for every call of the model, so it looks into the marks itself.
        known = self.marked.known
        found: list[Place] = []
        for place, t in tensors(args, kwargs):
            if self.compiling:  # where id(t) would become a guard, see `Tags`
                if self.marked.get(t) or self.is_hidden(t, func):
                    found.append(place)
            elif id(t) in known or (self.written.known and self.shares_memory(t)):
                found.append(place)
            elif self.table.strict and t.requires_grad and not self.constants.get(t):
                if moved_here(t, self.marked, self.raw):
                    self.follow(t)
                    found.append(place)
                else:
                    self.check_origin(t, func)
        return tuple(found)

    def independent(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call without marked arguments; with a constant among them, its output is one too."""
        out = func(*args, **kwargs)
        some = isinstance(out, Tensor) and (self.compiling or self.constants.known)
        if self.compiling and isinstance(out, Tensor) and out.requires_grad:
            self.free.put(out)
        if some and any(self.constants.get(t) for _, t in tensors(args, kwargs)):
            self.constants.put(out)
        return out

    def is_hidden(self, t: Tensor, func: Any) -> bool:
        """Whether a tensor without a mark depends on the inputs in compiled code."""
        return t.requires_grad and not self.constants.get(t) and self.hidden(t, func)

    def hidden(self, t: Tensor, func: Any) -> bool:
        """Whether torch.compile made a tensor from the inputs by a call that no mode sees.

        Examples are unpacking, ``x.mT`` and ``F.pad``. Inside the vjp around this run, a tensor
        that depends on the inputs has a gradient, and one that depends on parameters has none.
        """
        if self.in_vjp:
            found = t.view_as(t).requires_grad
            return found and (
                not self.has_first_rule or refuse_hidden(func, self.table.name, _FIRST_RULE)
            )
        # The outer gradient of `with_rules` may be by parameters too, so dependence on the inputs
        # cannot be told; only leaves, and what visible calls made of them, are known to be free.
        if not t.is_leaf and not self.free.get(t):
            refuse_hidden(func, self.table.name, _WITH_RULES)
        return False

    def pure(self, call: Call, spelling: Spelling, op: Op) -> Any:
        """Apply a rule; where the function writes in place, copy the result there."""
        # A rule needs the operation's argument after the call, and autograd refuses an argument
        # that was overwritten. So the rule gets a clone, and the written tensor gets the result.
        flag = spelling.flag
        writes = spelling.pure is not None
        flagged = flag is not None and bool(call.argument(flag, "inplace", False))
        if flagged:
            writes = True
            call = call._replace(
                args=tuple([a if i != flag else False for i, a in enumerate(call.args)]),
                kwargs={k: v for k, v in call.kwargs.items() if k != "inplace"},
            )
        if not writes:
            return op.apply(self, call)
        written, before = call.args[0], call.args[0].clone()
        self.settle(written)
        for tags in (self.raw, self.chains):
            if (known := tags.get(written)) is not None:
                tags.put(before, known)
        call = call._replace(
            func=spelling.pure or call.func, args=(before, *call.args[1:]), in_place=False
        )
        out = op.apply(self, call)
        self.made.drop(written)
        if isinstance(out, Constant):
            self.marked.drop(written)
            return self.as_constant(written.copy_(out.value))
        (self.raw.put if self.raw.get(out) else self.raw.drop)(written)
        written.copy_(out)
        if flagged:
            self.wrote(written)
        return written

    def side_by_side(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that returns one tensor for each that it gets, and mixes none of them."""
        out = func(*args, **kwargs)
        given = args[0] if isinstance(args[0], (tuple, list)) else args
        for before, after in zip(
            given, out if isinstance(out, (tuple, list)) else [out], strict=True
        ):
            if self.marked.get(before) and not self.compiling:
                self.follow(after)
                (self.raw.put if self.raw.get(before) else self.raw.drop)(after)
        return out

    def within(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function with the mode on again, so that the operations in it have rules."""
        around, self.chains = self.chains, Tags("chain_within")  # no chain leads in or out
        try:
            with self:
                return function(*args, **kwargs)
        finally:
            self.chains = around

    def unknown(self, call: Call) -> Any:
        """An operation that the table does not know."""
        return self.mark(call.func(*call.args, **call.kwargs), call)

    def keep(self, kept: Kept, *t: Tensor) -> Kept:
        """Note that some tensors are kept, until the model writes into their memory."""
        for value in t:
            self.keeps.setdefault(memory_of(value), []).append(kept)
        return kept

    def settle(self, t: Any) -> None:
        """Before a write, keep clones of what is kept of this memory."""
        if self.keeps and isinstance(t, Tensor):
            for kept in self.keeps.pop(memory_of(t), ()):
                kept.settle()

    def check(self, call: Call) -> Call:
        """Refuse a call that the rules cannot be right for; the call that is made."""
        return call

    def unchecked(self, call: Call) -> None:
        """A call of an operation that the user allows."""

    def returned(self, outputs: Any) -> None:
        """Check what the model returned."""
        if not self.compiling and self.table.strict:
            for t in pytree.tree_leaves(outputs):
                unmarked = isinstance(t, Tensor) and t.requires_grad and not self.marked.get(t)
                if unmarked and not moved_here(t, self.marked, self.raw):
                    self.check_origin(t, None)

    def check_origin(self, t: Tensor, func: Any) -> None:
        """Check where an unmarked tensor with a graph comes from."""
