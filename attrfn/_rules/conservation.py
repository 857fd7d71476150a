"""The relevance that each operation receives and passes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._rules.call import Call, tensors
from attrfn._rules.errors import where
from attrfn._rules.names import PASSIVE, public_name
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
    """A replay that keeps the arguments and outputs of each operation."""

    # Relevance is read from gradients by the tensors of one call. A tensor that two operations read
    # has the sum of what both pass back, so each call gets its own views of its arguments.

    def __init__(self, table: Rules, scope: Any) -> None:
        super().__init__(table, [], None, None, scope)
        self.depth = 0
        self.operations: list[tuple[str, str, tuple[Tensor, ...], list[Tensor]]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        places = tuple([p for p, t in tensors(args, kwargs) if self.marked.get(t)])
        found = self.table.find(func)
        if self.depth or not places or found is None or func in PASSIVE:
            return super().__torch_function__(func, types, args, kwargs)
        call = Call(func, args, kwargs, places, "")
        views = tuple([t.view_as(t) for t in call.values])
        for t, view in zip(call.values, views, strict=True):
            self.marked.put(view)
            for tags in (self.raw, self.made, self.inverse):
                if tags.get(t):
                    tags.put(view, tags.get(t))
        new_args, new_kwargs = call.filled(views)
        out = super().__torch_function__(func, types, tuple(new_args), new_kwargs)
        leaves = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        self.operations.append((public_name(func), where().strip(), views, leaves))
        return out

    def within(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a decomposition, which counts as one operation."""
        self.depth += 1
        try:
            return super().within(function, *args, **kwargs)
        finally:
            self.depth -= 1

    def leaks(self, values: Tensor) -> list[Leak]:
        """The relevance at each operation, by one backward pass from the explained values."""
        ends = [t for _, _, views, outs in self.operations for t in (*views, *outs)]
        with unmistaken(values, ()):
            grads: tuple[Tensor | None, ...] = torch.autograd.grad(
                values, ends, torch.ones_like(values), allow_unused=True
            )
        sums = iter([self.relevance(t, g) for t, g in zip(ends, grads, strict=True)])
        found = []
        for op, line, views, outs in self.operations:
            passed = sum(next(sums) for _ in views)
            received = sum(next(sums) for _ in outs)
            found.append(Leak(op, line, received, passed))
        return found

    def relevance(self, t: Tensor, g: Tensor | None) -> float:
        """The relevance at a tensor: value times gradient; the gradient itself if it is raw."""
        if g is None:
            return 0.0
        relevance = g if self.raw.get(t) else t.detach() * g
        return float(relevance.nan_to_num(0.0).sum())  # a masked score is -inf, with gradient 0
