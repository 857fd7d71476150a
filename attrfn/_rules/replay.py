"""The run whose operations have the model's values and the derivatives of the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attrfn._rules.call import Call, members
from attrfn._rules.errors import refuse_mixed, refuse_path, refuse_unknown, refuse_unrecorded, where
from attrfn._rules.graft import Back, grafted, pulled, scaled
from attrfn._rules.hidden_relus import graph, refuse_hidden_relus
from attrfn._rules.names import public_name
from attrfn._rules.ops import READS
from attrfn._rules.run import Entry, Rule, Run, Values
from attrfn._rules.shifts import Shifts, is_maximum
from attrfn._rules.slopes import change, moved_by
from attrfn._rules.table import Constant, Rules
from attrfn._rules.tags import Route, Tags
from attrfn._torch import pytree
from attrfn._torch.autodiff import transforming
from attrfn._torch.private import in_transform, is_differentiated, level_of, transform_level

Surrogates = Callable[[Any], Sequence[Tensor]]
"""From an operation's arguments to s_1, s_2 ..., whose derivatives it gets."""


# How a value has no derivative by the inputs: it has no graph at all, or one of parameters only.
_NOWHERE, _PARAMETERS = "nowhere", "parameters"


class Replay(Run):
    """While active, operations have their values and the rules' derivatives.

    Args:
        table: The rules.
        calls: See :class:`Run`.
        at_x: The entries of the recorded run on the inputs; None takes x = z, which is right for
            one derivative.
        at_x0: The entries of the recorded run on the baselines; None for rules without baselines.
            While a rule runs, ``y0`` is what its operation returned there, if that is known.
    """

    # A rule returns y(x) + r(z - x): zero is added to the model's value, and the derivative by z is
    # the rule's linear map r. Its coefficients come from x (and x0) and not from z, so the pass
    # that forms the attributions never differentiates them. Yet they depend on the inputs through
    # the recorded runs, so that a second derivative goes through them. In it z and x both depend on
    # the inputs; the two paths through r cancel in z - x, and the derivative of the model's own
    # y(x) is left. With x = z.detach() in place of a recorded run the first derivative is the same,
    # and the second is not. So `at_x` is None only where attributions are not differentiated. In
    # eager mode outside of transforms not even the zero is computed then (`first_order`): an
    # autograd.Function of `graft` puts the derivative on the value. Elsewhere that would be wrong:
    # transforms may differentiate again, and torch.compile silently drops the backward of such a
    # function in some combinations with vmap.

    def __init__(
        self,
        table: Rules,
        calls: list[str],
        at_x: list[Entry] | None,
        at_x0: list[Entry] | None,
        scope: Sequence[Any] = (),
    ) -> None:
        super().__init__(table, calls, scope)
        self.at_x = at_x
        self.at_x0 = at_x0
        self.first_order = at_x is None and not transforming()
        self.y0: Any = None
        self.gradient_only = False  # the values are not used, so they may be rounded differently
        self.relus: set[Any] = set()  # the graph's nodes of ReLUs, for tables of ReLU rules
        self.shifts = Shifts()
        self.routes: list[Route] = []  # to be compared with the baselines
        self.accepted = False  # `allow` let values without a derivative meet others
        self.cut = Tags("cut")  # depends on the inputs without a derivative

    def follow(self, t: Tensor) -> None:
        """Mark a tensor, and note whether it has a derivative."""
        self.marked.put(t)
        if not t.requires_grad:
            self.cut.put(t, _NOWHERE)
            self.any_cut = True
        elif self.any_cut:
            self.cut.drop(t)

    def mark(self, out: Any, call: Call) -> Any:
        """Mark what an operation returned, which has no derivative if its arguments have none."""
        out = super().mark(out, call)
        if self.table.complete and (self.shifts.active or is_maximum(call)):
            for moved in self.shifts.note(out, call):
                self.follow(moved)
        if self.any_cut and not any(map(self.is_live, call.values)):
            # A table of trained parameters gives a row that requires a gradient for its own sake.
            for t in members(call.args[0] if out is None else out):
                if not self.cut.get(t):
                    self.cut.put(t, _PARAMETERS)
        return out

    def is_live(self, t: Tensor) -> bool:
        """Whether a marked tensor has a derivative by the inputs."""
        return t.requires_grad and not (self.any_cut and self.cut.get(t))

    def untracked(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As in :class:`Run`, with a short cut."""
        # Most calls with a ReLU rule are relu(x) in eager mode, where building a Call takes longer
        # than the ReLU of a small tensor. The truth of a tensor is not asked.
        if self.first_order and len(args) == 1:
            found = self.find(func)
            if found is None:
                return func(*args, **kwargs)
            spelling, op = found
            unset = all(v is False or v is None for v in kwargs.values())
            relu = unset and spelling.name == "relu" and spelling.pure is None
            if op.first_order is not None and relu:
                self.calls.append(spelling.name)
                return op.first_order(self, args[0])
            if op.in_place is not None and not self.compiling:
                out = op.in_place(self, spelling, func, args[0], kwargs)
                if out is not None:
                    self.calls.append(spelling.name)
                    return out
        return super().untracked(func, args, kwargs)

    def primitive(self, call: Call, rule: Rule) -> Any:
        """Run an operation by its rule."""
        if self.table.complete and is_maximum(call) and not torch.is_grad_enabled():
            with torch.enable_grad():  # a shift, see `Shifts`
                return self.primitive(call, rule)
        i = len(self.calls)
        self.calls.append(call.name)
        z = call.values
        x = [t.detach() for t in z] if self.at_x is None else _entry(self.at_x, i, call, z)[1]
        if self.at_x0 is None:
            return rule(self, call, z, x, ())
        _, x0, self.y0 = _entry(self.at_x0, i, call, z)
        if self.any_cut and any(a.shape != b.shape for a, b in zip(x, x0, strict=True)):
            # `allow` let a mask pick another number of values there: this operation has no
            # counterpart at the baselines, and so its own derivative.
            x0, self.y0 = tuple(x), None
        return rule(self, call, z, x, x0)

    def constant(self, call: Call) -> Constant:
        """Run an operation whose value counts as a constant."""
        i = len(self.calls)
        self.calls.append(call.name)
        if self.at_x is not None:
            return self.as_constant(_entry(self.at_x, i, call, ())[2])
        return self.as_constant(call(*[t.detach() for t in call.values]))

    def composite(self, call: Call, function: Callable[..., Any]) -> Any:
        """Run a decomposed operation: its own value, and the derivatives of the decomposition."""
        if self.table.complete and is_maximum(call) and not torch.is_grad_enabled():
            with torch.enable_grad():
                return self.composite(call, function)
        i = len(self.calls)
        self.calls.append(call.name)
        decomposed = self.within(function, *call.args, **call.kwargs)
        if self.first_order and self.gradient_only and isinstance(decomposed, Tensor):
            return decomposed  # differs in the last bits, but the operation does not run twice
        if self.at_x is None:
            value = call(*[t.detach() for t in call.values])
            return self.grafted(value, decomposed, decomposed)
        value, decomposed_x = _entry(self.at_x, i, call, ())[2]
        return self.grafted(value, decomposed, decomposed_x)

    def grafted(self, value: Any, decomposed: Any, decomposed_x: Any) -> Any:
        """The value with the derivative of a decomposition, in every floating tensor of it."""
        values, spec = pytree.tree_flatten(value)
        at_z, at_x = pytree.tree_leaves(decomposed), pytree.tree_leaves(decomposed_x)
        leaves = [
            self.graft(v, lambda t: [t], s, s_x)
            if isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex())
            else v
            for v, s, s_x in zip(values, at_z, at_x, strict=True)
        ]
        return pytree.tree_unflatten(leaves, spec)

    def graft(
        self, value: Tensor, surrogates: Surrogates, z: Values, x: Values, back: Back | None = None
    ) -> Tensor:
        """``value + sum_k s_k(z) - s_k(x)``: the value, with the derivatives of s_k by z.

        Args:
            value: What the operation returns.
            surrogates: From the operation's arguments to s_1, s_2 ...
            z: The arguments in this run.
            x: The arguments in the recorded run.
            back: The pullback of the surrogates, so that one derivative needs no values of them.
        """
        if self.first_order and back is not None:
            return pulled(value, back, *z)
        at_z = [s.to(value.dtype) for s in surrogates(z)]
        if self.first_order:
            return grafted(value, *at_z)
        at_x = [s.detach() for s in at_z] if self.at_x is None else surrogates(x)
        for s, s_x in zip(at_z, at_x, strict=True):
            value = value + change(s, s_x.to(value.dtype))
        return value

    def scale(self, value: Tensor, m: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """``value + m (z - x)``: the value, with the derivative m by z, element by element."""
        if m.is_complex() and not value.is_complex():  # of complex numbers, such as their angle
            return self.graft(value, lambda t: [(m * change(t[0], x)).real], (z,), (x,))
        m = m.to(value.dtype)
        return scaled(value, z, m) if self.first_order else value + m * moved_by(value, z, x)

    def unknown(self, call: Call) -> Any:
        """Refuse an operation without a rule if a derivative passes through it."""
        shift = self.shifts.detach(call) if self.table.complete else None
        if shift is not None:
            return super().mark(shift, call)
        if call.name in READS:  # also of a maximum that the model detached
            return self.read_value(call, call(*[v.detach() for v in call.values]))
        out = call.func(*call.args, **call.kwargs)
        if self.table.strict and any(v.requires_grad for v in call.values) and _has_graph(out):
            refuse_unknown(call, self.table.name)
        return self.mark(out, call)

    def check(self, call: Call) -> Call:
        """Note or refuse a call where values with and without derivative meet; the call made."""
        self.turn += 1
        if not self.any_cut:
            return call
        if self.shifts.any_attached and is_maximum(call):
            call = self.shifts.attach(call)
        values = call.values
        live = [self.is_live(v) for v in values]
        for v in values if self.table.strict else ():
            # A call in the forward of a custom autograd.Function returned it, without a derivative;
            # what the function returns is the same object, now with the function's derivative.
            if v.requires_grad and self.cut.get(v) == _NOWHERE:
                refuse_unrecorded(v, call.func, self.table.name)
        if self.table.complete and any(live) and not all(live):
            if transforming() or self.at_x0 is None:
                refuse_mixed(call, self.table.name)
            found = [None if at else v.detach().clone() for v, at in zip(values, live, strict=True)]
            if not self.accepted:
                op = public_name(call.func)
                self.routes.append(Route(self.turn, op, where(), found, False))
        return call

    def unchecked(self, call: Call) -> None:
        """After an allowed operation that takes a path, others are the user's own business."""
        live = [self.is_live(v) for v in call.values]
        self.accepted = self.accepted or (any(live) and not all(live))

    def read_value(self, call: Call, value: Any) -> Any:
        """A constant that Python reads of a tensor, if it is the same at the baselines."""
        self.turn += 1
        if self.table.complete and not self.compiling:
            op = public_name(call.func)
            if transforming() and call.values[0].is_floating_point():
                refuse_mixed(call, self.table.name)
            self.routes.append(Route(self.turn, op, where(), value, True))
        return value

    def returned(self, outputs: Any) -> None:
        """Check what the model returned."""
        super().returned(outputs)
        for t in pytree.tree_leaves(outputs) if self.table.strict and self.any_cut else ():
            if isinstance(t, Tensor) and t.requires_grad and self.cut.get(t) == _NOWHERE:
                refuse_unrecorded(t, None, self.table.name)

    def finished(self, outputs: Any) -> None:
        """Check the graph of some outputs after the run."""
        if not self.table.strict and not transforming():
            known = self.relus if self.first_order else None
            refuse_hidden_relus(outputs, self.inputs, known, self.table.name)

    def check_origin(self, t: Tensor, func: Any) -> None:
        """Refuse a tensor that was made from the inputs by something that no mode sees."""
        # The graph tells the origin: it leads back to a marked tensor, or only to parameters.
        # Inside a transform the graph of the level cannot be walked, but the level can be asked.
        if in_transform():
            from_inputs = _of_this_level(t)
        else:
            marked = [m for m, _ in self.marked.known.values()]
            roots = {m.grad_fn for m in marked if m.grad_fn is not None}
            from_inputs = any(node in roots for node in graph([t.grad_fn], roots))
        if from_inputs:
            refuse_unrecorded(t, func, self.table.name)


def _entry(entries: list[Entry], i: int, call: Call, z: Sequence[Tensor]) -> Entry:
    """What another run recorded at this call."""
    if i >= len(entries) or entries[i][0] != call.name or len(entries[i][1]) != len(z):
        refuse_path(call, None if i >= len(entries) else entries[i][0])
    return entries[i]


def _has_graph(out: Any) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves(out))


def _of_this_level(t: Tensor) -> bool:
    """Whether a tensor depends on the inputs of the innermost torch.func transform."""
    return level_of(t) == transform_level() and is_differentiated(t)
