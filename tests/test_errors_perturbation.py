"""Perturbation methods: what is refused, in a line with the argument, the got, the expected."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from zoo import randn

import attrfn

X = randn(3, 2, 4)
MODEL = zoo.mlp(8, 3)
NET = zoo.mlp()


def f(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1)).sum(1)


def several(x: Tensor) -> Tensor:
    """(B, 3)."""
    return MODEL(x.flatten(1))


MASKED = {
    "feature_ablation": attrfn.feature_ablation,
    "feature_permutation": attrfn.feature_permutation,
    "shapley_values": attrfn.shapley_values,
    "shapley_value_sampling": attrfn.shapley_value_sampling,
    "kernel_shap": attrfn.kernel_shap,
    "lime": attrfn.lime,
    "interactions": attrfn.interactions,
    "sampled_interactions": functools.partial(attrfn.interactions, n_samples=2),
    "integrated_hessians": attrfn.integrated_hessians,
    "neuron_feature_ablation": lambda m, x, **o: attrfn.neuron_feature_ablation(
        NET, x[:, 0], layer="1", neuron=0, **o
    ),
}
FAMILY = {
    **MASKED,
    "occlusion": functools.partial(attrfn.occlusion, window=2),
    "rise": functools.partial(attrfn.rise, n_samples=3),
}
SAMPLING = {
    name: FAMILY[name]
    for name in ("feature_permutation", "shapley_value_sampling", "kernel_shap", "lime", "rise")
}
LAYERS = {
    "layer_feature_ablation": attrfn.layer_feature_ablation,
    "layer_feature_permutation": attrfn.layer_feature_permutation,
}
CAMS = {"ablation_cam": attrfn.ablation_cam, "score_cam": attrfn.score_cam}

masked = pytest.mark.parametrize("method", MASKED.values(), ids=MASKED)
family = pytest.mark.parametrize("method", FAMILY.values(), ids=FAMILY)
sampling = pytest.mark.parametrize("method", SAMPLING.values(), ids=SAMPLING)
layers = pytest.mark.parametrize("method", LAYERS.values(), ids=LAYERS)
cams = pytest.mark.parametrize("method", CAMS.values(), ids=CAMS)


def refused(
    kind: type[Exception] | tuple[type[Exception], ...],
    name: str,
    got: object,
    what: Any,
    *args: Any,
    **options: Any,
) -> None:
    """One line that begins with the argument, then has what came, then what was expected."""
    pattern = rf"^{re.escape(name)}\b.*{re.escape(str(got))}.*\bexpected\b"
    with pytest.raises(kind, match=pattern) as error:
        what(*args, **options)
    assert "\n" not in str(error.value)


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
        ([0, -1, 1, 1], 2, "-1"),
        ([-5, -5, -5, -5], 1, "-5"),
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


@sampling
@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "5", None], ids=repr)
def test_n_samples(method, wrong):
    options = {"n_samples": wrong}
    kinds = (TypeError, ValueError)
    refused(kinds, "n_samples", repr(wrong), method, f, X, **options)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "5"], ids=repr)
@pytest.mark.parametrize("stderr", [False, True])
def test_n_samples_of_interactions(wrong, stderr):
    options = {"n_samples": wrong, "return_stderr": stderr}
    kinds = (TypeError, ValueError)
    refused(kinds, "n_samples", wrong, attrfn.interactions, f, X, **options)


def test_n_samples_of_layer_feature_permutation():
    options = {"layer": "1", "target": 0, "n_samples": 0}
    refused(ValueError, "n_samples", 0, attrfn.layer_feature_permutation, NET, X[:, 0], **options)


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


@pytest.mark.parametrize("wrong", [0, -7, 3.5, True, "7", None], ids=repr)
def test_grid(wrong):
    kinds = (TypeError, ValueError)
    refused(kinds, "grid", repr(wrong), attrfn.rise, f, X, n_samples=2, grid=wrong)


@pytest.mark.parametrize("wrong", [0, 0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_p(wrong):
    refused(ValueError, "p", wrong, attrfn.rise, f, X, n_samples=2, p=wrong)


@pytest.mark.parametrize("wrong", ["half", None, [0.5]], ids=repr)
def test_p_of_the_wrong_type(wrong):
    refused((TypeError, ValueError), "p", wrong, attrfn.rise, f, X, n_samples=2, p=wrong)


@pytest.mark.parametrize("wrong", ["taylor", "Shapley", "", None, 2], ids=repr)
def test_index(wrong):
    refused(ValueError, "index", repr(wrong), attrfn.interactions, f, X, index=wrong)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "5", None], ids=repr)
def test_n_steps(wrong):
    refused(ValueError, "n_steps", repr(wrong), attrfn.integrated_hessians, f, X, n_steps=wrong)


@family
@pytest.mark.parametrize("wrong", [0, -3, 2.0, "all", True], ids=repr)
def test_chunk_size(method, wrong):
    refused(ValueError, "chunk_size", repr(wrong), method, f, X, chunk_size=wrong)


@family
@pytest.mark.parametrize("wrong", ["folded", None, 1], ids=repr)
def test_batching(method, wrong):
    refused(ValueError, "batching", repr(wrong), method, f, X, batching=wrong)


@pytest.mark.parametrize("method", (LAYERS | CAMS).values(), ids=LAYERS | CAMS)
def test_chunks_of_layer_methods(method):
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    options = {"layer": "4", "target": 0}
    refused(ValueError, "chunk_size", "0", method, model, x, chunk_size=0, **options)
    refused(ValueError, "batching", "'all'", method, model, x, batching="all", **options)


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
def test_baselines_of_integers(name):
    """A fraction would be cut off."""
    method, ids = FAMILY[name], torch.ones(3, 2, 4, dtype=torch.long)
    if name == "neuron_feature_ablation":
        return
    refused(TypeError, "baselines", 0.5, method, lambda x: f(x.double()), ids, baselines=0.5)
    start = torch.zeros(4)
    refused(TypeError, "baselines", "Tensor", method, lambda x: f(x.double()), ids, baselines=start)


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
    with pytest.raises(ValueError, match=r"^target is None.*\(3, 3\)"):
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

PLAIN = [m for name, m in FAMILY.items() if name not in ("integrated_hessians",)]
PLAIN.remove(MASKED["neuron_feature_ablation"])
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
    """Neither three rows nor one value."""
    for wrong in (lambda x: f(x)[:2], lambda x: f(x).repeat(2)):
        with pytest.raises(ValueError, match=r"returned shape \(\d,\) for 3 row.*expected"):
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
