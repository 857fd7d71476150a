"""LRP as derivatives: relevance divided by activation passes back, so x * gradient is relevance.

In this form sums, residual connections, pooling and reshapes need no rule. The others:

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

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attrfn._rules import chains, grouped, many_factors, modules, ops
from attrfn._rules.call import Call, Place, tensors
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.formulas import LinearRule, epsilon, stable_quotient, z_plus
from attrfn._rules.linear import CONVOLUTIONS, DENSE
from attrfn._rules.linear_relevance import LinearRules, batch_norm, equal_shares, linear
from attrfn._rules.names import FUNCTIONS
from attrfn._rules.norm import norm_arguments, statistics_of
from attrfn._rules.raw import reading
from attrfn._rules.record import Record
from attrfn._rules.rectified import RECTIFYING
from attrfn._rules.replay import Replay
from attrfn._rules.rescale import COMMON, DECOMPOSED_BY_TORCH, DECOMPOSITIONS, all_of, inside, ruled
from attrfn._rules.run import Values
from attrfn._rules.slopes import all_finite, derivative, far
from attrfn._rules.table import OfOne, Op, Rules, decomposed, own_derivative
from attrfn._torch import recurrent

# The epsilon for activations with f(0) != 0, such as a sigmoid, where y / x has a pole. It is the
# default epsilon of the linear rules, with the same trade-off: a larger one is more stable, and
# takes more of the relevance at small inputs.
_STABLE = 1e-6


def _activation(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``y + (y / x) (z - x)``: all relevance passes."""
    y: Tensor = call(*x)
    if len(z) > 1:
        refuse_unknown(call, run.table.name)
    known = _factor(call, x[0], y) if run.first_order else None
    if known is not None:
        return run.scale(y, known, z[0], x[0])
    at = x[0].expand(y.shape)
    start = call(torch.zeros_like(at))
    at_zero = at == 0
    slope = derivative(lambda t: call(t), at if at.is_complex() else far(at))
    through_zero = torch.where(at_zero, slope, y / torch.where(at_zero, 1.0, at))
    # Both branches are computed because a branch on values would break transforms.
    factor = torch.where(start == 0, through_zero, stable_quotient(y, at, _STABLE))
    factor = torch.where(at.isinf() & y.isinf(), slope, factor)
    return run.scale(y, factor, z[0], x[0])


def _factor(call: Call, x: Tensor, y: Tensor) -> Tensor | None:
    """The factor y / x where values may be read, if f is the same for all elements; else None."""
    # f(0) and f'(0) are computed once and not for each element, which takes most of the time of
    # LRP on a network with ReLU6 or SiLU (EfficientNet in benchmarks/rules_cost_little.py).
    alone = call.func in FUNCTIONS and len(tensors(call.args, call.kwargs)) == 1
    if not alone or x.device.type != "cpu" or x.is_complex() or y.is_complex():
        return None
    origin = x.new_zeros(1)
    if float(call(origin)) != 0:
        m = stable_quotient(y, x, _STABLE)
    else:
        m = y / x
        if not all_finite(m):
            m = torch.where(x == 0, derivative(lambda t: call(t), origin), m)
    return m if all_finite(m) else None


def _normalised(centred: bool) -> Callable[..., Tensor]:
    """``c r w + b``, where r = 1 / root mean square counts as a constant."""

    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        if call.places != ((0, None),):
            refuse_unknown(call, run.table.name, "its weights depend on the inputs")
        y: Tensor = call(*x)
        dims, weight, eps = norm_arguments(call, centred)
        r = statistics_of(x[0], dims, eps, centred)[1]
        scale = r if weight is None else r * weight

        def surrogates(t: Values) -> list[Tensor]:
            c = t[0] - t[0].mean(dims, keepdim=True) if centred else t[0]
            return [c * scale]

        def back(g: Tensor) -> list[Tensor]:
            u = g * scale
            return [u - u.mean(dims, keepdim=True) if centred else u]

        return run.graft(y, surrogates, z, x, back)

    return rule


def _constant(run: Record | Replay, call: Call) -> Any:
    return run.constant(call)


def _divided(run: Record | Replay, call: Call) -> Any:
    """A quotient whose divisor counts as a constant."""
    numerator = (1, None) if call.name.startswith("__r") else (0, None)
    if numerator not in call.places:  # a constant over a constant
        return run.constant(call)
    if len(call.places) == 1:
        return own_derivative(run, call)
    return run.primitive(call, _by(numerator))


def _solved(run: Record | Replay, call: Call) -> Any:
    """A solution of a linear system, whose matrix counts as a constant."""
    right = tuple([p for p in call.places if p[0] in (1, "B")])
    if not right:
        return run.constant(call)
    if len(call.places) == 1:
        return own_derivative(run, call)
    return run.primitive(call, _by(right[0]))


def _sampled(run: Record | Replay, call: Call) -> Any:
    """Samples of an image; where they are taken counts as a constant."""
    image = tuple([p for p in call.places if p[0] in (0, "input")])
    if not image:
        refuse_unknown(call, run.table.name, "only its grid depends on the inputs")
    if len(call.places) == 1:
        return own_derivative(run, call)
    return run.primitive(call, _by(image[0]))


def _by(place: Place) -> Callable[..., Tensor]:
    """The derivative by one argument."""

    def rule(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
        y: Tensor = call(*x)
        i = call.places.index(place)
        return run.graft(y, lambda t: [call(*x[:i], t[i], *x[i + 1 :])], z, x)

    return rule


def _gate(x: Tensor) -> Tensor:
    """A sigmoid that counts as a constant, because ``reciprocal`` of a plain value does."""
    return torch.reciprocal((1 + torch.exp(-x)).view_as(x))


_WITH_WEIGHTS = "linear, by rule"

_DERIVATIVE = Op("own derivative", own_derivative)
_CONSTANT = Op("constant", _constant)

_BY_OPERATION: dict[str, Op] = {
    **COMMON,
    **{name: Op("decomposed", decomposed(f)) for name, f in DECOMPOSITIONS.items()},
    **{name: Op("decomposed", inside(f)) for name, f in DECOMPOSED_BY_TORCH.items()},
    "layer_norm": Op("constant divisor", ruled(_normalised(centred=True))),
    "rms_norm": Op("constant divisor", ruled(_normalised(centred=False))),
    **all_of(ops.PRODUCTS, Op("product", OfOne(ruled(equal_shares)))),
    **all_of(DENSE, Op(_WITH_WEIGHTS, linear)),
    **all_of(CONVOLUTIONS, Op(_WITH_WEIGHTS, linear)),
    **all_of(ops.ELEMENTWISE, Op("elementwise", ruled(_activation))),
    **all_of(ops.THROUGH_ZERO, _DERIVATIVE),
    **all_of("div divide true_divide __rdiv__ __rtruediv__", Op("constant divisor", _divided)),
    **all_of("rsqrt reciprocal linalg_inv inverse", _CONSTANT),
    **all_of("linalg_solve linalg_solve_triangular", Op("constant divisor", _solved)),
    **all_of(ops.SOFTMAX, _DERIVATIVE),
    **all_of(ops.SELECTIONS, _DERIVATIVE),
    **all_of("scatter_reduce index_reduce", Op("own derivative", grouped.own_reduce)),
    **all_of("quantile logcumsumexp", _DERIVATIVE),
    **all_of("prod cumprod", Op("product", ruled(many_factors.equal_shares))),
    "stft": Op("product", OfOne(ruled(equal_shares))),
    "grouped_mm": Op(_WITH_WEIGHTS, linear),
    "grid_sample": Op("linear in the image", _sampled),
    "batch_norm": Op("folded into the operation before it", batch_norm),
    "lstm": Op("decomposed", decomposed(recurrent.layers(recurrent.lstm_step(_gate), 2))),
    "gru": Op("decomposed", decomposed(recurrent.layers(recurrent.gru_step(_gate), 1))),
    "lstm_cell": Op("decomposed", decomposed(recurrent.cell(recurrent.lstm_step(_gate), 2))),
    "gru_cell": Op("decomposed", decomposed(recurrent.cell(recurrent.gru_step(_gate), 1))),
}

RELEVANCE = {
    name: op._replace(rectifies=RECTIFYING.get(name))
    for name, op in chains.following(_BY_OPERATION, _activation).items()
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
    own = {modules.whole: Op("elementwise", modules.elementwise(_activation))}
    if softmax_is_constant:
        table.update(all_of(ops.SOFTMAX, _CONSTANT))
    if first is not None:
        table = {name: _reading(name, op) for name, op in table.items()}
        own = {f: _reading("", op) for f, op in own.items()}
    adapt = None if first is None else _reading
    linear_rules = LinearRules(conv, dense, first, names or {})
    return Rules(name, table, own, linear=linear_rules, adapt=adapt)


def _reading(name: str, op: Op) -> Op:
    return reading(name, op, op.kind == _WITH_WEIGHTS)


EPSILON_PLUS = composite("epsilon_plus", z_plus(), epsilon())
