"""Splits where modules hide: in containers, closures, methods and wrappers of the model."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import zoo
from splits import call, check, equal
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from zoo import randn

import attrfn

# --- where modules hide --------------------------------------------------------------------------


def test_modules_in_plain_containers():
    model, x = zoo.make(zoo.Hidden), randn(3, 4)
    for layer in (
        model.plain[0],
        model.plain[1][0],
        model.table["mid"],
        model.table["deep"]["act"],
        model.secret,
    ):
        check(model, layer, x)
        check(model, layer, x, at="input")


def test_an_attribute_that_two_modules_share():
    """A dict through which one module hands another its value is one dict on the shells too."""

    class Putter(nn.Module):
        def __init__(self, box: dict) -> None:
            super().__init__()
            self.lin, self.box = nn.Linear(4, 5), box

        def forward(self, x: Tensor) -> Tensor:
            self.box["h"] = self.lin(x)
            return x

    class Taker(nn.Module):
        def __init__(self, box: dict) -> None:
            super().__init__()
            self.out, self.box = nn.Linear(5, 3), box

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.box["h"].tanh())

    box: dict[str, Tensor] = {}
    model = zoo.make(lambda: nn.Sequential(Putter(box), Taker(box)))
    x = randn(3, 4)
    expected = model.forward(x)
    box.clear()
    head, tail = attrfn.split(model, "0.lin")
    equal(tail(head(x), x), expected)
    equal(
        attrfn.gradient(model, x, target=1),
        attrfn.gradient(
            lambda x: torch.tanh(model[0].lin(x)) @ model[1].out.weight[1] + model[1].out.bias[1], x
        ),
    )
    assert not box


def test_module_that_refers_to_its_parent():
    """Circles in the attributes (a child that knows its parent) end."""

    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x) * self.parent[0].scale

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child, self.out = Child(), nn.Linear(5, 3)
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.child.parent = [self]

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.child(x))

    model, x = zoo.make(Parent), randn(3, 4)
    equal(check(model, "child", x), model.child.lin(x) * 2)


def test_bound_method():
    model, x = zoo.make(zoo.Encoder), randn(3, 4)
    a = check(model.encode, "body.1", x)
    equal(a, model.body[:2](x))
    equal(attrfn.split(model.encode, "body").head(x), model.body(x))
    bound = functools.partial(model.encode, scale=randn(3, 1))
    check(bound, "body.1", x)
    with pytest.raises(ValueError, match="layer 'out' was not called while the model ran"):
        attrfn.layer_activation(functools.partial(model.encode), x, layer="out")[0]
    got = attrfn.layer_integrated_gradients(bound, x, layer="body.0", target=1, n_steps=20)
    change = bound(x) - bound(0 * x)
    torch.testing.assert_close(got.sum(1), change[:, 1].detach())


def test_bound_method_kept_as_attribute():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
            self.step = self.first
            self.partial = functools.partial(self.second, by=2.0)

        def first(self, x: Tensor) -> Tensor:
            return self.lin(x)

        def second(self, x: Tensor, by: float) -> Tensor:
            return self.out(x * by)

        def forward(self, x: Tensor) -> Tensor:
            return self.partial(self.step(x))

    model, x = zoo.make(Net), randn(3, 4)
    check(model, "lin", x)
    check(model, "out", x)


def test_forward_replaced_on_the_instance():
    """What accelerate and others do: an instance attribute ``forward``."""
    model, x = zoo.mlp(), randn(3, 4)
    inner = model[1]
    plain = inner.forward
    inner.forward = lambda v: plain(v) * 2
    equal(check(model, "1", x), torch.tanh(model[0](x)) * 2)
    check(model, "0", x)


def test_partial_with_keywords_and_positions():
    model, x = zoo.make(zoo.Keywords), randn(3, 4)
    scale = randn(3, 5, seed=4)
    for bound in (
        functools.partial(model, scale=scale),
        functools.partial(functools.partial(model, shift=0.5), scale=scale),
        functools.partial(model.forward, scale=scale),
    ):
        check(bound, "gate", x)
        got = attrfn.layer_integrated_gradients(bound, x, layer="lin", target=1, n_steps=30)
        change = (bound(x) - bound(0 * x))[:, 1].detach()
        torch.testing.assert_close(got.sum(1), change)


def test_bound_tensor_follows_the_batch_at_layer_and_neuron():
    """One example at a time gives the same as the batch, in any chunk."""
    model, x, scale = zoo.make(zoo.Keywords), randn(3, 4), randn(3, 5, seed=4)
    bound = functools.partial(model, scale=scale)
    for method in (
        functools.partial(attrfn.layer_integrated_gradients, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.layer_conductance, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.internal_influence, layer="lin", target=1, n_steps=6),
        functools.partial(attrfn.neuron_conductance, layer="lin", neuron=2, target=1, n_steps=6),
        functools.partial(
            attrfn.layer_gradient_shap, layer="lin", target=1, baselines=randn(2, 4, seed=5)
        ),
    ):
        whole = method(bound, x)
        for i in range(3):
            alone = method(functools.partial(model, scale=scale[i : i + 1]), x[i : i + 1])
            torch.testing.assert_close(alone[0], whole[i])
        for chunk_size in (1, 2):
            torch.testing.assert_close(method(bound, x, chunk_size=chunk_size), whole)


def test_functional_call():
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    params = {k: p.detach() * 1.1 for k, p in model.named_parameters()}
    buffers = {k: b + 1 if b.is_floating_point() else b for k, b in model.named_buffers()}
    for given in (params, params | buffers, {"7.weight": params["7.weight"]}):
        bound = functools.partial(functional_call, model, given)
        check(bound, "4", x)
    # functions of the parameters: d/dp of an attribution by finite differences along one direction
    bias = params["0.bias"]
    step = randn(*bias.shape, seed=3)

    def total(b: Tensor) -> Tensor:
        new = functools.partial(functional_call, model, params | {"0.bias": b})
        return (attrfn.layer_gradient_x_activation(new, x, layer="4", target=1) ** 2).sum()

    slope = torch.func.grad(total)(bias) @ step
    eps = 1e-6
    expected = (total(bias + eps * step) - total(bias - eps * step)) / (2 * eps)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-10)


def test_functional_call_with_several_dicts():
    """torch takes a tuple of dicts as well."""
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    params = {k: p.detach() * 1.1 for k, p in model.named_parameters()}
    bound = functools.partial(functional_call, model, (params, dict(model.named_buffers())))
    check_functional = attrfn.split(bound, "4")
    equal(check_functional.tail(check_functional.head(x), x), bound((x.clone(),)))


def test_functional_call_with_keywords():
    model, x = zoo.make(zoo.Keywords), randn(3, 4)
    params = {k: p.detach() * 1.1 for k, p in model.named_parameters()}
    bound = functools.partial(functional_call, model, params, kwargs={"scale": randn(3, 5)})
    check(bound, "gate", x)
    got = attrfn.layer_integrated_gradients(bound, x, layer="lin", target=1, n_steps=20)
    change = (bound(x) - bound(0 * x))[:, 1]
    torch.testing.assert_close(got.sum(1), change)


# --- wrappers ------------------------------------------------------------------------------------


def test_compiled_model():
    """The eager model inside is what is split: nothing is compiled by a split."""
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    compiled = torch.compile(model, backend=never)
    head, tail = attrfn.split(compiled, "4")
    equal(tail(head(x), x), model(x.clone()))
    equal(attrfn.layer_activation(compiled, x, layer=model[4]), model[:5](x.clone()))
    equal(attrfn.layer_activation(compiled, x, layer="_orig_mod.4"), model[:5](x.clone()))
    equal(attrfn.layer_activation(compiled, x, layer=compiled), model(x.clone()))
    expected = attrfn.integrated_gradients(model, x, target=1, n_steps=3)
    equal(attrfn.integrated_gradients(compiled, x, target=1, n_steps=3), expected)


def never(graph: Any, inputs: Any) -> Any:
    raise AssertionError("a split compiled something")


def test_compiled_part():
    model, x = zoo.make(zoo.Residual), randn(3, 4)
    expected, value = model(x), model.blocks(model.stem(x))
    inside = model.blocks[0].act
    model.blocks = torch.compile(model.blocks, backend=never)
    for layer in ("blocks", "blocks.0.act", "out", inside, "blocks._orig_mod.0.act"):
        head, tail = attrfn.split(model, layer, call=0)
        equal(tail(head(x), x), expected)
    equal(attrfn.layer_activation(model, x, layer="blocks"), value)


def test_compiled_part_given_as_a_module():
    model, x = zoo.make(zoo.Residual), randn(3, 4)
    value = model.blocks(model.stem(x))
    model.blocks = torch.compile(model.blocks, backend=never)
    equal(attrfn.layer_activation(model, x, layer=model.blocks), value)


def test_module_compiled_in_place():
    model, x = zoo.mlp(), randn(3, 4)
    expected = model(x)
    model.compile(backend=never)
    model[1].compile(backend=never)
    head, tail = attrfn.split(model, "1")
    equal(tail(head(x), x), expected)
    assert model._compiled_call_impl is not None


def test_data_parallel():
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    wrapped = nn.DataParallel(model)
    check(wrapped, "module.4", x)
    equal(check(wrapped, model[4], x), model[:5](x.clone()))


has_weight_norm = pytest.mark.skipif(
    not hasattr(parametrizations, "weight_norm"), reason="torch has it since 2.1"
)


@pytest.mark.parametrize(
    "kind",
    [pytest.param("weight_norm", marks=has_weight_norm), "orthogonal", "spectral_norm", "own"],
)
def test_parametrizations(kind):
    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w.triu() + w.triu(1).mT

    def build() -> nn.Module:
        model = zoo.mlp(5, 3)
        model[0] = nn.Linear(5, 5)
        model[2] = nn.Linear(5, 3)
        if kind == "own":
            parametrize.register_parametrization(model[0], "weight", Symmetric())
        else:
            getattr(parametrizations, kind)(model[0])
        return model

    model, x = zoo.make(build), randn(3, 5)
    equal(check(model, "0", x), model[0](x))
    check(model, "1", x)
    head, tail = attrfn.split(model, "1")
    got = torch.autograd.grad(tail(head(x), x).sum(), list(model[0].parameters()))
    expected = torch.autograd.grad(model(x).sum(), list(model[0].parameters()))
    equal(got, expected, rtol=1e-12, atol=1e-12)


@has_weight_norm
def test_cached_parametrizations():
    """torch caches parametrized weights by the module's id: shells come and go, ids return."""
    models = [
        zoo.make(lambda: parametrizations.weight_norm(nn.Linear(5, 5)), seed=s) for s in (1, 2)
    ]
    x = randn(3, 5)
    expected = [m(x) for m in models]
    with parametrize.cached():
        for _ in range(5):
            for model, value in zip(models, expected, strict=True):
                got = attrfn.layer_activation(nn.Sequential(model), x, layer="0")
                equal(got, value)


# torch deprecates the old weight_norm; models in the wild have it.
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_old_weight_norm_and_spectral_norm():
    def build() -> nn.Module:
        return nn.Sequential(
            nn.utils.weight_norm(nn.Linear(4, 5)),
            nn.Tanh(),
            nn.utils.spectral_norm(nn.Linear(5, 3)),
        )

    model, x = zoo.make(build), randn(3, 4)
    model(x)
    for layer in ("0", "1", "2"):
        head, tail = attrfn.split(model, layer)
        training = [m.training for m in model.modules()]
        equal(tail(head(x), x), model(x))
        assert [m.training for m in model.modules()] == training
    g = torch.autograd.grad(attrfn.split(model, "1").head(x).sum(), [model[0].weight_g])
    expected = torch.autograd.grad(model[:2](x).sum(), [model[0].weight_g])
    equal(g, expected, rtol=1e-12, atol=1e-12)


def test_spectral_norm_training_keeps_its_vectors():
    """In training mode a forward moves u and v; a split moves those of the clone only."""
    model = zoo.make(lambda: parametrizations.spectral_norm(nn.Linear(5, 5))).train()
    whole, x = nn.Sequential(model, nn.Tanh()), randn(3, 5)
    before = zoo.state(whole)
    attrfn.split(whole, "0").head(x)
    assert zoo.same_state(whole, before)


def test_users_hooks_run():
    """Hooks are part of the user's model: they run, on the head and on the tail."""
    model, x = zoo.mlp(), randn(3, 4)
    seen = []
    model[1].register_forward_hook(lambda m, args, out: seen.append("post") or out * 2)
    model[1].register_forward_pre_hook(lambda m, args: seen.append("pre") or (args[0] + 1,))
    model[2].register_forward_hook(
        lambda m, args, kwargs, out: seen.append("kw") or out - 1, with_kwargs=True
    )
    a = check(model, "0", x)
    equal(a, model[0](x))
    check(model, "1", x)
    check(model, "1", x, at="input")
    assert set(seen) == {"pre", "post", "kw"}
    equal(call(model, x), model[2](torch.tanh(model[0](x) + 1) * 2))


def test_users_hook_on_the_layer_itself():
    """The value of a layer is what its forward returns; its own hooks act on it behind the tap."""
    model, x = zoo.mlp(), randn(3, 4)
    model[1].register_forward_hook(lambda m, args, out: out * 2)
    head, tail = attrfn.split(model, "1")
    equal(tail(head(x), x), model(x))
    equal(tail(torch.ones(3, 6, dtype=zoo.D), x), model[2](2 * torch.ones(3, 6, dtype=zoo.D)))


def test_training_mode_of_parts():
    """Each shell has its module's own mode."""
    model, x = (
        zoo.make(lambda: nn.Sequential(nn.Linear(4, 5), nn.RReLU(), nn.Linear(5, 3))),
        randn(3, 4),
    )
    model[0].train()
    check(model, "1", x)
    assert model[0].training
    assert not model[1].training
