"""Exact values of the metrics on small cases, which a sheet of paper gives as well."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import D, make, randn

import attrfn
from attrfn import metrics
from attrfn.metrics import similarity


def T(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=D)


def equal(found: Tensor, *expected: Any, atol: float = 1e-14) -> None:
    """One example's numbers."""
    torch.testing.assert_close(found, torch.tensor(expected, dtype=D), rtol=1e-13, atol=atol)


# Model A: f(x) = 4 x0 + 3 x1 + 2 x2 + x3 at x = 1, against x0 = 0.
W = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=D)
A = (lambda x: x @ W, torch.ones(1, 4, dtype=D))
# Model B: f(x) = x0 x1 + x2 at (2, 3, 4), against 0: f = 10.
B = (lambda x: x[:, 0] * x[:, 1] + x[:, 2], T([2, 3, 4]))


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({}, (10, 6, 3, 1, 0)),
        ({"insert": True}, (0, 4, 7, 9, 10)),
        ({"first": "least"}, (10, 9, 7, 4, 0)),
        ({"normalize": True}, (1, 0.6, 0.3, 0.1, 0)),
        ({"insert": True, "first": "least"}, (0, 1, 3, 6, 10)),
    ],
)
def test_removal_curves_of_a_sum(options: Any, values: Any) -> None:
    curve = metrics.removal_curve(*A, W[None], **options)
    equal(curve.fractions, 0, 0.25, 0.5, 0.75, 1)
    equal(curve.values, list(values))


def test_areas_of_a_sum() -> None:
    right, wrong = W[None], W.flip(0)[None]
    srg = metrics.symmetric_relevance_gain
    for a, deletion, insertion, gain, aopc, share in (
        (right, 3.75, 6.25, 2.5, 6.0, 0.625),
        (wrong, 6.25, 3.75, -2.5, 4.0, 0.375),
    ):
        equal(metrics.deletion(*A, a), deletion)
        equal(metrics.insertion(*A, a), insertion)
        equal(srg(*A, a), gain)
        equal(metrics.aopc(*A, a), aopc)
        equal(1 - metrics.deletion(*A, a, normalize=True), share)
    equal(metrics.aopc(*A, right, first="least"), 4.0)


def test_steps_that_do_not_divide_the_features() -> None:
    """k = (0, 1, 2, 4): the trapezoid has its actual widths, and not 1/3."""
    curve = metrics.removal_curve(*A, W[None], n_steps=3)
    equal(curve.fractions, 0, 0.25, 0.5, 1)
    equal(curve.values, [10, 6, 3, 0])
    equal(metrics.deletion(*A, W[None], n_steps=3), 3.875)
    equal(metrics.deletion(*A, W[None], n_steps=1), 5.0)
    assert metrics.removal_curve(*A, W[None], n_steps=99).values.shape == (1, 5)


def test_constant_attributions_keep_the_order_of_ids() -> None:
    flat = torch.full((1, 4), 0.3, dtype=D)
    equal(metrics.deletion(*A, flat), 3.75)
    equal(metrics.removal_curve(*A, flat, first="least").values, [10, 6, 3, 1, 0])
    assert metrics.symmetric_relevance_gain(*A, flat).item() == 0


def test_symmetric_relevance_gain_of_equal_orders_is_exactly_zero() -> None:
    """Where chunks are rounded differently, too."""
    model = make(lambda: nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 1)))
    x = randn(3, 50).float()
    for size in (1, 3, 7, None):
        gain = metrics.symmetric_relevance_gain(
            model.float(), x, torch.ones_like(x), chunk_size=size
        )
        assert (gain == 0).all()


def test_ties_of_a_product() -> None:
    """Ablation gives 6, 6, 4; ties keep the order of the ids in both directions."""
    a = T([6, 6, 4])
    equal(metrics.removal_curve(*B, a).values, [10, 4, 4, 0])
    equal(metrics.removal_curve(*B, a, first="least").values, [10, 6, 0, 0])
    equal(metrics.removal_curve(*B, a, insert=True).values, [0, 0, 6, 10])
    equal(metrics.deletion(*B, a), 13 / 3)
    equal(metrics.insertion(*B, a), 11 / 3)
    equal(metrics.symmetric_relevance_gain(*B, a), -2 / 3)
    equal(metrics.aopc(*B, a), 5.5)


def test_top_fractions() -> None:
    equal(metrics.comprehensiveness(*A, W[None], fractions=(0.25, 0.5)), 5.5)
    equal(metrics.sufficiency(*A, W[None], fractions=(0.25, 0.5)), 4.5)
    # At least one feature; 0.07 of 100 are 7 and not 8.
    equal(metrics.comprehensiveness(*A, W[None], fractions=(0.01,)), 4)
    x = torch.ones(1, 100, dtype=D)
    lost = metrics.comprehensiveness(lambda x: x.sum(1), x, x, fractions=(0.07,))
    equal(lost, 7, atol=1e-12)


@pytest.mark.parametrize(
    ("a", "r"), [((4, 3, 1, 2), 0.8), ((1, 0, 0, 0), 0.7745966692414834), ((4, 3, 2, 1), 1.0)]
)
def test_correlations_of_a_sum_do_not_depend_on_the_size(a: Any, r: float) -> None:
    """Few subsets are all taken, so that the correlation is exact."""
    equal(metrics.faithfulness_estimate(*A, T(a)), r)
    equal(metrics.sensitivity_n(*A, T(a), sizes=(1, 2, 3)), [r, r, r])
    for size in (1, 2, 3):
        equal(metrics.faithfulness_correlation(*A, T(a), size=size), r)
    equal(metrics.faithfulness_correlation(*A, T(a)), r)
    # Five of the six pairs are a sample.
    drawn = metrics.faithfulness_correlation(*A, T(a), size=2, n_samples=5)
    assert r == 1 or abs(drawn.item() - r) > 1e-6


def test_correlations_of_a_product() -> None:
    equal(metrics.faithfulness_estimate(*B, T([3, 3, 4])), -1)
    equal(metrics.sensitivity_n(*B, T([3, 3, 4]), sizes=(2,)), [1])
    equal(metrics.faithfulness_estimate(*B, T([6, 6, 4])), 1)
    equal(metrics.sensitivity_n(*B, T([6, 6, 4]), sizes=[2]), [-1])


def test_monotonicity_of_three_steps() -> None:
    """The values are 0, -1, 1, 4: two of three steps do not fall."""
    f = lambda x: 3 * x[:, 0] - x[:, 1] + 2 * x[:, 2]  # noqa: E731
    equal(metrics.monotonicity(f, torch.ones(1, 3, dtype=D), T([3, -1, 2])), 2 / 3)


def test_monotonicity_does_not_count_rounding() -> None:
    """Features without an effect: steps of the size of rounding are no falls."""
    f = lambda x: 1000 + x[:, 0] - 1e-13 * x[:, 1:].sum(1)  # noqa: E731
    x = torch.ones(1, 6, dtype=D)
    equal(metrics.monotonicity(f, x, torch.arange(6.0).flip(0)[None]), 1)


def test_effective_complexity_and_tolerances() -> None:
    for tolerance, k in ((0, 4), (1, 3), (9, 2), (36, 1), (100, 0)):
        equal(metrics.effective_complexity(*A, W[None], tolerance=tolerance), k)
    # By the absolute score: -3 comes before 1. The output is -2, and -3 alone is off by 1.
    f = lambda x: x[:, 0] - 3 * x[:, 1]  # noqa: E731
    equal(metrics.effective_complexity(f, torch.ones(1, 2, dtype=D), T([1, -3]), tolerance=1), 1)


def test_dummy_violations_of_a_sum() -> None:
    f = lambda x: 3 * x[:, 0] - x[:, 1] + 0 * x[:, 2]  # noqa: E731
    x = torch.ones(1, 3, dtype=D)
    equal(metrics.dummy_violations(f, x, T([3, 0, 1])), 2)
    equal(metrics.dummy_violations(f, x, T([3, -1, 0])), 0)
    equal(metrics.dummy_violations(f, x, T([3, -1, 0.5]), tolerance=0.6), 0)


def given(*moves: Any) -> Any:
    """A perturbation with one move for each sample, whatever the chunk."""
    table = T(*moves)

    def perturb(x: Tensor, keys: Tensor) -> Tensor:
        assert keys.shape == (x.shape[0], 2)
        rows = [order.index(tuple(k)) for k in keys.tolist()]
        return table[rows].to(x)

    keys = attrfn._random.keys.sample_keys(attrfn.random.key(0)[None], slice(0, len(moves)), 0)
    order = [tuple(k) for k in keys[:, 0].tolist()]
    return perturb


@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_infidelity_of_a_sum(chunk_size: Any) -> None:
    f, x = lambda x: x.sum(1), torch.ones(1, 2, dtype=D)
    run = functools.partial(
        metrics.infidelity,
        perturb=given([1, 0], [0, 1]),
        multiply_by_inputs=False,
        n_samples=2,
        chunk_size=chunk_size,
    )
    equal(run(f, x, T([2, 1])), 0.5)
    equal(run(f, x, T([2, 1]), normalize=True), 0.1)  # beta is 0.6
    equal(run(f, x, T([0, 0])), 1.0)
    equal(run(f, x, T([0, 0]), normalize=True), 1.0)


def test_infidelity_of_a_product() -> None:
    f, x, a = lambda x: x[:, 0] * x[:, 1], T([2, 3]), T([3, 3])
    run = functools.partial(metrics.infidelity, n_samples=3, perturb=given([2, 0], [0, 3], [2, 3]))
    equal(run(f, x, a), 6.0)
    equal(run(f, x, a, normalize=True), 4.0)
    # The default: z of (0, 0), (1, 0), (0, 1) and (1, 1) give 0, 9, 9 and 0.
    found = metrics.infidelity(f, x, a, n_samples=4000).item()
    assert abs(found - 4.5) < 4 * 4.5 / math.sqrt(4000)
    assert metrics.infidelity(f, x, a, p=1.0, n_samples=3).item() == 0


def test_infidelity_where_an_input_is_its_baseline() -> None:
    """The quotient counts as 0 there, and is not a division by 0."""
    f, x, a = lambda x: x.sum(1), T([2, 0]), T([2, 5])
    equal(metrics.infidelity(f, x, a, perturb=given([2, 0], [2, 1]), n_samples=2), (0 + 1) / 2)


def test_infidelity_of_the_gradient_is_that_of_its_error() -> None:
    """Linear f, A = w + e, I normal with deviation s: s^2 |e|^2 in expectation."""
    e, s = T([0.5, -0.25, 0, 1]), 0.3
    run = functools.partial(
        metrics.infidelity, multiply_by_inputs=False, stdevs=s, n_samples=4000, key=1
    )
    assert run(*A, W[None]).item() < 1e-28
    expected = s**2 * e.square().sum().item()
    assert abs(run(*A, W[None] + e).item() / expected - 1) < 4 * math.sqrt(2 / 4000)


IMAGE = T([[1, 2, 3], [4, 5, 6], [7, 8, 9]])[None]


@pytest.mark.parametrize(
    ("pixels", "values"),
    [
        ([(1, 1)], [5]),
        ([(0, 0)], [3.4]),
        ([(1, 1), (1, 2)], [4.913043478260869, 5.478260869565218]),  # 113/23, 126/23
    ],
)
def test_imputation_of_pixels(pixels: Any, values: Any) -> None:
    """Sides weigh 1/6, corners 1/12, renormalised at the border; removed ones are unknowns."""
    shown = []

    def f(x: Tensor) -> Tensor:
        shown.append(x[-1, 0].clone())
        return x.flatten(1).sum(1)

    a = torch.zeros_like(IMAGE)
    for p in pixels:
        a[0, 0, p[0], p[1]] = 1
    metrics.road(f, IMAGE, a, fractions=(len(pixels) / 9,), noise=0.0, chunk_size=1)
    _, most, _ = shown
    equal(torch.stack([most[p] for p in pixels]), *values, atol=1e-7)


def dense_imputation(x: Tensor, gone: Tensor) -> Tensor:
    """The linear equations as a dense matrix, pixel by pixel."""
    height, width = x.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    a, b = torch.eye(len(places), dtype=D), x.flatten().clone()
    for row, (i, j) in enumerate(places):
        if not gone[i, j]:
            continue
        near = {
            (i + di, j + dj): 1 / 6 if di * dj == 0 else 1 / 12
            for di in (-1, 0, 1)
            for dj in (-1, 0, 1)
            if (di or dj) and 0 <= i + di < height and 0 <= j + dj < width
        }
        b[row] = 0
        for place, weight in near.items():
            a[row, places.index(place)] = -weight / sum(near.values())
    return torch.linalg.solve(a, b).reshape(height, width)


def test_imputation_solves_the_dense_equations() -> None:
    """Scattered pixels, a blob of 90 %, a border; each row as if it were alone."""
    x = randn(3, 2, 9, 8)
    gone = torch.rand(3, 1, 9, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    gone[1] = True
    gone[1, 0, 0, :6] = False
    gone[2] = False
    gone[2, 0, :, 0] = True
    order = gone.to(D) * 10 + torch.arange(72.0).reshape(9, 8) / 100
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.flatten(1).sum(1)

    for i in range(3):
        seen.clear()
        share = gone[i].sum().item() / 72
        metrics.road(f, x[i : i + 1], order[i : i + 1], fractions=(share,), noise=0, chunk_size=1)
        most = seen[1][0]
        for c in range(2):
            expected = dense_imputation(x[i, c], gone[i, 0])
            torch.testing.assert_close(most[c], expected, rtol=1e-5, atol=1e-5)


def test_road_of_the_centre() -> None:
    x = T([[1, 2, 3], [4, 20, 6], [7, 8, 9]])[None]
    a = torch.zeros_like(x)
    a[0, 0, 1, 1] = 1
    run = functools.partial(metrics.road, lambda x: x[:, 0, 1, 1], x, a)
    equal(run(fractions=(1 / 9,), noise=0.0), 7.5)
    noisy = run(fractions=(1 / 9,), noise=0.1)
    assert 0 < abs(noisy.item() - 7.5) < 0.1 * 4


def test_road_of_three_channels_removes_whole_pixels() -> None:
    """All channels of a pixel go together; with nothing left the baseline stands in."""
    x, a = randn(2, 3, 4, 4), randn(2, 1, 4, 4, seed=1)
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.flatten(1).sum(1)

    metrics.road(f, x, a, fractions=(0.25, 1.0), noise=0.0, baselines=7.0, chunk_size=1)
    changed = (seen[1] != x).to(D)
    assert changed.sum((2, 3)).tolist() == [[4.0] * 3] * 2
    assert (changed == changed[:, :1]).all()
    assert (seen[2] == 7).all()


@pytest.mark.parametrize(
    ("a", "gini"), [((1, 2, 3, 4), 0.25), ((-1, 2, 3, -4), 0.25), ((0, 5, 0, 0), 0.75)]
)
def test_sparseness(a: Any, gini: float) -> None:
    equal(metrics.sparseness(T(a)), gini)
    equal(metrics.sparseness(T((2, 2, 2, 2))), 0)


def test_complexity() -> None:
    found = metrics.complexity(T([1, 2, 3, 4], [2, -2, 2, 2], [0, 0, 3, 0]))
    equal(found, 1.2798542258336676, 1.3862943611198906, 0)


MAP = T([[1, 5, 2], [3, -4, 2], [0, 1, 6]])
MASK = torch.tensor([[[0, 1, 1], [0, 0, 0], [0, 0, 1]]]).bool()


def test_localisation_in_a_map() -> None:
    equal(metrics.relevance_mass(MAP, MASK), 0.65)
    equal(metrics.relevance_mass(MAP, MASK, sign="absolute"), 13 / 24)
    equal(metrics.relevance_mass(MAP, MASK, sign="signed"), 0.8125)
    equal(metrics.relevance_rank(MAP, MASK), 2 / 3)
    equal(metrics.top_k_intersection(MAP, MASK, k=2), 1.0)
    equal(metrics.top_k_intersection(MAP, MASK, k=4), 0.75)
    equal(metrics.pointing_game(MAP, MASK), 1)
    equal(metrics.pointing_game(-MAP, MASK), 0)
    equal(metrics.localization_auc(MAP, MASK), 11 / 12)


def test_a_mask_pools_the_dimensions_that_it_lacks() -> None:
    """Channels are summed first, and the sign is taken of the sums."""
    maps = torch.stack([MAP, -MAP + 1], 1)  # (1, 2, 3, 3): every pixel sums to 1
    for mask in (MASK[:, None], MASK, MASK[0]):
        equal(metrics.relevance_mass(maps, mask), 3 / 9)
        equal(metrics.relevance_mass(maps, mask, sign="absolute"), 3 / 9)
    each = MASK[:, None].expand(1, 2, 3, 3)
    equal(metrics.relevance_mass(MAP[:, None].expand(1, 2, 3, 3), each), 0.65)
    # One mask for all examples does not sum them.
    two = torch.stack([MAP[0], 2 * MAP[0]])
    equal(metrics.relevance_mass(two, MASK), 0.65, 0.65)


def test_correlations_of_two_maps() -> None:
    equal(similarity.pearson(T([1, 2, 3]), T([1, 2, 4])), 0.9819805060619656)
    equal(similarity.spearman(T([1, 2, 3]), T([1, 2, 4])), 1)
    equal(similarity.spearman(T([1, 2, 2, 4]), T([1, 3, 2, 4])), 0.9486832980505138)
    equal(similarity.cosine(T([1, 0]), T([3, 4])), 0.6)
    equal(similarity.cosine(T([1e-200, 0]), T([3e200, 4e200])), 0.6)


def test_random_logit_with_two_classes() -> None:
    """One other class is no choice: the rows of the matrix are compared."""
    w = T([1, 2, 3], [1, 2, 4])
    run = functools.partial(
        metrics.random_logit, lambda x: x @ w.T, T([1, 1, 1]), attrfn.gradient, n_classes=2
    )
    for target in (0, 1, torch.tensor(1), torch.tensor([0]), -1):
        equal(run(target=target, similarity=similarity.pearson), 0.9819805060619656)
        equal(run(target=target, similarity=similarity.spearman), 1)


def test_random_logit_draws_all_other_classes() -> None:
    """And never the target's own."""
    run = functools.partial(
        metrics.random_logit,
        lambda x: x @ torch.eye(4, dtype=D),
        torch.ones(200, 4, dtype=D),
        attrfn.gradient,
        n_classes=4,
        similarity=lambda a, b: b.argmax(1),
        key=attrfn.random.split(0, 200),
    )
    for target in range(4):
        counts = torch.bincount(run(target=target), minlength=4)
        assert counts[target] == 0
        assert (counts > 30).sum() == 3


def squares(x: Tensor) -> Tensor:
    return (x**2).sum(1)


def near(x: Tensor, keys: Tensor) -> Tensor:
    return x + T([0.1, 0], [0, -0.2], [0.1, 0.1])


def test_stability_of_the_gradient_of_squares() -> None:
    """A = 2 x at (3, 4); the moves are (.1, 0), (0, -.2), (.1, .1)."""
    x, moved = T([3, 4]), {"perturb": near, "n_samples": 3}
    gradient = attrfn.gradient
    equal(metrics.sensitivity_max(squares, x, gradient, **moved), 0.04)
    equal(metrics.sensitivity_avg(squares, x, gradient, **moved), 0.029428090415820635)
    equal(metrics.sensitivity_max(squares, x, gradient, **moved, normalize=False), 0.4)
    equal(metrics.sensitivity_max(squares, x, gradient, **moved, norm=math.inf), 0.4 / 8)
    equal(metrics.sensitivity_max(squares, x, gradient, **moved, norm=1), 0.4 / 14)
    equal(metrics.relative_output_stability(squares, x, gradient, **moved), 0.054644808743169494)
    for key in range(5):
        equal(metrics.local_lipschitz(squares, x, gradient, key=key), 2, atol=1e-9)
        equal(metrics.relative_input_stability(squares, x, gradient, key=key), 1, atol=1e-9)


def test_stability_of_a_linear_model() -> None:
    for key in range(5):
        run = {"key": key}
        stable = metrics.relative_input_stability(*A, attrfn.input_x_gradient, **run)
        equal(stable, 1, atol=1e-9)
        output = metrics.relative_output_stability(
            lambda x: 3 * x, T([2]), attrfn.input_x_gradient, **run
        )
        equal(output, 1 / 6, atol=1e-9)
        for method in (attrfn.gradient, attrfn.saliency):
            assert metrics.sensitivity_max(*A, method, **run).item() == 0
            assert metrics.local_lipschitz(*A, method, **run).item() == 0


def test_representation_stability_of_a_linear_layer() -> None:
    """L = 2 x has the relative change of x."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1)).to(D)
    model[0].weight.data = 2 * torch.eye(3, dtype=D)
    x = T([1, 2, 3])
    stable = metrics.relative_representation_stability
    equal(stable(model, x, attrfn.input_x_gradient, layer="0"), 1, atol=1e-9)


def test_samples_of_another_prediction_are_left_out() -> None:
    f = lambda x: torch.stack([x[:, 0], 0 * x[:, 0]], 1)  # noqa: E731
    x = T([1.0])
    run = functools.partial(
        metrics.relative_input_stability, f, x, lambda f, x, target: x**2, target=0, n_samples=2
    )
    moves = lambda x, keys: x + T([-3.0], [1.0])  # noqa: E731
    # At 2: |1 - 4| / |1 - 2| = 3. At -2: |1 - 4| / |1 + 2| = 1.
    equal(run(perturb=moves), 3)
    gone = run(perturb=lambda x, keys: x + T([-3.0], [-4.0]))
    assert gone.isnan().all()
    equal(run(perturb=lambda x, keys: x + T([-3.0], [-3.0]), same_prediction=False), 1)


def test_input_invariance() -> None:
    f, x = lambda x: x[:, 0] + 2 * x[:, 1], T([3, 1])
    assert metrics.input_invariance(f, x, attrfn.gradient, shift=1.0).item() == 0
    for shift in (1.0, torch.ones(2, dtype=D), torch.ones(1, 2, dtype=D)):
        found = metrics.input_invariance(f, x, attrfn.input_x_gradient, shift=shift)
        equal(found, 0.6201736729460423)  # sqrt(5 / 13)


def linear_pair() -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("top_down", {"1": -1, "0": 1}),
        ("bottom_up", {"0": -1, "1": 1}),
        ("independent", {"1": -1, "0": -1}),
    ],
)
def test_negated_parameters(order: Any, expected: dict[str, int]) -> None:
    """Each negated layer turns the sign of the gradient."""
    found = metrics.model_parameter_randomization(
        linear_pair(), randn(5, 3), attrfn.gradient, order=order, draw=lambda name, p, key: -p
    )
    assert list(found) == list(expected)
    for name, r in expected.items():
        equal(found[name], *[r] * 5)
    absolute = metrics.model_parameter_randomization(
        linear_pair(), randn(5, 3), attrfn.gradient, draw=lambda name, p, key: -p, absolute=True
    )
    for values in absolute.values():
        equal(values, *[1] * 5)


def test_a_method_that_returns_the_inputs_passes_no_randomisation() -> None:
    found = metrics.model_parameter_randomization(linear_pair(), randn(5, 3), lambda f, x: x)
    for values in found.values():
        equal(values, *[1] * 5)


def test_efficient_mprt_of_two_histograms() -> None:
    """Four bins: (3, 0, 0, 1) before, (1, 1, 1, 1) after."""
    maps = iter([T([0, 0, 0, 1]), T([0, 1, 2, 3])])
    found = metrics.efficient_mprt(linear_pair(), randn(1, 3), lambda f, x: next(maps), n_bins=4)
    equal(found, 1.4652458136146227)
