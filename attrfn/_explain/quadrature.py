"""Nodes and weights on [0, 1] for integrals along a path."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._explain.lobatto import lobatto
from attrfn._explain.noise import count_of
from attrfn._torch.compiling import constant_result
from attrfn._torch.guard import called
from attrfn._torch.say import say

# Newton's method takes n steps of the recurrence for each of n roots, so that the cost of a rule
# grows with n squared: 512 nodes take a quarter of a second, once. More nodes come as several rules
# side by side.
LONGEST_RULE = 512

Rule: TypeAlias = Callable[[int], tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]]


def quadrature_rule(rule: str | Rule, n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights, float64 tensors of shape (n,).

    Args:
        rule: ``"gauss_legendre"``, ``"riemann_left"``, ``"riemann_right"``, ``"riemann_middle"``,
            ``"riemann_trapezoid"``, ``"lobatto"``, or a callable ``n -> (nodes, weights)``.
        n: The number of steps.
    """
    count_of("n_steps", n)
    if callable(rule):
        nodes, weights = called("quadrature", _pair_of(rule), n)
        if nodes.ndim != 1 or nodes.shape != weights.shape or nodes.shape[0] == 0:
            raise ValueError(
                f"quadrature returned nodes of shape {tuple(nodes.shape)} and weights of shape "
                f"{tuple(weights.shape)}, expected two of the same shape (n,)"
            )
        return nodes, weights
    if not is_one_of(rule, *_RULES):
        raise ValueError(
            f"quadrature is {say(rule)}, expected one of {', '.join(_RULES)}, or a callable "
            "n -> (nodes, weights)"
        )
    if rule == "riemann_trapezoid" and n < 2:
        raise ValueError(f"n_steps is {n}, expected at least 2 for riemann_trapezoid")
    table = _table(rule, n)
    return torch.tensor(table[:n], dtype=torch.float64), torch.tensor(
        table[n:], dtype=torch.float64
    )


@functools.lru_cache(maxsize=16)
def legendre_coefficients(n: int) -> Tensor:
    """From values at the n nodes of Gauss and Legendre to the coefficients of P_0 to P_(n-1).

    Returns:
        A matrix (n, n) of float64, not to be written into.
    """
    table = _cached_table("gauss_legendre", n)
    # c_j = (2 j + 1) sum_k w_k P_j(t_k) v_k
    columns = [
        [(2 * j + 1) * w * p for j, p in enumerate(_legendre_series(n, 2 * s - 1)[:n])]
        for s, w in zip(table[:n], table[n:], strict=True)
    ]
    with torch.inference_mode(False):  # later calls get the same tensor
        return torch.tensor(columns, dtype=torch.float64).T.contiguous()


def _legendre_series(n: int, t: float) -> list[float]:
    """P_0(t) to P_n(t)."""
    series = [1.0, t]
    for k in range(2, n + 1):
        series.append(((2 * k - 1) * t * series[-1] - (k - 1) * series[-2]) / k)
    return series


def _pair_of(rule: Rule) -> Callable[[int], tuple[Tensor, Tensor]]:
    def run(n: int) -> tuple[Tensor, Tensor]:
        nodes, weights = rule(n)
        as_numbers = functools.partial(torch.as_tensor, dtype=torch.float64)
        return as_numbers(nodes), as_numbers(weights)

    return run


@constant_result
def _table(rule: str, n: int) -> tuple[float, ...]:
    """All nodes, then all weights: numbers, and so a constant of a compiled graph."""
    return _cached_table(rule, n)


@functools.lru_cache(maxsize=64)
def _cached_table(rule: str, n: int) -> tuple[float, ...]:
    nodes, weights = _RULES[rule](n)
    return (*nodes, *weights)


def _gauss_legendre(n: int) -> tuple[list[float], list[float]]:
    """Roots of the Legendre polynomial by Newton's method; exact for degree 2n - 1 (n <= 512).

    Reference:
        Golub and Welsch, Calculation of Gauss Quadrature Rules, 1969.
    """
    if n > LONGEST_RULE:
        return _panels(n)
    nodes, weights = [], []
    for i in range(n):
        t = math.cos(math.pi * (n - i - 0.25) / (n + 0.5))
        # Five steps at most arrive from this starting point; the bound only ends a loop that
        # rounding would keep above the tolerance.
        for _ in range(100):
            p, slope = _legendre(n, t)
            step = p / slope
            t -= step
            if abs(step) < 1e-15:
                break
        _, slope = _legendre(n, t)
        nodes.append((1 + t) / 2)
        weights.append(1 / ((1 - t * t) * slope * slope))
    return nodes, weights


def _panels(n: int) -> tuple[list[float], list[float]]:
    """Rules of nearly equal length side by side, because the cost of one grows with n squared."""
    count = -(-n // LONGEST_RULE)
    nodes: list[float] = []
    weights: list[float] = []
    for i in range(count):
        size = n * (i + 1) // count - n * i // count
        table = _cached_table("gauss_legendre", size)
        nodes += [(i + s) / count for s in table[:size]]
        weights += [w / count for w in table[size:]]
    return nodes, weights


def _legendre(n: int, t: float) -> tuple[float, float]:
    """P_n(t) and its derivative by the three-term recurrence."""
    before, p = 1.0, t
    for k in range(2, n + 1):
        before, p = p, ((2 * k - 1) * t * p - (k - 1) * before) / k
    return p, n * (before - t * p) / (1 - t * t)


def _trapezoid(n: int) -> tuple[list[float], list[float]]:
    ends = {0, n - 1}
    return [i / (n - 1) for i in range(n)], [
        (0.5 if i in ends else 1.0) / (n - 1) for i in range(n)
    ]


_RULES: dict[str, Callable[[int], tuple[list[float], list[float]]]] = {
    "gauss_legendre": _gauss_legendre,
    "riemann_left": lambda n: ([i / n for i in range(n)], [1 / n] * n),
    "riemann_right": lambda n: ([(i + 1) / n for i in range(n)], [1 / n] * n),
    "riemann_middle": lambda n: ([(i + 0.5) / n for i in range(n)], [1 / n] * n),
    "riemann_trapezoid": _trapezoid,
    "lobatto": lobatto,
}
