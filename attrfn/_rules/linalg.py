"""Inverses, and solutions of linear systems, under DeepLIFT.

A X = B has X - X0 = A^-1 ((B - B0) - (A - A0) X0) = A0^-1 ((B - B0) - (A - A0) X). The mean of both
has no other inverses than those that the model has formed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._rules.table import own_derivative


def inverse(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    """``Y = A^-1``: Y - Y0 = -(Y (A - A0) Y0 + Y0 (A - A0) Y) / 2."""
    y: Tensor = call(*x)
    y0: Tensor = call(*x0)

    def surrogates(t: Values) -> list[Tensor]:
        d = t[0] - x[0]
        return [-(y @ d @ y0 + y0 @ d @ y) / 2]

    return run.graft(y, surrogates, z, x)


def solve(run: Record | Replay, call: Call) -> Any:
    """Linear in B alone; else the rule above."""
    places = tuple([({"A": 0, "B": 1}.get(str(key), key), j) for key, j in call.places])
    if places == ((1, None),):
        return own_derivative(run, call)
    kwargs = {k: v for k, v in call.kwargs.items() if k not in ("A", "B")}
    args = (call.argument(0, "A"), call.argument(1, "B"))
    return run.primitive(call._replace(args=args, kwargs=kwargs, places=places), _solution)


def _solution(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    y: Tensor = call(*x)
    y0: Tensor = call(*x0)
    (a, b), (a0, _) = _system(call, x), _system(call, x0)
    left = call.kwargs.get("left", True)
    # B is a vector, or there is one for each of several matrices.
    vector = call.name == "linalg_solve" and (b.ndim == 1 or b.shape == a.shape[:-1])

    def solution(matrix: Tensor, right: Tensor) -> Tensor:
        found: Tensor = call.func(matrix, right, **call.kwargs)
        return found

    def surrogates(t: Values) -> list[Tensor]:
        at, bt = _system(call, t)
        da, db = _part_read(call, at - a), bt - b

        def side(matrix: Tensor, other: Tensor) -> Tensor:
            if vector:
                return solution(matrix, db - (da @ other[..., None])[..., 0])
            return solution(matrix, db - (da @ other if left else other @ da))

        return [(side(a, y0) + side(a0, y)) / 2]

    return run.graft(y, surrogates, z, x)


def _system(call: Call, values: Values) -> tuple[Tensor, Tensor]:
    args = call.filled(values)[0]
    return args[0], args[1]


def _part_read(call: Call, d: Tensor) -> Tensor:
    """What a solver reads of a change of its matrix."""
    if call.name != "linalg_solve_triangular":
        return d
    off = 1 if call.kwargs.get("unitriangular", False) else 0
    return d.triu(off) if call.kwargs["upper"] else d.tril(-off)
