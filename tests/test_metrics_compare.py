"""Comparisons of methods; similarities and statistics against other libraries."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import assert_close
from models import NETS, targets
from zoo import D, randn

import attrfn
from attrfn import metrics
from attrfn.metrics import similarity


def test_correlations_against_scipy() -> None:
    a, b = randn(6, 50), randn(6, 50, seed=1)
    a = (2 * a).round()  # ties
    for ours, theirs in (
        (similarity.pearson, scipy.stats.pearsonr),
        (similarity.spearman, scipy.stats.spearmanr),
    ):
        expected = [theirs(s, t)[0] for s, t in zip(a.numpy(), b.numpy(), strict=True)]
        assert_close(ours(a, b), torch.tensor(expected, dtype=D))


def test_localization_auc_against_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    a, mask = (3 * randn(5, 40)).round(), randn(5, 40, seed=1) > 0.3
    expected = [roc_auc_score(m, s) for s, m in zip(a.numpy(), mask.numpy(), strict=True)]
    assert_close(metrics.localization_auc(a, mask), torch.tensor(expected, dtype=D))


def test_sparseness_and_complexity_by_their_definitions() -> None:
    """Gini as the mean absolute difference over twice the mean; entropy of scipy."""
    a = randn(4, 3, 5)
    s = a.abs().flatten(1)
    gini = (s[:, :, None] - s[:, None]).abs().mean((1, 2)) / (2 * s.mean(1))
    assert_close(metrics.sparseness(a), gini)
    entropy = [scipy.stats.entropy(row) for row in s.numpy()]
    assert_close(metrics.complexity(a), torch.tensor(entropy, dtype=D))


def ssim_by_windows(a: np.ndarray, b: np.ndarray) -> float:
    """The formula window by window, with sample covariances."""
    span = max(a.max(), b.max()) - min(a.min(), b.min())
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for p, q in zip(a, b, strict=True):
        for i in range(p.shape[0] - 6):
            for j in range(p.shape[1] - 6):
                u, v = p[i : i + 7, j : j + 7].ravel(), q[i : i + 7, j : j + 7].ravel()
                (su, suv), (_, sv) = np.cov(u, v)
                top = (2 * u.mean() * v.mean() + c1) * (2 * suv + c2)
                values.append(top / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (su + sv + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_ssim_window_by_window(shift: float) -> None:
    a, b = randn(3, 2, 9, 11) + shift, randn(3, 2, 9, 11, seed=1) + shift
    expected = [ssim_by_windows(s, t) for s, t in zip(a.numpy(), b.numpy(), strict=True)]
    assert_close(similarity.ssim(a, b), torch.tensor(expected, dtype=D), rtol=1e-9, atol=1e-9)
    assert_close(similarity.ssim(a, a), torch.ones(3, dtype=D))
    assert similarity.ssim(torch.ones(1, 7, 7), torch.ones(1, 7, 7)).isnan().all()


def test_compare_calls_metrics_by_their_parameters() -> None:
    model, x, t = NETS["mlp"].build(), NETS["mlp"].inputs(), targets(3)
    calls = []

    def counted(model_fn: Any, inputs: Any, *, target: Any, baselines: Any = None) -> Any:
        calls.append(1)
        return attrfn.integrated_gradients(
            model_fn, inputs, target=target, baselines=baselines, n_steps=3
        )

    found = metrics.compare(
        model,
        x,
        {"ig": counted, "shap": functools.partial(attrfn.gradient_shap, baselines=x, key=3)},
        {
            "gini": metrics.sparseness,
            "mass": functools.partial(metrics.relevance_mass, mask=x > x.mean(1, keepdim=True)),
            "deletion": functools.partial(metrics.deletion, n_steps=2),
            "at zero": functools.partial(metrics.deletion, n_steps=2, baselines=0.0),
            "stable": functools.partial(metrics.sensitivity_max, n_samples=2),
            "delta": metrics.completeness_delta,
        },
        target=t,
        baselines=0.5,
        key=7,
    )
    a = attrfn.integrated_gradients(model, x, target=t, baselines=0.5, n_steps=3)
    ig = found.values["ig"]
    assert_close(ig["gini"], metrics.sparseness(a))
    assert_close(ig["mass"], metrics.relevance_mass(a, x > x.mean(1, keepdim=True)))
    assert_close(ig["deletion"], metrics.deletion(model, x, a, target=t, baselines=0.5, n_steps=2))
    assert_close(ig["at zero"], metrics.deletion(model, x, a, target=t, n_steps=2))
    bound = functools.partial(attrfn.integrated_gradients, baselines=0.5, n_steps=3)
    assert_close(
        ig["stable"], metrics.sensitivity_max(model, x, bound, target=t, n_samples=2, key=7)
    )
    assert_close(ig["delta"], attrfn.completeness_delta(model, x, a, target=t, baselines=0.5))
    shap = attrfn.gradient_shap(model, x, baselines=x, key=3, target=t)  # its own baselines and key
    assert_close(found.values["shap"]["gini"], metrics.sparseness(shap))
    # Once for all metrics, and in the two explanations of sensitivity_max.
    assert len(calls) == 3
    assert found.better == {
        "gini": "higher",
        "mass": "higher",
        "deletion": "lower",
        "at zero": "lower",
        "stable": "lower",
        "delta": None,
    }


def test_means_rankings_and_tables_of_a_comparison() -> None:
    nan = torch.nan
    values = {
        "a": {"up": torch.tensor([1.0, nan]), "down": torch.tensor([3.0, 1.0])},
        "b": {"up": torch.tensor([2.0, 4.0]), "down": torch.tensor([1.0, 2.0])},
        "c": {"up": torch.tensor([nan, nan]), "down": torch.tensor([nan, 0.0])},
    }
    found = metrics.Comparison(values, {"up": "higher", "down": "lower"})
    expected = torch.tensor([[1.0, 2.0], [3.0, 1.5], [nan, 0.0]], dtype=D)
    torch.testing.assert_close(found.mean(), expected, equal_nan=True)
    assert found.undefined().tolist() == [[1, 0], [0, 0], [2, 1]]
    assert found.ranking("up") == ["b", "a", "c"]
    assert found.ranking("down") == ["c", "b", "a"]
    with pytest.raises(ValueError, match="metric is 'left', expected one of up, down"):
        found.ranking("left")
    table = found.to_pandas()
    assert table.index.names == ["method", "example"]
    assert list(table.columns) == ["up", "down"]
    assert table.loc[("b", 1), "up"] == 4.0
    none = metrics.Comparison(values, {"up": None, "down": "lower"})
    with pytest.raises(ValueError, match="does not say which end is better"):
        none.ranking("up")


def test_metrics_say_which_end_is_better() -> None:
    ends = {name: getattr(metrics, name).better for name in dir(metrics)
            if hasattr(getattr(metrics, name), "better")
            and inspect.isfunction(getattr(metrics, name))}  # fmt: skip
    lower = """deletion sufficiency infidelity effective_complexity dummy_violations
        sensitivity_max sensitivity_avg local_lipschitz relative_input_stability
        relative_output_stability relative_representation_stability input_invariance random_logit
        model_parameter_randomization complexity"""
    higher = """insertion symmetric_relevance_gain aopc comprehensiveness road sensitivity_n
        faithfulness_correlation faithfulness_estimate monotonicity efficient_mprt sparseness
        pointing_game relevance_mass relevance_rank top_k_intersection localization_auc"""
    assert {n for n, end in ends.items() if end == "lower"} == set(lower.split())
    assert {n for n, end in ends.items() if end == "higher"} == set(higher.split())
    assert {n for n, end in ends.items() if end is None} == {"removal_curve"}


@pytest.mark.parametrize("name", ["deletion", "sensitivity_max", "efficient_mprt", "compare"])
def test_progress_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, x = NETS["mlp"].build(), NETS["mlp"].inputs()
    given: Any = {
        "deletion": (x,),
        "compare": ({"a": attrfn.gradient}, {"b": metrics.sparseness}),
    }.get(name, (attrfn.gradient,))
    getattr(metrics, name)(model, x, *given, target=1, progress=True)
    assert name in capsys.readouterr().err
