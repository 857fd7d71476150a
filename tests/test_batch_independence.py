"""Row i of a batch is what row i gives alone."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close, take
from models import Net, targets
from registry import Row, explain, rows, rows_and_nets
from torch import Tensor
from zoo import randn

import attrfn


@rows_and_nets(lambda r, net: not r.mixes)
def test_row_of_a_batch_is_the_row_alone(r: Row, net: Net) -> None:
    model, x, t = net.build(), net.inputs(4), targets(4)
    together = explain(r, net, model, x, target=t)
    for i in (0, 3):
        alone = explain(r, net, model, x[i : i + 1], target=t[i : i + 1])
        assert_close(alone, take(together, slice(i, i + 1), r.batch_dim))


@rows(lambda r: not r.mixes)
def test_order_of_the_rows_does_not_matter(r: Row) -> None:
    model, x, t = r.net.build(), r.net.inputs(4), targets(4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = explain(r, r.net, model, x[order], target=t[order])
    assert_close(shuffled, take(explain(r, r.net, model, x, target=t), order, r.batch_dim))


@rows(lambda r: r.baselines == "point" and not r.mixes)
def test_baselines_of_each_example_stay_with_it(r: Row) -> None:
    model, x, t = r.net.build(), r.net.inputs(4), targets(4)
    x0 = 0.5 * r.net.inputs(4, seed=7)
    together = explain(r, r.net, model, x, target=t, baselines=x0)
    for i in range(4):
        one = slice(i, i + 1)
        alone = explain(r, r.net, model, x[one], target=t[one], baselines=x0[one])
        assert_close(alone, take(together, one, r.batch_dim))


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


@rows(lambda r: r.keyed and not r.mixes)
def test_keys_of_each_example_stay_with_it(r: Row) -> None:
    model, x, t = r.net.build(), r.net.inputs(4), targets(4)
    keys = attrfn.random.split(5, 4)
    together = explain(r, r.net, model, x, target=t, key=keys)
    for i in range(4):
        one = slice(i, i + 1)
        by_batch_of_keys = explain(r, r.net, model, x[one], target=t[one], key=keys[one])
        assert_close(by_batch_of_keys, take(together, one, r.batch_dim))
        by_key = explain(r, r.net, model, x[one], target=t[one], key=keys[i])
        assert_close(by_key, take(together, one, r.batch_dim))
