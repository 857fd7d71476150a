"""LRP at operations with weights: the rule that applies there, and batch norm folded into it.

A linear operation z = W x + b shares relevance by a rule of :mod:`attrfn._rules.formulas`. A
product of factors that all depend on the inputs has no weights and shares it equally.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._rules.call import Call, tensors
from attrfn._rules.deferred import Site
from attrfn._rules.difference import transposed
from attrfn._rules.formulas import LinearRule
from attrfn._rules.linear import (
    ADDENDS,
    CONVOLUTIONS,
    RealView,
    Weighted,
    folded,
    parts,
    statistics,
    weighted,
)
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.rescale import COMMON
from attrfn._rules.run import Run, Values
from attrfn._rules.table import own_derivative
from attrfn._torch.private import version

_CONVOLUTIONS = frozenset(CONVOLUTIONS.split())
_FOLDABLE = _CONVOLUTIONS | {"linear"}


class LinearRules(NamedTuple):
    """Which rule applies to which linear operation.

    Attributes:
        conv: The rule of convolutions.
        dense: The rule of all others.
        first: The rule of those that read the inputs, or None.
        names: Rules by names of modules, with wildcards; they win over ``conv`` and ``dense``.
        elementwise: Names of modules, with wildcards, that are one elementwise operation each.
    """

    conv: LinearRule
    dense: LinearRule
    first: LinearRule | None
    names: Mapping[str, LinearRule]
    elementwise: tuple[str, ...] = ()

    def signed(self) -> bool:
        """Whether a rule tells signs apart."""
        return any(not r.sums_to_value for r in (self.conv, self.dense, *self.names.values()))


def linear(run: Record | Replay, call: Call) -> Any:
    """A linear operation by its rule; one without weights has its own derivative."""
    if len(call.places) > 1:
        call = _of_factors(call)
    if len(call.places) > 1:
        return run.primitive(call, equal_shares)
    op = weighted(call)
    # A factor that counts as a constant, such as the attention weights in CP-LRP, is not a
    # parameter: the rules are not meant for it, and the product has its own derivative.
    constant = run.compiling or run.constants.known
    if op is None or (
        constant and any(run.constants.get(t) for _, t in tensors(call.args, call.kwargs))
    ):
        return own_derivative(run, call)
    op = op._replace(rectified=run.is_rectified(op.tensor_at(op.input)))
    site = Site(op, _chosen(run, call))
    out = run.primitive(call, functools.partial(_by_rule, site))
    site.version = None if run.transforming() else version(out)
    run.made.put(out, site)
    return out


def _of_factors(call: Call) -> Call:
    """A call without the places of integers, such as the ends of groups."""
    pairs = zip(call.places, call.values, strict=True)
    return call._replace(
        places=tuple([p for p, v in pairs if v.is_floating_point() or v.is_complex()])
    )


def equal_shares(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """A product of n factors that depend on the inputs: one n-th of the relevance to each."""
    y: Tensor = call(*x)
    # The addend of addmm and the like is not a factor: it gets its share of the sum in full.
    addends = ADDENDS.get(call.name, ())
    live = [run.is_live(v) and p not in addends for v, p in zip(z, call.places, strict=True)]
    n = max(sum(live), 1)

    def surrogates(t: Values) -> list[Tensor]:
        products = [call(*x[:i], t[i], *x[i + 1 :]) for i in range(len(z))]
        return [
            s if place in addends else s / n for s, place in zip(products, call.places, strict=True)
        ]

    back = transposed(call, x[0] / n, x[1] / n) if len(z) == 2 else None
    return run.graft(y, surrogates, z, x, back)


def batch_norm(run: Record | Replay, call: Call) -> Any:
    """Batch norm; directly after a linear operation both count as one, with the rule of that."""
    # Rules such as z+ ask for the signs of the weights, and a norm with a negative gain swaps them,
    # so the two operations need one rule together. Only the run knows what comes before a norm:
    # `linear` notes in `made` how it made its output, and the rule runs once more here, with folded
    # weights, on the linear operation's own input. The norm's input is an argument too, for the
    # value; it gets no derivative, so the rule that `linear` applied has no effect.
    site: Site | None = run.made.get(call.values[0])
    if site is None or len(call.places) > 1 or not _folds(run, site, call):
        return COMMON["batch_norm"].apply(run, call)
    op = site.op
    both = Call(
        lambda x, between: call(between),
        (op.tensor_at(op.input), call.values[0]),
        {},
        ((0, None), (1, None)),
        "batch_norm",
    )
    return run.primitive(both, functools.partial(_folded, site, call))


def _folds(run: Run, site: Site, norm: Call) -> bool:
    """Whether a norm of what a linear operation returned can be one operation with it."""
    if norm.argument(5, "training", False):
        return False
    # A write since then, perhaps through a view, has changed what the rule would fold.
    if not run.transforming() and version(norm.values[0]) != site.version:
        return False
    # Only `linear` and convolutions can take the bias that folding makes; and with groups, the
    # output channels of a transposed convolution do not lie along one axis of its weights.
    call = site.op.call
    return call.name in _FOLDABLE and not (
        "transpose" in call.name and call.argument(6, "groups", 1) != 1
    )


def _chosen(run: Run, call: Call) -> LinearRule:
    """The rule of a linear operation: by place, else by module, else by kind."""
    rules: LinearRules = run.table.linear
    if rules.first is not None and run.raw.get(call.values[0]):
        run.read = True
        return rules.first
    if run.scope:
        innermost: LinearRule = run.scope[-1]
        return innermost
    return rules.conv if call.name in _CONVOLUTIONS else rules.dense


def _by_rule(site: Site, run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    op, rule = site.op, site.rule
    if site.defers(run, z[0]):
        return site.value(run, call, z[0], x[0])
    _, w, b = op.tensors()
    y: Tensor | None = None if rule.sums_to_value else call(x[0])
    return _routed(op, rule, run, z[0], x[0], w, b, y)


def _folded(
    site: Site, norm: Call, run: Replay, call: Call, z: Values, x: Values, x0: Values
) -> Tensor:
    op, rule = site.op, site.rule
    if site.defers(run, z[0]):
        return site.normed(run, norm, z[0], x[1])
    y: Tensor = norm(x[1])
    _, w, b = op.tensors()
    mean, var, gain, shift, eps = statistics(norm)
    w, b = folded(w, b, mean, var, gain, shift, eps, transposed="transpose" in op.call.name)
    return _routed(op.with_bias(), rule, run, z[0], x[0], w, b, y)


def _routed(
    op: Weighted | RealView,
    rule: LinearRule,
    run: Replay,
    z: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    y: Tensor | None,
) -> Tensor:
    """``y + sum_k m_k (s_k(z) - s_k(x))``; y is s_1(x) if it is not given."""
    if z.is_complex() and isinstance(op, Weighted):
        w, b = RealView.weights(w), None if b is None else parts(b)
        of_z, of_x, of_y = parts(z), parts(x), None if y is None else parts(y)
        out = _routed(RealView(op), rule, run, of_z, of_x, w, b, of_y)
        return torch.view_as_complex(out.contiguous())
    # A bound rule keeps x for the backward pass, and the model may write into its input later.
    surrogates: Any = rule.surrogates if rule.bound is None else rule.bound(x.clone())
    # A rule for where the inputs are read differentiates by u = 1 and not by x, so that its
    # gradient is relevance also where x = 0; 1 + (z - x) is 1 with a derivative by z.
    at_z, at_x = (1 + (z - x), torch.ones_like(x)) if rule.first else (z, x)
    s = surrogates(op, at_z, w, b)
    single = run.at_x is None
    s_x = tuple([t.detach() for t in s]) if single else surrogates(op, at_x, w, b)
    y = s_x[0] if y is None else y
    if rule.name == "identity" and s[0].shape != y.shape:
        name = (op.of if isinstance(op, RealView) else op).call.name
        raise ValueError(
            f"the rule identity is at {name} from shape {tuple(x.shape)} to {tuple(y.shape)}, "
            "expected equal shapes: use another rule there"
        )
    m = rule.multipliers(y, s_x)
    if len(s) == 1:
        return run.scale(y, m[0], s[0], s_x[0])
    return run.graft(y, lambda t: [a * b for a, b in zip(m, t, strict=True)], s, s_x)
