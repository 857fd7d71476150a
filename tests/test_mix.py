"""Parts of the inputs replaced by baselines: what is kept is kept to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from zoo import randn

from attrfn._explain.interpolate import mix

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
def test_masks_choose_to_the_last_bit(dtype: torch.dtype) -> None:
    x, x0 = (randn(3, 6, seed=s).mul(50).to(dtype) for s in (1, 2))
    for z in (Z, Z.expand(5, 3, 6)):
        found = mix(z, x, x0)
        assert found.dtype == dtype
        assert torch.equal(bits(found), bits(torch.where(z, x, x0)))


def test_numbers_that_are_none() -> None:
    x, x0 = ODD.expand(3, 6), ODD.flip(0).expand(3, 6)
    assert torch.equal(bits(mix(Z, x, x0)), bits(torch.where(Z, x, x0)))


def test_features_in_part() -> None:
    x, x0 = randn(3, 6, seed=1), randn(3, 6, seed=2)
    assert torch.allclose(mix(Z.double(), x, x0), torch.where(Z, x, x0))
    with pytest.raises(TypeError, match="features that are present in part"):
        mix(Z.double(), x.long(), x0.long())
