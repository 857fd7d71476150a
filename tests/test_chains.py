"""LRP of activations that Python writes out: one function of one tensor, element by element."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import close, randn, seeded
from torch import Tensor, nn
from torch.func import vmap

import attrfn
from attrfn import UnsupportedOpError, rules

C = math.sqrt(2 / math.pi)

# Written out by its definition, and as one function of torch.
WRITTEN: dict[str, tuple[Any, Any]] = {
    "gelu_new": (
        lambda h: 0.5 * h * (1 + torch.tanh(C * (h + 0.044715 * torch.pow(h, 3.0)))),
        lambda h: F.gelu(h, approximate="tanh"),
    ),
    "gelu_fast": (
        lambda h: 0.5 * h * (1 + torch.tanh(h * C * (1 + 0.044715 * h * h))),
        lambda h: F.gelu(h, approximate="tanh"),
    ),
    "gelu": (lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2))), F.gelu),
    "silu": (lambda h: h * torch.sigmoid(h), F.silu),
    "silu as a quotient": (lambda h: h / (1 + torch.exp(-h)), F.silu),
    "silu in place": (lambda h: h.mul_(torch.sigmoid(h)), F.silu),
    "mish": (lambda h: h * torch.tanh(F.softplus(h)), F.mish),
    "mish by logarithms": (lambda h: h * torch.tanh(torch.log(1 + torch.exp(h))), F.mish),
    "mish by log1p": (lambda h: h * torch.log1p(h.exp()).tanh(), F.mish),
    "hardswish": (lambda h: h * F.relu6(h + 3) / 6, F.hardswish),
    "hardswish by a clamp": (lambda h: h * (h + 3).clamp(0, 6) / 6, F.hardswish),
    "softplus": (lambda h: torch.log(1 + torch.exp(h)), F.softplus),
    "sigmoid": (lambda h: 1 / (1 + torch.exp(-h)), torch.sigmoid),
    "sigmoid by reciprocal": (lambda h: (1 + torch.exp(-h)).reciprocal(), torch.sigmoid),
    "sigmoid by tanh": (lambda h: 0.5 * (1 + torch.tanh(h / 2)), torch.sigmoid),
    "logsigmoid": (lambda h: torch.log(torch.sigmoid(h)), F.logsigmoid),
    "tanh": (lambda h: (h.exp() - (-h).exp()) / (h.exp() + (-h).exp()), torch.tanh),
    "tanh by sigmoid": (lambda h: 2 / (1 + torch.exp(-2 * h)) - 1, torch.tanh),
    "elu": (lambda h: torch.where(h > 0, h, torch.exp(h) - 1), F.elu),
    "softsign": (lambda h: h / (1 + h.abs()), F.softsign),
    "squared relu": (lambda h: F.relu(h) * F.relu(h), lambda h: F.relu(h) ** 2),
    "relu by a mask": (lambda h: h * (h > 0), F.relu),
    "tanhshrink": (lambda h: h - h.tanh(), F.tanhshrink),
    "with casts": (lambda h: h * torch.sigmoid(h.float().double().contiguous()), None),
}
GATED: dict[str, tuple[Any, Any]] = {
    "swiglu": (lambda a, b: a * torch.sigmoid(a) * b, lambda a, b: F.silu(a) * b),
    "geglu": (lambda a, b: WRITTEN["gelu"][0](a) * b, lambda a, b: F.gelu(a) * b),
    "reglu": (lambda a, b: a * (a > 0) * b, lambda a, b: F.relu(a) * b),
    "gate first": (lambda a, b: b * (a / (1 + torch.exp(-a))), lambda a, b: b * F.silu(a)),
}  # fmt: skip
COMPOSITES = {
    "attn_lrp": rules.attn_lrp(),
    "cp_lrp": rules.cp_lrp(),
    "gamma": rules.composite(rules.gamma()),
    "epsilon_plus": rules.epsilon_plus(),
}
each = pytest.mark.parametrize("name", WRITTEN)


def net(act: Any) -> tuple[Any, Tensor]:
    first, last = seeded(lambda: nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 3)]))
    return lambda x: last(act(first(x))), 2 * randn(0, 5, 4)


@pytest.mark.parametrize("composite", COMPOSITES)
@each
def test_equal_outputs_have_equal_relevance(name: str, composite: str) -> None:
    written, one = WRITTEN[name]
    if one is None:
        pytest.skip("not one function of torch")
    options: dict[str, Any] = {"target": 1, "rules": COMPOSITES[composite]}
    f, x = net(written)
    g, _ = net(one)
    close(f(x), g(x))
    want = attrfn.lrp(g, x, **options)
    close(attrfn.lrp(f, x, **options), want)
    close(attrfn.lrp(f, x, create_graph=True, **options).detach(), want)


@each
def test_all_relevance_passes(name: str) -> None:
    """From y to x, but for the epsilon where f(0) is not zero."""
    written, _ = WRITTEN[name]
    x = randn(0, 4, 6)
    y = written(x.clone())
    at_zero = written(torch.zeros(1, 6, dtype=x.dtype))
    got = attrfn.lrp(lambda x: written(x * 1), x, target=lambda y: y.sum(1), rules=rules.attn_lrp())
    expected = torch.where(at_zero == 0, y, y * x.abs() / (x.abs() + 1e-6))
    close(got, expected, 1e-6 if name == "with casts" else 1e-10)


@pytest.mark.parametrize("name", GATED)
def test_parts_of_gated_units(name: str) -> None:
    up, gate, out = seeded(
        lambda: nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)])
    )
    x = randn(0, 5, 4)
    got, want = [
        attrfn.lrp(lambda x, act=act: out(act(gate(x), up(x))), x, target=1, rules=rules.attn_lrp())
        for act in GATED[name]
    ]
    close(got, want)


@pytest.mark.parametrize(
    "name",
    [
        "gelu_new",
        *[pytest.param(k, marks=pytest.mark.fuzz) for k in ("mish by logarithms", "elu")],
        "sigmoid by tanh",
    ],
)
def test_transforms(name: str) -> None:
    f, x = net(WRITTEN[name][0])
    options: dict[str, Any] = {"target": 1, "rules": rules.attn_lrp()}
    want = attrfn.lrp(f, x, **options)
    close(vmap(lambda row: attrfn.lrp(f, row[None], **options)[0])(x), want)
    torch._dynamo.reset()
    run = torch.compile(lambda x: attrfn.lrp(f, x, **options), backend="aot_eager", fullgraph=True)
    close(run(x), want)
    torch._dynamo.reset()


UNARY = [torch.tanh, torch.sigmoid, torch.sin, F.relu, lambda t: 1 + t.exp(), lambda t: 0.5 * t,
         lambda t: t.square() + 1, lambda t: (-t).contiguous(), F.softplus, torch.atan]  # fmt: skip
BINARY = [torch.mul, torch.add, torch.sub, torch.maximum, lambda a, b: a / (2 + b.cos())]


@given(seed=st.integers(0, 2**31), steps=st.lists(st.integers(0, 99), min_size=1, max_size=6))
@hypothesis.settings(max_examples=30, deadline=None)
def test_random_chains_times_their_start_conserve(seed: int, steps: list[int]) -> None:
    """h times any function of h is one function of h, which is zero at zero."""

    def f(h: Tensor) -> Tensor:
        made = [h]
        for step in steps:
            a, b = made[step % len(made)], made[step // 2 % len(made)]
            k = step % (len(UNARY) + len(BINARY))
            made.append(UNARY[k](a) if k < len(UNARY) else BINARY[k - len(UNARY)](a, b))
        return made[-1] * h

    x = randn(seed, 3, 4)
    got = attrfn.lrp(lambda x: f(x.clone()).sum(1), x, rules=rules.attn_lrp())
    close(got, f(x))


def test_biases_stay_biases() -> None:
    """Numbers and tensors that are added to a plain value take their share, as before."""
    layer, x = seeded(lambda: nn.Linear(4, 3)), randn(0, 5, 4)
    for bias in (1.5, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)):
        h = layer(x).detach()
        got = attrfn.lrp(lambda h, b=bias: torch.tanh(h + b).sum(1), h, rules=rules.epsilon(0))
        close(got, h * torch.tanh(h + bias) / (h + bias))
        f = lambda h, b=bias: F.silu(h + b).sum(1)  # noqa: E731
        g = lambda h, b=bias: ((h + b) * torch.sigmoid(h + b)).sum(1)  # noqa: E731
        want = attrfn.lrp(f, h, rules=rules.epsilon(0))
        v = lambda h, b=bias: (lambda t: (t * torch.sigmoid(t)).sum(1))(h + b)  # noqa: E731
        close(attrfn.lrp(v, h, rules=rules.epsilon(0)), want)
        assert attrfn.lrp(g, h, rules=rules.epsilon(0)).isfinite().all()


def test_divisors_of_norms_stay_constants() -> None:
    """``1 / (std + eps)`` is no activation: RMS norm by hand, x g R / x."""
    x, w = randn(0, 5, 4), randn(1, 4)

    def f(x: Tensor) -> Tensor:
        inverse = 1 / ((x * x).mean(1, keepdim=True).sqrt() + 1e-3)
        return (x * inverse) @ w

    close(
        attrfn.lrp(f, x, rules=rules.epsilon(0)), x * w / (x.square().mean(1, True).sqrt() + 1e-3)
    )


def test_writes_end_a_chain() -> None:
    """After a write in place the tensor at which a chain started has another value."""
    x = randn(0, 5, 4)

    def f(x: Tensor) -> Tensor:
        h = x * 2
        s = torch.sigmoid(h)
        h.add_(1)
        return h * s

    got = attrfn.lrp(f, x, target=lambda y: y.sum(1), rules=rules.epsilon(0))
    h, y = 2 * x, f(x)
    # Half passes h + 1, of which 1 takes a part, half passes the sigmoid.
    close(got, y / 2 * h / (h + 1) + y / 2 * h.abs() / (h.abs() + 1e-6), 1e-9)


# ---------------------------------------------------------------------------------------------
# modules by name


class Laplace(nn.Module):
    def forward(self, x: Tensor, mu: float = 0.7, sigma: float = 0.3) -> Tensor:
        return 0.5 * (1 + torch.erf((x - mu) / sigma))


class Block(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 6), act, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


@pytest.mark.parametrize("names", [("act",), ("a*",), ("missing.*", "act")])
def test_named_modules_are_one_operation(names: tuple[str, ...]) -> None:
    """The relevance of y = act(h) passes to h, by hand: W^T (R / h)."""
    model, x = seeded(lambda: Block(Laplace())), randn(0, 5, 4)
    composite = rules.attn_lrp(1e-9).elementwise(*[n for n in names if "missing" not in n])
    options: dict[str, Any] = {"target": 1, "rules": composite}
    h = model.up(x)
    r = model.down.weight[1] * model.act(h)
    want = (x * ((r / (h + 1e-6 * h.sign())) @ model.up.weight)).detach()
    close(attrfn.lrp(model, x, **options), want, 1e-7)
    close(attrfn.lrp(model, x, create_graph=True, **options).detach(), want, 1e-7)
    close(vmap(lambda row: attrfn.lrp(model, row[None], **options)[0])(x), want, 1e-7)
    found = attrfn.layer_lrp(model, x, layer="up", **options)
    close(found, (r * h.abs() / (h.abs() + 1e-6)).detach(), 1e-7)
    assert not torch.allclose(attrfn.lrp(model, x, target=1, rules=rules.attn_lrp()), want)
    leaks = rules.conservation(model, x, **options)
    lost = sum(leak.lost for leak in leaks)
    total = attrfn.lrp(model, x, **options).sum() + lost
    close(total, model(x)[:, 1].sum().detach())


def test_what_cannot_be_elementwise_is_refused() -> None:
    model, x = seeded(lambda: Block(nn.Softmax(1))), randn(0, 5, 4)
    with pytest.raises(ValueError, match=r"returns shape \(5, 6\) for a tensor of shape \(5, 4\)"):
        attrfn.lrp(model, x, target=1, rules=rules.attn_lrp().elementwise("up"))
    with pytest.raises(ValueError, match=r"rules name the module 'act.0'"):
        attrfn.lrp(model, x, target=1, rules=rules.attn_lrp().elementwise("act.0"))
    with pytest.raises(TypeError, match=r"guided_backprop has no rules by modules"):
        rules.guided().elementwise("act")
    with pytest.raises(TypeError, match=r"elementwise got a int"):
        rules.attn_lrp().elementwise(3)
    writing = seeded(lambda: Block(nn.ReLU(inplace=True)))
    with pytest.raises(ValueError, match=r"writes its input in place"):
        attrfn.lrp(writing, x, target=1, rules=rules.attn_lrp().elementwise("act"))


def test_compiled_code_cannot_name_elementwise_modules() -> None:
    torch._dynamo.reset()
    model, x = seeded(lambda: Block(Laplace())), randn(0, 5, 4)
    composite = rules.attn_lrp().elementwise("act")
    run = torch.compile(lambda x: attrfn.lrp(model, x, rules=composite, target=1), backend="eager")
    with pytest.raises((UnsupportedOpError, RuntimeError), match=r"torch\.compile hides"):
        run(x)
    torch._dynamo.reset()


# ---------------------------------------------------------------------------------------------
# rules by names at layers


def chain_of_layers() -> nn.Sequential:
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)]
    return seeded(lambda: nn.Sequential(*layers))


@pytest.mark.parametrize(
    ("layer", "at", "cut"),
    [("1", "output", 2), ("2", "input", 2), ("0", "output", 1), ("2", "output", 3)],
)
def test_rules_by_names_at_layers(layer: str, at: Any, cut: int) -> None:
    """As the rest of the model, with the same rules there."""
    model, x = chain_of_layers(), randn(0, 5, 4)
    named = {"2": rules.gamma(), "4": rules.z_plus()}
    composite = rules.composite(names=named | {"0": rules.z_plus()})
    behind = {str(i): m for i, m in enumerate(model) if i >= cut}
    rest = nn.Sequential()
    for name, module in behind.items():
        rest.add_module(name, module)
    inner = rules.composite(names={n: r for n, r in named.items() if n in behind})
    want = attrfn.lrp(rest, model[:cut](x).detach(), rules=inner, target=1)
    options: dict[str, Any] = {"target": 1, "rules": composite}
    close(attrfn.layer_lrp(model, x, layer=layer, at=at, **options), want)
    close(attrfn.layer_lrp(model, x, layer=[layer], at=at, **options)[0], want)
    close(attrfn.at_layer(attrfn.lrp, layer, at=at)(model, x, **options), want)
    found = attrfn.layer_lrp(model, x, layer=layer, at=at, create_graph=True, **options)
    close(found.detach(), want)
    one = lambda row: attrfn.layer_lrp(model, row[None], layer=layer, at=at, **options)[0]  # noqa: E731
    close(vmap(one)(x), want)
    with pytest.raises(ValueError, match="rules name the module '9'"):
        attrfn.layer_lrp(
            model, x, layer=layer, target=1, rules=rules.composite(names={"9": rules.gamma()})
        )


def test_rules_by_names_at_layers_compiled() -> None:
    torch._dynamo.reset()
    model, x = chain_of_layers(), randn(0, 5, 4)
    options: dict[str, Any] = {
        "layer": "1",
        "target": 1,
        "rules": rules.composite(names={"2": rules.gamma()}),
    }
    run = torch.compile(
        lambda x: attrfn.layer_lrp(model, x, **options), backend="aot_eager", fullgraph=True
    )
    close(run(x), attrfn.layer_lrp(model, x, **options))
    torch._dynamo.reset()
