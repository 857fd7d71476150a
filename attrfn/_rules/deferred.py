"""Rules of LRP that are computed in the backward pass, for one derivative in eager mode.

Only the backward pass tells which rules are needed: one rule serves a convolution and the batch
norm after it, and then nothing reaches the convolution's own output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.formulas import LinearRule
from attrfn._rules.graft import pulled
from attrfn._rules.linear import Weighted, folded, statistics
from attrfn._torch.private import version


class Overwritten(Exception):
    """The model wrote, unseen, into what the backward pass needs."""


class Kept:
    """Tensors for the backward pass, into which the model may write before.

    Args:
        values: The tensors.
    """

    def __init__(self, *values: Tensor | None) -> None:
        self.values = values
        self.versions = [0 if v is None else version(v) for v in values]

    def settle(self) -> None:
        """Keep clones, because a write comes."""
        self.__init__(*[None if v is None else v.clone() for v in self.get()])  # type: ignore[misc]

    def get(self) -> tuple[Any, ...]:
        """The tensors as they were."""
        now = [0 if v is None else version(v) for v in self.values]
        if now != self.versions:
            raise Overwritten
        return self.values


class Site:
    """A linear operation and its rule.

    Args:
        op: The operation.
        rule: The rule.
    """

    def __init__(self, op: Weighted, rule: LinearRule) -> None:
        self.op = op
        self.rule = rule
        self.version: int | None = None  # of the output, None inside transforms

    def defers(self, run: Any, z: Tensor) -> bool:
        """Whether the rule can wait for the backward pass."""
        special = self.rule.first or self.rule.name == "identity"
        return bool(run.defers) and not special and not z.is_complex()

    def value(self, run: Any, call: Call, z: Tensor, x: Tensor) -> Tensor:
        """The operation's value, with the rule's derivative by z."""
        y: Tensor = call(x)
        _, w, b = self.op.tensors()
        own = self.rule.sums_to_value  # LRP-epsilon needs no more of x than its shape
        kept = run.keep(Kept(y, w, b, None if own else x), y, x)

        def back(g: Tensor) -> list[Tensor]:
            y, w, b, at = kept.get()
            if own:
                return [pull_back(self.op, w, b, self.shared(y, g), x)]
            return [pull(self.rule, self.op, at, w, b, y, g)]

        return pulled(y, back, z)

    def normed(self, run: Any, norm: Call, z: Tensor, between: Tensor) -> Tensor:
        """The value of a batch norm after the operation, with one rule for both."""
        y: Tensor = norm(between)
        x, w, b = self.op.tensors()
        x, own = x.detach(), self.rule.sums_to_value
        kept = run.keep(Kept(y, w, b, None if own else x), y, x)

        def back(g: Tensor) -> list[Tensor]:
            y, w, b, at = kept.get()
            mean, var, gain, shift, eps = statistics(norm)
            if own:  # the pullback of the norm scales each channel
                scale = torch.rsqrt(var + eps)
                scale = scale if gain is None else gain * scale
                c = self.shared(y, g).mul_(scale.reshape([-1] + [1] * (y.ndim - 2)))
                return [pull_back(self.op, w, b, c, x)]
            transposed = "transpose" in self.op.call.name
            w, b = folded(w, b, mean, var, gain, shift, eps, transposed=transposed)
            return [pull(self.rule, self.op.with_bias(), at, w, b, y, g)]

        return pulled(y, back, z)

    def shared(self, y: Tensor, g: Tensor) -> Tensor:
        """The cotangent times the one multiplier."""
        (m,) = self.rule.multipliers(y, (y,))
        return m.mul_(g)


def pull_back(op: Weighted, w: Tensor, b: Tensor | None, c: Tensor, x: Tensor) -> Tensor:
    """The pullback of c by the operation itself."""
    back = op.transposed(x.shape)
    apply: Any = op
    if back is None:
        return _by_graph(lambda t: (apply(t, w, b),), lambda s: [c], x)
    return back(w, c)


def pull(
    rule: LinearRule, op: Any, x: Tensor, w: Tensor, b: Tensor | None, y: Tensor, g: Tensor
) -> Tensor:
    """``sum_k J_{s_k}^T (m_k g)`` at x."""

    def shared(s: tuple[Tensor, ...]) -> list[Tensor]:
        return [m.mul_(g) for m in rule.multipliers(y, s)]

    back: Any = op.transposed(x.shape) if op.rectified else None
    if back is None:
        return _by_graph(lambda t: rule.surrogates(op, t, w, b), shared, x)
    # Each surrogate is the operation itself with other weights. Python records no graph of it: an
    # engine inside that of the backward pass takes longer than a small convolution.
    weights: list[Tensor] = []
    with torch.no_grad():
        s = rule.surrogates(_Noting(op, weights), x, w, b)
        found = [back(v, c) for v, c in zip(weights, shared(s), strict=True)]
    total: Tensor = functools.reduce(torch.add, found)
    return total


class _Noting:
    """An operation that notes the weights that it is called with.

    Args:
        op: The operation.
        weights: Grows by those of each call.
    """

    rectified = True

    def __init__(self, op: Any, weights: list[Tensor]) -> None:
        self.op = op
        self.weights = weights

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None) -> Any:
        """The operation's value."""
        self.weights.append(w)
        return self.op(x, w, b)


def _by_graph(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    shared: Callable[[tuple[Tensor, ...]], list[Tensor]],
    x: Tensor,
) -> Tensor:
    """The pullback of cotangents, which are made of the values, by autograd."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        s = function(leaf)
    c = shared(tuple([t.detach() for t in s]))
    c = [v.to(t.dtype) for v, t in zip(c, s, strict=True)]
    found: Tensor = torch.autograd.grad(s, leaf, c)[0]
    return found
