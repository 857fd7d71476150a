"""Attributions are differentiable functions of the inputs and of the model's parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from helpers import (
    assert_close,
    assert_informative,
    fine_difference,
    finite_difference,
    inner,
    noise_like,
)
from models import NETS, Net
from registry import Row, explain, rows, rows_and_nets, trial
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import attrfn
from attrfn.testing import _slopes as slopes

# Central differences with steps of 1e-5 in float64: their error is of order 1e-10 plus rounding of
# order 1e-16 / 1e-5, relative to derivatives of order 1.
FD = {"rtol": 1e-6, "atol": 1e-8}

smooth_cells = rows_and_nets(lambda r, net: net.smooth and net is not NETS["norm"] and not r.frozen)


def differences(r: Row, f: Callable[[Any], Any], at: Any, direction: Any) -> Any:
    """Finite differences; rules divide by activations, so that third derivatives are large."""
    by = fine_difference if r.rules else finite_difference
    return by(f, at, direction)


def of_inputs(r: Row, net: Net) -> Callable[[Tensor], Tensor]:
    """The attributions as a function of the inputs alone."""
    return functools.partial(explain, r, net, net.build())


def of_parameters(r: Row, net: Net) -> tuple[Callable[[dict[str, Tensor]], Tensor], dict[str, Any]]:
    """The attributions as a function of the parameters, and the parameters."""
    model = net.build()
    params = {k: p.detach() for k, p in model.named_parameters()}
    x = net.inputs()

    def f(params: dict[str, Tensor]) -> Tensor:
        return explain(r, net, functools.partial(functional_call, model, params), x)

    return f, params


@pytest.mark.capability("grad")
@smooth_cells
def test_grad_with_respect_to_inputs(r: Row, net: Net) -> None:
    """By torch.func, and by ``backward``."""
    slopes.grad(trial(r, net))


@pytest.mark.capability("jvp")
@smooth_cells
def test_jvp_with_respect_to_inputs(r: Row, net: Net) -> None:
    slopes.jvp(trial(r, net))


@rows(lambda r: not r.frozen)
def test_jacobians_with_respect_to_inputs(r: Row) -> None:
    f, x = of_inputs(r, r.net), r.net.inputs(2)
    v = noise_like(x, seed=22)
    expected = differences(r, f, x, v)
    found = jacrev(f)(x)
    assert_close(torch.tensordot(found, v, dims=x.ndim), expected, **FD)
    assert_close(jacfwd(f)(x), found)


@rows(lambda r: r.batch_dim == 0 and not r.mixes)
def test_examples_do_not_reach_each_other(r: Row) -> None:
    f, x = of_inputs(r, r.net), r.net.inputs(2)
    jacobian = jacrev(f)(x)
    between = jacobian[0].select(-x.ndim, 1), jacobian[1].select(-x.ndim, 0)
    for block in between:
        assert (block == 0).all()


@smooth_cells
def test_grad_with_respect_to_parameters(r: Row, net: Net) -> None:
    """By torch.func, and by ``backward``."""
    slopes.parameters(trial(r, net))


@rows(lambda r: not r.frozen)
def test_jvp_with_respect_to_parameters(r: Row) -> None:
    f, params = of_parameters(r, r.net)
    v = noise_like(params, seed=24)
    _, found = jvp(f, (params,), (v,))
    assert_close(found, differences(r, f, params, v), **FD)


@rows(lambda r: r.baselines is not None and not r.frozen)
def test_grad_with_respect_to_baselines(r: Row) -> None:
    net = r.net
    x0 = net.pool if r.baselines == "pool" else 0.3 * net.inputs(3, seed=5)
    model, x = net.build(), net.inputs()

    def f(x0: Tensor) -> Tensor:
        return explain(r, net, model, x, baselines=x0)

    w, v = noise_like(f(x0)), noise_like(x0, seed=25)
    found = grad(lambda b: inner(w, f(b)))(x0)
    assert_informative(found)
    assert_close(inner(found, v), differences(r, lambda b: inner(w, f(b)), x0, v), **FD)


@rows(lambda r: r.noisy)
def test_grad_with_respect_to_stdevs(r: Row) -> None:
    model, x = r.net.build(), r.net.inputs()
    s = torch.tensor(0.2, dtype=torch.float64)

    def f(s: Tensor) -> Tensor:
        a = explain(r, r.net, model, x, stdevs=s)
        return inner(noise_like(a), a)

    expected = finite_difference(f, s, torch.ones_like(s))
    assert expected != 0
    assert_close(grad(f)(s), expected, **FD)


def trainable(r: Row, net: Net) -> tuple[nn.Module, Tensor]:
    """The model with parameters that require gradients, and inputs that do."""
    return net.build().requires_grad_(), net.inputs().requires_grad_()


def with_graph(r: Row) -> dict[str, Any]:
    """``create_graph=True`` where there is something to create."""
    return {"create_graph": True} if r.create_graph else {}


def _zeros_for_none(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


@rows(lambda r: r.create_graph)
def test_create_graph_changes_no_value(r: Row) -> None:
    model, x = trainable(r, r.net)
    with_it = explain(r, r.net, model, x, create_graph=True)
    assert with_it.requires_grad
    assert_close(with_it.detach(), explain(r, r.net, model, x))


@rows_and_nets(lambda r, net: r.create_graph)
def test_without_create_graph_there_is_no_graph(r: Row, net: Net) -> None:
    model, x = trainable(r, net)
    for leaf in optree.tree_leaves(explain(r, net, model, x, create_graph=False)):
        assert not leaf.requires_grad
        assert leaf.grad_fn is None


@rows(lambda r: r.create_graph)
def test_options_and_parameters_that_require_gradients_leave_no_graph(r: Row) -> None:
    """Neither baselines, stdevs nor the tensors of functional_call bring one in."""
    net = r.net
    model, x = net.build(), net.inputs()
    params = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}
    options: dict[str, Any] = {}
    if r.baselines is not None:
        x0 = net.pool if r.baselines == "pool" else 0.3 * net.inputs(3, seed=5)
        options["baselines"] = x0.clone().requires_grad_()
    if r.noisy:
        options["stdevs"] = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    for f in (model, functools.partial(functional_call, model, params)):
        assert not explain(r, net, f, x, **options).requires_grad


@rows(lambda r: r.create_graph and not r.layer)
def test_closures_over_parameters_leave_no_graph(r: Row) -> None:
    model = r.net.build().requires_grad_()
    assert not explain(r, r.net, lambda x: model(x), r.net.inputs()).requires_grad


@rows(lambda r: r.create_graph and not r.frozen)
def test_backward_through_functional_call(r: Row) -> None:
    net = r.net
    model, x = net.build(), net.inputs()
    params = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}
    f = functools.partial(functional_call, model, params)
    a = explain(r, net, f, x, create_graph=True)
    w = noise_like(a.detach())
    inner(w, a).backward()
    found = [_zeros_for_none(p) for p in params.values()]
    of, detached = of_parameters(r, net)
    expected = grad(lambda p: inner(w, of(p)))(detached)
    assert_close(dict(zip(params, found, strict=True)), expected)


@rows(lambda r: r.chunked and r.create_graph)
def test_backward_through_chunks(r: Row) -> None:
    whole, parts = ([], [])
    for grads, size in ((whole, None), (parts, 1)):
        model, x = trainable(r, r.net)
        a = explain(r, r.net, model, x, create_graph=True, chunk_size=size)
        inner(noise_like(a.detach()), a).backward()
        grads += [x.grad, *map(_zeros_for_none, model.parameters())]
    assert_close(parts, whole)


@rows(lambda r: r.batching)
@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_grad_through_every_batching(r: Row, batching: str) -> None:
    model, x = r.net.build(), r.net.inputs()

    def f(x: Tensor, batching: str) -> Tensor:
        a = explain(r, r.net, model, x, batching=batching)
        return inner(noise_like(a.detach()), a)

    assert_close(grad(f)(x, batching), grad(f)(x, "fold"))
    x.requires_grad_()
    a = explain(r, r.net, model, x, batching=batching, create_graph=True)
    inner(noise_like(a.detach()), a).backward()
    assert_close(x.grad, grad(f)(x.detach(), "fold"))


@rows(lambda r: not r.mixes)
def test_vmap_of_grad_of_attributions(r: Row) -> None:
    """Per-example gradients of a penalty on attributions, as for differential privacy."""
    net = r.net
    model, x = net.build(), net.inputs()
    params = {k: p.detach() for k, p in model.named_parameters()}

    def penalty(params: dict[str, Tensor], row: Tensor) -> Tensor:
        f = functools.partial(functional_call, model, params)
        return (explain(r, net, f, row[None], target=1) ** 2).sum()

    each = vmap(grad(penalty), in_dims=(None, 0))(params, x)
    for i, row in enumerate(x):
        assert_close({k: g[i] for k, g in each.items()}, grad(penalty)(params, row))


def test_training_on_a_penalty_lowers_it() -> None:
    """The use that create_graph is for: regularise attributions in a training loop."""
    net = NETS["mlp"]
    model, x = net.build().requires_grad_(), net.inputs(8)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    first, *_, last = (_train(model, x, optimiser) for _ in range(30))
    assert last < 0.8 * first


def _train(model: nn.Module, x: Tensor, optimiser: torch.optim.Optimizer) -> float:
    optimiser.zero_grad()
    a = attrfn.integrated_gradients(model, x, target=0, n_steps=3, create_graph=True)
    penalty = a[:, 2].abs().mean()
    penalty.backward()
    optimiser.step()
    return float(penalty.detach())


def test_hessian_is_the_jacobian_of_the_gradient() -> None:
    net = NETS["mlp"]
    model, x = net.build(), net.inputs(1)

    def f(x: Tensor) -> Tensor:
        return model(x)[0, 1]

    found = jacrev(lambda x: attrfn.gradient(model, x, target=1))(x)
    assert_close(found, hessian(f)(x))


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_third_order_through_vjp_of_grad(name: str) -> None:
    """Attributions differentiated twice: grad of a directional derivative of IG.

    Of torch's own layer_norm the third derivative is wrong (pytorch#175754).
    """
    net = NETS[name]
    model, x = net.build(), net.inputs()
    v = noise_like(x, seed=26)

    def along(x: Tensor) -> Tensor:
        a, pull = vjp(lambda x: attrfn.integrated_gradients(model, x, target=0, n_steps=3), x)
        return inner(pull(torch.ones_like(a))[0], v)

    found = grad(along)(x)
    assert_close(inner(found, v), finite_difference(along, x, v), **FD)
