"""Other derivatives: operations with their own values and a rule for what passes back.

An operation y = f(x) with a rule becomes ``y(x) + r(z - x)``, r(0) = 0, where x is what the
operation got in a first run and z what it gets now. At z = x that is y; its derivative by z is the
rule's; and its derivative by whatever x and z both depend on is that of f, because the two paths
through r cancel. So what is made of the rules can be differentiated again, and correctly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._rules.relu import rectified

Rule = Callable[[Tensor, Tensor], Tensor]


class Record(TorchFunctionMode):
    """While active, the arguments of rectifiers are written down, in the order of the calls."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found = rectified(func, args, kwargs)
        if found is not None:
            self.seen.append(found[0].clone() if found[1] else found[0])
        return func(*args, **kwargs)


class Replay(TorchFunctionMode):
    """While active, rectifiers have their values and pass back what a rule says.

    Args:
        rule: r, from z - x and x.
        seen: The x of each call in order; None takes x = z, which is right for one derivative.
    """

    def __init__(self, rule: Rule, seen: list[Tensor] | None, calls: list[int]) -> None:
        super().__init__()
        self.rule = rule
        self.seen = seen
        self.calls = calls

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found = rectified(func, args, kwargs)
        if found is None:
            return func(*args, **kwargs)
        z, in_place = found
        u = z.clone() if in_place else z
        x = u.detach() if self.seen is None else self.seen[len(self.calls)]
        self.calls.append(1)
        y = torch.relu(x) + self.rule(u - x, x)
        return z.copy_(y) if in_place else y
