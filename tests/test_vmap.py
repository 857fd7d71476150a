"""torch.func.vmap over examples, keys, noise and parameters equals the loop."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers import assert_close, take
from models import NETS, Net, targets
from registry import Row, explain, rows, rows_and_nets, trial
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

import attrfn
from attrfn.testing import _values as checks


@pytest.mark.capability("vmap")
@rows_and_nets(lambda r, net: not r.mixes)
def test_vmap_over_examples_is_the_batch(r: Row, net: Net) -> None:
    checks.vmap(trial(r, net))


@rows(lambda r: not r.mixes)
def test_vmap_over_examples_and_their_targets_as_a_batch_of_one(r: Row) -> None:
    checks.vmap(trial(r, r.net), whole=("target", "baselines"))


@rows(lambda r: r.keyed and not r.mixes)
def test_vmap_over_examples_with_a_key_each_is_the_batch_of_keys(r: Row) -> None:
    checks.vmap(trial(r, r.net, key=attrfn.random.split(3, 3)))


@rows(lambda r: r.chunked and not r.mixes)
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_vmap_of_chunks_is_the_batch(r: Row, chunk_size: int) -> None:
    checks.vmap(trial(r, r.net, chunk_size=chunk_size))


@rows(lambda r: r.batching and not r.mixes)
def test_vmap_of_vmapped_copies_is_the_batch(r: Row) -> None:
    checks.vmap(trial(r, r.net, batching="vmap"))


@pytest.mark.capability("vmap")
@rows(lambda r: r.target)
def test_vmap_over_targets_is_the_loop(r: Row) -> None:
    model, x = r.net.build(), r.net.inputs()
    mapped = vmap(lambda t: explain(r, r.net, model, x, target=t))(torch.arange(3))
    for c in range(3):
        assert_close(take(mapped, c), explain(r, r.net, model, x, target=c))


@rows(lambda r: r.baselines == "point")
def test_vmap_over_baselines_is_the_loop(r: Row) -> None:
    model, x = r.net.build(), r.net.inputs()
    starts = 0.3 * r.net.inputs(2, seed=5)
    mapped = vmap(lambda b: explain(r, r.net, model, x, baselines=b))(starts)
    for i in range(2):
        assert_close(take(mapped, i), explain(r, r.net, model, x, baselines=starts[i]))


@rows(lambda r: r.keyed)
def test_vmap_over_keys_is_the_loop(r: Row) -> None:
    model, x = r.net.build(), r.net.inputs()
    keys = attrfn.random.split(3, 4)
    mapped = vmap(lambda k: explain(r, r.net, model, x, key=k))(keys)
    for i in range(4):
        assert_close(take(mapped, i), explain(r, r.net, model, x, key=keys[i]))
    assert not all(torch.allclose(mapped[0], other) for other in mapped[1:])


@rows(lambda r: r.noisy)
def test_vmap_over_stdevs_is_the_loop(r: Row) -> None:
    model, x = r.net.build(), r.net.inputs()
    stdevs = torch.tensor([0.0, 0.1, 0.4], dtype=torch.float64)
    mapped = vmap(lambda s: explain(r, r.net, model, x, stdevs=s))(stdevs)
    for i, s in enumerate((0.0, 0.1, 0.4)):
        assert_close(take(mapped, i), explain(r, r.net, model, x, stdevs=s))


@rows()
def test_vmap_over_parameters_is_the_loop_over_models(r: Row) -> None:
    net = r.net
    ensemble = [net.build() for _ in range(3)]
    for i, model in enumerate(ensemble):
        for p in model.parameters():
            p.data.mul_(1 + 0.2 * i)
    params, buffers = stack_module_state(ensemble)
    x = net.inputs()

    def one(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        f = functools.partial(functional_call, ensemble[0], {**params, **buffers})
        return explain(r, net, f, x)

    mapped = vmap(one)(params, buffers)
    for i, model in enumerate(ensemble):
        assert_close(take(mapped, i), explain(r, net, model, x))


def test_two_vmaps_over_targets_and_examples() -> None:
    net = NETS["cnn"]
    model, x = net.build(), net.inputs()

    def one(x: Tensor, t: Tensor) -> Tensor:
        return attrfn.layer_conductance(model, x[None], layer="mid", target=t, n_steps=3)[0]

    mapped = vmap(lambda t: vmap(lambda x: one(x, t))(x))(torch.arange(3))
    for c in range(3):
        expected = attrfn.layer_conductance(model, x, layer="mid", target=c, n_steps=3)
        assert_close(mapped[c], expected)


@rows(lambda r: not r.mixes)
def test_a_penalty_by_vmap_trains_as_one_by_a_loop(r: Row) -> None:
    """The graph leads through vmap to the parameters and the inputs, with no option."""
    x, t = r.net.inputs(), targets(3)
    option = {"create_graph": True} if r.create_graph else {}
    trained = [(r.net.build(), x.clone().requires_grad_()) for _ in range(2)]
    (looped, rows_of), (mapped, batch) = trained
    loop = [
        explain(r, r.net, looped, row[None], target=c[None], **option).square().sum()
        for row, c in zip(rows_of, t, strict=True)
    ]
    torch.stack(loop).sum().backward()
    found = vmap(lambda row, c: explain(r, r.net, mapped, row[None], target=c[None]))(batch, t)
    found.square().sum().backward()
    assert_same_grads([rows_of, *looped.parameters()], [batch, *mapped.parameters()])


@rows(lambda r: r.gradient and not r.frozen)
def test_a_graph_leads_through_grad_to_the_parameters(r: Row) -> None:
    """That of a derivative of the attributions, as without a transform."""
    models, x = [r.net.build(), r.net.build()], r.net.inputs(1)
    leaf = x.clone().requires_grad_()
    option = {"create_graph": True} if r.create_graph else {}
    score = explain(r, r.net, models[0], leaf, **option).square().sum()
    torch.autograd.grad(score, leaf, create_graph=True)[0].square().sum().backward()
    found = torch.func.grad(lambda x: explain(r, r.net, models[1], x).square().sum())(x)
    found.square().sum().backward()
    assert_same_grads(list(models[0].parameters()), list(models[1].parameters()))


@rows()
def test_no_graph_leaves_vmap_where_none_is_wanted(r: Row) -> None:
    """Neither under no_grad, nor where nothing requires a gradient."""
    model, x = r.net.build(), r.net.inputs()
    with torch.no_grad():
        assert not vmap(lambda x: explain(r, r.net, model, x))(x[None]).requires_grad
    model.requires_grad_(False)
    assert not vmap(lambda x: explain(r, r.net, model, x))(x[None]).requires_grad


def assert_same_grads(expected: list[Tensor], found: list[Tensor]) -> None:
    """The same gradients, where None is zero."""
    assert any(t.grad is not None and bool(t.grad.any()) for t in expected)
    for e, f in zip(expected, found, strict=True):
        zero = torch.zeros_like(e)
        assert_close(zero if f.grad is None else f.grad, zero if e.grad is None else e.grad)
