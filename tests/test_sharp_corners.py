"""Corners where rows, options or attributes could be mixed up."""

import functools

import pytest
import torch
import zoo
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import attrfn

X = zoo.randn(3, 4)
NET = nn.Sequential(
    nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)
).double()


class One(nn.Module):
    """A block that returns a tuple with one entry, as transformers' blocks do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return (self.inner(x),)


class Net(nn.Module):
    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.block = One(first)
        self.last = last

    def forward(self, x):
        return self.last(self.block(x)[0])


@pytest.mark.parametrize(
    "method",
    [
        attrfn.layer_gradient_x_activation,
        attrfn.layer_integrated_gradients,
        attrfn.layer_conductance,
        attrfn.internal_influence,
    ],
)
def test_a_tuple_of_one_is_not_its_entry(method):
    """The same network, once with a block that returns (h,) and once with h."""
    first, last = NET[:2], NET[2:]
    (found,) = method(Net(first, last), X, layer="block", target=1)
    want = method(nn.Sequential(first, last), X, layer="0", target=1)
    torch.testing.assert_close(found, want)


def test_all_calls_of_a_layer_that_is_called_once():
    (found,) = attrfn.layer_integrated_gradients(NET, X, layer="1", target=1, call=None)
    want = attrfn.layer_integrated_gradients(NET, X, layer="1", target=1)
    torch.testing.assert_close(found, want)


def test_layers_behind_each_other_are_refused_under_vmap():
    both = attrfn.at_layer(attrfn.gradient, ["1", "3"])
    with pytest.raises(ValueError, match="depends on what another layer"):
        torch.vmap(lambda row: both(NET, row[None], target=1))(X)
    with pytest.raises(ValueError, match="depends on what another layer"):
        torch.func.grad(lambda x: both(NET, x, target=1)[0].sum())(X)


@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("neuron", [[0, 1, 2], torch.tensor([0, 1, 2])], ids=["list", "tensor"])
def test_a_tunnel_repeats_neurons(neuron, chunk):
    noisy = attrfn.noise_tunnel(attrfn.neuron_gradient, n_samples=3, chunk_size=chunk)
    found = noisy(NET, X, layer="1", neuron=neuron)
    rows = [noisy(NET, X[i : i + 1], layer="1", neuron=i) for i in range(3)]
    torch.testing.assert_close(found, torch.cat(rows))


@pytest.mark.parametrize("shape", [(3, 4), (5, 4), (5, 3, 4)], ids=str)
def test_a_tunnel_over_pools_of_baselines(shape):
    """A pool of K = B baselines is a pool, and one of (K, B, ...) follows the batch."""
    pool, keys = zoo.randn(*shape), attrfn.random.split(7, 3)
    noisy = functools.partial(
        attrfn.noise_tunnel(attrfn.layer_gradient_shap, n_samples=4), NET, layer="1", target=0
    )
    found = noisy(X, baselines=pool, key=keys)
    for i in range(3):
        own = pool[:, i : i + 1] if pool.ndim == 3 else pool
        alone = noisy(X[i : i + 1], baselines=own, key=keys[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone)


def test_a_tunnel_over_a_method_with_bound_options():
    target = torch.tensor([0, 1, 0])
    bound = attrfn.noise_tunnel(functools.partial(attrfn.saliency, target=target))(NET, X)
    torch.testing.assert_close(bound, attrfn.noise_tunnel(attrfn.saliency)(NET, X, target=target))


def test_a_variance_needs_two_samples():
    with pytest.raises(ValueError, match="n_samples is 1, expected at least 2"):
        attrfn.noise_tunnel(attrfn.gradient, kind="vargrad", n_samples=1)


def test_a_parameter_as_input_of_a_layer_method():
    found = attrfn.layer_integrated_gradients(NET, nn.Parameter(X), layer="1", target=1)
    assert not found.requires_grad
    want = attrfn.layer_integrated_gradients(NET, X, layer="1", target=1)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("baselines", [0.5, torch.full((2,), 0.9)], ids=["number", "tensor"])
def test_fractions_are_no_token_ids(baselines):
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(TypeError, match=r"baselines has .* of floating point for inputs of"):
        attrfn.layer_integrated_gradients(
            net, torch.ones(3, 2, dtype=torch.long), layer="0", target=1, baselines=baselines
        )


def test_a_tolerance_keeps_to_its_memory():
    """At most n_steps copies at once, whatever the tolerance asks for; NaN ends the search."""
    seen = []

    def jump(x):
        seen.append(len(x))
        return (x > 0.3).to(x).sum(1) + x.sum(1)

    with pytest.warns(UserWarning, match="missed tolerance"):
        attrfn.integrated_gradients(jump, X.abs(), tolerance=1e-9, n_steps=2, chunk_size=None)
    assert max(seen) == 2 * len(X)
    with pytest.warns(UserWarning, match="missed tolerance=0.1 with 2 gradients"):
        attrfn.integrated_gradients(lambda x: (x * torch.nan).sum(1), X, tolerance=0.1, n_steps=2)


def test_the_models_own_words_stay():
    class Bad(nn.Module):
        def forward(self, x):
            raise ValueError("my target network is on no device")

    with pytest.raises(ValueError, match="my target network is on no device"):
        attrfn.neuron_gradient(nn.Sequential(Bad(), nn.Linear(4, 2)), X, layer="1", neuron=0)
    with pytest.raises(ValueError, match="neuron 9 is out of range"):
        attrfn.neuron_gradient(NET, X, layer="1", neuron=9)


def test_compiled_attributions_see_changed_attributes():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2).double()
            self.act = nn.LeakyReLU()
            self.scale = 1.0

        def forward(self, x):
            return self.act(self.linear(x)) * self.scale

    torch._dynamo.reset()
    model, counter = Scaled(), CompileCounterWithBackend("eager")
    compiled = torch.compile(attrfn.gradient, fullgraph=True, backend=counter)
    for change in (
        lambda: None,
        lambda: setattr(model, "scale", 3.0),
        lambda: setattr(model.act, "negative_slope", 0.7),
    ):
        change()
        found, want = compiled(model, X, target=0), attrfn.gradient(model, X, target=0)
        torch.testing.assert_close(found, want)
    before = counter.frame_count
    compiled(model, X + 1, target=0)
    assert counter.frame_count == before
    torch._dynamo.reset()
