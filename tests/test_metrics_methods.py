"""Metrics that explain again: which methods they take, and what the methods see."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import assert_close
from models import NETS, targets
from torch import Tensor
from zoo import D, randn

import attrfn
from attrfn import metrics
from attrfn.metrics import similarity

AGAIN = [
    functools.partial(metrics.sensitivity_max, radius=0.3, n_samples=3),
    functools.partial(metrics.relative_output_stability, radius=0.3, n_samples=3),
    functools.partial(metrics.input_invariance, shift=0.5),
    functools.partial(metrics.random_logit, n_classes=3, similarity=similarity.cosine),
]


@pytest.mark.parametrize("m", AGAIN, ids=lambda m: m.func.__name__)
@pytest.mark.parametrize(
    "make_method",
    [
        lambda i: functools.partial(
            attrfn.integrated_gradients, n_steps=3, baselines=0.3 * randn(3, 4, seed=9)[i]
        ),
        lambda i: functools.partial(
            attrfn.feature_ablation,
            feature_mask=torch.tensor([[0, 0, 1, 2], [2, 1, 1, 0], [1, 2, 0, 2]])[i],
            n_features=3,
        ),
        lambda i: functools.partial(
            attrfn.shapley_value_sampling, n_samples=2, key=attrfn.random.split(0, 3)[i]
        ),
        lambda i: functools.partial(
            attrfn.gradient_shap, baselines=randn(2, 3, 4, seed=9)[:, i], n_samples=2
        ),
        lambda i: attrfn.noise_tunnel(attrfn.gradient, n_samples=2, stdevs=0.2),
        lambda i: functools.partial(attrfn.layer_gradient_x_activation, layer="mid"),
        lambda i: attrfn.at_layer(attrfn.saliency, "mid"),
        lambda i: attrfn.deep_lift,
    ],
    ids=["ig", "ablation", "keyed", "shap", "tunnel", "form", "layer", "deep_lift"],
)
def test_options_of_a_method_for_each_example(m: Any, make_method: Any) -> None:
    """They follow the copies of the batch, so that a row is that of the example alone."""
    layered = "mid" in str(make_method(slice(0, 3))) or hasattr(
        make_method(slice(0, 3)), "moved_to"
    )
    if layered and m.func is metrics.input_invariance:
        pytest.skip("the shifted model hides its module, see the test below")
    model, x, t = NETS["mlp"].build(), NETS["mlp"].inputs(), targets(3)
    batch = m(model, x, make_method(slice(0, 3)), target=t)
    assert batch.isfinite().all()
    for i in range(3):
        one = slice(i, i + 1)
        assert_close(m(model, x[one], make_method(one), target=t[one]), batch[one])


def test_methods_at_layers_are_refused_where_the_model_is_shifted() -> None:
    with pytest.raises(TypeError, match="no module can be found in it"):
        metrics.input_invariance(
            NETS["mlp"].build(),
            NETS["mlp"].inputs(),
            attrfn.at_layer(attrfn.saliency, "mid"),
            target=1,
            shift=1.0,
        )


def test_methods_for_neurons_take_no_target() -> None:
    model, x = NETS["mlp"].build(), NETS["mlp"].inputs()
    method = attrfn.at_neuron(attrfn.saliency, "mid", 2)
    assert metrics.sensitivity_max(model, x, method, radius=0.2).gt(0).all()
    assert metrics.local_lipschitz(model, x, method, radius=0.2).gt(0).all()
    found = metrics.model_parameter_randomization(model, x, method)
    assert list(found) == ["out", "hid", "inp"]
    # What lies behind the neuron does not count.
    assert found["hid"].eq(1).all()
    assert found["inp"].lt(1).any()


def test_a_random_method_draws_the_same_for_all_samples() -> None:
    """Its own noise is no instability: at radius 0 nothing changes."""
    model, x = NETS["mlp"].build(), NETS["mlp"].inputs()
    method = functools.partial(attrfn.shapley_value_sampling, n_samples=2, key=3)
    assert metrics.sensitivity_max(model, x, method, target=1, radius=0.0).lt(1e-12).all()
    smooth = attrfn.noise_tunnel(attrfn.gradient, n_samples=2, stdevs=0.5, key=3)
    assert metrics.sensitivity_max(model, x, smooth, target=1, radius=0.0).lt(1e-12).all()


def test_samples_stay_within_the_radius() -> None:
    seen: list[Tensor] = []

    def method(f: Any, x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    x = torch.zeros(2, 1000, dtype=D)
    metrics.sensitivity_max(lambda x: x, x, method, radius=0.5, n_samples=4, normalize=False)
    drawn = seen[1].reshape(4, 2, 1000)
    assert drawn.abs().max() <= 0.5
    assert drawn.min() < -0.49
    assert drawn.max() > 0.49
    assert abs(drawn.mean().item()) < 0.02
    assert torch.equal(drawn[:, 0], drawn[:, 1])  # examples share the noise
