"""Sparse tensors, packed sequences, inference mode and slots: as dense tensors and as no_grad."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from zoo import make, randn

import attrfn

METHODS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(attrfn, name)
        for name in (
            *("gradient", "input_x_gradient", "integrated_gradients", "feature_ablation"),
            *("shapley_values", "kernel_shap", "lime", "saliency"),
        )
    },
    "occlusion": functools.partial(attrfn.occlusion, window=1),
    "smoothgrad": attrfn.noise_tunnel(attrfn.gradient, n_samples=2, stdevs=0.1),
}


def zeros() -> Tensor:
    x = randn(3, 4)
    x[0, 1] = x[2, 2] = 0
    return x


class Product(nn.Module):
    """Of a dense or sparse matrix and its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(randn(4, 2, seed=3))
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.w if x.layout == torch.strided else torch.sparse.mm(x, self.w)
        return self.act(product)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_inputs(kind: str, name: str) -> None:
    """As the dense ones, with the zeros that are not stored; attributions are dense."""
    model, x, options = make(Product), zeros(), {"target": 1}
    method = METHODS[name]
    found = method(model, getattr(x, kind)(), **options)
    assert found.layout == torch.strided
    torch.testing.assert_close(found, method(model, x, **options))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_inputs_at_layers_and_beside_dense_ones() -> None:
    model, x = make(Product), zeros()
    at_layer = functools.partial(attrfn.layer_feature_ablation, layer="act", target=1)
    torch.testing.assert_close(at_layer(model, x.to_sparse_csr()), at_layer(model, x))
    two = lambda x, y: model(x) + y  # noqa: E731
    y = randn(3, 2, seed=5)
    found = attrfn.gradient(two, (x.to_sparse(), y), target=0)
    expected = attrfn.gradient(two, (x, y), target=0)
    torch.testing.assert_close(found, expected)


def test_other_layouts_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^inputs holds a tensor of torch\.sparse_csc"):
        attrfn.gradient(make(Product), zeros().to_sparse_csc(), target=0)


class Recurrent(nn.Module):
    """Takes a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Any) -> Tensor:
        return self.out(pad_packed_sequence(self.rnn(x)[0], batch_first=True)[0].sum(1))


def packed(x: Tensor) -> Any:
    lengths = torch.tensor([2, 3, 1])
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "feature_ablation"])
def test_packed_inputs(name: str) -> None:
    """As a loop over the sequences, each of its own length; zeros behind their ends."""
    model, x, method = make(Recurrent), randn(3, 3, 4), METHODS[name]
    found = method(model, packed(x), target=1)
    assert found.shape == x.shape
    for i, length in enumerate((2, 3, 1)):
        one = x[i : i + 1, :length]
        alone = lambda v: model.out(model.rnn(v)[0].sum(1))  # noqa: E731
        torch.testing.assert_close(found[i : i + 1, :length], method(alone, one, target=1))
        assert not found[i, length:].any()


@pytest.mark.parametrize("at", ["input", "output"])
def test_packed_layers_of_packed_inputs(at: str) -> None:
    """The data of the layer's value, step by step; each element is replaced by zero alone."""
    model, x = make(Recurrent), randn(3, 3, 4)
    found = attrfn.layer_feature_ablation(model, packed(x), layer="rnn", at=at, target=1)
    value = attrfn.layer_activation(model, packed(x), layer="rnn", at=at)
    found, value = (found, value) if at == "input" else (found[0], value[0])
    assert torch.equal(found.batch_sizes, value.batch_sizes)
    if at == "output":  # a sum over the steps and a linear layer follow
        torch.testing.assert_close(found.data, value.data * model.out.weight[1])
        return
    full = model(packed(x))[:, 1].sum()
    for i in range(len(value.data)):
        for j in range(4):
            data = value.data.index_put(
                (torch.tensor(i), torch.tensor(j)), torch.zeros(()).double()
            )
            lost = full - model(value._replace(data=data))[:, 1].sum()
            torch.testing.assert_close(found.data[i, j], lost)


class Inside(nn.Module):
    """A part without a graph, in a mode that the test chooses."""

    mode: Any = torch.no_grad

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            gate = self.gate(x).sigmoid()
        return self.out(torch.tanh(x) * gate)


@pytest.mark.parametrize("name", [*METHODS, "lrp", "layer"])
def test_inference_mode_inside_a_model(name: str) -> None:
    """As under no_grad, which torch lets autograd go on from."""
    model, x = make(Inside), randn(3, 4)
    method = {
        **METHODS,
        "lrp": attrfn.lrp,
        "layer": functools.partial(attrfn.layer_gradient_x_activation, layer="out"),
    }[name]
    expected = method(model, x, target=1)
    model.mode = torch.inference_mode
    for _ in range(2):
        torch.testing.assert_close(method(model, x, target=1), expected)
    hidden = [] if name == "layer" else [lambda x: model(x)]
    for f in hidden:
        torch.testing.assert_close(method(f, x, target=1), expected)


@pytest.mark.parametrize("name", [*METHODS, "deep_lift", "lrp"])
def test_models_built_in_inference_mode(name: str) -> None:
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)
    )
    method, x = getattr(attrfn, name, METHODS.get(name)), randn(3, 4)
    method = METHODS.get(name, method)
    expected = method(make(build), x, target=1)
    with torch.inference_mode():
        model = make(build)
    assert model[0].weight.is_inference()
    for f in (model, model.forward, lambda x: model(x)):
        torch.testing.assert_close(method(f, x, target=1), expected)
    mapped = torch.func.vmap(lambda row: attrfn.gradient(model, row[None], target=1)[0])(x)
    torch.testing.assert_close(mapped, attrfn.gradient(make(build), x, target=1))


class Slotted(nn.Module):
    """Keeps a number and a tensor outside of its dictionary."""

    __slots__ = ("count", "scale")

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "scale", torch.tensor([2.0, 3.0]).double())
        object.__setattr__(self, "count", 0)
        self.lin = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        object.__setattr__(self, "count", self.count + 1)
        return self.lin(x) * self.scale * self.count


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "deep_lift", "occlusion"])
def test_modules_with_slots(name: str) -> None:
    """Each run starts from the user's values, which stay as they are."""
    model, x = make(Slotted), randn(3, 4)
    found = METHODS.get(name, attrfn.deep_lift)(model, x, target=1)
    assert model.count == 0
    factor = 3 * model.lin.weight[1].detach().expand(3, 4)
    torch.testing.assert_close(found, factor if name == "gradient" else x * factor)


@pytest.mark.parametrize(
    "make_script", [torch.jit.script, lambda m: torch.jit.trace(m, randn(3, 4))]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_layers_of_scripted_models(make_script: Callable[..., Any]) -> None:
    model = make_script(make(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))))
    assert "0" in dict(model.named_modules())
    for f, layer in ((model, "0"), (nn.Sequential(model, nn.Tanh()), "0")):
        with pytest.raises(
            ValueError, match=r"^layer '0' is a scripted or traced module, or a part"
        ):
            attrfn.layer_activation(f, randn(3, 4), layer=layer)


def test_padded_encoders_are_explained_on_their_ordinary_path() -> None:
    """With and without derivatives: for a linear target of the outputs both are one function."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    encoder = make(lambda: nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    padding = torch.tensor([[False, False, True], [False, True, True]])
    model = lambda x: encoder(x, src_key_padding_mask=padding.repeat(len(x) // 2, 1))  # noqa: E731
    bound = functools.partial(encoder, src_key_padding_mask=padding)
    x = randn(2, 3, 4)
    padded = lambda o: o[:, 2, 0]  # noqa: E731
    with torch.enable_grad():
        ordinary = padded(model(x.requires_grad_())).detach()
        zero = padded(model(torch.zeros_like(x).requires_grad_())).detach()
    mask = torch.zeros(3, 4, dtype=torch.long)
    found = attrfn.feature_ablation(bound, x.detach(), target=padded, feature_mask=mask)
    torch.testing.assert_close(found[:, 0, 0], ordinary - zero)
