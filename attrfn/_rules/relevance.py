"""LRP: what passes back is relevance divided by activation, so that x * gradient is relevance.

In this form sums, residual connections, pooling and reshapes need no rule. What needs one:

    linear operations    a rule of :mod:`attrfn._rules.formulas`, by kind, place or module
    elementwise          y = f(x) passes R on: the derivative is y / x, and f'(0) at 0 if f(0) = 0
    products             the relevance is shared equally between the factors
    softmax              its own derivative (a Taylor expansion at x), or none
    statistics           the divisor of a normalisation counts as a constant, and so do gates

Reference:
    Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
    Relevance Propagation, 2015.
    Achtibat et al., AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers,
    2024.
    Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation, 2022.
    Arras et al., Explaining Recurrent Neural Network Predictions in Sentiment Analysis, 2017.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._rules import ops, recurrent
from attrfn._rules.call import Call, tensors
from attrfn._rules.difference import derivative, transposed
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.formulas import LinearRule, epsilon, over, z_plus
from attrfn._rules.linear import (
    ADDENDS,
    CONVOLUTIONS,
    DENSE,
    Weighted,
    folded,
    statistics,
    weighted,
)
from attrfn._rules.norm import norm_arguments, statistics_of
from attrfn._rules.raw import reading
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.rescale import COMMON, OPENED, WRITTEN, each, inside, ruled
from attrfn._rules.run import Run, Values
from attrfn._rules.table import OfOne, Op, Rules, decomposed, own_derivative
from attrfn._torch.autodiff import transforming
from attrfn._torch.private import version

_STABLE = 1e-6


class LinearRules(NamedTuple):
    """Which rule applies to which linear operation.

    Attributes:
        conv: The rule of convolutions.
        dense: The rule of all others.
        first: The rule of those that read the inputs, or None.
        names: Rules by names of modules, with wildcards; they win over ``conv`` and ``dense``.
    """

    conv: LinearRule
    dense: LinearRule
    first: LinearRule | None
    names: Mapping[str, LinearRule]


def _linear(run: Record | Replay, call: Call) -> Any:
    """A linear operation by its rule; one without weights has its own derivative."""
    if len(call.places) > 1:
        return run.primitive(call, _shared)
    op = weighted(call)
    if op is None or any(run.stopped.get(t) for _, t in tensors(call.args, call.kwargs)):
        return own_derivative(run, call)
    rule = _chosen(run, call)
    out = run.primitive(call, functools.partial(_by_rule, op, rule))
    run.made.put(out, (op, rule, None if transforming() else version(out)))
    return out


def _chosen(run: Run, call: Call) -> LinearRule:
    rules: LinearRules = run.table.linear
    if rules.first is not None and run.raw.get(call.values[0]):
        run.read = True
        return rules.first
    if run.scope:
        innermost: LinearRule = run.scope[-1]
        return innermost
    return rules.conv if call.name in CONVOLUTIONS.split() else rules.dense


def _by_rule(
    op: Weighted, rule: LinearRule, run: Replay, call: Call, z: Values, x: Values, x0: Values
) -> Tensor:
    _, w, b = op.tensors()
    y: Tensor | None = None if rule.sums_to_value else call(x[0])
    return _routed(op, rule, run, z[0], x[0], w, b, y)


def _routed(
    op: Weighted,
    rule: LinearRule,
    run: Replay,
    z: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    y: Tensor | None,
) -> Tensor:
    """``y + sum_k m_k (s_k(z) - s_k(x))``; y is s_1(x) if it is not given."""
    parts = rule.parts if rule.bound is None else rule.bound(x)
    at, here = (1 + (z - x), torch.ones_like(x)) if rule.first else (z, x)
    s = parts(op.apply, at, w, b)
    s0 = tuple([t.detach() for t in s]) if run.at is None else parts(op.apply, here, w, b)
    y = s0[0] if y is None else y
    if rule.name == "identity" and s[0].shape != y.shape:
        raise ValueError(
            f"the rule identity stands at {op.call.name} from shape {tuple(x.shape)} to "
            f"{tuple(y.shape)}, expected equal shapes: use another rule there"
        )
    m = rule.multipliers(y, s0)
    if len(s) == 1:
        return run.scale(y, m[0], s[0], s0[0])
    return run.graft(y, lambda t: [a * b for a, b in zip(m, t, strict=True)], s, s0)


def _shared(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """A product of n factors that depend on the inputs: one n-th of the relevance to each."""
    y: Tensor = call(*x)
    addends = ADDENDS.get(call.name, ())
    live = [v.requires_grad and p not in addends for v, p in zip(z, call.places, strict=True)]
    n = max(sum(live), 1)

    def parts(t: Values) -> list[Tensor]:
        whole = [call(*x[:i], t[i], *x[i + 1 :]) for i in range(len(z))]
        return [
            s if place in addends else s / n for s, place in zip(whole, call.places, strict=True)
        ]

    back = transposed(call, x[0] / n, x[1] / n) if len(z) == 2 else None
    return run.graft(y, parts, z, x, back)


def _activation(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``y + (y / x) (z - x)``: all relevance passes."""
    y: Tensor = call(*x)
    if len(z) > 1:
        refuse_unknown(call, run.table.name)
    at = x[0].expand(y.shape)
    start = call(torch.zeros_like(at))
    at_zero = at == 0
    through_zero = torch.where(
        at_zero, derivative(lambda t: call(t), at), y / torch.where(at_zero, 1.0, at)
    )
    factor = torch.where(start == 0, through_zero, over(y, at, _STABLE))
    return run.scale(y, factor, z[0], x[0])


def _normalised(centred: bool) -> Callable[..., Tensor]:
    """``c r w + b`` with r, one over the root mean square, as a constant."""

    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        if call.places != ((0, None),):
            refuse_unknown(call, run.table.name, "its weights depend on the inputs")
        y: Tensor = call(*x)
        dims, weight, eps = norm_arguments(call, centred)
        r = statistics_of(x[0], dims, eps, centred)[1]
        scale = r if weight is None else r * weight

        def parts(t: Values) -> list[Tensor]:
            c = t[0] - t[0].mean(dims, keepdim=True) if centred else t[0]
            return [c * scale]

        def back(g: Tensor) -> list[Tensor]:
            u = g * scale
            return [u - u.mean(dims, keepdim=True) if centred else u]

        return run.graft(y, parts, z, x, back)

    return rule


def _constant(run: Record | Replay, call: Call) -> Any:
    return run.constant(call)


def _divided(run: Record | Replay, call: Call) -> Any:
    """A quotient whose divisor counts as a constant; if only that depends, all of it does."""
    numerator = (1, None) if call.name.startswith("__r") else (0, None)
    if numerator not in call.places:
        return run.constant(call)
    if len(call.places) == 1:
        return own_derivative(run, call)
    return run.primitive(call, _by_numerator)


def _by_numerator(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    y: Tensor = call(*x)
    return run.graft(y, lambda t: [call(t[0], x[1])], z, x)


def _batch_norm(run: Record | Replay, call: Call) -> Any:
    """Behind a linear operation it is one with it: their weights are folded, then the rule runs."""
    out = COMMON["batch_norm"].apply(run, call)
    made = run.made.get(call.values[0])
    if made is None or len(call.places) > 1:
        return out
    op, rule, made_at = made
    # A write since then, perhaps through a view, has changed what the rule would fold.
    if not transforming() and version(call.values[0]) != made_at:
        return out
    if op.call.name not in ("linear", *CONVOLUTIONS.split()) or (
        "transpose" in op.call.name and op.call.argument(6, "groups", 1) != 1
    ):
        return out
    both = Call(
        lambda x, before: call(before),
        (op.at(op.input), call.values[0]),
        {},
        ((0, None), (1, None)),
        "batch_norm",
    )
    return run.primitive(both, functools.partial(_folded, op, rule, call))


def _folded(
    op: Weighted,
    rule: LinearRule,
    norm: Call,
    run: Replay,
    call: Call,
    z: Values,
    x: Values,
    x0: Values,
) -> Tensor:
    y: Tensor = norm(x[1])
    _, w, b = op.tensors()
    mean, var, gain, shift, eps = statistics(norm)
    transposed = "transpose" in op.call.name
    w, b = folded(w, b, mean, var, gain, shift, eps, transposed)
    return _routed(op.with_bias(), rule, run, z[0], x[0], w, b, y)


def _gate(x: Tensor) -> Tensor:
    """A sigmoid by way of the reciprocal, which counts as a constant."""
    return torch.reciprocal(1 + torch.exp(-x))


_WITH_WEIGHTS = "linear, by rule"

_DERIVATIVE = Op("own derivative", own_derivative)
_CONSTANT = Op("constant", _constant)

RELEVANCE: dict[str, Op] = {
    **COMMON,
    **{name: Op("written out", decomposed(f)) for name, f in WRITTEN.items()},
    **{name: Op("written out", inside(f)) for name, f in OPENED.items()},
    "layer_norm": Op("constant divisor", ruled(_normalised(centred=True))),
    "rms_norm": Op("constant divisor", ruled(_normalised(centred=False))),
    **each(ops.PRODUCTS, Op("product", OfOne(ruled(_shared)))),
    **each(DENSE, Op(_WITH_WEIGHTS, _linear)),
    **each(CONVOLUTIONS, Op(_WITH_WEIGHTS, _linear)),
    **each(ops.ELEMENTWISE, Op("elementwise", ruled(_activation))),
    **each(ops.THROUGH_ZERO, _DERIVATIVE),
    **each("div divide true_divide __rdiv__ __rtruediv__", Op("constant divisor", _divided)),
    **each("rsqrt reciprocal", _CONSTANT),
    **each(ops.SOFTMAX, _DERIVATIVE),
    **each(ops.SELECTIONS, _DERIVATIVE),
    "batch_norm": Op("folded into what is before it", _batch_norm),
    "lstm": Op("written out", decomposed(recurrent.layers(recurrent.lstm_step(_gate), 2))),
    "gru": Op("written out", decomposed(recurrent.layers(recurrent.gru_step(_gate), 1))),
    "lstm_cell": Op("written out", decomposed(recurrent.cell(recurrent.lstm_step(_gate), 2))),
    "gru_cell": Op("written out", decomposed(recurrent.cell(recurrent.gru_step(_gate), 1))),
}


def composite(
    name: str,
    conv: LinearRule,
    dense: LinearRule,
    first: LinearRule | None = None,
    names: Mapping[str, LinearRule] | None = None,
    softmax_is_constant: bool = False,
) -> Rules:
    """A table of LRP from the rules of linear operations."""
    table = dict(RELEVANCE)
    if softmax_is_constant:
        table.update(each(ops.SOFTMAX, _CONSTANT))
    if first is not None:
        table = {name: _reading(name, op) for name, op in table.items()}
    linear = LinearRules(conv, dense, first, names or {})
    adapt = None if first is None else _reading
    return Rules(name, table, linear=linear, adapt=adapt)


def _reading(name: str, op: Op) -> Op:
    return reading(name, op, op.kind == _WITH_WEIGHTS)


EPSILON_PLUS = composite("epsilon_plus", z_plus(), epsilon())
