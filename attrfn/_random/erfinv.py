"""The inverse error function, fast in compiled code too."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._torch.compiling import is_compiling

# Giles, "Approximating the erfinv function", GPU Computing Gems 2, 2011: for float32, by powers
# of w - 5/2 where w < 5, and of sqrt(w) - 3 in the tails; the highest power first.
_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_TAILS = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def erfinv(x: Tensor) -> Tensor:
    """``torch.erfinv``; for float32 in compiled code ``x p(w)``, w = -log(1 - x^2), p a polynomial.

    The polynomial has a relative error below 4e-7 (tests/test_random.py).
    """
    # The compiler turns torch.erfinv into a scalar loop on a CPU, and vectorises arithmetic. That
    # wins 2.7: gradient_shap of the MLP, batch 16, compiled, in
    # benchmarks/special_cases_earn_their_place.py.
    if x.dtype != torch.float32 or not is_compiling():
        return torch.erfinv(x)
    w = -torch.log((1 - x) * (1 + x))
    p = torch.where(w < 5, _polynomial(_CENTRE, w - 2.5), _polynomial(_TAILS, torch.sqrt(w) - 3))
    return x * p


def _polynomial(coefficients: tuple[float, ...], w: Tensor) -> Tensor:
    p = coefficients[0] * w + coefficients[1]
    for c in coefficients[2:]:
        p = p * w + c
    return p
