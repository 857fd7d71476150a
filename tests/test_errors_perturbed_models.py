"""Perturbation methods: inputs, models and callables that are refused, in a line."""

from __future__ import annotations

import functools

import pytest
import torch
import zoo
from perturbation_cases import CAMS, FAMILY, MASKED, NET, PLAIN, X, f, family, refused
from torch import Tensor
from zoo import randn

import attrfn

MODEL = zoo.mlp(8, 3)


def several(x: Tensor) -> Tensor:
    """(B, 3)."""
    return MODEL(x.flatten(1))


cams = pytest.mark.parametrize("method", CAMS.values(), ids=CAMS)


# --- permutation ----------------------------------------------------------------------------------


def test_permutation_of_a_single_example():
    refused(ValueError, "inputs", "1 example", attrfn.feature_permutation, f, X[:1])
    with pytest.raises(ValueError, match=r"at least 2\b"):
        attrfn.feature_permutation(f, X[:1])
    layer = functools.partial(attrfn.layer_feature_permutation, layer="1", target=0)
    refused(ValueError, "inputs", "1 example", layer, NET, X[:1, 0])


def test_permutation_with_masks_and_keys_of_each_example():
    what = functools.partial(attrfn.feature_permutation, f, X)
    mask = torch.arange(3)[:, None, None]
    refused(ValueError, "feature_mask", "", what, feature_mask=mask)
    refused(ValueError, "key", "(3, 2)", what, key=attrfn.random.split(0, 3))


def test_permute_that_returns_something_else():
    what = functools.partial(attrfn.feature_permutation, f, X)
    for wrong in (
        lambda keys, batch: torch.arange(batch),
        lambda keys, batch: torch.zeros(len(keys), batch + 1, dtype=torch.long),
        lambda keys, batch: torch.zeros(len(keys), dtype=torch.long),
    ):
        refused(ValueError, "permute", "shape", what, permute=wrong)
    refused(ValueError, "permute", "list", what, permute=lambda keys, batch: [2, 1, 0])
    floats = lambda keys, batch: torch.rand(len(keys), batch)  # noqa: E731
    refused(TypeError, "permute", "float32", what, permute=floats)
    beyond = lambda keys, batch: torch.full((len(keys), batch), 3)  # noqa: E731
    refused(ValueError, "permute", "3 to 3", what, permute=beyond)
    refused(TypeError, "permute", "'swap'", what, permute="swap")


# --- inputs, baselines, target --------------------------------------------------------------------


@family
def test_baselines(method):
    if method is MASKED["feature_permutation"]:
        return
    shape = (3, 7)
    refused(ValueError, "baselines", f"{shape}", method, f, X, baselines=torch.zeros(shape))
    refused(TypeError, "baselines", "'mean'", method, f, X, baselines="mean")
    refused(ValueError, "baselines", "tree", method, f, X, baselines=(0.0, 0.0))


@pytest.mark.parametrize(
    "name",
    [n for n in FAMILY if n not in ("rise", "feature_permutation", "integrated_hessians")],
)
def test_fractions_for_ids(name):
    """An embedding takes no fraction, and cutting it off would be silent."""
    method, ids = FAMILY[name], torch.ones(3, 2, 4, dtype=torch.long)
    if name == "neuron_feature_ablation":
        return
    table = torch.arange(9.0)
    for start in (0.5, torch.zeros(4)):
        refused(
            TypeError, "baselines", "int64", method, lambda x: f(table[x]), ids, baselines=start
        )


@pytest.mark.parametrize(
    ("dtype", "wrong", "got"),
    [
        (torch.uint8, 300, 300),
        (torch.uint8, torch.tensor([0, 1, -1, 2]), -1),
        (torch.bool, 2, 2),
        (torch.int8, torch.tensor(128), 128),
    ],
    ids=str,
)
def test_baselines_that_a_type_cannot_hold(dtype, wrong, got):
    x = torch.ones(3, 2, 4, dtype=dtype)
    what = functools.partial(attrfn.feature_ablation, lambda x: f(x.double()), x)
    refused(ValueError, "baselines", got, what, baselines=wrong)


def test_rise_needs_places():
    refused(ValueError, "inputs", "(3, 4)", attrfn.rise, f, X[:, 0], n_samples=2)
    pair = (X, X[:, 0])
    refused(ValueError, "inputs", "(3, 4)", attrfn.rise, lambda x, y: f(x), pair, n_samples=2)


@pytest.mark.parametrize("name", ["rise", "integrated_hessians"])
def test_methods_of_floating_inputs(name):
    ids = torch.ones(3, 2, 4, dtype=torch.long)
    refused(TypeError, "inputs", "int64", FAMILY[name], lambda x: f(x.double()), ids)


@family
def test_inputs_of_different_lengths(method):
    if method is MASKED["neuron_feature_ablation"]:
        return
    with pytest.raises(ValueError, match=r"^inputs\b.*3.*2|^inputs\b.*2.*3"):
        method(lambda x, y: f(x) + f(y), (X, X[:2]))


def test_integrated_hessians_of_several_outputs():
    with pytest.raises(ValueError, match=r"^target is None.*\(\d+, 3\)"):
        attrfn.integrated_hessians(several, X)


@cams
def test_maps_of_several_outputs(method):
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"^target is None.*\(2, 3\)"):
        method(model, x, layer="4")


@cams
def test_maps_of_one_value_for_the_batch(method):
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"one value for the whole batch, expected one .* example"):
        method(model, x, layer="4", target=torch.sum)


@cams
def test_maps_of_layers_without_channels(method):
    model, x = zoo.structured("tuple"), randn(2, 4)
    with pytest.raises(TypeError, match=r"^layer 'parts'.*tuple.*expected"):
        method(model, x, layer="parts", target=0)
    with pytest.raises(ValueError, match=r"^upsample is 'cubic'.*expected None or one of"):
        method(zoo.cnn(), randn(2, 2, 8, 8), layer="4", target=0, upsample="cubic")


def test_score_cam_needs_an_input_with_places():
    with pytest.raises(ValueError, match=r"^layer.*0 spatial.*ablation_cam"):
        attrfn.score_cam(NET, X[:, 0], layer="1", target=0)


# --- the model's outputs --------------------------------------------------------------------------

plain = pytest.mark.parametrize("method", PLAIN)


def test_one_number_for_a_batch_is_no_choice():
    what = functools.partial(attrfn.feature_ablation, target=0)
    for model in (torch.sum, lambda x: float(x.sum())):
        with pytest.raises(ValueError, match=r"one value for 3 row.*target is .*expected None"):
            what(model, X, chunk_size=1)


def test_models_that_vmap_cannot_run():
    what = functools.partial(attrfn.feature_ablation, lambda x: float(x.sum()), X)
    refused(ValueError, "batching", "'vmap'", what, batching="vmap")


@plain
@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: "high", "str"),
        (lambda x: (f(x), f(x)), "tuple"),
        (lambda x: {"out": f(x)}, "dict"),
        (lambda x: torch.complex(f(x), f(x)), "complex"),
    ],
    ids=["none", "str", "tuple", "dict", "complex"],
)
def test_outputs_of_the_wrong_type(method, output, got):
    with pytest.raises(TypeError, match=rf"returned.*{got}.*expected|returned.*{got}.*take"):
        method(output, X)


@plain
def test_outputs_of_the_wrong_length(method):
    """Neither three rows nor values of the whole batch, which have one dimension."""
    for wrong in (lambda x: several(x)[:2], lambda x: several(x).repeat(2, 1)):
        with pytest.raises(ValueError, match=r"returned shape \(\d, \d\) for 3 row.*expected"):
            method(wrong, X)


@plain
def test_one_number_for_several_copies_of_a_batch_that_answers_by_rows(method):
    """Rows for one copy, but not for two of them: the model has to see them one by one."""

    def stubborn(x: Tensor) -> Tensor:
        return f(x)[:3]

    with pytest.raises(ValueError, match="chunk_size=1"):
        method(stubborn, X, chunk_size=2)
    method(stubborn, X, chunk_size=1)


@plain
def test_targets_that_do_not_fit(method):
    for wrong in (3, -4, [0, 1], torch.tensor([0, 1, 2, 0])):
        with pytest.raises((ValueError, IndexError), match=r"^target\b.*expected"):
            method(several, X, target=wrong)
    with pytest.raises(ValueError, match="target"):
        method(several, X, target=lambda out: out[:2, 0])


# --- LIME -----------------------------------------------------------------------------------------


def test_lime_with_a_transform_needs_the_number_of_features_alone():
    def transform(z: Tensor, x: Tensor, x0: Tensor) -> Tensor:
        return x + z.double().mean(-1)[..., None, None]

    what = functools.partial(attrfn.lime, f, X, transform=transform)
    with pytest.raises(ValueError, match=r"transform.*n_features.*expected"):
        what()
    with pytest.raises(ValueError, match=r"transform.*feature_mask.*expected"):
        what(n_features=2, feature_mask=torch.arange(4) % 2)
    assert what(n_features=2).shape == (3, 2)


@pytest.mark.parametrize("name", ["surrogate", "similarity", "perturb"])
def test_callables_of_lime_that_are_none(name):
    refused(TypeError, name, "'cosine'", attrfn.lime, f, X, **{name: "cosine"})


def test_features_of_lime_that_are_present_in_part():
    """Integers and booleans are there or not."""
    half = lambda keys, n: torch.full((len(keys), 1, n), 0.5)  # noqa: E731
    for dtype in (torch.bool, torch.int64):
        x = torch.ones(3, 4, dtype=dtype)
        refused(TypeError, "inputs", dtype, attrfn.lime, lambda x: x.sum(1), x, perturb=half)


def test_callables_of_lime_that_return_another_shape():
    what = functools.partial(attrfn.lime, f, X, n_samples=5)
    refused(ValueError, "perturb", "list", what, perturb=lambda keys, n: [[[1] * n]] * 5)
    refused(ValueError, "perturb", "(5, 2, 8)", what, perturb=lambda k, n: torch.ones(5, 2, n))
    refused(ValueError, "similarity", "(5,)", what, similarity=lambda x, p, z: torch.ones(5))
    less = lambda x, p, z: -torch.ones(5, 1)  # noqa: E731
    refused(ValueError, "similarity", "negative", what, similarity=less)
    refused(ValueError, "surrogate", "(8,)", what, surrogate=lambda z, y, w: torch.ones(8))
    refused(ValueError, "perturb", "(5, 8)", what, perturb=lambda keys, n: torch.ones(5, n))
    refused(ValueError, "perturb", "(5, 1, 9)", what, perturb=lambda k, n: torch.ones(5, 1, n + 1))
    refused(
        ValueError,
        "transform",
        "(3, 2, 4)",
        what,
        transform=lambda z, x, x0: x,
        n_features=2,
    )
