"""DeepLIFT and LRP under every transform, on a transformer and on a convolutional network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    assert_close,
    assert_informative,
    fine_difference,
    finite_difference,
    inner,
    noise_like,
    take,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, vmap
from zoo import make, randn

import attrfn
from attrfn import rules


class Transformer(nn.Module):
    """A block with the normalisation before attention and MLP; attention to the past only."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 6)
        self.norms = nn.ModuleList([nn.LayerNorm(6) for _ in range(3)])
        self.qkv = nn.Linear(6, 18)
        self.proj = nn.Linear(6, 6)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        q, k, v = self.qkv(self.norms[0](h)).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.proj(y.transpose(1, 2).flatten(2))
        h = h + self.down(F.gelu(self.up(self.norms[1](h))))
        return self.out(self.norms[2](h)[:, -1])


def convolutional() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    for norm in (model[1], model[5]):
        norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
        norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.0, 1.0]))
    return model


# name: how it is built, and the shape of one example
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transformer": (Transformer, (4, 4)),
    "conv": (convolutional, (2, 6, 6)),
}


# Away from zero, where LayerNorm has a pole.
BASELINES = {shape: 0.5 * randn(*shape, seed=77) for _, shape in MODELS.values()}


def deep_lift(rule: Any) -> Callable[..., Tensor]:
    def method(model_fn: Any, x: Tensor, **options: Any) -> Tensor:
        x0 = BASELINES[tuple(x.shape[1:])]
        return attrfn.deep_lift(model_fn, x, baselines=x0, rule=rule, **options)

    return method


METHODS: dict[str, Callable[..., Tensor]] = {
    "rescale": deep_lift("rescale"),
    "reveal_cancel": deep_lift("reveal_cancel"),
    "epsilon_plus": functools.partial(attrfn.lrp, rules=rules.epsilon_plus()),
    "attn_lrp": functools.partial(attrfn.lrp, rules=rules.attn_lrp()),
    "cp_lrp": functools.partial(attrfn.lrp, rules=rules.cp_lrp()),
    "gamma": functools.partial(attrfn.lrp, rules=rules.gamma()),
    "epsilon_plus_flat": functools.partial(attrfn.lrp, rules=rules.epsilon_plus_flat()),
}
every_cell = pytest.mark.parametrize(
    ("name", "model_name"), [(name, model_name) for model_name in MODELS for name in METHODS]
)
by_model = pytest.mark.parametrize("model_name", MODELS)


def given(model_name: str, batch: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, inputs and one class per example."""
    build, shape = MODELS[model_name]
    return make(build), randn(batch, *shape, seed=3), torch.arange(batch) * 2 % 3


# --- vmap ----------------------------------------------------------------------------------------


@every_cell
def test_vmap_over_examples_is_the_batch(name: str, model_name: str) -> None:
    model, x, t = given(model_name)
    batched = METHODS[name](model, x, target=t)
    assert_informative(batched)
    mapped = vmap(lambda x, t: METHODS[name](model, x[None], target=t)[0])(x, t)
    assert_close(mapped, batched, rtol=1e-10, atol=1e-12)


@every_cell
def test_row_of_a_batch_is_the_row_alone(name: str, model_name: str) -> None:
    model, x, t = given(model_name, batch=4)
    together = METHODS[name](model, x, target=t)
    for i in range(4):
        one = slice(i, i + 1)
        alone = METHODS[name](model, x[one], target=t[one])
        assert_close(alone, take(together, one), rtol=1e-12, atol=1e-13)


@by_model
def test_vmap_over_targets_is_the_loop(model_name: str) -> None:
    model, x, _ = given(model_name)
    for method in METHODS.values():
        mapped = vmap(lambda t, method=method: method(model, x, target=t))(torch.arange(3))
        for c in range(3):
            assert_close(mapped[c], method(model, x, target=c))


# --- compile -------------------------------------------------------------------------------------


compiling = pytest.mark.usefixtures("fresh_compiler")

# Each table on each net, but not each formula.
COMPILED = [
    pytest.param("reveal_cancel", "transformer", marks=pytest.mark.fuzz),
    ("attn_lrp", "transformer"),
    pytest.param("cp_lrp", "transformer", marks=pytest.mark.fuzz),
    ("rescale", "conv"),
    pytest.param("epsilon_plus", "conv", marks=pytest.mark.fuzz),
    ("epsilon_plus_flat", "conv"),
]


@compiling
@pytest.mark.parametrize(("name", "model_name"), COMPILED)
def test_compiles_once(name: str, model_name: str) -> None:
    """Other inputs and targets of the same shapes use the same graph."""
    model, x, t = given(model_name)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return METHODS[name](model, x, target=t)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, backend=counter, fullgraph=True)
    assert_close(compiled(x, t), f(x, t))
    other, t = randn(*x.shape, seed=8), (t + 1) % 3
    assert_close(compiled(other, t), f(other, t))
    assert counter.frame_count == 1


WEIGHT = randn(4, 4, seed=5)


def unpacked(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return a.tanh() * b + c * d


# What torch.compile rewrites, or enters, before a mode can see it.
REWRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "unpacked": lambda h: unpacked(*h.transpose(0, 1)),
    "unflatten": lambda h: h.unflatten(-1, (2, 2)).tanh(),
    "tuples": lambda h: torch.cat([t.tanh() for t in h.split(2, -1)], -1) * h.chunk(2, 1)[0][:, :1],
    "max": lambda h: h.max(-1).values.sigmoid() + h.max(-1)[0],
    "glu": lambda h: F.glu(h, -1),
    "reflected": lambda h: (1 - h.sigmoid()) + 1 / (1 + h.exp()) + 2**h,
    "power": lambda h: h**2 / h.norm(dim=-1, keepdim=True),
    "attributes": lambda h: (h @ h.mT).softmax(-1) + h.mT,
    "pad": lambda h: F.pad(h, (1, 1)).tanh(),
}


@compiling
def test_what_dynamo_rewrites_has_its_rule() -> None:
    x, x0 = randn(2, 4, 4, seed=6), 0.3 * randn(4, 4, seed=7)

    def model(x: Tensor, names: Iterable[str] = REWRITTEN) -> Tensor:
        h = F.linear(x, WEIGHT)
        parts = [REWRITTEN[name](h).flatten(1) for name in names]
        return torch.stack([(y * torch.arange(1, y.shape[1] + 1)).sum(1) for y in parts], 1)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return vmap(lambda t: attrfn.deep_lift(model, x, target=t, baselines=x0))(t)

    t = torch.arange(len(REWRITTEN))
    found, expected = torch.compile(f, backend="aot_eager", fullgraph=True)(x, t), f(x, t)
    for name, a, b in zip(REWRITTEN, found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), name


@compiling
def test_hidden_moves_of_the_inputs_are_refused_by_rules_for_the_first_layer() -> None:
    """Whether the first layer reads x.mT or something computed cannot be seen there."""
    x = randn(2, 4, 4, seed=6)

    def f(x: Tensor) -> Tensor:
        return attrfn.lrp(
            lambda x: F.linear(x.mT, WEIGHT)[:, 0, 0], x, rules=rules.epsilon_plus_flat()
        )

    assert_informative(f(x))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"write \.unbind\(\)"):
        torch.compile(f, backend="eager", fullgraph=True)(x)


@compiling
@pytest.mark.parametrize("name", ["rescale", "epsilon_plus", "attn_lrp"])
def test_compiled_model_with_rules_leaves_parameters_alone(name: str) -> None:
    """Parameters with gradients, and what is computed from them, are none of the inputs."""
    model = make(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    model.requires_grad_()
    table = rules.rescale(0.1) if name == "rescale" else getattr(rules, name)()
    f = attrfn.with_rules(lambda x: F.linear(model(x), model[0].weight[:3, :3] * 2), table)
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    found = []
    for g in (f, compiled):
        x = randn(2, 4, seed=6).requires_grad_()
        found.append(torch.autograd.grad(g(x)[:, 1].sum(), x)[0])
    assert_informative(found[0])
    assert_close(found[1], found[0])


@compiling
def test_hidden_moves_in_a_compiled_model_with_rules_are_refused() -> None:
    def model(x: Tensor) -> Tensor:
        a, b = F.linear(x, WEIGHT).unflatten(-1, (2, 2)).permute(2, 0, 1, 3)
        return a.tanh() * b

    f = attrfn.with_rules(model, rules.attn_lrp())
    x = randn(2, 4, 4, seed=6).requires_grad_()
    assert f(x).requires_grad
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"write \.unbind\(\)"):
        torch.compile(f, backend="aot_eager", fullgraph=True)(x)


@compiling
def test_parameters_are_inputs_of_the_graph() -> None:
    """New parameter tensors, not only new values, use the same graph."""
    model = make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    x = randn(3, 4, seed=9)

    def f(params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        bound = functools.partial(functional_call, model, params)
        lift = attrfn.deep_lift(bound, x, target=1, baselines=0.1)
        return lift, attrfn.lrp(bound, x, target=1, rules=rules.gamma())

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, backend=counter, fullgraph=True)
    for scale in (1.0, 1.2):
        params = {k: scale * p.detach() for k, p in model.named_parameters()}
        assert_close(compiled(params, x), f(params, x))
    assert counter.frame_count == 1


# torch has no batching rule for the batch norm of compiled code; plain gradients warn, too.
@pytest.mark.filterwarnings("ignore:There is a performance drop .*_native_batch_norm")
@compiling
@pytest.mark.parametrize(
    ("name", "model_name"),
    [pytest.param("rescale", "conv", marks=pytest.mark.fuzz), ("cp_lrp", "transformer")],
)
def test_vmap_inside_compiled_code(name: str, model_name: str) -> None:
    model, x, t = given(model_name, batch=2)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return vmap(lambda x, t: METHODS[name](model, x[None], target=t)[0])(x, t)

    assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x, t), f(x, t))


@compiling
@pytest.mark.inductor
def test_inductor_gives_the_eager_numbers() -> None:
    model, x, t = given("transformer")

    def f(x: Tensor, t: Tensor) -> Tensor:
        return METHODS["rescale"](model, x, target=t)

    assert_close(torch.compile(f, backend="inductor", fullgraph=True)(x, t), f(x, t))


# --- derivatives ---------------------------------------------------------------------------------


def assert_derivative(f: Callable[[Any], Tensor], at: Any) -> Any:
    """The gradient along a drawn direction equals a finite difference; returns the gradient.

    Rules divide by activations, and so some third derivatives are very large: the step is small.
    """
    found = grad(f)(at)
    assert_informative(optree_values(found))
    v = noise_like(at, seed=20)
    expected = fine_difference(f, at, v)
    coarse = finite_difference(f, at, v, size=1e-6)
    assert_close(inner(found, v), expected, rtol=1e-6, atol=1e-8)
    assert_close(coarse, expected, rtol=1e-2, atol=1e-6)  # the step is small enough to say so
    return found


def optree_values(tree: Any) -> Any:
    """Of parameters together: a bias behind the explained class has no influence."""
    return torch.cat([t.flatten() for t in tree.values()]) if isinstance(tree, dict) else tree


@every_cell
def test_gradient_by_inputs_and_parameters(name: str, model_name: str) -> None:
    """Of a random projection of the attributions, and by .backward() through create_graph."""
    model, x, t = given(model_name)
    params = {k: p.detach() for k, p in model.named_parameters()}
    w = noise_like(METHODS[name](model, x, target=t))

    def of_both(params: dict[str, Tensor], x: Tensor) -> Tensor:
        f = functools.partial(functional_call, model, params)
        return inner(w, METHODS[name](f, x, target=t))

    by_inputs = assert_derivative(functools.partial(of_both, params), x)
    by_params = assert_derivative(lambda p: of_both(p, x), params)

    model.requires_grad_()
    x = x.clone().requires_grad_()
    inner(w, METHODS[name](model, x, target=t, create_graph=True)).backward()
    assert_close(x.grad, by_inputs)
    for k, p in model.named_parameters():
        assert_close(torch.zeros_like(p) if p.grad is None else p.grad, by_params[k])


@by_model
@pytest.mark.parametrize("name", ["rescale", "attn_lrp", "gamma"])
def test_jvp_is_the_derivative(name: str, model_name: str) -> None:
    model, x, t = given(model_name)
    v = noise_like(x, seed=21)

    def f(x: Tensor) -> Tensor:
        return METHODS[name](model, x, target=t)

    value, found = jvp(f, (x,), (v,))
    assert_close(value, f(x))
    w = noise_like(found)
    assert_close((w * found).sum(), inner(grad(lambda x: inner(w, f(x)))(x), v))


@every_cell
def test_vmap_of_grad_is_the_loop(name: str, model_name: str) -> None:
    """Per-example gradients of a penalty on attributions."""
    model, x, t = given(model_name)

    def penalty(x: Tensor, t: Tensor) -> Tensor:
        return (METHODS[name](model, x[None], target=t) ** 2).sum()

    each = vmap(grad(penalty))(x, t)
    for i in range(3):
        assert_close(each[i], grad(penalty)(x[i], t[i]), rtol=1e-9)


# --- values --------------------------------------------------------------------------------------

ALL_RULES = {
    "rescale": rules.rescale(0.1),
    "reveal_cancel": rules.reveal_cancel(0.1),
    "guided": rules.guided(),
    "deconv": rules.deconv(),
    "epsilon_plus": rules.epsilon_plus(),
    "epsilon_alpha2_beta1": rules.epsilon_alpha2_beta1(),
    "epsilon_plus_flat": rules.epsilon_plus_flat(),
    "epsilon_gamma_box": rules.epsilon_gamma_box(-4.0, 4.0),
    "attn_lrp": rules.attn_lrp(),
    "cp_lrp": rules.cp_lrp(),
}


@by_model
@pytest.mark.parametrize("name", ALL_RULES)
def test_values_with_rules_are_bitwise_those_of_the_model(name: str, model_name: str) -> None:
    """With and without a graph, also in single precision."""
    for dtype in (torch.float64, torch.float32):
        model, x, _ = given(model_name)
        model, x = model.to(dtype), x.to(dtype)
        expected = model(x)
        f = attrfn.with_rules(model, ALL_RULES[name])
        assert torch.equal(f(x), expected)
        found = f(x.requires_grad_())
        assert found.requires_grad
        assert torch.equal(found, expected)


@every_cell
def test_gradient_with_rules_is_what_the_method_multiplies(name: str, model_name: str) -> None:
    """(x - x0) m of DeepLIFT, x c of LRP, relevance itself with a rule for the inputs."""
    model, x, t = given(model_name)
    table = {
        "rescale": rules.rescale(0.1),
        "reveal_cancel": rules.reveal_cancel(0.1),
        "gamma": rules.composite(rules.gamma()),
        **{k: ALL_RULES[k] for k in ("epsilon_plus", "attn_lrp", "cp_lrp", "epsilon_plus_flat")},
    }[name]
    found = attrfn.gradient(attrfn.with_rules(model, table), x, target=t)
    if table.complete:
        found = (x - 0.1) * found
        expected = attrfn.deep_lift(model, x, target=t, baselines=0.1, rule=name)
    else:
        found = found if name == "epsilon_plus_flat" else x * found
        expected = METHODS[name](model, x, target=t)
    assert_close(found, expected)
