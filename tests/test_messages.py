"""Messages say what is true: following one leads to a result."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from torch import Tensor, nn
from zoo import make, mlp, randn

import attrfn

MODEL = mlp(4, 3)
X = randn(2, 4)


def said(f, *args, **options) -> str:
    with pytest.raises((TypeError, ValueError)) as raised:
        f(*args, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) <= 300
    return message


@pytest.mark.parametrize("method", [attrfn.gradient, attrfn.lrp, attrfn.integrated_gradients])
def test_a_model_of_one_example(method) -> None:
    """The advice holds for every method, also for those without an option ``batching``."""
    weights = randn(3, 4)
    one = lambda x: nn.functional.linear(x.flatten()[:4], weights)  # noqa: E731
    message = said(method, one, X, target=1)
    assert "wrap a model of one example in torch.func.vmap" in message
    assert "batching" not in message
    if method is not attrfn.lrp:
        assert method(torch.func.vmap(one), X, target=1).shape == X.shape


def test_a_node_of_a_graph() -> None:
    """All rows are one example: x[None] is what works."""
    adjacency = torch.tensor([[0.5, 0.5], [0.0, 1.0]]).double()
    net = lambda x: MODEL(adjacency @ x)  # noqa: E731
    message = said(attrfn.gradient, net, X, target=(1, 2))
    assert "or inputs x[None] if all 2 rows are one example" in message
    found = attrfn.integrated_gradients(net, X[None], target=(1, 2), batching="vmap", n_steps=3)
    assert found.shape == (1, 2, 4)
    assert not found[0, 0].any()


def test_a_callable_target_that_returns_too_much() -> None:
    outputs = lambda x: {"cls": MODEL(x)}  # noqa: E731
    message = said(attrfn.feature_ablation, outputs, X, target=lambda o: o["cls"])
    assert message.endswith("choose one of the 3 of each row, or sum them")
    attrfn.feature_ablation(outputs, X, target=lambda o: o["cls"][:, 0])
    neuron = said(attrfn.neuron_gradient, MODEL, X, layer="0", neuron=lambda a: a)
    assert neuron.startswith("the callable neuron returned")
    assert "chunk_size" not in neuron


def test_a_tuple_of_an_int_and_a_mapped_tensor() -> None:
    """vmap over the target of one dimension, against the numbers one by one."""
    model = lambda x: MODEL(x).unsqueeze(1) * torch.tensor([[1.0], [2.0]]).double()  # noqa: E731
    t = torch.tensor([0, 2, 1])
    mapped = torch.func.vmap(lambda t: attrfn.gradient(model, X, target=(1, t)))(t)
    for i, k in enumerate(t.tolist()):
        torch.testing.assert_close(mapped[i], attrfn.gradient(model, X, target=(1, k)))
    assert "among tensors" in said(attrfn.gradient, model, X, target=(1.5, t[0]))


@pytest.mark.parametrize("index", [(0, 5), (2, 0), (0, -4)])
def test_tensors_of_indices_out_of_range_under_vmap(index: tuple[int, int]) -> None:
    """(0, 5) of outputs (2, 3) is the place of (1, 2), if sizes are multiplied first."""
    model = lambda x: MODEL(x).unsqueeze(1) * torch.tensor([[1.0], [2.0]]).double()  # noqa: E731
    t = torch.tensor([index])
    message = said(torch.func.vmap(lambda t: attrfn.gradient(model, X[:1], target=(t[0], t[1]))), t)
    assert message.startswith("target failed: index")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtypes_of_inputs_and_model(dtype: torch.dtype) -> None:
    message = said(attrfn.saliency, MODEL, X.to(dtype), target=0)
    assert message.startswith("model_fn failed on inputs, a tensor of shape (2, 4)")
    assert message.endswith(f"(inputs are {dtype} and the parameters of model_fn torch.float64)")


def test_devices_of_inputs_and_model() -> None:
    message = said(attrfn.saliency, MODEL, X.to("meta"), target=0)
    assert message.startswith("inputs are on meta and model_fn is on cpu")


def test_errors_of_a_model_keep_their_class_and_cause() -> None:
    def fails(x: Tensor) -> Tensor:
        return x @ torch.ones(7, 2).double()

    for kind in (RuntimeError, ValueError):
        with pytest.raises(kind, match=r"^model_fn failed on inputs") as raised:
            attrfn.integrated_gradients(fails, X)
    assert type(raised.value.__cause__) is RuntimeError
    assert type(pickle.loads(pickle.dumps(raised.value))) is RuntimeError

    class Own(RuntimeError):
        pass

    def raises(x: Tensor) -> Tensor:
        raise Own("mine")

    with pytest.raises(Own, match=r"^mine$"):
        attrfn.integrated_gradients(raises, X)


def test_errors_at_layers_speak_of_the_inputs_of_the_user() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    for method in (attrfn.layer_integrated_gradients, attrfn.layer_gradient_x_activation):
        message = said(method, model, randn(2, 7), layer="1", target=0)
        assert "a tensor of shape (2, 7)" in message
    at = functools.partial(attrfn.at_layer(attrfn.gradient, "1"), model, randn(2, 7))
    assert "a tensor of shape (2, 7)" in said(at, target=0)
