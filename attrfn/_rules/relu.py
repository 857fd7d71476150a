"""Guided backpropagation and deconvolution: other derivatives for ReLU and its relatives.

Both cut off negative cotangents. That is not linear in the cotangent, so no composition of ordinary
operations does it, and r of :mod:`attrfn._rules.run` is an ``autograd.Function`` here. Guided
backpropagation multiplies what is left by the operation's own derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn._rules.call import FIRST, Call
from attrfn._rules.errors import refuse_nested
from attrfn._rules.graft import positive_cotangents, rectified
from attrfn._rules.names import Spelling
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._rules.slopes import derivative
from attrfn._rules.table import Op, Rules, own_derivative
from attrfn._torch.autodiff import transforms
from attrfn._torch.compiling import opaque_to_compiler
from attrfn._torch.private import base, is_wrapped

Passing = Callable[[Call, Tensor, Tensor], Tensor]
"""r(z - x), from the operation, z - x and x."""

RECTIFIERS = "relu relu6 hardtanh threshold leaky_relu prelu rrelu"
_CLAMPS = ("clamp", "clip", "clamp_min")
_WITH_RESULT = ("relu", "relu6", "hardtanh")  # written in place, their backward needs no more


def is_rectifier(call: Call) -> bool:
    """Whether a call is ReLU or one of its relatives, which bend a line once or twice."""
    if call.name == "rrelu":
        return not call.argument(3, "training", False)
    if call.name not in _CLAMPS:
        return True
    # A bound of one side other than zero usually keeps a divisor from zero.
    low, high = call.argument(1, "min"), call.argument(2, "max")
    numbers = not isinstance(low, Tensor) and not isinstance(high, Tensor)
    return numbers and low is not None and (low == 0 if high is None else True)


class _Guided(torch.autograd.Function):
    """``y = u 1[x > 0]``, backward ``max(g, 0) 1[x > 0]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, x: Tensor) -> Tensor:
        return torch.where(x > 0, u, torch.zeros_like(u))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, g.clamp(min=0), torch.zeros_like(g)), None

    @staticmethod
    def jvp(ctx: Any, u: Tensor, x: Tensor | None) -> Tensor:
        (at,) = ctx.saved_tensors
        return torch.where(at > 0, u, torch.zeros_like(u))


class _Deconv(torch.autograd.Function):
    """``y = u``, backward ``max(g, 0)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(min=0)

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        return u.clone()


@opaque_to_compiler
def guided(u: Tensor, x: Tensor) -> Tensor:
    """``u`` where x > 0; a cotangent passes where x > 0 and it is positive."""
    # `allow_in_graph`: without it torch.compile drops the backward of a Function under some
    # transforms, and returns the ordinary gradient without a word.
    passed: Tensor = _Guided.apply(u, x)  # type: ignore[no-untyped-call]
    return passed


@opaque_to_compiler
def deconvolved(u: Tensor, x: Tensor) -> Tensor:
    """``u``; a cotangent passes where it is positive."""
    passed: Tensor = _Deconv.apply(u)  # type: ignore[no-untyped-call]
    return passed


def _through(
    passing: Passing,
    direct: Callable[[Replay, Call, Tensor], Tensor],
    in_place: Callable[..., Tensor | None] | None = None,
) -> Op:
    def with_zero(call: Call, z: Tensor, x: Tensor) -> Tensor:
        y: Tensor = call(x)
        return y + passing(call, z - x, x)

    def first_order(run: Replay, call: Call, z: Tensor) -> Tensor:
        # A function of torch.func inside the model wraps z. The functions of `graft` serve ordinary
        # tensors only, so the general form is used.
        return with_zero(call, z, z.detach()) if is_wrapped(z) else direct(run, call, z)

    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        return first_order(run, call, z[0]) if run.first_order else with_zero(call, z[0], x[0])

    def of_relu(run: Replay, z: Tensor) -> Tensor:
        return first_order(run, _relu(z), z)

    def apply(run: Record | Replay, call: Call) -> Any:
        if not is_rectifier(call):
            return own_derivative(run, call)
        if run.transforms and transforms() > run.transforms:
            refuse_nested(call, run.table.name)
        return run.primitive(call, rule)

    return Op("rectifier", apply, first_order=of_relu, in_place=in_place)


def _rules(name: str, op: Op) -> Rules:
    # What depends on more arguments whether it is a rectifier takes the long way.
    others = dict.fromkeys((*RECTIFIERS.split(), *_CLAMPS), op._replace(in_place=None))
    return Rules(name, others | dict.fromkeys(_WITH_RESULT, op), strict=False)


def _relu(z: Tensor) -> Call:
    return Call(torch.relu, (z,), {}, FIRST, "relu")


def _guided(call: Call, u: Tensor, x: Tensor) -> Tensor:
    if call.name == "relu":
        return guided(u, x)
    return deconvolved(derivative(lambda t: call(t), x) * u, x)


def _deconvolved(call: Call, u: Tensor, x: Tensor) -> Tensor:
    return deconvolved(u, x)


def _guided_first_order(run: Replay, call: Call, z: Tensor) -> Tensor:
    return _noted(run, call.name, call(z))


def _noted(run: Replay, name: str, y: Tensor) -> Tensor:
    y = rectified(y)
    if name == "relu":
        run.relus.add(y.grad_fn)
    return y


def _guided_in_place(
    run: Replay, spelling: Spelling, func: Any, z: Tensor, kwargs: dict[str, Any]
) -> Tensor | None:
    """A call that writes into z, by torch, without a clone of z before or a copy into z after it.

    That wins 1.1: ResNet, batch 1, in benchmarks/special_cases_earn_their_place.py.
    """
    writes = spelling.pure is not None or kwargs.get("inplace") is True
    recorded = torch.is_grad_enabled() and z.requires_grad and not z.is_leaf
    # The hook of a view would not see what reaches its base.
    if not writes or not recorded or base(z) is not None or is_wrapped(z):
        return None
    return _noted(run, spelling.name, func(z, **kwargs))


def _deconvolved_first_order(run: Replay, call: Call, z: Tensor) -> Tensor:
    return positive_cotangents(call(z.detach()), z)


GUIDED = _rules("guided_backprop", _through(_guided, _guided_first_order, _guided_in_place))
DECONV = _rules("deconvolution", _through(_deconvolved, _deconvolved_first_order))


def on_clones(rules: Rules) -> Rules:
    """The same rules, whose operations never write in place themselves."""
    ops = {name: op._replace(in_place=None) for name, op in rules.ops.items()}
    return rules._replace(ops=ops)
