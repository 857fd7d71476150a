"""Where a metric has no value it is nan; what it cannot take is refused in one sentence."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import assert_close
from metrics_registry import SCORES, Metric, attributions, every, measure, method, per_example
from models import NETS
from torch import Tensor, nn
from zoo import D, make, randn

import attrfn
from attrfn import metrics
from attrfn.metrics import similarity

W = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=D)


def linear(x: Tensor) -> Tensor:
    return x @ W


def constant(x: Tensor) -> Tensor:
    return 0 * x.sum(1) + 3


X = torch.ones(2, 4, dtype=D)
GOOD = W.expand(2, 4)


@pytest.mark.parametrize("a", [0.0, 0.7], ids=["zeros", "constant"])
def test_flat_attributions(a: float) -> None:
    flat = torch.full((2, 4), a, dtype=D)
    for found in (
        metrics.faithfulness_estimate(linear, X, flat),
        metrics.faithfulness_correlation(linear, X, flat, size=2),
        metrics.sensitivity_n(linear, X, flat, sizes=(1, 2)),
        similarity.pearson(flat, GOOD),
        similarity.spearman(GOOD, flat),
    ):
        assert found.isnan().all()
    assert metrics.symmetric_relevance_gain(linear, X, flat).eq(0).all()
    if a == 0:
        assert metrics.complexity(flat).isnan().all()
        assert metrics.sparseness(flat).isnan().all()
        assert metrics.relevance_mass(flat, torch.ones(4) > 0).isnan().all()
        assert similarity.cosine(flat, GOOD).isnan().all()


def test_correlations_call_rounding_constant() -> None:
    """Scores that differ in their last digits only say nothing."""
    eps = torch.finfo(torch.float32).eps
    noisy = 1 + eps * torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    assert similarity.pearson(noisy, W.float()[None]).isnan().all()
    assert similarity.spearman(W.float()[None], noisy).isnan().all()
    # In float64 the same differences are many digits.
    assert similarity.pearson(noisy.to(D), W[None]).isfinite().all()
    # The outputs are 1000 with noise of their rounding.
    noisy_model = lambda x: 1000 + eps * 300 * torch.sin(50 * x).sum(1)  # noqa: E731
    x = torch.ones(1, 4)
    assert metrics.faithfulness_estimate(noisy_model, x, W.float()[None]).isnan().all()


def test_zero_attributions_of_a_method() -> None:
    zero = lambda f, x: torch.zeros_like(x)  # noqa: E731
    assert metrics.sensitivity_max(linear, X, zero).isnan().all()
    assert metrics.sensitivity_avg(linear, X, zero).isnan().all()
    assert metrics.sensitivity_max(linear, X, zero, normalize=False).eq(0).all()
    assert metrics.input_invariance(linear, X, zero, shift=1.0).isnan().all()
    # Infidelity of zeros is the mean square of the changes.
    found = metrics.infidelity(linear, X, 0 * X, p=1.0, normalize=True)
    assert_close(found, torch.full((2,), 100.0, dtype=D))


def test_a_constant_model() -> None:
    for found in (
        metrics.faithfulness_estimate(constant, X, GOOD),
        metrics.faithfulness_correlation(constant, X, GOOD, size=2),
        metrics.sensitivity_n(constant, X, GOOD, sizes=(1, 2)),
    ):
        assert found.isnan().all()
    for found in (
        metrics.symmetric_relevance_gain(constant, X, GOOD),
        metrics.aopc(constant, X, GOOD),
        metrics.comprehensiveness(constant, X, GOOD),
    ):
        assert found.eq(0).all()
    assert metrics.deletion(constant, X, GOOD).eq(3).all()
    assert metrics.monotonicity(constant, X, GOOD).eq(1).all()
    nothing = lambda x: 0 * x.sum(1)  # noqa: E731
    assert metrics.deletion(nothing, X, GOOD, normalize=True).isnan().all()
    # f(x) is 0, f(x0) is not: not infinite.
    assert metrics.insertion(lambda x: 1 - x[:, 0], X, GOOD, normalize=True).isnan().all()


def test_masks_without_and_with_everything() -> None:
    mask = torch.tensor([[False] * 4, [True] * 4])
    for found in (
        metrics.pointing_game(GOOD, mask),
        metrics.relevance_mass(GOOD, mask),
        metrics.relevance_rank(GOOD, mask),
        metrics.top_k_intersection(GOOD, mask, k=2),
    ):
        assert found[0].isnan()
        assert found[1] == 1
    assert metrics.localization_auc(GOOD, mask).isnan().all()
    # Signed attributions inside that cancel outside have no share.
    cancel = torch.tensor([[1.0, -1.0, 2.0, -2.0]])
    inside = torch.tensor([True, False, False, False])
    assert metrics.relevance_mass(cancel, inside, sign="signed").isnan().all()


def test_the_first_of_equal_entries_is_pointed_at() -> None:
    a = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    for inside, hit in (([0, 1, 0, 0], 1.0), ([0, 0, 1, 0], 0.0)):
        assert metrics.pointing_game(a, torch.tensor([inside]).bool()).item() == hit


def test_one_feature_has_no_correlation() -> None:
    x, a = torch.ones(2, 1, dtype=D), torch.ones(2, 1, dtype=D)
    f = lambda x: x.sum(1)  # noqa: E731
    assert metrics.faithfulness_estimate(f, x, a).isnan().all()
    assert metrics.faithfulness_correlation(f, x, a).isnan().all()
    assert metrics.deletion(f, x, a).eq(0.5).all()
    assert metrics.symmetric_relevance_gain(f, x, a).eq(0).all()


def test_sizes_of_none_and_of_all_and_one_sample() -> None:
    found = metrics.sensitivity_n(linear, X, GOOD, sizes=(0, 2, 4))
    assert found[:, [0, 2]].isnan().all()
    assert found[:, 1].isfinite().all()
    assert metrics.faithfulness_correlation(linear, X, GOOD, size=2, n_samples=1).isnan().all()


@every(lambda m: m.kind == SCORES and m.name != "road")
def test_a_model_that_returns_nan_for_a_row(m: Metric) -> None:
    """Only that row is nan, or not finite; comparisons do not make numbers of it."""

    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.mid, self.out = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            bad = (x[:, 3:] > 50) * torch.nan
            return self.out(self.mid(self.inp(x))) + torch.where(x[:, 3:] > 50, bad, 0)

    model, x = make(Bad), randn(3, 4, seed=1)
    good = measure(m, model, x)
    x = x.clone()
    x[1, 3] = 100.0
    found = measure(m, model, x)
    f, g = per_example(found)[0], per_example(good)[0]
    assert_close(f[[0, 2]], g[[0, 2]])
    if m.name != "removal_curve":  # which only ends at values for x0
        assert not f[1].isfinite().all()


# --- what is refused ------------------------------------------------------------------------------

NET, IN = NETS["mlp"].build(), NETS["mlp"].inputs()
A = attributions(IN)
IMAGES = randn(2, 3, 8, 8)


def of(name: str, *args: Any, **options: Any) -> Any:
    return lambda: getattr(metrics, name)(*args, **options)


S = functools.partial(of, "deletion", NET, IN)

REFUSED = {
    "several outputs": (S(A), "3 values per example, expected one scalar.*target"),
    "one for the batch": (of("deletion", lambda x: x.sum(), IN, A), "one value for the whole"),
    "another rank": (S(A[:, :, None], target=0), r"attributions has shape \(3, 4, 1\)"),
    "one row for all": (S(A[:1], target=0), r"attributions has shape \(1, 4\)"),
    "maps without channels": (
        of("deletion", lambda x: x.flatten(1).sum(1), IMAGES[:, :2], IMAGES[:, 0]),
        "expected as many dimensions",
    ),
    "another tree": (S((A, A), target=0), "attributions is a tree of"),
    "other keys": (
        of("deletion", lambda d: d["a"].sum(1), {"a": IN, "b": IN}, {"a": A, "c": A}),
        "expected the structure of the inputs",
    ),
    "no tensor": (S(3.0, target=0), "attributions"),
    "complex": (S(A + 0j, target=0), "complex128, expected tensors of real"),
    "pool": (S(A, target=0, pool="max"), "pool is 'max', expected 'sum' or 'mean'"),
    "steps": (S(A, target=0, n_steps=0), "n_steps is 0, expected an int of at least 1"),
    "first": (of("aopc", NET, IN, A, target=0, first="best"), "first is 'best', expected 'most'"),
    "flag": (S(A, target=0, normalize=1), "normalize is 1, expected True or False"),
    "unknown": (S(A, target=0, nsteps=3), "nsteps is not an option of deletion: did you mean"),
    "key": (of("removal_curve", NET, IN, A, target=0, key=torch.ones(2, 2).long()), "key has sh"),
    "fractions": (of("sufficiency", NET, IN, A, target=0, fractions=(0.0,)), "one of fractions is"),
    "no fraction": (of("sufficiency", NET, IN, A, target=0, fractions=()), "fractions is empty"),
    "road's inputs": (of("road", NET, IN, A, target=0), r"expected one floating tensor \(B, C, H"),
    "noise": (
        of("road", NETS["cnn"].build(), IMAGES[:, :2, :4, :4], IMAGES[:, :2, :4, :4], target=0,
           noise=-1.0),
        "noise is -1.0, expected a finite",
    ),
    "size": (of("faithfulness_correlation", NET, IN, A, target=0, size=5), "size has 5, expected"),
    "sizes": (of("sensitivity_n", NET, IN, A, target=0, sizes=(1.5,)), "sizes has 1.5"),
    "no sizes": (of("sensitivity_n", NET, IN, A, target=0, sizes=()), "sizes is empty"),
    "tolerance": (of("dummy_violations", NET, IN, A, target=0, tolerance=-1), "tolerance is -1"),
    "p": (of("infidelity", NET, IN, A, target=0, p=0.0), "p is 0.0, expected a probability"),
    "stdevs": (
        of("infidelity", NET, IN, A, target=0, multiply_by_inputs=False),
        "stdevs is None, expected the size of the noise",
    ),
    "perturb": (
        of("infidelity", NET, IN, A, target=0, perturb=lambda x, keys: x[:1]),
        "perturb returned .* expected tensors of the same shape",
    ),
    "imputer": (
        of("removal_curve", NET, IN, A, target=0, imputer=lambda x, gone, keys: x[0]),
        "imputer returned",
    ),
    "attributions in place of a method": (
        of("sensitivity_max", NET, IN, A, target=0), "method is a Tensor, expected an attribution"
    ),
    "radius": (of("sensitivity_max", NET, IN, method, radius=-1.0), "radius is -1.0"),
    "norm": (of("sensitivity_max", NET, IN, method, target=0, norm=0.5), "norm is 0.5"),
    "noise on integers": (
        of("sensitivity_max", NET, IN.long(), method), "expected floating point, to which"
    ),
    "samples": (
        of("local_lipschitz", NET, IN, method, target=0, perturb=lambda x, keys: x.T),
        "perturb returned",
    ),
    "eps": (of("relative_input_stability", NET, IN, method, target=0, eps=0.0), "eps is 0.0"),
    "outputs": (
        of("relative_output_stability", lambda x: (x,), IN, lambda f, x: x),
        "the model returned tuple for",
    ),
    "a layer of no module": (
        of("relative_representation_stability", lambda x: x, IN, method, layer="a"),
        "no module can be found",
    ),
    "no class": (of("random_logit", NET, IN, method, n_classes=3), "target is None, expected a cl"),
    "one class": (of("random_logit", NET, IN, method, target=0, n_classes=1), "n_classes is 1"),
    "order": (
        of("model_parameter_randomization", NET, IN, method, order="down"),
        "order is 'down', expected 'top_down'",
    ),
    "no module": (
        of("model_parameter_randomization", lambda x: NET(x), IN, method),
        "no module can be found in it",
    ),
    "a layer without parameters": (
        of("model_parameter_randomization", NET, IN, method, layers=["mid"], target=0),
        "owns no parameter of the model: choose among",
    ),
    "keys for examples": (
        of("efficient_mprt", NET, IN, method, target=0, key=attrfn.random.split(0, 3)),
        "expected a single key",
    ),
    "draw": (
        of("efficient_mprt", NET, IN, method, target=0, draw=lambda name, p, key: p.sum()),
        "draw returned .* expected a tensor of shape",
    ),
    "absolute": (
        of("model_parameter_randomization", NET, IN, method, absolute=1), "expected True or False"
    ),
    "bins": (of("efficient_mprt", NET, IN, method, n_bins=0), "n_bins is 0"),
    "sign": (of("relevance_mass", A, A > 0, sign="both"), "sign is 'both', expected 'signed'"),
    "a floating mask": (of("pointing_game", A, A), "expected booleans, such as mask"),
    "mask": (of("pointing_game", A, A[:, :3] > 0), r"mask has shape \(3, 3\)"),
    "a mask that could be of examples": (
        of("relevance_mass", randn(3, 3, 5, 5), randn(3, 5, 5) > 0), "could also mean one mask"
    ),
    "k": (of("top_k_intersection", A, A > 0, k=5), "k is 5, expected an int from 1 to the 4"),
    "no element": (of("sparseness", torch.ones(3, 0)), "no element"),
    "small maps": (lambda: similarity.ssim(A, A), "expected one tensor"),
    "two shapes": (lambda: similarity.pearson(A, A[:, :3]), "maps of the same shapes"),
    "two ranks": (lambda: similarity.cosine(A, A[:, None]), "maps of the same shapes"),
    "no methods": (of("compare", NET, IN, {}, {}), "methods is empty"),
    "a list of methods": (of("compare", NET, IN, [method], {}), "methods is a list, expected a di"),
    "a metric of nothing": (
        of("compare", NET, IN, {"a": method}, {"m": lambda x: x}, target=0),
        "metric 'm' takes x, expected parameters named",
    ),
    "a metric of a table": (
        of("compare", NET, IN, {"a": method}, target=0,
           metrics={"m": functools.partial(metrics.sensitivity_n, sizes=(1, 2))}),
        r"metric 'm' returned \(3, 2\), expected one number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused_in_one_sentence(case: str) -> None:
    run, text = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=text) as found:
        run()
    assert len(str(found.value)) <= 300
    assert "\n" not in str(found.value)
