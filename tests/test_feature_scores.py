"""Scores of features: what is divided among elements is summed, what they share counts once."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close, randn
from made_methods import groups
from registry import REGISTRY, ROWS, Row, explain, rows
from test_registry import public
from torch import Tensor

import attrfn

PAGE = Path(__file__).parents[1] / "docs" / "methods" / "index.md"
NO_METHODS = {"at_layer", "at_neuron", "completeness_delta", "feature_scores", "noise_tunnel"}
NO_METHODS |= {"split", "Split", "with_rules", "each_output", "over_baselines", "ensemble"}
NO_METHODS |= {"absolute", "average", "chain", "contrast", "normalized", "pooled", "relative_to"}
NO_METHODS |= {"per_example", "shared", "Site", "activations", "intervene"}
UNMARKED = (
    "layer_activation",
    "chained",
    "contrasted",
    "each_gradient",
    "each_rescale",
    "contrasted_noise",
    "contrasted_background",
    "contrasted_ensemble",
    "each_of_a_background",
)  # the rows of each_output take a part
N = 3
MASK = torch.tensor([0, 1, 0, 2, 1, 0])
X, X0 = randn(4, 6), 0.1


def f(x: Tensor) -> Tensor:
    return x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3] + (x[:, 4] * x[:, 5]).sin()


def sums(a: Tensor, mask: Tensor = MASK, n: int = N) -> Tensor:
    return torch.stack([a[:, mask == k].sum(1) for k in range(n)], 1)


def scores(name: str) -> str | None:
    return getattr(getattr(attrfn, name), "scores", None)


# --- the marker ---


def test_every_method_says_what_its_scores_are() -> None:
    assert {name for name in public() if scores(name) is None} == NO_METHODS
    for name in public() - NO_METHODS:
        takes = inspect.signature(getattr(attrfn, name)).parameters
        pairs = next(r for r in REGISTRY if name in r.covers).explains == "pairs"
        replaces = {"feature_mask", "layer_mask", "window"} & set(takes) or name == "rise"
        assert scores(name) == ("pairs" if pairs else "shared" if replaces else "divided"), name


def test_page_of_methods_has_the_marker() -> None:
    text, told, column = PAGE.read_text("utf-8"), dict[str, str](), -1
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0] == "method":
            column = cells.index("scores")
        elif cells and column >= 0:
            names = re.findall(r"`(\w+)[`(]", re.sub(r"\]\([^)]*\)", "", cells[0]))
            told |= {name: cells[column] for name in names if hasattr(attrfn, name)}
    assert set(told) == public() - {"Split"}
    makers = {
        "at_layer",
        "at_neuron",
        "noise_tunnel",
        "with_rules",
        "each_output",
        "average",
        "chain",
    }
    makers |= {"over_baselines", "ensemble", "absolute", "normalized", "pooled", "relative_to"}
    for name, said in told.items():
        assert said == (scores(name) or ("as the method" if name in makers else "")), name


def test_made_methods_have_the_marker_of_what_they_wrap() -> None:
    occlusion = functools.partial(attrfn.occlusion, window=2)
    for method, kind in [(occlusion, "shared"), (attrfn.gradient, "divided")]:
        for made in [
            attrfn.at_layer(method, "0"),
            attrfn.at_neuron(method, "0", 1),
            attrfn.noise_tunnel(method),
            functools.partial(attrfn.noise_tunnel(method)),
        ]:
            same = attrfn.feature_scores(torch.ones(1, 4), torch.zeros(4).long(), scores=made)
            assert same.item() == {"shared": 1, "divided": 4}[kind]


# --- the whole registry: the marker is true ---


@rows(lambda r: r.explains in ("input", "layer", "layer input", "map") and not r.batch_dim)
def test_marker_is_true(r: Row) -> None:
    found = explain(r, r.net)
    mark = getattr(found, "_attrfn_scores", None)
    if r.name in UNMARKED:
        assert mark is None
        return
    mask = groups(found)
    if mark == "divided":
        own = attrfn.feature_scores(found, mask)
        flat, ids = found.flatten(1), mask.flatten()
        assert_close(own, sums(flat, ids, own.shape[1]))
        return
    assert mark == "shared"
    if r.name in ("shapley_values", "lime", "lime_lasso"):  # on N groups
        own, flat = attrfn.feature_scores(found, mask, n_features=N), found.flatten(1)
        assert torch.equal(own, flat[:, :N])
        assert torch.equal(own[:, mask.flatten()], flat)


@pytest.mark.parametrize(
    "name",
    [n for n in sorted(public()) if n in ROWS and scores(n) == "shared" and not ROWS[n].layer],
)
def test_shared_scores_count_once(name: str) -> None:
    method, options = getattr(attrfn, name), dict[str, Any]()
    x, model = X, f
    if name == "occlusion":
        x, options = randn(4, 6), {"window": 2, "stride": 2}
        mask, n = torch.arange(6) // 2, 3
    elif name == "rise":
        x, options = randn(4, 2, 3), {"n_samples": 5, "grid": 2}
        model = lambda x: f(x.flatten(1))  # noqa: E731
        mask, n = torch.arange(3), 3
    else:
        options, mask, n = {"feature_mask": MASK}, MASK, N
    found = method(model, x, **options)
    own = attrfn.feature_scores(found, mask)
    assert own.shape == (4, n)
    ids = mask.expand(x.shape[1:]).flatten()
    assert torch.equal(own[:, ids], found.flatten(1))
    once = attrfn.feature_scores(found.clone(), mask, scores=method)
    assert torch.equal(own, once)
    with pytest.raises(ValueError, match="feature_mask"):
        attrfn.completeness_delta(model, x, found)


# --- values ---


def test_gap_of_exact_shapley_values_is_zero() -> None:
    ids = {"a": torch.tensor([0, 1, 0]), "b": torch.tensor([[1], [2]])}
    x = {"a": randn(4, 3), "b": randn(4, 2, 5)}

    def g(x: dict[str, Tensor]) -> Tensor:
        return x["a"].prod(1) + (x["b"].sum((1, 2)) * x["a"][:, 0]).tanh()

    found = attrfn.shapley_values(g, x, baselines=X0, feature_mask=ids)
    gap = attrfn.completeness_delta(g, x, found, baselines=X0, feature_mask=ids)
    assert_close(gap, torch.zeros(4).double())
    per_feature = attrfn.feature_scores(found, ids)
    want = [found["a"][:, 0], found["a"][:, 1], found["b"][:, 1, 0]]
    assert torch.equal(per_feature, torch.stack(want, 1))


def test_divided_attributions_have_the_gap_that_they_have_without_a_mask() -> None:
    found = attrfn.integrated_gradients(f, X, baselines=X0, n_steps=5)
    want = attrfn.completeness_delta(f, X, found, baselines=X0)
    gap = attrfn.completeness_delta(f, X, found, baselines=X0, feature_mask=MASK)
    assert_close(gap, want)
    assert_close(attrfn.feature_scores(found, MASK), sums(found))


def test_equal_parts_are_not_taken_for_shared_scores() -> None:
    """Every element has a part of 1, in a method that divides."""
    x, mask = torch.ones(2, 4).double(), torch.tensor([0, 0, 1, 1])
    found = attrfn.integrated_gradients(lambda x: x.sum(1), x)
    assert_close(attrfn.feature_scores(found, mask), torch.full((2, 2), 2.0).double())
    gap = attrfn.completeness_delta(lambda x: x.sum(1), x, found, feature_mask=mask)
    assert_close(gap, torch.zeros(2).double())


def test_masks_of_each_example_and_features_without_elements() -> None:
    masks = torch.stack([MASK, MASK.flip(0), MASK, torch.zeros_like(MASK)])
    found = attrfn.kernel_shap(f, X, feature_mask=masks, n_features=5, n_samples=40)
    own = attrfn.feature_scores(found, masks, n_features=5)
    assert own.shape == (4, 5)
    assert torch.equal(own.gather(1, masks), found)
    assert (own[:, 3:] == 0).all()
    divided = attrfn.input_x_gradient(f, X)
    own = attrfn.feature_scores(divided, masks)
    for i, mask in enumerate(masks):
        assert_close(own[i : i + 1], sums(divided[i : i + 1], mask))


def test_no_mask_takes_each_element() -> None:
    found = attrfn.shapley_values(f, X)
    assert torch.equal(attrfn.feature_scores(found, None), found)
    assert torch.equal(attrfn.feature_scores((found, found[:, :2]), None)[:, 6:], found[:, :2])
    assert_close(attrfn.feature_scores(found, MASK), sums(found))
    assert_close(attrfn.completeness_delta(f, X, found), torch.zeros(4).double())


def test_half_precision_is_summed_in_float32() -> None:
    a = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    found = attrfn.feature_scores(a, torch.zeros(4096).long(), scores="divided")
    assert found.dtype == torch.bfloat16
    assert found.item() == 4096


@pytest.mark.parametrize("kind", ["divided", "shared"])
def test_derivatives_go_through(kind: Any) -> None:
    """A shared score stands in several elements, and its derivative reaches it through one."""
    values = randn(4, N).requires_grad_()
    spread = values[:, MASK]
    own = attrfn.feature_scores(spread, MASK, scores=kind)
    (grad,) = torch.autograd.grad(own.sum(), values)
    counts = torch.tensor([3.0, 2.0, 1.0]).to(grad)
    assert_close(grad, (counts if kind == "divided" else torch.ones(3).to(grad)).expand(4, 3))


# --- what is refused ---


def test_without_a_mark_the_caller_says() -> None:
    found = attrfn.feature_ablation(f, X, feature_mask=MASK)
    message = r"scores is None.*scores='divided'"
    for unmarked in (found.clone(), found.float().double(), 2 * found, found[:2]):
        with pytest.raises(ValueError, match=message):
            attrfn.feature_scores(unmarked, MASK)
        with pytest.raises(ValueError, match=message):
            attrfn.completeness_delta(f, X[: len(unmarked)], unmarked, feature_mask=MASK)
    with pytest.raises(ValueError, match="scores is None inside a transform"):
        torch.func.vmap(lambda a: attrfn.feature_scores(a[None], MASK, n_features=N))(found)
    single = attrfn.feature_scores(found.clone(), torch.arange(6))
    assert torch.equal(single, found)


def test_scores_of_other_features_are_refused() -> None:
    found = attrfn.feature_ablation(f, X, feature_mask=MASK)
    other = torch.tensor([0, 0, 1, 1, 2, 2])
    for call in (
        lambda: attrfn.feature_scores(found, other),
        lambda: attrfn.feature_scores(found.clone(), other, scores="shared"),
        lambda: attrfn.completeness_delta(f, X, found, feature_mask=other),
    ):
        with pytest.raises(ValueError, match=r"in feature 0 of example 0, .* feature_mask that"):
            call()
    overlapping = attrfn.occlusion(f, X, window=2, stride=1)
    with pytest.raises(ValueError, match="expected one score that its elements share"):
        attrfn.feature_scores(overlapping, other)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noisy_results_have_the_mark_of_their_method(kind: Any) -> None:
    options = {"n_samples": 2, "stdevs": 0.1, "kind": kind}
    noisy = attrfn.noise_tunnel(attrfn.feature_ablation, **options)(f, X, feature_mask=MASK)
    first = noisy[:, [int((k == MASK).nonzero()[0]) for k in range(N)]]
    assert torch.equal(attrfn.feature_scores(noisy, MASK), first)
    with pytest.raises(ValueError, match="share"):
        attrfn.completeness_delta(f, X, noisy)
    divided = attrfn.noise_tunnel(attrfn.gradient, **options)(f, X)
    assert_close(attrfn.feature_scores(divided, MASK), sums(divided))


def test_marks_stay_where_they_belong() -> None:
    """Neither the inputs nor the model's tensors get one, and files hold results as before."""
    x = X.clone().requires_grad_()
    weight = torch.ones(6).double().requires_grad_()
    for method in (attrfn.gradient, attrfn.feature_ablation, attrfn.input_x_gradient):
        method(lambda x: (x * weight).sum(1), x, create_graph=True)
    assert not any(hasattr(t, "_attrfn_scores") for t in (x, weight))
