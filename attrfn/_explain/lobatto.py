"""Panels of Lobatto nodes, which share their ends; the first one leaves out the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

Table: TypeAlias = Sequence[Sequence[float]]

# The gradient at the baseline is not used: baselines of zeros lie on kinks (ReLU without biases)
# and on poles (RMSNorm has a slope of 1 / sqrt(eps) there). The nodes of the first panel are those
# of Radau: nodes and weights on [0, 1], which hold the right end alone.
_ROOT = math.sqrt(6)
_RADAU: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((1.0,), (1.0,)),
    2: ((1 / 3, 1.0), (3 / 4, 1 / 4)),
    3: (
        ((4 - _ROOT) / 10, (4 + _ROOT) / 10, 1.0),
        ((16 - _ROOT) / 36, (16 + _ROOT) / 36, 1 / 9),
    ),
    4: (
        (0.08858795951270394, 0.4094668644407347, 0.7876594617608471, 1.0),
        (0.2204622111767684, 0.3881934688431719, 0.3288443199800598, 1 / 16),
    ),
}

DIFFERENCES: Table = ((1 / 2, 2 / 3, -1 / 6), (-1 / 6, 2 / 3, 1 / 2))
"""L of a panel of two steps, (2, 3): row j weighs g for the step from node j to j + 1."""


def first_panel(n: int) -> int:
    """How many of n steps the first panel takes; the others take two."""
    return n if n < 3 else 4 - n % 2


def _differences(size: int) -> Table:
    """L of the first panel, (size, size + 1): row j weighs g for the step from node j to j + 1."""
    nodes, weights = _RADAU[size]
    slopes = _slopes((0.0, *nodes))[1:]
    columns = [
        [w * sum(row[j + 1 :]) for j in range(size)] for w, row in zip(weights, slopes, strict=True)
    ]
    return tuple([(0.0, *[c[j] for c in columns]) for j in range(size)])


def lobatto(n: int) -> tuple[list[float], list[float]]:
    """The n nodes and weights of the panels, of equal length for each step."""
    first = first_panel(n)
    nodes, weights = _RADAU[first]
    s = [first * t / n for t in nodes] + [i / n for i in range(first + 1, n + 1)]
    w = [first * v / n for v in weights] + [0.0] * (n - first)
    for i in range(first - 1, n - 1, 2):
        for k, v in enumerate((1 / 3, 4 / 3, 1 / 3)):
            w[i + k] += v / n
    return s, w


def _slopes(nodes: Sequence[float]) -> list[list[float]]:
    """D with sum_l D_kl v_l = v'(s_k) for the polynomial v through the nodes."""
    scale = [math.prod(s - t for t in nodes if t != s) for s in nodes]
    found = []
    for k, s in enumerate(nodes):
        row = [scale[k] / (scale[i] * (s - t)) if i != k else 0.0 for i, t in enumerate(nodes)]
        row[k] = -sum(row)
        found.append(row)
    return found


FIRST: dict[int, Table] = {size: _differences(size) for size in _RADAU}
"""L of the first panel by its steps, (size, size + 1)."""
