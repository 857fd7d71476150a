"""Metrics that replace features: masks, trees, tokens, any Python model, functions of the user."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import assert_close, finite_difference, inner, noise_like
from models import NETS
from sklearn.ensemble import RandomForestRegressor
from torch import Tensor, nn
from zoo import D, make, randn

import attrfn
from attrfn import metrics

SCORING = [
    metrics.deletion,
    metrics.insertion,
    metrics.symmetric_relevance_gain,
    metrics.aopc,
    metrics.comprehensiveness,
    metrics.sufficiency,
    metrics.faithfulness_estimate,
    metrics.faithfulness_correlation,
    metrics.infidelity,
    functools.partial(metrics.effective_complexity, tolerance=0.01),
    metrics.dummy_violations,
    metrics.monotonicity,
]
scoring = pytest.mark.parametrize(
    "m", SCORING, ids=lambda m: getattr(m, "__name__", "effective_complexity")
)


@scoring
def test_features_of_several_elements(m: Any) -> None:
    """Groups of a mask are the features: the model of groups with one element each."""
    mask = torch.tensor([1, 0, 1, 2, 2, 0])
    groups = torch.eye(3, dtype=D)[mask]  # (6, 3)
    w = randn(3, seed=3)

    def of_groups(z: Tensor) -> Tensor:
        return torch.tanh(z @ w) + z[:, 0] * z[:, 1]

    x = randn(4, 3, seed=4)[:, mask]  # equal in a group
    a = randn(4, 6, seed=5)
    fine = m(lambda x: of_groups(x[:, [1, 0, 3]]), x, a, feature_mask=mask)
    assert_close(fine, m(of_groups, x[:, [1, 0, 3]], a @ groups))
    mean = m(lambda x: of_groups(x[:, [1, 0, 3]]), x, a, feature_mask=mask, pool="mean")
    assert_close(mean, m(of_groups, x[:, [1, 0, 3]], a @ groups / 2))


@scoring
def test_a_mask_for_each_example(m: Any) -> None:
    model, x, a = NETS["mlp"].build(), NETS["mlp"].inputs(), randn(3, 4, seed=5)
    mask = torch.tensor([[0, 0, 1, 2], [2, 1, 1, 0], [1, 2, 0, 2]])
    for pool in ("sum", "mean"):
        given = {"target": 1, "pool": pool, "n_features": 3}
        batch = m(model, x, a, feature_mask=mask, **given)
        for i in range(3):
            one = slice(i, i + 1)
            alone = m(model, x[one], a[one], feature_mask=mask[one], **given)
            assert_close(alone, batch[one])


def test_ids_that_do_not_occur_are_features_without_effect() -> None:
    f, x, a = lambda x: x.sum(1), torch.ones(1, 2, dtype=D), torch.ones(1, 2, dtype=D)
    mask = torch.tensor([[0, 2]])
    curve = metrics.removal_curve(f, x, a, feature_mask=mask, n_features=4, pool="mean")
    assert_close(curve.values, torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0]], dtype=D))


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3, 2, 4, 1)])
def test_attributions_broadcast_to_the_inputs(shape: Any) -> None:
    model, x, a = NETS["cnn"].build(), NETS["cnn"].inputs(), randn(*shape, seed=5)
    found = metrics.deletion(model, x, a, target=1)
    assert_close(found, metrics.deletion(model, x, a.expand(x.shape), target=1))


def test_one_id_in_two_tensors_is_one_feature() -> None:
    f = lambda a, b: a.sum(1) * b.sum(1)  # noqa: E731
    x = randn(3, 2), randn(3, 2, seed=1)
    a = randn(3, 2, seed=2), randn(3, 2, seed=3)
    mask = torch.tensor([0, 1]), torch.tensor([1, 2])
    joined = lambda z: (z[:, 0] + z[:, 1]) * (z[:, 2] + z[:, 3])  # noqa: E731
    curve = metrics.removal_curve(f, x, a, feature_mask=mask)
    flat = metrics.removal_curve(
        joined, torch.cat(x, 1), torch.cat(a, 1), feature_mask=torch.tensor([0, 1, 1, 2])
    )
    assert_close(curve.values, flat.values)


@scoring
def test_token_ids_with_an_integer_baseline(m: Any) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.out = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.emb(ids)).mean(1))

    model, ids, a = make(Text), torch.tensor([[1, 2, 3], [4, 5, 6]]), randn(2, 3)
    found = m(model, ids, a, target=1, baselines=8)
    embedded = lambda z: model.out(torch.tanh(z).mean(1))  # noqa: E731
    # The same on embeddings: a token is a feature of four numbers.
    z, pad = model.emb(ids).detach(), model.emb.weight[8].detach()
    mask = torch.arange(3)[:, None].expand(3, 4)
    whole = torch.cat([a[..., None], torch.zeros(2, 3, 3, dtype=D)], -1)
    assert_close(found, m(embedded, z, whole, target=1, baselines=pad, feature_mask=mask))


@scoring
def test_a_model_that_is_no_torch_code(m: Any) -> None:
    """A forest of scikit-learn, called on numpy arrays; nothing is differentiated."""
    x = randn(5, 4)
    forest = RandomForestRegressor(10, random_state=0).fit(x.numpy(), x.sum(1).numpy())
    found = m(lambda x: forest.predict(x.numpy()), x, randn(5, 4, seed=1))
    assert found.shape == (5,)
    assert found.isfinite().all()


@scoring
def test_what_is_bound_for_each_example_follows_the_copies(m: Any) -> None:
    scale, x, a = randn(3, seed=8), NETS["mlp"].inputs(), randn(3, 4, seed=5)
    f = lambda x, scale: torch.tanh(x).sum(1) * scale + x[:, 0] * x[:, 1]  # noqa: E731
    found = m(functools.partial(f, scale=scale), x, a)
    for i in range(3):
        one = slice(i, i + 1)
        assert_close(m(functools.partial(f, scale=scale[one]), x[one], a[one]), found[one])


def test_probabilities_as_targets() -> None:
    model, x, a = NETS["mlp"].build(), NETS["mlp"].inputs(), randn(3, 4, seed=5)
    found = metrics.deletion(model, x, a, target=lambda out: out.softmax(-1)[:, 2])
    assert_close(found, metrics.deletion(lambda x: model(x).softmax(-1), x, a, target=2))


def test_an_imputer_sees_rows_and_keys() -> None:
    """Noise in place of removed features: the same for all chunks, for all examples or for each."""
    model, x, a = NETS["mlp"].build(), NETS["mlp"].inputs(), randn(3, 4, seed=5)

    def imputer(x: Tensor, gone: Tensor, keys: Tensor) -> Tensor:
        noise = attrfn.random.normal(keys, x.shape[1:], dtype=D)
        assert gone.dtype == torch.bool
        return torch.where(gone, noise, x)

    run = functools.partial(metrics.removal_curve, model, x, a, target=1, imputer=imputer)
    values = run().values
    for size in (1, 2):
        assert_close(run(chunk_size=size).values, values)
    assert not torch.allclose(run(key=1).values, values)
    # With nothing left of x all examples are one, unless each has a key.
    assert values[:, -1].unique().numel() == 1
    assert run(key=attrfn.random.split(0, 3)).values[:, -1].unique().numel() == 3
    # Baselines are an imputer.
    zeros = run(imputer=lambda x, gone, keys: torch.where(gone, 0.0, x)).values
    assert_close(zeros, metrics.removal_curve(model, x, a, target=1).values)
    inserted = run(imputer=lambda x, gone, keys: torch.where(gone, 0.0, x), insert=True).values
    assert_close(inserted, metrics.removal_curve(model, x, a, target=1, insert=True).values)


def test_functions_of_the_user_may_return_what_they_got() -> None:
    """The model may write into its inputs, and must not reach those of the user."""

    def writes(x: Tensor) -> Tensor:
        return x.mul_(2).sum(1)

    x = NETS["mlp"].inputs()
    kept = x.clone()
    metrics.removal_curve(writes, x, x, imputer=lambda x, gone, keys: x, chunk_size=1)
    metrics.infidelity(writes, x, x, perturb=lambda x, keys: x)
    metrics.sensitivity_max(writes, x, lambda f, x: x.mul_(2), perturb=lambda x, keys: x)
    assert torch.equal(x, kept)


def test_infidelity_differentiates_by_its_attributions() -> None:
    model, x = NETS["mlp"].build(), NETS["mlp"].inputs()
    a = attrfn.integrated_gradients(model, x, target=1, n_steps=3)
    direction = noise_like(a)
    for normalize in (False, True):
        given = {"target": 1, "normalize": normalize}
        run = functools.partial(metrics.infidelity, model, x, **given)
        z = a.clone().requires_grad_()
        run(z, create_graph=True).sum().backward()
        expected = finite_difference(run, a, direction)
        torch.testing.assert_close(inner(z.grad, direction), expected.sum(), rtol=1e-5, atol=1e-9)
        assert not run(z).requires_grad


def test_exact_attributions_of_additive_models_beat_permuted_ones() -> None:
    """100 random additive models as one batch, with the contribution of each feature."""
    coefficients = randn(100, 3, 8, seed=1)
    x = randn(100, 8, seed=2)

    def parts(x: Tensor, c: Tensor) -> Tensor:
        return c[:, 0] * x + c[:, 1] * torch.sin(3 * x) + c[:, 2] * x**2

    f = functools.partial(lambda x, c: parts(x, c).sum(1), c=coefficients)
    exact = parts(x, coefficients)
    wrong = exact.roll(3, 1)
    for metric in (
        metrics.deletion,
        metrics.insertion,
        metrics.symmetric_relevance_gain,
        metrics.faithfulness_estimate,
        metrics.aopc,
        metrics.comprehensiveness,
        metrics.sufficiency,
        metrics.infidelity,
    ):
        good, bad = metric(f, x, exact), metric(f, x, wrong)
        assert (good < bad if metric.better == "lower" else good > bad).all()
    assert_close(metrics.faithfulness_estimate(f, x, exact), torch.ones(100, dtype=D))
    assert metrics.infidelity(f, x, exact).lt(1e-24).all()
    assert_close(metrics.dummy_violations(f, x, exact), torch.zeros(100, dtype=D))
