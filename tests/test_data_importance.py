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
        ({"metric": attrfn.data.AUC}, "metric is the class AUC, expected an object of it"),
        ({"data": TensorDataset(X, Y), "columns": BOTH, "target": Y}, "target is given twice"),
        ({"data": [X], "target": Y[:5]}, "target has 5 entries, and data have more examples"),
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
    if given["data"] is not X and "target" not in change:
        given["target"] = None
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        importance(**{"batch_size": 100, **given})
    assert len(str(caught.value)) <= 300


def auc(z: Tensor, y: Tensor) -> float:
    pairs = z[y == 1][:, None] - z[y == 0][None]
    return float(((pairs > 0).double() + (pairs == 0) / 2).mean())


def binary(x: Tensor) -> Tensor:
    return NET(x)[:, 1] - NET(x)[:, 0]


POSITIVE = (Y == 1).long()
CASES: dict[str, Any] = {
    "accuracy": (ACCURACY, NET, Y, lambda z, y: (z.argmax(1) == y).double().mean()),
    "AUC": (attrfn.data.AUC(), binary, POSITIVE, auc),
    "loss": (attrfn.data.Loss(), NET, Y, torch.nn.functional.cross_entropy),
    "function": (lambda z, y: z[y == 0].amax(), NET, Y, lambda z, y: z[y == 0].amax()),
}


@pytest.mark.parametrize("metric", CASES)
@pytest.mark.parametrize("method", ["ablation", "permutation", "Shapley"])
def test_every_metric_by_every_method(metric: str, method: str) -> None:
    """By definition, from the whole data set at once."""
    given, model, y, by_hand = CASES[metric]

    def value_of(x: Tensor) -> float:
        return float(by_hand(model(x).detach(), y))

    value = functools.cache(lambda kept: value_of(without(*({*range(6)} - {*kept}))))
    every = frozenset(range(6))
    expected = torch.zeros(6)
    if method == "Shapley":
        for order in itertools.permutations(range(6)):
            for i, k in enumerate(order):
                expected[k] += value(frozenset(order[: i + 1])) - value(frozenset(order[:i]))
        expected /= math.factorial(6)
    for k in range(6 if method != "Shapley" else 0):
        x = X.clone()
        x[:, k] = X[random.permutation(random.fold_in(3, 0), 60), k]
        changed = value_of(x) if method == "permutation" else value(every - {k})
        expected[k] = value(every) - changed
    methods: dict[str, Any] = {
        "ablation": attrfn.feature_ablation,
        "permutation": attrfn.feature_permutation,
        "Shapley": attrfn.shapley_values,
    }
    data = TensorDataset(X, y)
    found = importance(
        methods[method], model, data, columns=BOTH, metric=given, key=3, batch_size=7
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_memory_that_runs_out_halves_the_batch() -> None:
    """Metrics are of whole rows, however they come."""
    rows: list[int] = []

    def small(x: Tensor) -> Tensor:
        rows.append(len(x))
        if len(x) > 4:
            raise RuntimeError("CUDA out of memory")
        return NET(x)

    found = importance(attrfn.shapley_values, small, X, target=Y, metric=ACCURACY, batch_size=20)
    assert torch.equal(found, importance(attrfn.shapley_values, NET, X, target=Y, metric=ACCURACY))
    assert rows[:3] == [20, 10, 5]
    assert max(rows[3:]) == 3


def test_outputs_that_are_kept_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 rows of 3 outputs in double precision: four coalitions fit into 8000 bytes."""
    whole = importance(attrfn.shapley_values, NET, X, target=Y, metric=CASES["function"][0])
    monkeypatch.setattr(attrfn.data._game, "_STATE_BYTES", 8000)
    seen: list[int] = []
    measure = attrfn.data._game._bytes
    monkeypatch.setattr(attrfn.data._game, "_LOOKS", 1)
    monkeypatch.setattr(attrfn.data._game, "_bytes", lambda s: seen.append(measure(s)) or seen[-1])
    data = Loader(TensorDataset(X, Y), batch_size=5)
    found = importance(attrfn.shapley_values, NET, data, columns=BOTH, metric=CASES["function"][0])
    torch.testing.assert_close(found, whole)
    assert data.passes == 1 + 64 // 4  # the first tells what the features are
    assert max(seen) == 60 * 3 * 8 + 60 * 8


def test_a_data_set_of_another_length_in_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shrinks:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return iter([(X[:20], Y[:20]), (X[20:], Y[20:])][: 3 - self.passes // 2])

    monkeypatch.setattr(attrfn.data._game, "_AT_ONCE", 8)
    data = Shrinks()
    with pytest.raises(
        ValueError, match=r"data had 60 examples and gave 20 now, expected the same"
    ):
        importance(attrfn.shapley_values, NET, data, columns=BOTH, metric=ACCURACY)


@pytest.mark.parametrize("metric", [ACCURACY, attrfn.data.Loss()])
def test_a_target_out_of_range_is_named_by_its_row(metric: Any) -> None:
    y = torch.where(torch.arange(60) == 17, 9, Y)
    with pytest.raises(ValueError, match=r"^example 17: target is 9, expected a class from 0 to 2"):
        importance(attrfn.feature_ablation, NET, X, target=y, metric=metric, batch_size=7)


def test_outputs_with_logits_serve_the_metrics() -> None:
    """As models of transformers return them."""

    class Output(dict):
        def __init__(self, x: Tensor) -> None:
            self.logits = NET(x)
            super().__init__(logits=self.logits, hidden=x)

    for metric in (ACCURACY, attrfn.data.Loss()):
        run = functools.partial(importance, attrfn.feature_ablation, target=Y, metric=metric)
        assert torch.equal(run(lambda x: Output(x), X), run(NET, X))


def test_a_model_that_fails_is_named_with_the_rows() -> None:
    def model(x: Tensor) -> Tensor:
        if bool((x[:, 0] == X[33, 0]).any()):
            raise RuntimeError("too large")
        return NET(x)

    with pytest.raises(ValueError, match="examples from 28 on: model_fn failed: too large"):
        importance(attrfn.feature_ablation, model, X, target=Y, metric=ACCURACY, batch_size=7)
