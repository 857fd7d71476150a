"""Guided backpropagation and deconvolution: by hand, against Captum, and in every form of ReLU."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import make, randn

import attrfn
from attrfn._rules.record import Record
from attrfn._rules.relu import DECONV, GUIDED
from attrfn._rules.replay import Replay
from attrfn._rules.run import Entry
from attrfn._rules.table import Rules

RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "guided_backprop": lambda g, x: g.clamp(min=0) * (x > 0),
    "deconvolution": lambda g, x: g.clamp(min=0),
}
by_name = pytest.mark.parametrize("name", RULES)


def dense() -> nn.Module:
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)]
    return make(lambda: nn.Sequential(*layers))


def conv(*relus: nn.Module) -> nn.Module:
    a, b, c = relus
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), a, nn.Conv2d(4, 4, 3), b, nn.Flatten(), nn.Linear(16, 6), c,
            nn.Linear(6, 3),
        )
    )  # fmt: skip


@by_name
def test_by_hand(name: str) -> None:
    """The backward pass written out, layer by layer, with matrices."""
    model, x = dense(), randn(5, 4)
    first, second, last = model[0], model[2], model[4]
    a = x @ first.weight.mT + first.bias
    b = a.clamp(min=0) @ second.weight.mT + second.bias
    g = RULES[name](last.weight[1].expand(5, 5), b)
    g = RULES[name](g @ second.weight, a)
    assert_close(getattr(attrfn, name)(model, x, target=1), g @ first.weight)


def test_rules_differ_from_the_gradient_and_from_each_other() -> None:
    model, x = dense(), randn(5, 4)
    found = [
        f(model, x, target=1)
        for f in (attrfn.gradient, attrfn.guided_backprop, attrfn.deconvolution)
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(found[i], found[j])


@pytest.mark.parametrize(
    ("name", "peer"), [("guided_backprop", "GuidedBackprop"), ("deconvolution", "Deconvolution")]
)
def test_against_captum(name: str, peer: str) -> None:
    """Captum needs a module of its own for every ReLU."""
    attr = pytest.importorskip("captum.attr")
    model, x, t = conv(nn.ReLU(), nn.ReLU(), nn.ReLU()), randn(3, 2, 6, 6), torch.tensor([2, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum tells that it sets hooks
        explain = getattr(attr, peer)(model).attribute
        expected = explain(x.clone().requires_grad_(), target=t).detach()
    assert_close(getattr(attrfn, name)(model, x, target=t), expected)


def test_guided_grad_cam_against_captum() -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = conv(nn.ReLU(), nn.ReLU(), nn.ReLU()), randn(3, 2, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explain = attr.GuidedGradCam(model, model[2]).attribute
        expected = explain(x.clone().requires_grad_(), target=1)
    found = attrfn.guided_grad_cam(model, x, layer="2", target=1)
    assert (found != 0).any()
    assert_close(found, expected.detach())


@by_name
def test_neurons_against_the_cut_model(name: str) -> None:
    model, x = conv(nn.ReLU(), nn.ReLU(), nn.ReLU()), randn(3, 2, 6, 6)
    found = getattr(attrfn, f"neuron_{name.removesuffix('_backprop')}" + (
        "_backprop" if name.endswith("backprop") else ""
    ))(model, x, layer="3", neuron=(1, 0, 1))  # fmt: skip
    expected = getattr(attrfn, name)(model[:4], x, target=(1, 0, 1))
    assert_close(found, expected)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu in place": functools.partial(F.relu, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "clamp": lambda x: torch.clamp(x, min=0),
    "clamp positional": lambda x: x.clamp(0),
    "clamp in place": lambda x: x.clamp_(min=0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: torch.clip(x, 0),
    "keyword": lambda x: F.relu(input=x),
}


@by_name
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_relu(name: str, form: str) -> None:
    model, x = dense(), randn(5, 4)

    def f(x: Tensor) -> Tensor:
        h = FORMS[form](model[0](x))
        return model[4](FORMS[form](model[2](h)))

    expected = getattr(attrfn, name)(model, x, target=1)
    assert_close(getattr(attrfn, name)(f, x, target=1), expected)
    differentiable = getattr(attrfn, name)(f, x, target=1, create_graph=True)
    assert_close(differentiable.detach(), expected)


@pytest.mark.parametrize(
    "other", [lambda x: x.clamp(min=x * 0), lambda x: x.clamp(min=0.1), lambda x: x.clamp(max=0)]
)
def test_other_clamps_keep_their_derivative(other: Callable[[Tensor], Tensor]) -> None:
    x, w = randn(3, 4), torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return other(x) @ w

    with pytest.warns(UserWarning, match="guided_backprop met no ReLU"):
        assert_close(attrfn.guided_backprop(f, x), attrfn.gradient(f, x))


INNER: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "whole": lambda model, x: torch.vmap(model)(x),
    "in chunks": lambda model, x: torch.vmap(model, chunk_size=2)(x),
    "twice": lambda model, x: torch.vmap(torch.vmap(model))(x[None])[0],
    "in part": lambda model, x: model[3:](torch.vmap(model[:3])(x)),
    "in place": lambda model, x: model[4](
        torch.vmap(lambda t: model[2](model[0](t).relu_()).relu_())(x)
    ),
}


@by_name
@pytest.mark.parametrize("inner", INNER)
def test_models_that_call_vmap(name: str, inner: str) -> None:
    """A ReLU on a batched tensor is a ReLU; inside another transform it is refused."""
    model, x, method = dense(), randn(5, 4), getattr(attrfn, name)

    def f(x: Tensor) -> Tensor:
        return INNER[inner](model, x)

    expected = method(model, x, target=1)
    for create_graph in (False, True):
        assert_close(method(f, x, target=1, create_graph=create_graph).detach(), expected)
    ruled = attrfn.with_rules(f, {"guided_backprop": GUIDED, "deconvolution": DECONV}[name])
    assert_close(attrfn.gradient(ruled, x, target=1), expected)
    with pytest.raises(attrfn.UnsupportedOpError, match=r"relu.* a function of torch.func inside"):
        torch.vmap(lambda t: method(f, t[None], target=1)[0])(x)


@by_name
def test_derivatives_through_a_model_that_calls_vmap(name: str) -> None:
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh()]
    model, x, method = make(lambda: nn.Sequential(*layers)), randn(5, 4), getattr(attrfn, name)

    def derivative(f: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_()
        method(f, leaf, target=1, create_graph=True).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    expected = derivative(model)
    assert (expected != 0).any()
    assert_close(derivative(lambda x: torch.vmap(model)(x)), expected)


class Rectify(torch.autograd.Function):
    """ReLU with a backward pass of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0] > 0)


UNSEEN: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "scripted module": lambda: torch.jit.script(nn.ReLU()),
    "traced module": lambda: torch.jit.trace(nn.ReLU(), randn(3, 6)),
    "traced function": lambda: torch.jit.trace(lambda x: x.relu() * 2, randn(3, 6)),
    "autograd.Function": lambda: Rectify.apply,
    "autograd.Function in vmap": lambda: torch.vmap(Rectify.apply),
    "fused": lambda: lambda x: make(lambda: nn.RNN(6, 6, nonlinearity="relu"))(x)[0],
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@by_name
@pytest.mark.parametrize("kind", UNSEEN)
def test_relus_that_cannot_be_seen_are_refused(name: str, kind: str) -> None:
    """Beside one that can be seen; before, they kept their plain derivative without a word."""
    model, x, unseen = dense(), randn(5, 4), UNSEEN[kind]()

    def f(x: Tensor) -> Tensor:
        return model[2:](unseen(model[0](x)))

    table = {"guided_backprop": GUIDED, "deconvolution": DECONV}[name]
    for _ in range(3):  # scripted code is compiled in its second run
        with pytest.raises(attrfn.UnsupportedOpError, match=f"{name} cannot see whether there are"):
            getattr(attrfn, name)(f, x, target=1)
        with pytest.raises(attrfn.UnsupportedOpError, match=f"{name} cannot see whether there are"):
            attrfn.gradient(attrfn.with_rules(f, table), x, target=1)


@by_name
@pytest.mark.parametrize("reentrant", [False, True])
def test_relus_in_checkpointed_parts_have_the_rule(name: str, reentrant: bool) -> None:
    model, x = dense(), randn(5, 4)

    def f(x: Tensor) -> Tensor:
        return model[2:](checkpoint(F.relu, model[0](x), use_reentrant=reentrant))

    def g(x: Tensor) -> Tensor:
        return model[2:](F.relu(model[0](x)))

    method = functools.partial(getattr(attrfn, name), target=1)
    torch.testing.assert_close(method(f, x), method(g, x))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@by_name
def test_scripted_modules_of_a_model_are_refused_by_name(name: str) -> None:
    model, x = dense(), randn(5, 4)
    model[1] = torch.jit.script(nn.ReLU())
    method = functools.partial(getattr(attrfn, name), target=1)
    for run in (
        lambda x: method(model, x),
        lambda x: method(functools.partial(model), x, create_graph=True),
        torch.vmap(lambda t: method(model, t[None])[0]),
    ):
        with pytest.raises(attrfn.UnsupportedOpError, match=r"inside the scripted module '1'"):
            run(x)


@by_name
def test_what_lies_before_the_inputs_does_not_count(name: str) -> None:
    """The graph of the inputs and of the parameters is the user's own."""
    model, w = dense(), randn(4, 4).requires_grad_()
    x = Rectify.apply(randn(5, 4) @ w).relu()
    params = {k: Rectify.apply(p.relu()) for k, p in model.named_parameters()}
    f = functools.partial(torch.func.functional_call, model, params)
    expected = getattr(attrfn, name)(f, x.detach(), target=1)
    assert_close(getattr(attrfn, name)(f, x, target=1, create_graph=True), expected)
    ruled = attrfn.with_rules(f, {"guided_backprop": GUIDED, "deconvolution": DECONV}[name])
    assert_close(torch.autograd.grad(ruled(x)[:, 1].sum(), x)[0], expected)


@by_name
def test_custom_functions_are_refused_with_a_graph(name: str) -> None:
    model, x = dense(), randn(5, 4)
    with pytest.raises(attrfn.UnsupportedOpError, match=r"custom autograd.Function of Rectify"):
        getattr(attrfn, name)(
            lambda x: model[2:](Rectify.apply(model[0](x))), x, target=1, create_graph=True
        )


@by_name
def test_reused_and_in_place_modules(name: str) -> None:
    """One ReLU for all places, in place or not, gives what three modules give."""
    x, method = randn(3, 2, 6, 6), getattr(attrfn, name)
    expected = method(conv(nn.ReLU(), nn.ReLU(), nn.ReLU()), x, target=1)
    for in_place in (False, True):
        one = nn.ReLU(in_place)
        assert_close(method(conv(one, one, one), x, target=1), expected)


def test_residual_sums_and_other_activations() -> None:
    """Where nothing is cut off, guided backpropagation is the gradient: positive weights."""
    w = randn(4, 4).abs()

    def f(x: Tensor) -> Tensor:
        h = x + F.relu(x @ w)
        return (h + torch.tanh(h) + F.relu(h)).sum(1)

    x = randn(3, 4)
    assert_close(attrfn.guided_backprop(f, x), attrfn.gradient(f, x))


@pytest.mark.parametrize("table", [GUIDED, DECONV], ids=["guided", "deconv"])
def test_values_are_bitwise_those_of_the_model(table: Rules) -> None:
    """In the run on what a first run saw, in the single run, and as a model function."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = conv(nn.ReLU(), nn.ReLU(True), nn.ReLU()).to(dtype)
        x = randn(3, 2, 6, 6).to(dtype)
        entries: list[Entry] = []
        record = Record(table, [], entries, True)
        (row,) = record.add([x])
        with record:
            expected = model(row)
        assert torch.equal(expected, model(x))
        assert [name for name, _, _ in entries] == ["relu"] * 3
        for at_x in (None, entries):
            calls: list[str] = []
            replay = Replay(table, calls, at_x, None)
            (row,) = replay.add([x])
            with replay:
                assert torch.equal(model(row), expected)
            assert calls == ["relu"] * 3
        assert torch.equal(attrfn.with_rules(model, table)(x), expected)


@by_name
def test_compiled_model_is_explained_the_same(name: str) -> None:
    """A model that was compiled before runs as it is written."""
    torch._dynamo.reset()
    model, x = dense(), randn(5, 4)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    expected = getattr(attrfn, name)(model, x, target=1)
    assert_close(getattr(attrfn, name)(compiled, x, target=1), expected)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it while it traces
@by_name
def test_compiled_function_is_explained_the_same(name: str) -> None:
    torch._dynamo.reset()
    model, x = dense(), randn(5, 4)
    compiled = torch.compile(lambda x: model(x), backend="aot_eager")
    compiled(x)
    expected = getattr(attrfn, name)(model, x, target=1)
    assert_close(getattr(attrfn, name)(compiled, x, target=1), expected)
    torch._dynamo.reset()


@by_name
def test_model_without_relu_warns(name: str) -> None:
    model, x = make(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh())), randn(2, 4)
    with pytest.warns(UserWarning, match=f"{name} met no ReLU, so it is the plain gradient"):
        found = getattr(attrfn, name)(model, x, target=1)
    assert_close(found, attrfn.gradient(model, x, target=1))


def test_guided_grad_cam_of_another_input_is_refused() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="inputs has a tensor of shape"):
        attrfn.guided_grad_cam(model, randn(2, 4), layer="1", target=0)


def _wrote(write: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def act(x: Tensor) -> Tensor:
        x = x * 1.0  # an operation that does not save its result
        write(x)
        return x

    return act


# How a model writes a rectifier in place, and the same without writing.
WRITES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "Tensor.relu_": (_wrote(Tensor.relu_), torch.relu),
    "torch.relu_": (_wrote(torch.relu_), torch.relu),
    "F.relu": (_wrote(lambda x: F.relu(x, inplace=True)), torch.relu),
    "F.relu6": (_wrote(lambda x: F.relu6(x, inplace=True)), F.relu6),
    "F.hardtanh": (_wrote(lambda x: F.hardtanh(x, inplace=True)), F.hardtanh),
    "F.hardtanh_": (_wrote(lambda x: F.hardtanh_(x, 0, 0.5)), lambda x: F.hardtanh(x, 0, 0.5)),
    "F.leaky_relu_": (_wrote(lambda x: F.leaky_relu_(x, 0.2)), lambda x: F.leaky_relu(x, 0.2)),
    "clamp_": (_wrote(lambda x: x.clamp_(min=0)), lambda x: x.clamp(min=0)),
    "a view": (
        _wrote(lambda x: x[:, :2].relu_()),
        lambda x: torch.cat([x[:, :2].relu(), x[:, 2:]], 1),
    ),
    "the base of a view": (
        lambda x: (v := (y := x * 1.0)[:, :]) + y.relu_() * 2 + 0 * v,
        lambda x: 3 * x.relu(),
    ),
    "unrecorded": (_wrote(torch.no_grad()(Tensor.relu_)), lambda x: x + (x.relu() - x).detach()),
    "twice": (_wrote(lambda x: x.relu_().add_(1).relu_()), lambda x: (x.relu() + 1).relu()),
    "overwritten": (_wrote(lambda x: x.relu_().mul_(2)), lambda x: x.relu() * 2),
}


@by_name
@pytest.mark.parametrize("kind", WRITES)
def test_every_way_to_write_in_place(name: str, kind: str) -> None:
    """The same model that writes nothing has the same result, bit for bit."""
    w = randn(4, 3)
    written, pure = (lambda x, act=act: act(x @ w) @ w.mT for act in WRITES[kind])
    x = randn(5, 4)
    method = getattr(attrfn, name)
    assert torch.equal(method(written, x, target=1), method(pure, x, target=1))
