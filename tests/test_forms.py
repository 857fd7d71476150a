"""Forms of methods: signatures, docstrings, unknown options, options with a row per example."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from models import NETS
from registry import REGISTRY
from torch import Tensor, nn

import attrfn

PUBLIC = {
    name: getattr(attrfn, name)
    for r in REGISTRY
    for name in r.covers
    if inspect.isfunction(getattr(attrfn, name))
}
AT_LAYERS = [name for name, f in PUBLIC.items() if "layer" in inspect.signature(f).parameters]
# Those that read along the path of the inputs take layers downstream of one another: all maps of
# cam.py, and these.
READING = {name for name, f in PUBLIC.items() if f.__module__ == "attrfn._methods.cam"} | {
    "layer_activation",
    "layer_gradient_x_activation",
    "layer_conductance",
    "internal_influence",
    "layer_lrp",
    "score_cam",
    "guided_grad_cam",
}
NEEDS: dict[str, dict[str, Any]] = {
    "layer_gradient_shap": {"baselines": torch.zeros(2, 3, 6, 6)},
    "layer_deep_lift_shap": {"baselines": torch.zeros(2, 3, 6, 6)},
}
lists = pytest.mark.parametrize(
    "name", [n for n in AT_LAYERS if "neuron" not in n and n not in ("at_layer", "split")]
)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.other = nn.Conv2d(3, 5, 3, padding=1)
        self.out = nn.Linear(5 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x)))) + torch.tanh(self.other(x))
        return self.out(h.flatten(1))


def run(name: str, layer: Any) -> Any:
    torch.manual_seed(1)
    model, x = Cnn().eval(), torch.randn(2, 3, 6, 6)
    options = dict(NEEDS.get(name, {}))
    if name != "layer_activation" and name != "eigen_cam":
        options["target"] = 1
    if name == "guided_grad_cam":
        model.act = nn.ReLU()  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="no ReLU") if name == "guided_grad_cam" else _quiet():
        return getattr(attrfn, name)(model, x, layer=layer, **options)


class _quiet:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_is_explained(name: str) -> None:
    doc = inspect.getdoc(PUBLIC[name]) or ""
    arguments = re.search(r"^Args:\n([\s\S]*?)\n\n", doc, re.MULTILINE)
    assert arguments is not None
    said = re.findall(r"^    (\w+): ", arguments[1], re.MULTILINE)
    assert said == list(inspect.signature(PUBLIC[name]).parameters)
    assert "See :func:" not in arguments[1]


@pytest.mark.parametrize("name", PUBLIC)
def test_sections_come_in_order(name: str) -> None:
    doc = inspect.getdoc(PUBLIC[name]) or ""
    found = re.findall(r"^(Args|Returns|Raises|Example|Reference):$", doc, re.MULTILINE)
    assert found == [s for s in ("Args", "Returns", "Raises", "Example", "Reference") if s in found]
    assert {"Args", "Returns", "Example"} <= set(found)


def test_a_misspelt_option_of_a_form_is_refused_with_the_near_name() -> None:
    model, x = NETS["mlp"].build(), NETS["mlp"].inputs()
    with pytest.raises(
        TypeError, match=r"n_step is not an option of layer_integrated_g.*'n_steps'"
    ):
        attrfn.layer_integrated_gradients(model, x, layer="mid", target=0, n_step=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'upsample'"):
        attrfn.grad_cam(model, x, layer="mid", target=0, upsampled="nearest")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="zzz is not an option of neuron_gradient: it takes layer"):
        attrfn.neuron_gradient(model, x, layer="mid", neuron=0, zzz=1)  # type: ignore[call-arg]


# --- lists of layers ----------------------------------------------------------------------------


@lists
def test_an_empty_list_of_layers_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="layer is an empty list, expected at least one layer"):
        run(name, [])


@lists
def test_layers_downstream_of_one_another(name: str) -> None:
    """Read along the path of the inputs: each as alone; replaced: refused by name."""
    if name in READING:
        both = run(name, ["first", "second"])
        for layer, found in zip(("first", "second"), both, strict=True):
            assert_close(found, run(name, layer))
    else:
        with pytest.raises(ValueError, match="layer 'second' depends on"):
            run(name, ["first", "second"])


@lists
def test_independent_layers_give_a_list(name: str) -> None:
    both = run(name, ["second", "other"])
    assert isinstance(both, list)
    assert [t.shape for t in both] == [run(name, layer).shape for layer in ("second", "other")]


@pytest.mark.filterwarnings("ignore:the model returns something else for a batch alone")
@lists
def test_a_list_with_a_layer_that_gives_nothing_raises_as_that_layer_does(name: str) -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(0)

    class Model(Cnn):
        def __init__(self) -> None:
            super().__init__()
            self.rows = Rows()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.rows(torch.tanh(x)).mean()

    if name in ("layer_activation", "score_cam", "eigen_cam"):
        pytest.skip("any value will do, or the test net has no map there")
    model, x = Model().eval(), torch.randn(2, 3, 6, 6)
    explain = functools.partial(getattr(attrfn, name), model, x, target=1, **NEEDS.get(name, {}))
    messages = []
    for layer in ("rows", ["other", "rows"]):
        warns = pytest.warns(UserWarning, match="no ReLU") if "guided" in name else _quiet()
        with warns, pytest.raises(ValueError, match="'rows' gives no floating tensor") as raised:
            explain(layer=layer)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


class Seq2Seq(nn.Module):
    """Two embeddings that meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, source: Tensor, so_far: Tensor) -> Tensor:
        return torch.tanh(self.encode(source) * self.decode(so_far)).sum(1)


@pytest.mark.parametrize("pool", [False, True])
def test_deep_lift_of_two_embeddings_together_is_complete(pool: bool) -> None:
    model = Seq2Seq().double()
    x = (torch.randn(2, 3).double(), torch.randn(2, 3).double())
    layer = ["encode", "decode"]
    zero = tuple(torch.zeros(1, 3).double() for _ in x)
    if pool:
        found = attrfn.layer_deep_lift_shap(model, x, layer=layer, baselines=zero)
    else:
        found = attrfn.layer_deep_lift(model, x, layer=layer)
    total = found[0].sum(1) + found[1].sum(1)
    assert_close(total, model(*x) - model(*zero), rtol=0, atol=1e-12)


def test_features_of_two_layers_are_ablated_together() -> None:
    model = Seq2Seq().double()
    x = (torch.randn(2, 3).double(), torch.randn(2, 3).double())
    mask = [torch.zeros(4, dtype=torch.long)] * 2  # one feature in both layers
    found = attrfn.layer_feature_ablation(model, x, layer=["encode", "decode"], layer_mask=mask)
    assert_close(found[0], model(*x)[:, None].expand(2, 4))
    assert_close(found[0], found[1])


# --- options with a row per example ---------------------------------------------------------------


def noisy(method: Callable[..., Any]) -> Callable[..., Any]:
    return attrfn.noise_tunnel(method, n_samples=3, stdevs=0.2, key=7)


@pytest.mark.parametrize("chunk_size", [1, 2, None])
@pytest.mark.parametrize("option", ["layer_baselines", "layer_mask", "shared_mask", "square_mask"])
def test_noise_tunnel_repeats_options_of_layers(option: str, chunk_size: int | None) -> None:
    """Each example in a batch as alone; what only broadcasts to the activation stays as it is."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 2))
    model = model.double()
    x = torch.randn(2, 3).double()
    options: dict[str, Tensor] = {
        "layer_baselines": {"layer_baselines": torch.randn(2, 2, 4).double()},
        "layer_mask": {"layer_mask": torch.randint(0, 3, (2, 2, 4)), "n_features": 3},
        "shared_mask": {"layer_mask": torch.tensor([0, 1, 1, 2])},
        "square_mask": {"layer_mask": torch.tensor([[0, 1, 1, 2], [2, 1, 0, 0]])},  # as many rows
    }[option]  # type: ignore[assignment]
    method = attrfn.noise_tunnel(
        attrfn.layer_feature_ablation, n_samples=3, stdevs=0.2, key=7, chunk_size=chunk_size
    )
    whole = method(model, x, layer="1", target=1, **options)
    for i in range(2):
        own = {
            k: v[i : i + 1] if isinstance(v, Tensor) and v.ndim == 3 else v
            for k, v in options.items()
        }
        assert_close(method(model, x[i : i + 1], layer="1", target=1, **own)[0], whole[i])


def test_noise_tunnel_leaves_a_mask_that_looks_like_rows() -> None:
    """A mask (D,) or (C, D) that has as many entries as there are examples is no row of them."""
    x = torch.randn(4, 4).double()
    f = lambda x: (x**2).sum(1)  # noqa: E731
    mask = torch.tensor([0, 0, 1, 1])
    whole = noisy(attrfn.feature_ablation)(f, x, feature_mask=mask)
    for i in range(4):
        alone = noisy(attrfn.feature_ablation)(f, x[i : i + 1], feature_mask=mask)
        assert_close(alone[0], whole[i])


def test_noise_tunnel_repeats_masks_of_a_moved_method() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, mask = torch.randn(2, 3).double(), torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    method = noisy(attrfn.at_layer(attrfn.feature_ablation, "1"))
    whole = method(model, x, target=0, feature_mask=mask, n_features=2)
    for i in range(2):
        alone = method(model, x[i : i + 1], target=0, feature_mask=mask[i : i + 1], n_features=2)
        assert_close(alone[0], whole[i])
