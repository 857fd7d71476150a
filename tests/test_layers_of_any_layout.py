"""Layers whose value does not have the examples in dimension 0, for all layer and neuron methods.

What a method finds at such a layer is what it finds at the identity behind it that sees rows of
examples. That identity is explained as any layer is, and plain gradients are those of autograd.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optree
import pytest
import torch
from layout_nets import LAID, Laid
from made_methods import at_layer, at_neuron
from models import targets
from registry import REGISTRY, ROWS, Row
from torch import Tensor

import attrfn

# Noise is drawn for what a method sees, which is the whole value where no row is known.
DRAWS_AT_LAYER = {"layer_smoothgrad", "layer_gradient_shap"}
WITHOUT_ROWS = {"layer_gradient_x_activation", "layer_lrp", "ensemble_of_noisy_layers"}
EXCHANGES = {"layer_feature_permutation"}
MAPS = [r.name for r in REGISTRY if r.layer and (r.explains == "map" or r.images)]
LAYERS = [r.name for r in REGISTRY if r.explains == "layer" and r.name != "layer_activation"]
NEURONS = [r.name for r in REGISTRY if r.neuron]

nets = pytest.mark.parametrize("net", LAID)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that a method has for models without a ReLU, and for few samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def given(r: Row, x: Tensor) -> dict[str, Any]:
    """What a method is called with, besides the layer."""
    options: dict[str, Any] = {k: v for k, v in r.options.items() if k not in ("upsample", "relu")}
    if r.target:
        options["target"] = targets(len(x))
    if r.baselines:
        options["baselines"] = 0.1 if r.baselines == "point" else 0.3 * x[:2].flip(-1)
    if r.name == "layer_gradient_shap":
        options["stdevs"] = 0.0
    return options


def method_of(r: Row, rows: Any) -> Callable[..., Any]:
    """The method of a row with the option ``rows``, which those made by functions get there."""
    made = {
        "layer_saliency": lambda: at_layer(attrfn.saliency, rows=rows),
        "layer_smoothgrad": lambda: at_layer(
            attrfn.noise_tunnel(attrfn.gradient, n_samples=3, stdevs=0.2), rows=rows
        ),
        "noisy_layer_saliency": lambda: tunnel(at_layer(attrfn.saliency, rows=rows)),
        "neuron_saliency": lambda: at_neuron(attrfn.saliency, rows=rows),
        "neuron_smoothgrad": lambda: at_neuron(
            attrfn.noise_tunnel(attrfn.gradient, n_samples=3, stdevs=0.2), rows=rows
        ),
        "noisy_neuron_saliency": lambda: tunnel(at_neuron(attrfn.saliency, rows=rows)),
    }
    if r.name in made:
        inner = made[r.name]()
        return lambda f, x, n_samples=3, **options: inner(f, x, **options)
    if rows is None or r.name in WITHOUT_ROWS:
        return r.method
    return functools.partial(r.method, rows=rows)


def tunnel(method: Callable[..., Any]) -> Callable[..., Any]:
    return attrfn.noise_tunnel(method, n_samples=3, stdevs=0.2)


def found_at(name: str, net: Laid, x: Tensor, layer: str, rows: Any = None, **options: Any) -> Any:
    r = ROWS[name]
    with quiet():
        return method_of(r, rows)(net.build(), x, layer=layer, **given(r, x), **options)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@nets
@pytest.mark.parametrize("name", LAYERS)
def test_layer_methods(name: str, net: str) -> None:
    """As at rows of examples, whether the layout is named or not."""
    laid, x = LAID[net], LAID[net].inputs()
    expected = laid.back(found_at(name, laid, x, "there"))
    named = laid.tensor(found_at(name, laid, x, "mid", laid.rows))
    close(named, expected)
    if name in EXCHANGES:
        with pytest.raises(
            ValueError, match=r"^rows is None, but the method covers regions or exchanges"
        ):
            found_at(name, laid, x, "mid")
        return
    whole = laid.tensor(found_at(name, laid, x, "mid"))
    assert whole.shape == expected.shape
    if name != "layer_smoothgrad":
        close(whole, expected)


@nets
def test_gradients_are_those_of_autograd(net: str) -> None:
    laid, x = LAID[net], LAID[net].inputs()
    model = laid.build()
    module, values = getattr(model, "func", model), list[Any]()
    hook = module.mid.register_forward_hook(lambda m, i, out: values.append(out))
    outputs = model(x)
    hook.remove()
    a = laid.tensor(values[0])
    (g,) = torch.autograd.grad(outputs.gather(1, targets(len(x))[:, None]).sum(), a)
    found = attrfn.layer_gradient_x_activation(model, x, layer="mid", target=targets(len(x)))
    close(laid.tensor(found), (a * g).detach())
    assert type(found) is type(attrfn.layer_activation(model, x, layer="mid"))


@nets
@pytest.mark.parametrize("name", MAPS)
def test_class_activation_maps(name: str, net: str) -> None:
    """By a function that brings the value to images; without one they are refused."""
    laid, x = LAID[net], LAID[net].inputs()
    there, mid = laid.reshape[1], laid.reshape[0]
    if ROWS[name].images and net not in ("frames", "windows"):
        pytest.skip("the inputs have no dimensions of the map")
    expected = found_at(name, laid, x, "there", reshape=there)
    close(found_at(name, laid, x, "mid", reshape=mid), expected)
    with pytest.raises(ValueError, match=r"^layer 'mid' does not have the examples in dimension 0"):
        found_at(name, laid, x, "mid")


@nets
@pytest.mark.parametrize("name", NEURONS)
def test_neuron_methods(name: str, net: str) -> None:
    """An index needs to know the layout; a callable says by itself where the neuron is."""
    laid, x = LAID[net], LAID[net].inputs()
    expected = found_at(name, laid, x, "there", neuron=laid.neuron)
    close(found_at(name, laid, x, "mid", laid.rows, neuron=laid.neuron), expected)
    # Of a value with several tensors an index picks nothing anyway.
    wanted = TypeError if net in ("packed", "time first, with states") else ValueError
    if name == "neuron_conductance":
        wanted = ValueError
    with pytest.raises(wanted, match=r"neuron as a callable|or give a callable neuron"):
        found_at(name, laid, x, "mid", neuron=laid.neuron)

    def picked(value: Any) -> Tensor:
        return laid.move(value)[(slice(None), *laid.neuron)]

    close(found_at(name, laid, x, "mid", neuron=picked), expected)


@nets
@pytest.mark.parametrize("name", [n for n in LAYERS if n not in EXCHANGES | DRAWS_AT_LAYER])
def test_an_example_alone_is_as_in_the_batch(name: str, net: str) -> None:
    laid, x = LAID[net], LAID[net].inputs()
    if net == "packed":
        pytest.skip("an example alone has other lengths bound")
    whole = laid.move(found_at(name, laid, x, "mid"))
    r = ROWS[name]
    for i in range(len(x)):
        one = x[i : i + 1]
        options = {**given(r, x), "target": targets(len(x))[i : i + 1]}
        with quiet():
            alone = method_of(r, None)(laid.build(), one, layer="mid", **options)
        close(laid.move(alone)[0], whole[i])


@nets
def test_chunks_do_not_matter(net: str) -> None:
    laid, x = LAID[net], LAID[net].inputs()
    for name in ("layer_integrated_gradients", "layer_conductance", "layer_feature_ablation"):
        expected = laid.tensor(found_at(name, laid, x, "mid"))
        for rows in (None, laid.rows):
            for options in ({"chunk_size": 1}, {"chunk_size": 2}, {"batching": "loop"}):
                found = found_at(name, laid, x, "mid", rows, **options)
                close(laid.tensor(found), expected)


@nets
def test_structure_of_the_result(net: str) -> None:
    """That of the layer's value; the lengths of a packed sequence are unchanged."""
    laid, x = LAID[net], LAID[net].inputs()
    value = attrfn.layer_activation(laid.build(), x, layer="mid")
    for rows in (None, laid.rows):
        found = found_at("layer_integrated_gradients", laid, x, "mid", rows)
        kinds = optree.tree_structure(found, none_is_leaf=True)
        assert kinds == optree.tree_structure(value, none_is_leaf=True)
        if net == "packed":
            assert torch.equal(found[0].batch_sizes, value[0].batch_sizes)
            assert torch.equal(found[0].unsorted_indices, value[0].unsorted_indices)


@nets
@pytest.mark.parametrize("name", ["occlusion", "rise", "feature_permutation"])
def test_methods_that_need_to_know_the_examples(name: str, net: str) -> None:
    """They cover regions of an example, or exchange parts, and ask for the layout."""
    laid, x = LAID[net], LAID[net].inputs()
    options = {"occlusion": {"window": 1}, "rise": {"n_samples": 2}}.get(name, {})
    with pytest.raises(ValueError, match=r"^rows is None, but the method covers regions"):
        attrfn.at_layer(getattr(attrfn, name), "mid")(laid.build(), x, target=1, **options)


@nets
def test_masks_ask_for_the_layout(net: str) -> None:
    """A feature of several examples would have the sum of their changes."""
    laid, x = LAID[net], LAID[net].inputs()
    mask = torch.zeros((), dtype=torch.long)
    with pytest.raises(ValueError, match=r"^layer_mask says which elements belong together"):
        attrfn.layer_feature_ablation(laid.build(), x, layer="mid", target=1, layer_mask=mask)
    ablation = attrfn.at_layer(attrfn.feature_ablation, "mid")
    with pytest.raises(ValueError, match=r"^feature_mask says which elements belong together"):
        ablation(laid.build(), x, target=1, feature_mask=mask)
    if net == "time first, with states":
        return
    options = {"target": 1, "layer_mask": mask}
    expected = attrfn.layer_feature_ablation(laid.build(), x, layer="there", **options)
    options["rows"] = laid.rows
    found = attrfn.layer_feature_ablation(laid.build(), x, layer="mid", **options)
    if net != "packed":  # whose states are another tensor of the same feature
        close(laid.tensor(found), laid.back(expected))


@nets
def test_masks_and_baselines_in_the_layout_of_the_value(net: str) -> None:
    """Of the shape of the layer's value, they are moved with it."""
    laid, x = LAID[net], LAID[net].inputs()
    value = attrfn.layer_activation(laid.build(), x, layer="there")
    numbers = torch.arange(value[0].numel()).reshape(value[:1].shape) % 3
    mask, base = numbers.expand(value.shape), 0.1 * value.flip(1)
    expected = attrfn.layer_feature_ablation(
        laid.build(), x, layer="there", target=1, layer_mask=mask, layer_baselines=base
    )
    own_mask, own_base = laid.back(mask), laid.back(base)
    if net in ("packed", "time first, with states"):
        pytest.skip("a value with several tensors takes a tree of masks")
    found = attrfn.layer_feature_ablation(
        *(laid.build(), x),
        **{"layer": "mid", "target": 1, "rows": laid.rows},
        **{"layer_mask": own_mask, "layer_baselines": own_base},
    )
    close(laid.tensor(found), laid.back(expected))
