"""Bound tensors that say whether they have a row for each example: ``shared``, ``per_example``."""

from __future__ import annotations

import functools
from typing import Any

import optree
import pytest
from helpers import assert_close
from models import Net, targets
from registry import ROWS, Row, explain, rows
from torch import Tensor, nn
from zoo import randn

from attrfn import per_example, shared

B = 2


class Wrapped(nn.Module):
    """A net between factors that belong to the examples, and sums over a table that does not."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, own: Tensor, states: Any, table: Any, gate: Any) -> Tensor:
        y = self.inner(x * own.reshape(-1, *[1] * (x.ndim - 1)))
        y = y * (1 + states["h"].sum(0)[:, None].tanh()) + table[0].sum(0).sin()
        return gate(y)


def _gated(factor: Tensor, y: Tensor) -> Tensor:
    return y * factor[:, None]


class Parts:
    """The bound tensors of some examples; their sizes tell nothing about which are rows."""

    own, h, factor = randn(B, seed=3).abs() + 0.5, randn(B, B, seed=4), randn(B, seed=6)
    table = randn(B, 3, seed=5)

    @classmethod
    def of(cls, i: slice) -> dict[str, Any]:
        gate = functools.partial(_gated, per_example(cls.factor[i]))
        states = {"h": per_example(cls.h[:, i], dim=1)}
        own, table = per_example(cls.own[i]), [shared(cls.table)]
        return {"own": own, "states": states, "table": table, "gate": gate}


def _alone(r: Row, net: Net, i: int, **options: Any) -> Any:
    """What example i gives alone, with its rows of what is bound in a closure of the model."""
    one = slice(i, i + 1)
    parts = Parts.of(one)

    class Closed(Wrapped):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, **parts)  # rows of size one broadcast to all copies

    model = Closed(net.build())
    x = net.inputs(B)[one]
    return explain(r, net, model, x, target=targets(B)[one], **options)


def _of_layer(r: Row) -> dict[str, Any]:
    return {"layer": "inner.mid"} if r.layer else {}


def _check(r: Row, net: Net, **options: Any) -> None:
    model = functools.partial(Wrapped(net.build()), **Parts.of(slice(0, B)))
    given = {**_of_layer(r), **options}
    found = explain(r, net, model, net.inputs(B), target=targets(B), **given)
    for i in range(B):
        expected = _alone(r, net, i, **_of_layer(r))
        optree.tree_map(
            lambda a, b, i=i: assert_close(a.narrow(r.batch_dim, i, 1), b, rtol=1e-9, atol=1e-11),
            found,
            expected,
        )


@pytest.mark.fuzz
@rows(lambda r: not r.mixes)
@pytest.mark.filterwarnings("ignore:.*standard errors of")
def test_marks_in_all_methods(r: Row) -> None:
    """Each example alone is the reference; in the batch, sizes do not tell rows from the rest."""
    _check(r, r.net)
    if r.chunked:
        _check(r, r.net, chunk_size=2)
    for batching in ("vmap", "loop") if r.batching else ():
        _check(r, r.net, batching=batching)


SOME = """
    gradient integrated_gradients gradient_shap noisy_drawn_baselines each_rescale deep_lift_shap
    gradient_times_background lrp feature_ablation kernel_shap integrated_hessians layer_smoothgrad
    noisy_layer_saliency layer_gradient_shap layer_conductance layer_deep_lift_shap layer_lrp
    neuron_conductance grad_cam score_cam
"""


@pytest.mark.parametrize("name", SOME.split())
@pytest.mark.filterwarnings("ignore:.*standard errors of")
def test_marks_in_some_methods(name: str) -> None:
    r = ROWS[name]
    _check(r, r.net)
    if r.chunked:
        _check(r, r.net, chunk_size=2)
