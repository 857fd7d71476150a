"""The relevance that each operation receives and passes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._rules.call import Call, Place, tensors
from attrfn._rules.chains import known
from attrfn._rules.errors import refuse_audit, where
from attrfn._rules.names import PASSIVE, public_name
from attrfn._rules.ops import SHAPES
from attrfn._rules.replay import Replay
from attrfn._rules.table import Rules
from attrfn._torch import pytree
from attrfn._torch.layouts import unmistaken


class Leak(NamedTuple):
    """The relevance at one operation of a run.

    Attributes:
        op: The name of the operation.
        where: The module and the line that call it.
        received: The relevance at its outputs, summed over the batch.
        passed: The relevance at those of its inputs that depend on the explained inputs.
    """

    op: str
    where: str
    received: float
    passed: float

    @property
    def lost(self) -> float:
        """The difference, which biases, constants and the epsilon of a rule take."""
        return self.received - self.passed


class Audit(Replay):
    """A replay with gauges at the arguments and outputs of each operation."""

    # A tensor that two operations read gets the sum of what both pass back, so each operation gets
    # its own views of its arguments. An operation that writes in place runs on a clone, which is
    # then copied back: a view of what is written would show the gradient after the write only.

    def __init__(self, table: Rules, scope: Any) -> None:
        super().__init__(table, [], None, None, scope)
        self.depth = 0
        self.leaves: tuple[Tensor, ...] = ()
        self.sources: list[Gauge] = []
        self.before: list[Gauge] = []  # of the operation that runs
        self.operations: list[_Operation] = []

    def add(self, leaves: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Mark the inputs, with gauges."""
        self.leaves = tuple(leaves)
        rows = super().add(self.leaves)
        self.sources = [Gauge(t, bool(self.raw.get(t))) for t in rows]
        return rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = None if self.depth or func in PASSIVE else self.table.find(func)
        places = () if found is None else self.places(args, kwargs, func)
        if found is None or not places or not found[1].follows:
            return super().__torch_function__(func, types, args, kwargs)
        spelling = found[0]
        call = Call(func, args, kwargs, places, spelling.name)
        flagged = spelling.flag is not None and call.argument(spelling.flag, "inplace", False)
        self.before = []
        operation = _Operation(public_name(func), where().strip(), self.before, [])
        run = functools.partial(super().__torch_function__, func, types)
        writes = self._writing if spelling.writes or flagged else self._reading
        out = writes(call, run, operation)
        self.operations.append(operation)
        return out

    def _reading(self, call: Call, run: Callable[..., Any], operation: _Operation) -> Any:
        """An operation that returns its outputs."""
        args, kwargs = call.filled([self.own(t) for t in call.values])
        out = run(tuple(args), kwargs)
        operation.after.extend(self._gauges(out))
        return out

    def _writing(self, call: Call, run: Callable[..., Any], operation: _Operation) -> Any:
        """An operation that writes its first argument."""
        first: tuple[Place, ...] = (tensors(call.args, call.kwargs)[0][0],)
        (written,) = call._replace(places=first).values
        if call.name in SHAPES:  # all values stay, so what comes in goes out
            out = run(call.args, call.kwargs)
            operation.after.extend(self._gauges(written))
            self.before.extend(operation.after)
            return out
        others = [p for p in call.places if p != first[0]]
        work = (self.own(written) if first[0] in call.places else written).clone()
        self._tell(written, work)
        values = call._replace(places=tuple(others)).values
        args, kwargs = call._replace(places=(*first, *others)).filled(
            [work, *map(self.own, values)]
        )
        out = run(tuple(args), kwargs)
        operation.after.extend(self._gauges(work))
        written.copy_(work)
        self._tell(work, written)
        self.wrote(written)
        return written if out is work else out

    def own(self, t: Tensor) -> Tensor:
        """A view of an argument for the operation that runs, with a gauge."""
        view = t.view_as(t)
        known(self, t)  # by which a chain recognises all views of one tensor
        self._tell(t, view)
        self.before.extend(self._gauges(view))
        return view

    def start_of(self, node: Any) -> Tensor:
        """The value at which a chain starts, with a gauge."""
        return super().start_of(node) if self.depth else self.own(node.value)

    def _tell(self, t: Tensor, other: Tensor) -> None:
        """Note of another tensor what is known of one."""
        notes = (self.marked, self.constants, self.raw, self.made, self.inverse, self.cut)
        for tags in (*notes, self.chains):
            noted = tags.get(t)
            if noted is None:
                tags.drop(other)
            else:
                tags.put(other, noted)

    def _gauges(self, value: Any) -> list[Gauge]:
        """Gauges at all tensors of a value that have a derivative."""
        leaves = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
        return [Gauge(t, bool(self.raw.get(t))) for t in leaves if t.requires_grad]

    def within(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a decomposition, which counts as one operation."""
        self.depth += 1
        try:
            return super().within(function, *args, **kwargs)
        finally:
            self.depth -= 1

    def leaks(self, values: Tensor) -> list[Leak]:
        """The relevance at each operation, by one backward pass from the explained values."""
        end = Gauge(values, False)
        if values.requires_grad:
            with unmistaken(values, ()):
                torch.autograd.grad(values, self.leaves, torch.ones_like(values), allow_unused=True)
        found = [Leak(o.name, o.where, _total(o.after), _total(o.before)) for o in self.operations]
        gap = end.total - _total(self.sources) - sum(leak.lost for leak in found)
        gauges = [g for o in self.operations for g in (*o.before, *o.after)]
        scale = max([abs(end.total), *(g.size for g in gauges)])
        # Models with a part in float32 round there, whatever the dtype of their output is.
        eps = max([torch.finfo(values.dtype).eps, *(g.eps for g in gauges)])
        if not abs(gap) <= 1e4 * eps * scale:
            refuse_audit(gap, end.total)
        return found


class Gauge:
    """The relevance at a tensor as it is now, read when a backward pass reaches it.

    Args:
        t: The tensor, which may be overwritten later.
        raw: Whether its gradient is its relevance, see :mod:`attrfn._rules.raw`.
    """

    # The hook is at the node that made the value, and so no later write moves it. A hook at the
    # tensor would stay where the first one was registered.

    def __init__(self, t: Tensor, raw: bool) -> None:
        self.total = self.size = 0.0
        self.value = None if raw else t.detach().clone()
        self.output = t.output_nr
        self.eps = torch.finfo(t.dtype).eps
        if t.grad_fn is not None:
            t.grad_fn.register_prehook(self.read)

    def read(self, gradients: Sequence[Tensor | None]) -> None:
        """Note value times gradient."""
        g = gradients[self.output]
        if g is None:
            return
        if self.value is not None:
            product = (self.value * g.conj()).real if g.is_complex() else self.value * g
            # With gradient 0: a masked score is -inf, and memory that is written later may be nan.
            g = torch.where(~self.value.isfinite() & (g == 0), 0.0, product)
        self.total += float(g.double().sum())
        self.size += float(g.double().abs().sum())


class _Operation(NamedTuple):
    """What the audit knows of one call.

    Attributes:
        name: The name of the operation.
        where: The module and line that call it.
        before: The gauges at its arguments.
        after: The gauges at its outputs.
    """

    name: str
    where: str
    before: list[Gauge]
    after: list[Gauge]


def _total(gauges: list[Gauge]) -> float:
    return sum([g.total for g in gauges])
