"""Runs of a model in which operations on what depends on the inputs have a rule.

An operation y = f(x) with a rule becomes ``y(x) + r(z - x)``, r linear, where x is what the
operation got in a first run, on the inputs, and z what it gets now. At z = x that is y; its
derivative by z is the rule's; and its derivative by whatever x and z both depend on is that of f,
because the two paths through r cancel. So what is made of the rules can be differentiated again,
and correctly. Where nobody will, the first run is left out and x is z, detached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._rules.call import Call, Place, tensors
from attrfn._rules.errors import (
    refuse_hidden,
)
from attrfn._rules.names import PASSIVE, Spelling
from attrfn._rules.ops import PATTERNED, SIDE_BY_SIDE
from attrfn._rules.table import Op, Rules, Stopped
from attrfn._rules.tags import Tags
from attrfn._torch import pytree
from attrfn._torch.autodiff import transforming, transforms
from attrfn._torch.compiling import is_compiling
from attrfn._torch.private import base

Values = Sequence[Tensor]
Rule = Callable[[Any, Call, Values, Values, Values], Any]
"""From the operation's arguments z, x and x0 (empty without baselines) to its output."""

_FIRST = "with a rule for the first layer"
_OWN = "as a model of their own"

Seen = tuple[str, tuple[Tensor, ...], Any]


class Run(TorchFunctionMode):
    """While active, what depends on marked tensors is followed, and rules are applied to it.

    Args:
        table: The rules.
        calls: Grows by one with every call that has a rule.
        scope: The rules of the modules that are running, the innermost last.
    """

    def __init__(self, table: Rules, calls: list[str], scope: Sequence[Any] = ()) -> None:
        super().__init__()
        self.table = table
        self.calls = calls
        self.scope = scope
        self.compiling = is_compiling()
        self.transforms = transforms()
        self.ops: dict[Any, tuple[Spelling, Op] | None] = {}
        self.inputs: tuple[Tensor, ...] = ()
        self.marked = Tags("depends")  # on the inputs
        self.stopped = Tags("constant")  # though it depends on them
        self.made = Tags("made")  # what a value is made of, for rules that look back
        self.inverse = Tags("inverse")  # one over something
        self.raw = Tags("raw")  # inputs that have only been moved
        self.free = Tags("free")  # of the inputs
        self.any_cut = False  # something that depends on them has no derivative
        self.has_first_rule = False  # a rule for where the inputs are read
        self.read = False  # it has been applied
        self.surrounded = False  # by a vjp of its own

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Two calls of five ask for shapes, dtypes and the like. Compiled code cannot hash every
        # function, so it takes the long way.
        if not self.compiling and func in PASSIVE:
            return func(*args, **kwargs)
        if func is Tensor.unflatten:  # has super(), which torch.compile cannot enter
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
        if spelling.name in PATTERNED:  # the other arguments give no values
            places = tuple([p for p in places if p == (0, None)])
        if not op.follows or not places:
            return func(*args, **kwargs)
        if spelling.name in SIDE_BY_SIDE:
            return self.side_by_side(func, args, kwargs)
        call = Call(func, args, kwargs, places, spelling.name, spelling.pure is not None)
        if not any(t.is_floating_point() or t.is_complex() for t in call.values):
            return self.unknown(call)  # indices and masks
        if op.checked:
            self.check(call)
        natively = op.native and not (call.in_place and self.has_first_rule)
        out = op.apply(self, call) if natively else self.pure(call, spelling, op)
        if call.in_place:
            self.made.drop(call.args[0])
            if not transforming() and (viewed := base(call.args[0])) is not None:
                self.follow(viewed)
        return out.value if isinstance(out, Stopped) else self.mark(out, call)

    def find(self, func: Any) -> tuple[Spelling, Op] | None:
        """The op of a torch function, or None."""
        if self.compiling:
            return self.table.find(func)
        if func not in self.ops:
            self.ops[func] = self.table.find(func)
        return self.ops[func]

    def untracked(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Rules for some operations only, wherever they get their arguments from."""
        found = self.find(func)
        if found is None:
            return func(*args, **kwargs)
        places: tuple[Place, ...] = ((0, None),) if args else (("input", None),)
        call = Call(func, args, kwargs, places, found[0].name, found[0].pure is not None)
        return self.pure(call, *found)

    def places(self, args: tuple[Any, ...], kwargs: dict[str, Any], func: Any) -> tuple[Place, ...]:
        """Where the marked tensors are among the arguments."""
        found: list[Place] = []
        for place, t in tensors(args, kwargs):
            if self.marked.get(t):
                found.append(place)
            elif not t.requires_grad or self.stopped.get(t):
                continue
            elif self.compiling:
                if self.hidden(t, func):
                    found.append(place)
            elif self.table.strict:
                self.look(t, func)
        return tuple(found)

    def independent(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of what has no rules; of constants alone it is one."""
        out = func(*args, **kwargs)
        some = isinstance(out, Tensor) and (self.compiling or self.stopped.known)
        if self.compiling and isinstance(out, Tensor) and out.requires_grad:
            self.free.put(out)
        if some and any(self.stopped.get(t) for _, t in tensors(args, kwargs)):
            self.stopped.put(out)
        return out

    def hidden(self, t: Tensor, func: Any) -> bool:
        """Whether torch.compile made a tensor of the inputs by a move that it does not show.

        Such are unpacking, ``x.mT`` and ``F.pad``. A tensor of the inputs has a gradient in the vjp
        around this run, where one of the parameters has none.
        """
        if self.surrounded:
            found = t.view_as(t).requires_grad
            return found and (
                not self.has_first_rule or refuse_hidden(func, self.table.name, _FIRST)
            )
        if not t.is_leaf and not self.free.get(t):
            refuse_hidden(func, self.table.name, _OWN)
        return False

    def pure(self, call: Call, spelling: Spelling, op: Op) -> Any:
        """Apply a rule; where the function writes in place, the result is copied there."""
        where = spelling.flag
        writes = spelling.pure is not None
        if where is not None and call.argument(where, "inplace", False):
            writes = True
            call = call._replace(
                args=tuple([a if i != where else False for i, a in enumerate(call.args)]),
                kwargs={k: v for k, v in call.kwargs.items() if k != "inplace"},
            )
        if not writes:
            return op.apply(self, call)
        first, own = call.args[0], call.args[0].clone()
        if self.raw.get(first):
            self.raw.put(own)
        call = call._replace(
            func=spelling.pure or call.func, args=(own, *call.args[1:]), in_place=False
        )
        out = op.apply(self, call)
        self.made.drop(first)
        if isinstance(out, Stopped):
            self.marked.drop(first)
            return self.stop(first.copy_(out.value))
        (self.raw.put if self.raw.get(out) else self.raw.drop)(first)
        return first.copy_(out)

    def side_by_side(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that returns one tensor for each that it gets."""
        out = func(*args, **kwargs)
        given = args[0] if isinstance(args[0], (tuple, list)) else args
        for before, after in zip(
            given, out if isinstance(out, (tuple, list)) else [out], strict=True
        ):
            if self.marked.get(before) and not self.compiling:
                self.follow(after)
                (self.raw.put if self.raw.get(before) else self.raw.drop)(after)
        return out

    def add(self, leaves: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Mark the inputs, as objects of this run's own."""
        own = self.inputs = tuple([t.view_as(t) for t in leaves])
        self.has_first_rule = self.table.linear is not None and self.table.linear.first is not None
        for t in own:
            self.marked.put(t)
            if self.has_first_rule:
                self.raw.put(t)
        return own

    def mark(self, out: Any, call: Call) -> Any:
        """Mark what an operation returned or wrote, and return it."""
        if isinstance(out, Tensor):
            self.follow(out)
        elif out is None and call.args:  # x[...] = y
            if isinstance(call.args[0], Tensor):
                self.follow(call.args[0])
        elif not self.compiling:  # where members of a tuple cannot be marked, but show a gradient
            for leaf in members(out):
                self.follow(leaf)
        return out

    def follow(self, t: Tensor) -> None:
        """Mark a tensor."""
        self.marked.put(t)

    def stop(self, value: Any) -> Stopped:
        """A value as a constant, also for rules of what is computed from it."""
        for t in pytree.tree_leaves(value):
            if isinstance(t, Tensor):
                self.stopped.put(t)
        return Stopped(value)

    def within(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A function of plain operations, run under the rules."""
        with self:
            return function(*args, **kwargs)

    def unknown(self, call: Call) -> Any:
        """An operation that the table does not know."""
        return self.mark(call.func(*call.args, **call.kwargs), call)

    def check(self, call: Call) -> None:
        """Refuse a call that the rules cannot be right for."""

    def returned(self, outputs: Any) -> None:
        """Look at what the model returned."""
        if not self.compiling and self.table.strict:
            for t in pytree.tree_leaves(outputs):
                if isinstance(t, Tensor) and t.requires_grad and not self.marked.get(t):
                    self.look(t, None)

    def look(self, t: Tensor, func: Any) -> None:
        """Look where a tensor with a graph comes from that no operation returned."""


def members(value: Any) -> Iterator[Tensor]:
    """The tensors of an output, like ``pytree.tree_leaves``, which takes its time."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from members(item)
    elif value is not None and not isinstance(value, (int, float, str)):
        yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
