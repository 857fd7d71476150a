"""Metrics that explain again: which methods they take, and what the methods see."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import assert_close
from models import NETS, targets
from torch import Tensor, nn
from zoo import D, make, randn

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
    method = make_method(slice(0, 3))
    if m.func is metrics.input_invariance and ("mid" in str(method) or hasattr(method, "moved_to")):
        return  # the shifted model hides its module, see the test below
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
    (drawn,) = [x.reshape(4, 2, 1000) for x in seen if len(x) == 8]
    assert drawn.abs().max() <= 0.5
    assert drawn.min() < -0.49
    assert drawn.max() > 0.49
    assert abs(drawn.mean().item()) < 0.02
    assert torch.equal(drawn[:, 0], drawn[:, 1])  # examples share the noise


def test_samples_that_are_the_inputs_say_nothing_about_lipschitz() -> None:
    """They are left out, and with none left the number is undefined."""
    f = lambda x: (x**2).sum(1)  # noqa: E731
    x = torch.ones(2, 3, dtype=D)
    run = functools.partial(metrics.local_lipschitz, f, x, attrfn.gradient)
    moved = run(perturb=lambda x, keys: torch.cat([x[:2], x[2:] + 1]), n_samples=2, chunk_size=None)
    assert_close(moved, torch.full((2,), 2.0, dtype=D))
    assert run(radius=0.0).isnan().all()


def test_token_models_are_explained_again_with_other_tokens() -> None:
    """Layer forms of integer inputs, with samples of the user."""

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.out = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.emb(ids)).mean(1))

    def swapped(ids: Tensor, keys: Tensor) -> Tensor:
        swap = attrfn.random.bernoulli(keys, 0.5, ids.shape[1:])
        return torch.where(swap, 8, ids)

    model, ids = make(Text), torch.tensor([[1, 2, 3], [4, 5, 6]])
    method = functools.partial(attrfn.layer_gradient_x_activation, layer=model.emb)
    found = metrics.sensitivity_max(model, ids, method, target=1, perturb=swapped)
    assert found.gt(0).all()
    drawn = attrfn._random.keys.sample_keys(attrfn.random.key(0)[None], slice(0, 10), 0)[:, 0]
    a = method(model, ids, target=1)
    changes = [method(model, swapped(ids, k.expand(2, 2)), target=1) - a for k in drawn]
    sizes = torch.stack([c.flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1) for c in changes])
    assert_close(found, sizes.amax(0))
    stages = metrics.model_parameter_randomization(model, ids, method, target=1)
    assert list(stages) == ["out", "emb"]


def test_results_have_no_graph_unless_the_method_has_one() -> None:
    model, x = NETS["mlp"].build().requires_grad_(), NETS["mlp"].inputs().requires_grad_()
    for metric in (
        metrics.local_lipschitz,
        metrics.relative_output_stability,
        functools.partial(metrics.relative_representation_stability, layer="mid"),
    ):
        assert not metric(model, x, attrfn.gradient, target=1).requires_grad
        bound = functools.partial(attrfn.gradient, create_graph=True)
        assert metric(model, x, bound, target=1).requires_grad


def test_a_method_that_forgets_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attributions of 3 example\(s\) for \d+ row\(s\)"):
        metrics.sensitivity_max(NETS["mlp"].build(), NETS["mlp"].inputs(), lambda f, x: x[:3])


def test_a_method_that_writes_into_its_inputs_moves_no_sample() -> None:
    def writes(f: Any, x: Tensor) -> Tensor:
        return x.mul_(3).clone()

    x = torch.ones(2, 3, dtype=D)
    found = metrics.local_lipschitz(lambda x: x.sum(1), x, writes)
    assert_close(found, torch.full((2,), 3.0, dtype=D))
    assert torch.equal(x, torch.ones(2, 3, dtype=D))
