"""torch.compile(fullgraph=True) gives the eager numbers, once per shape."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import assert_close
from models import NETS, Net, targets
from registry import ROWS, Row, explain, needs, primary, rows, trial
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call
from zoo import same_state, state

import attrfn
from attrfn.testing import _values as checks

pytestmark = pytest.mark.usefixtures("fresh_compiler")

# One of each kind of derivative: of a path, through and behind a layer, of a map.
SOME = ["integrated_gradients", "layer_conductance", "neuron_conductance", "hires_cam"]


def small(r: Row) -> dict[str, Any]:
    """Two copies of the batch, and noise where nothing else is drawn: each draw takes seconds."""
    quiet = {"stdevs": 0.0} if r.name in ("layer_gradient_shap", "neuron_gradient_shap") else {}
    fewer = {} if r.copies is None or r.options[r.copies] > 3 else {r.copies: 2}
    return {**fewer, **quiet}


def given(r: Row, net: Net, batch: int = 3) -> dict[str, Any]:
    options = {**needs(r, net), **small(r)}
    return {**options, "target": targets(batch)} if r.target else options


def takes_the_model(r: Row) -> bool:
    return (r.name in r.covers or r.explains == "layer") and not r.keyed


def by_its_name(r: Row) -> bool:
    """Whether the default run compiles the method alone, with the model as an argument."""
    return takes_the_model(r) and len(r.name) % 3 == 0


def in_closure(r: Row) -> bool:
    """Whether the default run compiles the method in a closure: one of each kind, and the rest."""
    return r.name in primary() and (r.name in SOME or not by_its_name(r))


@pytest.mark.capability("compile")
@rows(in_closure)
def test_closure_over_the_model_compiles_once(r: Row) -> None:
    closure_compiles_once(r)


@pytest.mark.fuzz
@pytest.mark.capability("compile")
@rows(lambda r: r.name in primary() and not in_closure(r))
def test_every_closure_over_the_model_compiles_once(r: Row) -> None:
    closure_compiles_once(r)


def closure_compiles_once(r: Row) -> None:
    """Other inputs, targets and parameter values of the same shapes use the same graph."""
    checks.compile(trial(r, r.net, **small(r)))


@rows(by_its_name)
def test_compiled_method_takes_the_model_as_an_argument(r: Row) -> None:
    compiled_with_its_model(r)


@pytest.mark.fuzz
@rows(lambda r: takes_the_model(r) and len(r.name) % 3 != 0)
def test_every_compiled_method_takes_the_model_as_an_argument(r: Row) -> None:
    compiled_with_its_model(r)


def compiled_with_its_model(r: Row) -> None:
    """``torch.compile(attrfn.method)(model, x, **options)`` on the net with reused parts."""
    net = NETS["reuse"]
    model, x, options = net.build(), net.inputs(), given(r, net)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(r.method, backend=counter, fullgraph=True)
    assert_close(compiled(model, x, **options), r.method(model, x, **options))
    other = net.inputs(seed=61)
    assert_close(compiled(model, other, **options), r.method(model, other, **options))
    assert counter.frame_count == 1


def compiled_equals_eager(f: Any, *args: Any, backend: str = "aot_eager", **close: Any) -> None:
    assert_close(torch.compile(f, backend=backend, fullgraph=True)(*args), f(*args), **close)


some = pytest.mark.parametrize("name", SOME)


def mapped(r: Row) -> bool:
    """Whether the default run maps the method inside compiled code: a third, and all kinds."""
    return r.name in primary() and (r.name in SOME or len(r.name) % 3 == 1)


@pytest.mark.capability("compile + vmap")
@rows(mapped)
def test_vmap_inside_compiled_code(r: Row) -> None:
    vmap_inside_compiled_code(r)


@pytest.mark.fuzz
@pytest.mark.capability("compile + vmap")
@rows(lambda r: r.name in primary() and not mapped(r))
def test_every_vmap_inside_compiled_code(r: Row) -> None:
    vmap_inside_compiled_code(r)


def vmap_inside_compiled_code(r: Row) -> None:
    """Over examples and targets, or targets where the examples reach each other."""
    net = r.net
    model, x, t = net.build(), net.inputs(2), targets(2)

    def one(x: Tensor, t: Tensor) -> Tensor:
        return explain(r, net, model, x if r.mixes else x[None], target=t, **small(r))

    def f(x: Tensor, t: Tensor) -> Tensor:
        return torch.func.vmap(one, in_dims=(None if r.mixes else 0, 0))(x, t)

    compiled_equals_eager(f, x, t, backend="eager")


OTHER_NETS = [("integrated_gradients", "norm"), ("layer_conductance", "attention")]


@pytest.mark.parametrize(
    ("name", "net"),
    [
        pytest.param(name, net, marks=[] if (name, net) in OTHER_NETS else [pytest.mark.fuzz])
        for name in SOME
        for net in ("norm", "attention")
    ],
)
def test_other_nets_compile(name: str, net: str) -> None:
    r = ROWS[name]
    model = NETS[net].build()
    compiled_equals_eager(
        lambda x, t: explain(r, NETS[net], model, x, target=t, **small(r)),
        NETS[net].inputs(),
        targets(3),
    )


@some
def test_functional_parameters_compile_once(name: str) -> None:
    """New parameter tensors, not only new values, use the same graph."""
    r = ROWS[name]
    net = r.net
    model, x = net.build(), net.inputs()

    def f(params: dict[str, Tensor], x: Tensor) -> Tensor:
        bound = functools.partial(functional_call, model, params)
        return explain(r, net, bound, x, **small(r))

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, backend=counter, fullgraph=True)
    for scale in (1.0, 1.2):
        params = {k: scale * p.detach() for k, p in model.named_parameters()}
        assert_close(compiled(params, x), f(params, x))
    assert counter.frame_count == 1


@some
def test_grad_of_attributions_inside_compiled_code(name: str) -> None:
    r = ROWS[name]
    net = r.net
    model = net.build()

    def f(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (explain(r, net, model, x, **small(r)) ** 2).sum())(x)

    compiled_equals_eager(f, net.inputs())


@some
def test_backward_through_compiled_attributions(name: str) -> None:
    """A training step on a penalty, with the attributions from compiled code."""
    r = ROWS[name]
    net = r.net

    def step(compiling: bool) -> list[Tensor]:
        model, x = net.build().requires_grad_(), net.inputs().requires_grad_()

        def f(x: Tensor) -> Tensor:
            return explain(r, net, model, x, create_graph=True, **small(r))

        run = torch.compile(f, backend="aot_eager", fullgraph=True) if compiling else f
        (run(x) ** 2).sum().backward()
        # A parameter without influence may keep None or get zeros.
        influential = (p.grad for p in model.parameters() if p.grad is not None)
        return [x.grad, *(g for g in influential if g.any())]

    for found, expected in zip(step(True), step(False), strict=True):
        assert_close(found, expected)


@some
def test_a_penalty_by_vmap_inside_compiled_code(name: str) -> None:
    """The graph leads through vmap to the parameters with no option, and only through vmap."""
    r = ROWS[name]
    net, t = r.net, targets(2)

    def step(compiling: bool) -> list[Tensor]:
        model, x = net.build(), net.inputs(2)

        def one(x: Tensor, t: Tensor) -> Tensor:
            return explain(r, net, model, x[None], target=t, **small(r))

        def f(x: Tensor) -> Tensor:
            return (torch.func.vmap(one)(x, t) ** 2).sum()

        run = torch.compile(f, backend="eager", fullgraph=True) if compiling else f
        run(x).backward()
        return [p.grad for p in model.parameters() if p.grad is not None and p.grad.any()]

    found, expected = step(True), step(False)
    assert expected
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@some
def test_no_graph_leaves_compiled_code_without_an_option(name: str) -> None:
    r = ROWS[name]
    model = r.net.build()
    run = torch.compile(
        lambda x: explain(r, r.net, model, x, **small(r)), backend="eager", fullgraph=True
    )
    assert not run(r.net.inputs()).requires_grad


@pytest.mark.parametrize(
    "target",
    [2, (slice(0, 2),), [0, 2, 1], lambda out: out[:, 0] - out.logsumexp(1)],
    ids=["int", "slice", "list", "callable"],
)
def test_every_kind_of_target_compiles(target: Any) -> None:
    model = NETS["mlp"].build()
    compiled_equals_eager(
        lambda x: attrfn.integrated_gradients(model, x, target=target, n_steps=2),
        NETS["mlp"].inputs(),
    )


@pytest.mark.parametrize(
    ("name", "batching"),
    [
        ("integrated_gradients", "fold"),
        ("integrated_gradients", "vmap"),
        ("integrated_gradients", "loop"),
        ("layer_conductance", "fold"),
    ],
)
def test_every_batching_and_chunks_compile(name: str, batching: str) -> None:
    net = NETS["cnn"]
    model = net.build()
    compiled_equals_eager(
        lambda x: explain(
            ROWS[name], net, model, x, n_steps=3, chunk_size=2, batching=batching, baselines=x / 2
        ),
        net.inputs(),
    )


def test_trees_compile() -> None:
    def f(x: dict[str, Any]) -> Tensor:
        return (x["a"] * x["b"][0]).sum(1) ** 2 + x["b"][1].exp()

    tree = {
        "a": NETS["mlp"].inputs(),
        "b": (NETS["mlp"].inputs(seed=4), torch.arange(3.0).double()),
    }
    compiled_equals_eager(lambda x: attrfn.integrated_gradients(f, x, n_steps=2), tree)


def test_keys_are_inputs_of_the_graph() -> None:
    """Another key gives other numbers from the same graph."""
    net = NETS["mlp"]
    model, x = net.build(), net.inputs()

    def f(x: Tensor, key: Tensor) -> Tensor:
        return attrfn.noise_tunnel(attrfn.gradient, n_samples=2, key=key)(model, x, target=1)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, backend=counter, fullgraph=True)
    keys = attrfn.random.split(7, 2)
    results = [compiled(x, key) for key in keys]
    for key, found in zip(keys, results, strict=True):
        assert_close(found, f(x, key))
    assert not torch.allclose(*results)
    assert counter.frame_count == 1


def test_compiled_code_follows_the_models_mode() -> None:
    """A change of mode is seen: batch norm with the statistics of the batch, buffers untouched."""
    net = NETS["norm"]
    model, x = net.build(), net.inputs()
    model.drop.p = 0.0
    compiled = torch.compile(attrfn.gradient, backend="aot_eager", fullgraph=True)
    evaluated = compiled(model, x, target=1)
    assert_close(evaluated, attrfn.gradient(model, x, target=1))
    model.train()
    before = state(model)
    with pytest.warns(UserWarning, match="training mode"):
        trained = attrfn.gradient(model, x, target=1)
    assert_close(compiled(model, x, target=1), trained)
    assert not torch.allclose(trained, evaluated)
    assert same_state(model, before)


def test_compiled_code_leaves_the_model_as_it_was() -> None:
    net = NETS["reuse"]
    model, x = net.build(), net.inputs()
    before, copy = state(model), x.clone()
    compiled = torch.compile(attrfn.layer_conductance, backend="aot_eager", fullgraph=True)
    compiled(model, x, layer="mid", target=1, n_steps=2)
    assert same_state(model, before)
    assert torch.equal(x, copy)


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("integrated_gradients", "mlp"),
        ("layer_conductance", "mlp"),
        ("grad_cam", "reuse"),
        ("layer_integrated_gradients", "attention"),
    ],
)
def test_inductor_gives_the_eager_numbers(name: str, net: str) -> None:
    r = ROWS[name]
    model = NETS[net].build()
    compiled_equals_eager(
        lambda x, t: explain(r, NETS[net], model, x, target=t, **small(r)),
        NETS[net].inputs(),
        targets(3),
        backend="inductor",
    )
