"""Row i of a batch is what row i gives alone."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from models import Net
from registry import Row, rows, rows_and_nets, trial
from torch import Tensor
from zoo import randn

import attrfn
from attrfn.testing import _values as checks


@rows_and_nets(lambda r, net: not r.mixes)
def test_row_of_a_batch_is_the_row_alone(r: Row, net: Net) -> None:
    """With its target and its baselines, and in any order."""
    checks.row_alone(trial(r, net))


@rows(lambda r: r.keyed and not r.mixes)
def test_keys_of_each_example_stay_with_it(r: Row) -> None:
    checks.row_alone(trial(r, r.net, key=attrfn.random.split(5, 3)))


@pytest.mark.parametrize("name", ["shapley_value_sampling", "kernel_shap", "lime"])
def test_masks_of_each_example_stay_with_it(name: str) -> None:
    """Draws depend on the number of features: unless it is given, that of the whole batch."""
    method, x, mask = getattr(attrfn, name), randn(2, 4), torch.tensor([[0, 0, 1, 1], [0, 1, 2, 3]])

    def f(x: Tensor) -> Tensor:
        return x[:, 0].tanh() * x[:, 1] + x[:, 1] * x[:, 2] * x[:, 3]

    together = method(f, x, feature_mask=mask, n_features=4, n_samples=8)
    for i in range(2):
        one = slice(i, i + 1)
        alone = method(f, x[one], feature_mask=mask[one], n_features=4, n_samples=8)
        assert_close(alone, together[one])
