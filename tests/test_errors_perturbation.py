"""Perturbation methods: what is refused, in a line with the argument, the got, the expected."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from perturbation_cases import FAMILY, MASKED, NET, PERTURBING, X, f, refused, takes
from registry import REGISTRY
from torch import Tensor

import attrfn

SAMPLING = {r.name: FAMILY[r.name] for r in PERTURBING if r.keyed and r.explains == "input"}
LAYERS = {r.name: r.method for r in REGISTRY if r.name in r.covers and takes(r, "layer_mask")}

masked = pytest.mark.parametrize("method", MASKED.values(), ids=MASKED)

sampling = pytest.mark.parametrize("method", SAMPLING.values(), ids=SAMPLING)
layers = pytest.mark.parametrize("method", LAYERS.values(), ids=LAYERS)


def in_form(method: Any, mask: Tensor) -> Tensor:
    """The mask for the inputs of the method: (3, 2, 4), of which the neuron's net takes (3, 4)."""
    return mask[..., 0, :] if method is MASKED["neuron_feature_ablation"] else mask


# --- feature_mask and n_features ------------------------------------------------------------------


@masked
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64])
def test_masks_that_are_no_integers(method, dtype):
    mask = in_form(method, torch.zeros(2, 4, dtype=dtype))
    refused(TypeError, "feature_mask", dtype, method, f, X, feature_mask=mask)
    refused(TypeError, "feature_mask", dtype, method, f, X, feature_mask=mask, n_features=1)


@masked
@pytest.mark.parametrize("wrong", ["0", 1.5, True], ids=repr)
def test_masks_that_are_no_tensors(method, wrong):
    refused(TypeError, "feature_mask", "", method, f, X, feature_mask=wrong)


@masked
@pytest.mark.parametrize("shape", [(5,), (3, 1), (2, 3, 2, 4), (4, 2, 4), (3, 2, 5), (0,)], ids=str)
def test_masks_of_the_wrong_shape(method, shape):
    if method is MASKED["neuron_feature_ablation"] and shape == (3, 1):
        return  # one id for each example of (3, 4)
    mask = torch.zeros(shape, dtype=torch.long)
    refused(ValueError, "feature_mask", f"{shape}", method, f, X, feature_mask=mask)


@masked
def test_masks_of_another_tree(method):
    mask = in_form(method, torch.zeros(2, 4, dtype=torch.long))
    for wrong in ((mask, mask), {"x": mask}, [mask]):
        refused(ValueError, "feature_mask", "tree", method, f, X, feature_mask=wrong)


@masked
@pytest.mark.parametrize(
    ("ids", "n", "got"),
    [
        ([0, -1, 2, 1], 2, "2"),
        ([0, 1, 2, 1], 2, "2"),
        ([0, 0, 7, 0], 4, "7"),
        ([0, 0, 0, 0], 0, "0"),
    ],
    ids=str,
)
def test_ids_outside_of_n_features(method, ids, n, got):
    mask = torch.tensor(ids)
    refused(ValueError, "feature_mask", got, method, f, X, feature_mask=mask, n_features=n)
    with pytest.raises(ValueError, match=f"n_features={n}"):
        method(f, X, feature_mask=mask, n_features=n)


@masked
@pytest.mark.parametrize("wrong", [-1, -20])
def test_n_features_below_zero(method, wrong):
    mask = torch.zeros(4, dtype=torch.long)
    refused(ValueError, "n_features", wrong, method, f, X, feature_mask=mask, n_features=wrong)
    refused(ValueError, "n_features", wrong, method, f, X, n_features=wrong)


@masked
@pytest.mark.parametrize("wrong", [2.5, "3", True, [2]], ids=repr)
def test_n_features_that_is_no_int(method, wrong):
    mask = torch.zeros(4, dtype=torch.long)
    kinds = (TypeError, ValueError)
    refused(kinds, "n_features", wrong, method, f, X, feature_mask=mask, n_features=wrong)


@masked
@pytest.mark.parametrize("wrong", [1, 9])
def test_n_features_without_a_mask(method, wrong):
    """It is then the number of elements, 8 or 4."""
    refused(ValueError, "n_features", wrong, method, f, X, n_features=wrong)


@layers
@pytest.mark.parametrize(
    ("kind", "got", "wrong"),
    [
        (TypeError, torch.float32, torch.zeros(6)),
        (TypeError, torch.bool, torch.zeros(6).bool()),
        (ValueError, "(5,)", torch.zeros(5).long()),
        (ValueError, "tree", (torch.zeros(6).long(), torch.zeros(6).long())),
    ],
    ids=["float", "bool", "shape", "tree"],
)
def test_masks_of_layers(method, kind, got, wrong):
    """In the words of these methods: the argument is layer_mask."""
    options = {"layer": "1", "target": 0}
    refused(kind, "layer_mask", got, method, NET, X[:, 0], layer_mask=wrong, **options)


@layers
def test_ids_of_layers_outside_of_n_features(method):
    mask = torch.tensor([0, 0, 1, 1, 2, 3])
    options = {"layer": "1", "target": 0, "layer_mask": mask, "n_features": 3}
    refused(ValueError, "layer_mask", "3", method, NET, X[:, 0], **options)


@pytest.mark.parametrize(
    ("kind", "got", "wrong"),
    [
        (ValueError, "(5,)", torch.zeros(5)),
        (ValueError, "tree", (0.0, 0.0)),
        (TypeError, "'mean'", "mean"),
    ],
    ids=["shape", "tree", "str"],
)
def test_baselines_of_layers(kind, got, wrong):
    """They are activations, (3, 6), and called layer_baselines."""
    what = attrfn.layer_feature_ablation
    options = {"layer": "1", "target": 0, "layer_baselines": wrong}
    refused(kind, "layer_baselines", got, what, NET, X[:, 0], **options)


def test_a_mask_of_each_example_needs_values_of_each_example():
    mask = torch.arange(3)[:, None, None].expand(3, 1, 4).contiguous()
    for method in (attrfn.feature_ablation, attrfn.shapley_values, attrfn.kernel_shap):
        got = "3 rows"
        refused(ValueError, "feature_mask", got, method, lambda x: f(x).sum(), X, feature_mask=mask)


# --- too many features ----------------------------------------------------------------------------


def test_exact_shapley_values_of_too_many_features():
    x, message = (
        torch.zeros(1, 21),
        r"21 features, expected at most 20\b.*feature_mask.*kernel_shap",
    )
    refused_features = functools.partial(pytest.raises, ValueError, match=message)
    with refused_features():
        attrfn.shapley_values(f, x)
    with refused_features():
        attrfn.shapley_values(f, x, feature_mask=torch.arange(21)[None])
    with refused_features():
        attrfn.shapley_values(f, x, feature_mask=torch.arange(21) // 2, n_features=21)


@pytest.mark.parametrize("index", ["shapley", "shapley_taylor"])
def test_exact_interactions_of_too_many_features(index):
    x = torch.zeros(1, 13)
    what = functools.partial(attrfn.interactions, index=index)
    with pytest.raises(ValueError, match=r"13 features, expected at most 12\b.*n_samples"):
        what(f, x)
    assert what(f, x, feature_mask=torch.arange(13) // 2).shape == (1, 7, 7)
    assert what(f, x, n_samples=1).shape == (1, 13, 13)


# --- windows and strides --------------------------------------------------------------------------


def occlude(**options):
    return attrfn.occlusion(f, X, **options)


@pytest.mark.parametrize("wrong", [0, -1, (0, 2), (2, -3)], ids=str)
def test_windows_and_strides_below_one(wrong):
    refused(ValueError, "window", wrong if isinstance(wrong, tuple) else "", occlude, window=wrong)
    got = wrong if isinstance(wrong, tuple) else ""
    refused(ValueError, "stride", got, occlude, window=2, stride=wrong)


@pytest.mark.parametrize("wrong", [2.5, "2", True, (2.0, 1), (1, None), torch.tensor(2)], ids=str)
def test_windows_and_strides_of_the_wrong_type(wrong):
    kinds = (TypeError, ValueError)
    refused(kinds, "window", "", occlude, window=wrong)
    refused(kinds, "stride", "", occlude, window=2, stride=wrong)


def test_no_window():
    refused(TypeError, "window", None, occlude, window=None)
    with pytest.raises(TypeError, match="window"):
        occlude()


@pytest.mark.parametrize("wrong", [(1,), (3, 2, 4), (1, 1, 1, 1)], ids=str)
def test_windows_and_strides_of_the_wrong_length(wrong):
    """One size for each of the two dimensions behind the batch."""
    refused(ValueError, "window", wrong, occlude, window=wrong)
    refused(ValueError, "stride", wrong, occlude, window=2, stride=wrong)


def test_windows_larger_than_the_input():
    refused(ValueError, "window", (3, 3), occlude, window=3)
    refused(ValueError, "window", (2, 5), occlude, window=(2, 5))


def test_strides_that_leave_gaps():
    refused(ValueError, "stride", (2, 2), occlude, window=1, stride=2)
    refused(ValueError, "stride", (1, 3), occlude, window=(1, 2), stride=(1, 3))
    occlude(window=(2, 2), stride=(9, 2))  # the window covers the first dimension


def test_windows_and_strides_of_another_tree():
    pair = (X, X[:, 0])
    what = functools.partial(attrfn.occlusion, lambda x, y: f(x) + f(y), pair)
    for wrong in ([(1, 2), 1], {"x": 1}, ((1, 2), 1, 1)):
        refused(ValueError, "window", "tree", what, window=wrong)
        refused(ValueError, "stride", "tree", what, window=1, stride=wrong)
    refused(ValueError, "window", (2, 1), what, window=(2, 1))  # 2-d sizes for the 1-d input


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "5"], ids=repr)
@pytest.mark.parametrize("stderr", [False, True])
def test_n_samples_of_interactions(wrong, stderr):
    options = {"n_samples": wrong, "return_stderr": stderr}
    kinds = (TypeError, ValueError)
    refused(kinds, "n_samples", wrong, attrfn.interactions, f, X, **options)


def test_one_coalition_is_none():
    """They come in pairs."""
    refused(ValueError, "n_samples", 1, attrfn.kernel_shap, f, X, n_samples=1)


def test_too_few_orderings_for_a_standard_error():
    what = functools.partial(attrfn.shapley_value_sampling, f, X, return_stderr=True)
    refused(ValueError, "n_samples", 1, what, n_samples=1)
    refused(ValueError, "n_samples", 3, what, n_samples=3, antithetic=True)
    with pytest.raises(ValueError, match="at least 4"):
        what(n_samples=2, antithetic=True)
    what = functools.partial(attrfn.interactions, f, X, return_stderr=True)
    refused(ValueError, "n_samples", 1, what, n_samples=1)
    refused(ValueError, "n_samples", None, what)


@pytest.mark.parametrize("wrong", [0, 0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_p(wrong):
    refused(ValueError, "p", wrong, attrfn.rise, f, X, n_samples=2, p=wrong)


@sampling
def test_keys(method):
    """In the words of attrfn.random, "must be" and "got", or of the others."""
    for wrong, got in ((1.5, "float"), ("0", "str"), (None, "NoneType"), (torch.zeros(2), "float")):
        with pytest.raises(TypeError, match=rf"^key must be .*got .*{got}"):
            method(f, X, key=wrong)
    for shape in ((3,), (4, 2), (3, 3), (1, 3, 2)):
        with pytest.raises(ValueError, match=rf"^key .*{re.escape(str(shape))}"):
            method(f, X, key=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    "method", [m for name, m in SAMPLING.items() if name != "feature_permutation"]
)
def test_keys_of_each_example_need_values_of_each_example(method):
    keys = attrfn.random.split(0, 3)
    refused(ValueError, "key", "3 rows", method, lambda x: f(x).sum(), X, key=keys)
