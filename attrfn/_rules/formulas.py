"""The rules of LRP for linear operations, each as one formula.

A rule replaces the derivative of the operation z = W x + b by that of surrogates s_k(x) with
multipliers m_k: a cotangent c = R / z gives ``sum_k m_k c ds_k/dx``, and so the relevance at the
input is ``x * sum_k m_k c ds_k/dx``. Below, ``p(.) = max(., 0)``, ``n(.) = min(., 0)``, and ``/~``
adds ``epsilon`` to the size of the divisor, so that it is never near zero. Every rule takes this
``epsilon``: a larger one is more stable, and takes more relevance away where the divisor is small.

Reference:
    Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
    Relevance Propagation, 2015.
    Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attrfn._rules.signs import favoured, negative_part, positive_part
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import guarded
from attrfn._torch.say import say

Linear = Callable[..., Tensor]
Surrogates = Callable[[Linear, Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]
Multipliers = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


class LinearRule(NamedTuple):
    """A rule for linear operations.

    Attributes:
        name: Its name.
        surrogates: ``(op, x, w, b) -> (s_1, s_2 ...)``.
        multipliers: ``(z, (s_1, s_2 ...)) -> (m_1, m_2 ...)``.
        first: Whether it distributes relevance without regard to x, and so applies only where
            the inputs are read: its surrogates get ``u = 1`` for x, and its gradient is the
            relevance.
        sums_to_value: Whether s_1 is the operation itself.
        bound: From x to the surrogates, for a rule that needs x as well as u.
        halves: The surrogates of s_1 alone and of s_2 alone, if m_1 is zero where z < 0 and m_2
            where z > 0.
    """

    name: str
    surrogates: Surrogates
    multipliers: Multipliers
    first: bool = False
    sums_to_value: bool = False
    bound: Callable[[Tensor], Surrogates] | None = None
    halves: tuple[Surrogates, Surrogates] | None = None


@guarded
def epsilon(epsilon: float = 1e-6) -> LinearRule:
    """LRP-epsilon: ``R_in = x * W^T (R /~ z)``; LRP-0 with epsilon=0.

    Args:
        epsilon: Added to the size of a divisor, here of z, in its units. Where |z| is not far above
            it, relevance is lost; 0 loses none, and is unstable near z = 0.
    """
    _check_number("epsilon", epsilon)

    def surrogates(op: Linear, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        return (op(x, w, b),)

    name = f"epsilon({epsilon:g})"
    return LinearRule(name, surrogates, _one_multiplier(epsilon), sums_to_value=True)


@guarded
def z_plus(epsilon: float = 1e-6) -> LinearRule:
    """LRP-z+: ``R_in = p(x) p(W)^T (R /~ z+) + n(x) n(W)^T (R /~ z+)``.

    ``z+ = p(W) p(x) + n(W) n(x) + p(b)``.

    Args:
        epsilon: Added to the size of a divisor.
    """
    _check_number("epsilon", epsilon)

    def surrogates(op: Linear, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        return (positive_part(op, x, w, b),)

    return LinearRule("z_plus", surrogates, _one_multiplier(epsilon))


@guarded
def alpha_beta(alpha: float = 2.0, beta: float = 1.0, epsilon: float = 1e-6) -> LinearRule:
    """LRP-alpha-beta: alpha times the positive part minus beta times the negative part.

    The positive part is that of :func:`attrfn.rules.z_plus`, the negative one the same with
    ``z- = n(W) p(x) + p(W) n(x) + n(b)``; alpha - beta = 1.

    Args:
        alpha: The weight of the contributions that raise z.
        beta: The weight of the contributions that lower z.
        epsilon: Added to the size of a divisor.
    """
    _check_number("epsilon", epsilon)
    for name, value in (("alpha", alpha), ("beta", beta)):
        _check_number(name, value, least=-math.inf)
    if alpha < 0 or beta < 0 or abs(alpha - beta - 1) > 1e-9:
        raise ValueError(
            f"alpha is {alpha} and beta is {beta}, expected numbers of at least 0 with "
            "alpha - beta = 1, so that relevance is conserved"
        )

    def surrogates(op: Linear, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        p, n = positive_part(op, x, w, b), negative_part(op, x, w, b)
        return p, n

    def multipliers(z: Tensor, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return alpha * stable_quotient(z, s[0], epsilon), -beta * stable_quotient(z, s[1], epsilon)

    return LinearRule(f"alpha_beta({alpha:g}, {beta:g})", surrogates, multipliers)


@guarded
def gamma(gamma: float = 0.25, epsilon: float = 1e-6) -> LinearRule:
    """LRP-gamma: contributions with the sign of z count 1 + gamma times.

    Where z > 0, ``R_in = x * (W + gamma w)^T (R /~ z')`` with w = p(W) for x > 0 and n(W) for
    x < 0, and z' the same sum with ``b + gamma p(b)``; where z < 0 with the signs of w swapped.

    Args:
        gamma: How much contributions with the sign of z are favoured.
        epsilon: Added to the size of a divisor.
    """
    _check_number("epsilon", epsilon)
    _check_number("gamma", gamma)

    def half(up: bool) -> Surrogates:
        return lambda op, x, w, b: (favoured(op, x, w, b, gamma, up),)

    halves = half(True), half(False)

    def surrogates(op: Linear, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        return halves[0](op, x, w, b) + halves[1](op, x, w, b)

    def multipliers(z: Tensor, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (
            torch.where(z > 0, stable_quotient(z, s[0], epsilon), torch.zeros_like(z)),
            torch.where(z < 0, stable_quotient(z, s[1], epsilon), torch.zeros_like(z)),
        )

    return LinearRule(f"gamma({gamma:g})", surrogates, multipliers, halves=halves)


@guarded
def identity(epsilon: float = 1e-6) -> LinearRule:
    """The relevance of each output goes to the input at the same place: ``R_in = R``.

    Args:
        epsilon: Added to the size of a divisor.
    """
    _check_number("epsilon", epsilon)

    def surrogates(op: Linear, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        return (x,)

    return LinearRule("identity", surrogates, _one_multiplier(epsilon))


@guarded
def z_box(low: Tensor | float, high: Tensor | float, epsilon: float = 1e-6) -> LinearRule:
    """LRP-z^B for inputs between two bounds, where they are read.

    ``R_in = x W^T s - l p(W)^T s - h n(W)^T s``, ``s = R /~ (W x - p(W) l - n(W) h)``.

    Args:
        low: l, the lower bound: a number or a tensor that broadcasts to the operation's input.
        high: h, the upper bound, likewise.
        epsilon: Added to the size of a divisor.
    """
    _check_number("epsilon", epsilon)
    _check_box(low, high)

    def bound(x: Tensor) -> Surrogates:
        least, most = _over("low", low, x), _over("high", high, x)

        def surrogates(op: Linear, u: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
            # The bias cancels: b - p(b) - n(b) = 0.
            s = op(x * u, w, None)
            s = s - op(least * u, w.clamp(min=0), None) - op(most * u, w.clamp(max=0), None)
            return (s,)

        return surrogates

    return LinearRule("z_box", _unbound, _one_multiplier(epsilon), first=True, bound=bound)


@guarded
def flat(epsilon: float = 1e-6) -> LinearRule:
    """LRP-flat, where the inputs are read: ``R_in = 1^T (R / (1 1))``, all weights one.

    Args:
        epsilon: Added to the size of a divisor.
    """
    _check_number("epsilon", epsilon)

    def surrogates(op: Linear, u: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        return (op(u, torch.ones_like(w), None),)

    return LinearRule("flat", surrogates, _one_multiplier(epsilon), first=True)


@guarded
def w_square(epsilon: float = 1e-6) -> LinearRule:
    """LRP-w^2, where the inputs are read: ``R_in = (W^2)^T (R /~ (W^2 1 + b^2))``.

    Args:
        epsilon: Added to the size of a divisor.
    """
    _check_number("epsilon", epsilon)

    def surrogates(op: Linear, u: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        return (op(u, w.square(), None if b is None else b.square()),)

    return LinearRule("w_square", surrogates, _one_multiplier(epsilon), first=True)


def stable_quotient(z: Tensor, s: Tensor, epsilon: float) -> Tensor:
    """``z / (s + epsilon sign(s))``, sign(0) = 1; 0 where the divisor is 0."""
    # torch.sign(0) is 0; copysign takes the sign bit. Without an epsilon the divisor is replaced:
    # torch.where alone would hide the infinity, but its derivative would be NaN.
    if epsilon == 0.0:
        none = s == 0
        return torch.where(none, torch.zeros_like(s), z / torch.where(none, torch.ones_like(s), s))
    if s.is_complex():
        return z / (s + epsilon * torch.where(s == 0, 1.0, s.sgn()))
    divisor = torch.copysign(torch.full((), epsilon, dtype=s.dtype, device=s.device), s)
    return z / (divisor + s if torch.is_grad_enabled() else divisor.add_(s))


def _one_multiplier(epsilon: float) -> Multipliers:
    return lambda z, s: (stable_quotient(z, s[0], epsilon),)


def _unbound(op: Linear, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
    raise RuntimeError("this rule needs the operation's input")


def _check_number(name: str, value: float, least: float = 0) -> None:
    given: object = value
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    number = number and not (isinstance(given, int) and given >= 2**63)  # no tensor holds it
    if not number or not math.isfinite(value) or value < least:
        raise ValueError(f"{name} is {say(value)}, expected a number of at least 0, and finite")


def _check_box(low: Tensor | float, high: Tensor | float) -> None:
    for name, value in (("low", low), ("high", high)):
        given: object = value
        if isinstance(given, bool) or not isinstance(given, (int, float, Tensor)):
            raise TypeError(f"{name} is {say(given)}, expected a number or a tensor")
        if isinstance(given, int) and not -(2**63) <= given < 2**63:
            raise ValueError(f"{name} is {say(given)}, expected a number that 64 bits hold")
        if isinstance(given, Tensor) and given.is_complex():
            raise TypeError(f"{name} is a tensor of {given.dtype}, expected real numbers")
        if not _holds(torch.isfinite, value):
            raise ValueError(f"{name} is {say(value)}, expected finite numbers")
    try:
        ordered = _holds(torch.le, low, high)
    except RuntimeError as error:
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else () for v in (low, high)]
        raise ValueError(
            f"low and high have shapes {shapes[0]} and {shapes[1]}, expected shapes that broadcast"
        ) from error
    if not ordered:
        raise ValueError("low is above high, expected the lower bound first")


def _over(name: str, bound: Tensor | float, x: Tensor) -> Tensor:
    """A bound for each element of an operation's input."""
    if not isinstance(bound, Tensor):
        return torch.full_like(x, bound)
    sizes = zip(reversed(bound.shape), reversed(x.shape), strict=False)
    if bound.ndim > x.ndim or not all(a in (1, b) for a, b in sizes):
        raise ValueError(
            f"{name} has shape {tuple(bound.shape)}, expected one that broadcasts to the "
            f"operation's input of shape {tuple(x.shape)}"
        )
    return bound.to(x).expand(x.shape)


def _holds(test: Callable[..., Tensor], *values: Tensor | float) -> bool:
    """Whether something holds of all elements; true where values cannot be read."""
    if any(isinstance(v, Tensor) for v in values) and transforming():
        return True
    return bool(test(*map(torch.as_tensor, values)).all())
