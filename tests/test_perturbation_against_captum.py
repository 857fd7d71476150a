"""Perturbation methods against Captum's, float32, within 1e-5 (absolute plus relative).

Equal where both libraries define the same quantity. Where a draw decides, both get the same draws
if Captum lets itself be given them, and a mean over many draws with its standard error if not.
"""

from __future__ import annotations

import functools

import oracles
import pytest
import torch
from captum_cases import F32, PAIR, PAIR0, same, two_inputs
from captum_perturbed import PAIR_MASKS, TABLE, TABLE0, captum_fits_rows_in_a_loop, mlp, seeded
from oracles import close, randn
from torch import nn

import attrfn

attr = pytest.importorskip("captum.attr")

IMAGES, IMAGES0 = (randn(seed, 3, 2, 8, 8, dtype=F32) for seed in (0, 1))

QUADRANTS = torch.arange(4).reshape(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)


def cnn():
    return oracles.seeded(oracles.Cnn, dtype=F32)


def grid():
    """Outputs (B, 3, 4)."""
    return oracles.seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 12), nn.Tanh(), nn.Unflatten(1, (3, 4))),
        dtype=F32,
    )


TARGETS = {
    "int": (cnn, 3),
    "tensor": (cnn, torch.tensor([4, 0, 2])),
    "list": (cnn, [4, 0, 2]),
    "tuple": (grid, (2, 1)),
    "list_of_tuples": (grid, [(2, 1), (0, 3), (1, 0)]),
}
each_target = pytest.mark.parametrize(("make", "target"), TARGETS.values(), ids=TARGETS)

PAIR_BASELINES = pytest.mark.parametrize(
    "baselines",
    [None, 0.5, (0, 1.5), (PAIR0[0][:1], 0.25), PAIR0],
    ids=["none", "scalar", "scalars", "row_and_scalar", "tensors"],
)

each_mask = pytest.mark.parametrize("mask", PAIR_MASKS.values(), ids=PAIR_MASKS)


def for_captum(baselines):
    """A lone scalar is one value for both inputs here; Captum wants a tuple of two."""
    return (baselines,) * 2 if isinstance(baselines, float) else baselines


def unflatten(t, *outputs):
    """Captum's (B * K, ...) for outputs (B, K) as (B, K, ...)."""
    return t.unflatten(0, (-1, *outputs))


# ---------------------------------------------------------------------------------------------
# ablation


@each_target
def test_feature_ablation(make, target):
    model = make()
    want = attr.FeatureAblation(model).attribute(IMAGES, IMAGES0, target=target)
    same(attrfn.feature_ablation(model, IMAGES, baselines=IMAGES0, target=target), want)


@PAIR_BASELINES
@each_mask
def test_feature_ablation_of_two_inputs(baselines, mask):
    model, target = two_inputs(), torch.tensor([0, 3, 1, 2])
    want = attr.FeatureAblation(model).attribute(
        PAIR, for_captum(baselines), target=target, feature_mask=mask
    )
    got = attrfn.feature_ablation(
        model, PAIR, baselines=baselines, target=target, feature_mask=mask
    )
    same(got, want)


@pytest.mark.parametrize("copies", [1, 2, 3, 100])
def test_feature_ablation_in_chunks(copies):
    """Captum's perturbations_per_eval is chunk_size here."""
    model = two_inputs()
    mask = PAIR_MASKS["gaps"]
    want = attr.FeatureAblation(model).attribute(
        PAIR, PAIR0, target=1, feature_mask=mask, perturbations_per_eval=copies
    )
    got = attrfn.feature_ablation(
        model, PAIR, baselines=PAIR0, target=1, feature_mask=mask, chunk_size=copies
    )
    same(got, want)


def test_feature_ablation_of_several_outputs():
    """Captum flattens (B, K) outputs to (B * K, ...); here it is (B, K, ...)."""
    model, mask = two_inputs(), PAIR_MASKS["across_tensors"]
    want = attr.FeatureAblation(model).attribute(PAIR, PAIR0, feature_mask=mask)
    got = attrfn.feature_ablation(model, PAIR, baselines=PAIR0, feature_mask=mask)
    assert got[0].shape == (4, 4, 3)
    same(got, tuple(unflatten(t, 4) for t in want))
    want = attr.FeatureAblation(grid()).attribute(IMAGES, feature_mask=QUADRANTS)
    got = attrfn.feature_ablation(grid(), IMAGES, feature_mask=QUADRANTS)
    same(got, unflatten(want, 3, 4))


@pytest.mark.parametrize(
    "whole",
    [
        lambda out: out.sum(),
        lambda out: out.sum().reshape(1),
        lambda out: float(out.sum().detach()),
    ],
    ids=["0d", "one_element", "float"],
)
def test_feature_ablation_of_one_value_for_the_batch(whole):
    model = two_inputs()

    def f(*inputs):
        return whole(model(*inputs) ** 2)

    mask = PAIR_MASKS["gaps"]
    want = attr.FeatureAblation(f).attribute(PAIR, PAIR0, feature_mask=mask)
    got = attrfn.feature_ablation(f, PAIR, baselines=PAIR0, feature_mask=mask)
    assert got[0].shape == (1, 3)
    close(got, tuple(t.to(F32) for t in want), tolerance=1e-4)  # float64 from Captum for a float


def test_feature_ablation_of_token_ids():
    """Integer inputs with a padding id; Captum gives float32 as well."""
    model = oracles.seeded(oracles.Attention, dtype=F32)
    ids = torch.tensor([[1, 5, 3, 0, 2], [7, 7, 4, 10, 1], [2, 0, 9, 8, 6]])
    places = torch.arange(5).expand(3, 5)

    def f(ids):
        return model(ids, places[:1].expand(len(ids), 5))

    want = attr.FeatureAblation(f).attribute(ids, 9, target=2)
    same(attrfn.feature_ablation(f, ids, baselines=9, target=2), want)


WINDOWS = {
    "tiles": ((2, 4, 4), (2, 4, 4)),
    "overlapping": ((1, 3, 3), (1, 2, 1)),
    "by_one": ((2, 5, 6), None),
    "cut_off": ((2, 3, 5), (2, 3, 2)),
    "cut_off_and_overlapping": ((1, 4, 3), (1, 3, 2)),
    "whole": ((2, 8, 8), (1, 1, 1)),
}


@pytest.mark.parametrize(("window", "stride"), WINDOWS.values(), ids=WINDOWS)
def test_occlusion(window, stride):
    model, target = cnn(), torch.tensor([4, 0, 2])
    want = attr.Occlusion(model).attribute(IMAGES, window, stride, IMAGES0, target)
    got = attrfn.occlusion(
        model, IMAGES, window=window, stride=stride, baselines=IMAGES0, target=target
    )
    same(got, want)


@pytest.mark.parametrize("copies", [1, 4, 100])
def test_occlusion_in_chunks(copies):
    model = cnn()
    want = attr.Occlusion(model).attribute(
        IMAGES, (2, 3, 3), 2, target=1, perturbations_per_eval=copies
    )
    got = attrfn.occlusion(model, IMAGES, window=(2, 3, 3), stride=2, target=1, chunk_size=copies)
    same(got, want)


@PAIR_BASELINES
@pytest.mark.parametrize("stride", [None, ((1,), 2), (2, (1, 2)), ((1,), (1, 1))], ids=str)
def test_occlusion_of_two_inputs(baselines, stride):
    """One window and one stride for each input in both libraries."""
    model = two_inputs()
    windows = ((2,), (2, 2))
    want = attr.Occlusion(model).attribute(PAIR, windows, stride, for_captum(baselines), 2)
    got = attrfn.occlusion(
        model, PAIR, window=windows, stride=stride, baselines=baselines, target=2
    )
    same(got, want)


def test_occlusion_of_several_outputs():
    model = cnn()
    want = attr.Occlusion(model).attribute(IMAGES, (2, 4, 3), (2, 2, 3))
    got = attrfn.occlusion(model, IMAGES, window=(2, 4, 3), stride=(2, 2, 3))
    same(got, unflatten(want, 5))


# ---------------------------------------------------------------------------------------------
# permutation


def roll(keys, batch):
    return torch.arange(batch).roll(1).expand(len(keys), batch)


def captum_roll(x, mask):
    return torch.where(mask.bool(), x.roll(1, 0), x)


@each_target
def test_feature_permutation(make, target):
    model = make()
    mask = QUADRANTS[None, None]
    want = attr.FeaturePermutation(model, captum_roll).attribute(IMAGES, target, feature_mask=mask)
    got = attrfn.feature_permutation(
        model, IMAGES, target=target, feature_mask=QUADRANTS, permute=roll
    )
    same(got, want)


@pytest.mark.parametrize("mask", ["none", "by_tensor", "across_tensors", "gaps"])
@pytest.mark.parametrize("copies", [1, 2, 100])
def test_feature_permutation_of_two_inputs(mask, copies):
    model, mask = two_inputs(), PAIR_MASKS[mask]
    want = attr.FeaturePermutation(model, captum_roll).attribute(
        PAIR, 1, feature_mask=mask, perturbations_per_eval=copies
    )
    got = attrfn.feature_permutation(
        model, PAIR, target=1, feature_mask=mask, permute=roll, chunk_size=copies
    )
    same(got, want)


def test_feature_permutation_of_several_outputs_and_of_a_loss():
    model = mlp()
    want = attr.FeaturePermutation(model, captum_roll).attribute(TABLE)
    same(attrfn.feature_permutation(model, TABLE, permute=roll), unflatten(want, 3))

    def loss(x):
        return (model(x) ** 2).mean()

    want = attr.FeaturePermutation(loss, captum_roll).attribute(TABLE)
    same(attrfn.feature_permutation(loss, TABLE, permute=roll), want)


def test_feature_permutation_agrees_in_distribution():
    """Captum draws until the permutation is not the identity, this library takes every one: its
    mean is smaller by 1 - 1/B!, a factor of 5/6 for three rows.
    """
    n = 6000

    def f(x):
        return (x[:, 0] * x[:, 1] + x[:, 2] ** 3)[:, None]

    x = TABLE[:3, :3]
    captum = attr.FeaturePermutation(f)
    want = seeded(lambda: torch.stack([captum.attribute(x) for _ in range(n // 4)]))
    got = attrfn.feature_permutation(f, x, target=0, n_samples=n, key=3)
    exact = want.mean(0) * 5 / 6
    error = want.std(0) * (1 / (n // 4) + 1 / n) ** 0.5
    assert ((got - exact).abs() < 5 * error + 1e-6).all()


# ---------------------------------------------------------------------------------------------
# Shapley values


@pytest.mark.parametrize("mask", ["by_tensor", "across_tensors"])
@PAIR_BASELINES
def test_shapley_values(mask, baselines):
    model, mask, target = two_inputs(), PAIR_MASKS[mask], [1, 0, 3, 2]
    want = attr.ShapleyValues(model).attribute(
        PAIR, for_captum(baselines), target, feature_mask=mask, perturbations_per_eval=8
    )
    got = attrfn.shapley_values(model, PAIR, baselines=baselines, target=target, feature_mask=mask)
    same(got, want)


def test_shapley_values_of_each_element():
    model = mlp()
    want = attr.ShapleyValues(model).attribute(TABLE, TABLE0, 1, perturbations_per_eval=120)
    same(attrfn.shapley_values(model, TABLE, baselines=TABLE0, target=1), want)


def test_shapley_values_of_images():
    model = cnn()
    mask = QUADRANTS[None, None]
    want = attr.ShapleyValues(model).attribute(IMAGES, IMAGES0, [4, 0, 2], feature_mask=mask)
    got = attrfn.shapley_values(
        model, IMAGES, baselines=IMAGES0, target=[4, 0, 2], feature_mask=QUADRANTS
    )
    same(got, want)


def test_shapley_values_of_several_outputs_and_of_one_for_the_batch():
    """Unlike FeatureAblation, Captum's Shapley values keep (B, K, ...)."""
    model = mlp()
    want = attr.ShapleyValues(model).attribute(TABLE, TABLE0)
    got = attrfn.shapley_values(model, TABLE, baselines=TABLE0)
    assert got.shape == (6, 3, 5)
    same(got, want)

    def f(x):
        return (model(x) ** 2).sum()

    want = attr.ShapleyValues(f).attribute(TABLE, TABLE0)
    close(attrfn.shapley_values(f, TABLE, baselines=TABLE0), want, tolerance=3e-5)


@pytest.mark.parametrize("antithetic", [False, True])
def test_shapley_value_sampling_of_a_pair_of_features(antithetic):
    """With an ordering and its reverse, both exact for two features."""
    model, mask = two_inputs(), PAIR_MASKS["by_tensor"]
    want = attr.ShapleyValues(model).attribute(PAIR, PAIR0, 1, feature_mask=mask)
    got = attrfn.shapley_value_sampling(
        model,
        PAIR,
        baselines=PAIR0,
        target=1,
        feature_mask=mask,
        n_samples=2 if antithetic else 4000,
        antithetic=antithetic,
    )
    close(got, want, tolerance=1e-5 if antithetic else 0.1)


def test_shapley_value_sampling_agrees_in_distribution():
    """2000 orderings each, for all outputs at once: two means with their standard errors."""
    model, n = mlp(), 2000
    want = seeded(
        lambda: attr.ShapleyValueSampling(model).attribute(
            TABLE, TABLE0, n_samples=n, perturbations_per_eval=64
        )
    )
    got, error = attrfn.shapley_value_sampling(
        model, TABLE, baselines=TABLE0, n_samples=n, key=1, return_stderr=True
    )
    assert got.shape == want.shape == error.shape == (6, 3, 5)
    assert ((got - want).abs() < 5 * 2**0.5 * error + 1e-6).all()
    exact = attrfn.shapley_values(model, TABLE, baselines=TABLE0)
    assert ((want - exact).abs() < 5 * error + 1e-6).all()
    same(got.sum(2), want.sum(2))


@captum_fits_rows_in_a_loop
def test_kernel_shap_is_the_exact_value_that_captums_tends_to():
    """Captum fits 1000 random coalitions at a time: the mean of 12 fits and its spread."""
    model = mlp()
    captum = attr.KernelShap(model)
    fits = seeded(
        lambda: torch.stack(
            [
                captum.attribute(TABLE[:2], TABLE0, 1, n_samples=1000, perturbations_per_eval=1000)
                for _ in range(12)
            ]
        )
    )
    got = attrfn.kernel_shap(model, TABLE[:2], baselines=TABLE0, target=1, n_samples=2**5 - 2)
    same(got, attr.ShapleyValues(model).attribute(TABLE[:2], TABLE0, 1))
    error = fits.std(0) / 12**0.5
    assert error.max() < 0.02
    assert ((fits.mean(0) - got).abs() < 5 * error + 1e-3).all()


@captum_fits_rows_in_a_loop
def test_kernel_shap_of_a_linear_model():
    """A linear model is fitted without error from any coalitions."""
    model = oracles.seeded(lambda: nn.Linear(5, 3), dtype=F32)
    want = seeded(lambda: attr.KernelShap(model).attribute(TABLE, TABLE0, 2, n_samples=60))
    got = attrfn.kernel_shap(model, TABLE, baselines=TABLE0, target=2, n_samples=20)
    close(got, want, tolerance=1e-4)


@captum_fits_rows_in_a_loop
def test_kernel_shap_of_features_across_tensors():
    model = oracles.seeded(lambda: nn.Linear(7, 4), dtype=F32)

    def f(x, y):
        return model(torch.cat([x, y.flatten(1)], 1))

    mask = PAIR_MASKS["across_tensors"]
    want = seeded(
        lambda: attr.KernelShap(f).attribute(PAIR, PAIR0, 1, feature_mask=mask, n_samples=60)
    )
    options = {"baselines": PAIR0, "target": 1, "feature_mask": mask, "n_samples": 20}
    close(attrfn.kernel_shap(f, PAIR, **options), want, tolerance=1e-4)
    want = seeded(
        lambda: attr.KernelShap(f).attribute(
            PAIR, PAIR0, 1, feature_mask=mask, n_samples=60, return_input_shape=False
        )
    )
    got = attrfn.kernel_shap(f, PAIR, **options, return_input_shape=False)
    assert got.shape == want.shape == (4, 4)
    close(got, want, tolerance=1e-4)


# ---------------------------------------------------------------------------------------------
# layers and neurons

LAYERS = pytest.mark.parametrize(
    ("layer", "at"),
    [("conv1", "output"), ("conv2", "input"), ("act2", "output"), ("fc", "input")],
)


@LAYERS
def test_layer_feature_ablation(layer, at):
    model, target = cnn(), torch.tensor([4, 0, 2])
    want = attr.LayerFeatureAblation(model, model.get_submodule(layer)).attribute(
        IMAGES, 0.5, target, attribute_to_layer_input=at == "input"
    )
    got = attrfn.layer_feature_ablation(
        model, IMAGES, layer=layer, at=at, layer_baselines=0.5, target=target
    )
    same(got, want)


def test_layer_feature_ablation_of_channels():
    model, channels = cnn(), torch.arange(6).reshape(1, 6, 1, 1)
    start = randn(9, 1, 6, 3, 4, dtype=F32)
    want = attr.LayerFeatureAblation(model, model.act2).attribute(
        IMAGES, start, 1, layer_mask=channels
    )
    got = attrfn.layer_feature_ablation(
        model, IMAGES, layer="act2", layer_baselines=start, layer_mask=channels, target=1
    )
    same(got, want)


def test_layer_feature_ablation_behind_two_inputs():
    model = two_inputs()
    want = attr.LayerFeatureAblation(model, model.left).attribute(PAIR, target=3)
    same(attrfn.layer_feature_ablation(model, PAIR, layer="left", target=3), want)


def test_layer_feature_permutation():
    """Without a target, which Captum's applies twice."""
    model = cnn()

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x)[:, 1]

    channels = torch.arange(6).reshape(1, 6, 1, 1)

    class Rolled(attr.LayerFeaturePermutation):
        attributor = staticmethod(functools.partial(attr.FeaturePermutation, perm_func=captum_roll))

    want = Rolled(One(), model.act2).attribute(IMAGES, layer_mask=channels)
    options = {"layer_mask": channels, "permute": roll}
    same(attrfn.layer_feature_permutation(One(), IMAGES, layer="net.act2", **options), want)
    got = attrfn.layer_feature_permutation(model, IMAGES, layer="act2", target=1, **options)
    same(got, want)


NEURONS = {
    "int": ("fc", 3),
    "tuple": ("act1", (2, 4, 5)),
    "slices": ("act1", (slice(1, 3), 4, slice(2, 6))),
    "callable": ("act2", lambda a: a[:, 1].amax((1, 2))),
}


@pytest.mark.parametrize(("layer", "neuron"), NEURONS.values(), ids=NEURONS)
def test_neuron_feature_ablation(layer, neuron):
    model = cnn()
    want = attr.NeuronFeatureAblation(model, model.get_submodule(layer)).attribute(
        IMAGES, neuron, IMAGES0, feature_mask=QUADRANTS[None, None], perturbations_per_eval=2
    )
    got = attrfn.neuron_feature_ablation(
        model, IMAGES, layer=layer, neuron=neuron, baselines=IMAGES0, feature_mask=QUADRANTS
    )
    same(got, want)


@each_mask
def test_neuron_feature_ablation_of_two_inputs(mask):
    model = two_inputs()
    for at in ("output", "input"):
        want = attr.NeuronFeatureAblation(model, model.act).attribute(
            PAIR, 3, PAIR0, feature_mask=mask, attribute_to_neuron_input=at == "input"
        )
        got = attrfn.neuron_feature_ablation(
            model, PAIR, layer="act", neuron=3, at=at, baselines=PAIR0, feature_mask=mask
        )
        same(got, want)
