"""attrfn.data.importance: a metric of the whole data set, against loops over the whole data set."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from data_cases import examples, network
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import attrfn
import attrfn.data
from attrfn import random

NET = network()
X, _ = examples(60)
Y = (NET(X) + torch.randn(60, 3).double() * 0.3).argmax(1).detach()
BOTH = {"inputs": 0, "target": 1}
ACCURACY = attrfn.data.Accuracy()
importance = functools.partial(attrfn.data.importance, progress=False)


def accuracy(x: Tensor) -> float:
    return float((NET(x).argmax(1) == Y).double().mean())


def without(*features: int, x0: float = 0.0) -> Tensor:
    x = X.clone()
    x[:, list(features)] = x0
    return x


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_ablation_is_what_the_metric_loses(batch_size: int) -> None:
    found = importance(
        attrfn.feature_ablation,
        NET,
        X,
        target=Y,
        metric=ACCURACY,
        baselines=0.5,
        batch_size=batch_size,
    )
    expected = [accuracy(X) - accuracy(without(k, x0=0.5)) for k in range(6)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_shapley_values_are_those_of_the_definition() -> None:
    """The mean over all orders of what a feature adds."""
    found = importance(attrfn.shapley_values, NET, X, target=Y, metric=ACCURACY)
    value = functools.cache(lambda kept: accuracy(without(*(set(range(6)) - set(kept)))))
    expected = torch.zeros(6)
    for order in itertools.permutations(range(6)):
        for i, k in enumerate(order):
            expected[k] += value(frozenset(order[: i + 1])) - value(frozenset(order[:i]))
    torch.testing.assert_close(found, expected / math.factorial(6), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", [attrfn.kernel_shap, attrfn.shapley_value_sampling])
def test_methods_that_sample(method: Any) -> None:
    run = functools.partial(importance, method, NET, X, target=Y, metric=ACCURACY, n_samples=200)
    exact = importance(attrfn.shapley_values, NET, X, target=Y, metric=ACCURACY)
    torch.testing.assert_close(run(key=1), exact, rtol=0, atol=0.05)
    assert torch.equal(run(key=1), run(key=1, batch_size=7))


def test_interactions_are_a_matrix() -> None:
    found = importance(attrfn.interactions, NET, X, target=Y, metric=ACCURACY)
    assert found.shape == (6, 6)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("n_samples", [1, 3])
def test_permutation_takes_features_of_other_examples(n_samples: int) -> None:
    """By the same permutations, with the whole data set at hand."""
    found = importance(
        functools.partial(attrfn.feature_permutation, n_samples=n_samples),
        NET,
        TensorDataset(X, Y),
        columns=BOTH,
        metric=ACCURACY,
        key=4,
        batch_size=7,
    )
    expected = torch.zeros(6)
    for s in range(n_samples):
        order = random.permutation(random.fold_in(4, s), 60)
        for k in range(6):
            x = X.clone()
            x[:, k] = X[order, k]
            expected[k] += (accuracy(X) - accuracy(x)) / n_samples
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_mask_a_tree_and_bound_arguments() -> None:
    def model(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
        return NET(torch.cat([a, b], 1) + shift)

    data = {"a": X[:, :2], "b": X[:, 2:], "y": Y, "s": torch.zeros(60, 1).double()}
    columns = {"inputs": ("a", "b"), "target": "y", "bind": {"shift": "s"}}
    mask = (torch.tensor([0, 1]), torch.tensor([1, 1, 0, 0]))
    a, b = importance(
        attrfn.feature_ablation,
        model,
        data,
        columns=columns,
        metric=ACCURACY,
        feature_mask=mask,
    )
    first = accuracy(X) - accuracy(without(0, 4, 5))
    second = accuracy(X) - accuracy(without(1, 2, 3))
    torch.testing.assert_close(a, torch.tensor([first, second]))
    torch.testing.assert_close(b, torch.tensor([second, second, first, first]))


class Loader(DataLoader):
    """Counts how often it is read."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return super().__iter__()


def test_one_pass_serves_all_coalitions() -> None:
    data = Loader(TensorDataset(X, Y), batch_size=16)
    run = functools.partial(importance, model_fn=NET, columns=BOTH, metric=ACCURACY, target=None)
    found = run(attrfn.shapley_values, data=data)
    assert data.passes == 2  # the first tells what the features are
    whole = importance(attrfn.shapley_values, NET, X, target=Y, metric=ACCURACY)
    assert torch.equal(found, whole)


def test_metrics_are_those_of_all_outputs() -> None:
    """In batches and merged, against functions of everything."""
    z, y = NET(X).detach(), Y
    binary, positive = z[:, 1] - z[:, 0], (Y == 1).long()
    pairs = binary[positive == 1][:, None] - binary[positive == 0][None]
    auc = ((pairs > 0).double() + (pairs == 0) / 2).mean()
    loss = torch.nn.functional.cross_entropy(z, y)
    cases = [
        (ACCURACY, z, y, accuracy(X)),
        (attrfn.data.AUC(), binary, positive, auc),
        (attrfn.data.AUC(), binary.round(), positive, None),
        (attrfn.data.Loss(), z, y, loss),
        (attrfn.data.Loss(lambda z, y: z.abs().sum(1)), z, None, z.abs().sum(1).mean()),
    ]
    for metric, outputs, target, expected in cases:
        states = []
        for i in range(0, 60, 7):
            part = None if target is None else target[i : i + 7]
            states.append(metric.update(metric.init(), outputs[i : i + 7], part))
        found = metric.compute(functools.reduce(metric.merge, states))
        once = metric.compute(metric.update(metric.init(), outputs, target))
        assert found == pytest.approx(once)
        if expected is not None:
            assert found == pytest.approx(float(expected))


def test_a_function_of_all_outputs() -> None:
    def metric(outputs: Tensor, target: Tensor) -> float:
        assert outputs.shape == (60, 3)
        return float((outputs.argmax(1) == target).double().mean())

    found = importance(attrfn.feature_ablation, NET, X, target=Y, metric=metric, batch_size=7)
    expected = importance(attrfn.feature_ablation, NET, X, target=Y, metric=ACCURACY)
    assert torch.equal(found, expected)


def test_a_model_in_training_mode_keeps_its_statistics() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)).double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.warns(UserWarning, match="rows depend on each other"):
        importance(attrfn.feature_ablation, model, X, target=Y, metric=ACCURACY)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": attrfn.gradient}, "expected one that replaces features"),
        ({"metric": "auc"}, "metric is 'auc', expected an object with init"),
        ({"target": None}, "Accuracy needs targets"),
        ({"target": Y[:5]}, "target has 5 entries, expected 60"),
        ({"metric": attrfn.data.Loss(lambda z, y: z.mean())}, "loss returned .*reduction='none'"),
        ({"metric": attrfn.data.AUC()}, r"AUC got outputs of shape \(60, 3\)"),
        ({"metric": lambda z, y: z}, "metric gave a tensor of shape"),
        ({"data": iter([X])}, "data can be read only once"),
        ({"data": X[:0]}, "data has no examples"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"method": attrfn.feature_permutation, "data": [X]}, "no rows by number"),
        ({"method": attrfn.feature_permutation, "n_steps": 1}, "n_steps is not an option"),
    ],
)
def test_wrong_calls(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "method": attrfn.feature_ablation,
        "model_fn": NET,
        "data": X,
        "target": Y,
        "metric": ACCURACY,
    }
    given |= change
    if given["data"] is not X:
        given["target"] = None
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        importance(**{"batch_size": 100, **given})
    assert len(str(caught.value)) <= 300
