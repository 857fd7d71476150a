"""Parts of the inputs replaced by baselines: what is kept is kept to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from zoo import randn

from attrfn._explain.interpolate import choose_where, mix

Z = randn(5, 1, 6) > 0
ODD = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-320, 1.0], dtype=torch.float64)
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    torch.complex64,
)


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_where_to_the_last_bit(dtype: torch.dtype) -> None:
    x, x0 = (randn(3, 6, seed=s).mul(50).to(dtype) for s in (1, 2))
    for z in (Z, Z.expand(5, 3, 6)):
        found = choose_where(z, x, x0)
        assert found.dtype == dtype
        assert torch.equal(bits(found), bits(torch.where(z, x, x0)))


def test_numbers_that_are_none() -> None:
    x, x0 = ODD.expand(3, 6), ODD.flip(0).expand(3, 6)
    assert torch.equal(bits(choose_where(Z, x, x0)), bits(torch.where(Z, x, x0)))


def test_views_and_broadcasts() -> None:
    x, x0 = randn(6, 3, seed=1).T, randn(6, seed=2)
    z = (randn(5, 6, 3) > 0).mT
    assert torch.equal(choose_where(z, x, x0), torch.where(z, x, x0))


def test_types_that_differ() -> None:
    x, x0 = randn(3, 6), randn(3, 6, dtype=torch.float32)
    assert torch.equal(choose_where(Z, x, x0), torch.where(Z, x, x0))


def test_negative_and_subclassed_views() -> None:
    x = torch.complex(randn(3, 6), randn(3, 6, seed=1)).conj().imag
    assert x.is_neg()
    assert torch.equal(choose_where(Z, x, randn(3, 6)), torch.where(Z, x, randn(3, 6)))
    p = torch.nn.Parameter(randn(3, 6))
    assert torch.equal(choose_where(Z, p, 0 * p), torch.where(Z, p, 0 * p))


def test_gradients_and_transforms() -> None:
    x = randn(3, 6).requires_grad_()
    choose_where(Z, x, torch.zeros(3, 6, dtype=x.dtype)).sum().backward()
    assert torch.equal(x.grad, Z.sum(0).expand(3, 6).to(x.dtype))
    per_row = torch.func.vmap(lambda t: choose_where(Z[:, 0], t, 0 * t))(x.detach())
    assert torch.equal(per_row, torch.where(Z, x, 0 * x).transpose(0, 1))


def test_features_in_part() -> None:
    x, x0 = randn(3, 6, seed=1), randn(3, 6, seed=2)
    assert torch.allclose(mix(Z.double(), x, x0), torch.where(Z, x, x0))
    with pytest.raises(TypeError, match="features that are present in part"):
        mix(Z.double(), x.long(), x0.long())


def test_forward_mode_goes_through() -> None:
    x, t = randn(3, 6), randn(3, 6, seed=1)
    with forward_ad.dual_level():
        found = choose_where(Z, forward_ad.make_dual(x, t), 0 * x)
        tangent = forward_ad.unpack_dual(found).tangent
    assert torch.equal(tangent, torch.where(Z, t, 0 * t))
