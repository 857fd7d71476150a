"""Modules that LRP takes as one elementwise operation, because the user names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.run import Values
from attrfn._torch.autodiff import transforming
from attrfn._torch.private import version


def whole(forward: Callable[..., Any], values: tuple[Any, ...]) -> Any:
    """``forward(*values)``, which a mode sees as one call."""
    if torch.overrides.has_torch_function(values):
        return torch.overrides.handle_torch_function(whole, values, forward, values)
    return forward(*values)


def run_whole(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward of a module as one call; tensors may come by name, too."""
    n, names = len(args), tuple(kwargs)

    def by_position(*values: Any) -> Any:
        return forward(*values[:n], **dict(zip(names, values[n:], strict=True)))

    return whole(by_position, (*args, *kwargs.values()))


def elementwise(rule: Callable[..., Any]) -> Callable[[Any, Call], Any]:
    """What a run does at such a module, by the rule of activations."""

    def by_rule(run: Any, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        _check(call, x[0])
        found: Tensor = rule(run, call, z, x, x0)
        return found

    def apply(run: Any, call: Call) -> Any:
        if len(call.places) > 1:
            raise ValueError(
                "rules.elementwise names a module that gets several tensors that depend on the "
                "inputs, expected a function of one tensor: leave it out"
            )
        return run.primitive(call, by_rule)

    return apply


def _check(call: Call, x: Tensor) -> None:
    """Refuse a module that is not elementwise, as far as shapes show it."""
    given = x.clone()
    y = call(given)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        came = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(
            f"rules.elementwise names a module that returns {came} for a tensor of shape "
            f"{tuple(x.shape)}, expected equal shapes: leave it out"
        )
    if not transforming() and version(given) != 0:
        raise ValueError(
            "rules.elementwise names a module that writes its input in place: set inplace=False"
        )
