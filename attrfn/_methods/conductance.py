"""Conductance and internal influence: what flows through a layer along the inputs' path."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, is_one_of
from attrfn._copies.chunks import Chunks
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.differences import over_differences
from attrfn._explain.explain import repeat_chosen
from attrfn._explain.forms import documented
from attrfn._explain.options import Arguments, AtLayer, AtNeuron, PathOptions
from attrfn._explain.path import on_copies, over_path
from attrfn._explain.quadrature import Rule
from attrfn._explain.target import Chosen, choose, select
from attrfn._explain.tree import each
from attrfn._layers.flow import Flow
from attrfn._layers.flow_of import flow_of
from attrfn._layers.neurons import not_first
from attrfn._torch.autodiff import transforming, values_and_gradients
from attrfn._torch.guard import called
from attrfn._torch.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    Layer,
    Leaves,
    ModelFn,
    RowsOf,
    Target,
    Tree,
)


@documented(AtLayer, Arguments, PathOptions)
def layer_conductance(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    n_steps: int = 50,
    quadrature: str | Rule = "lobatto",
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Integrated gradients of the inputs, counted where they flow through a layer's units.

        A = integral_0^1 df/da(x_s) * (da/dx(x_s) (x - x0)) ds,   x_s = x0 + s (x - x0)

    The default quadrature sums df/da da over the changes of a between its nodes, with one pass of
    the model a node. Any other one takes the directional derivative da/dx (x - x0) at its nodes,
    which costs more, and pays where the model is smooth.

    Returns:
        Attributions like the layer's activation; they sum to f(x) - f(x0) where the layer cuts the
        network (the output depends on the input only through the layer).

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.layer_conductance(model, x, layer="1", target=0)
        >>> torch.allclose(a.sum(1), (model(x) - model(0 * x))[:, 0], atol=1e-5)
        True

    Reference:
        Dhamdhere, Sundararajan and Yan, How Important Is a Neuron?, 2018.
    """
    flow = flow_of(model_fn, inputs, layer, target, at, call, create_graph, rows=rows, apart=True)
    batching = flow.way(batching)
    x0 = fill_baselines(baselines, inputs, flow.p.x)
    chunks = Chunks(chunk_size, batching, progress, "layer_conductance")
    if is_one_of(quadrature, "lobatto"):
        return flow.result(_over_changes(flow, x0, n_steps, chunks))
    return flow.result(
        over_path(
            flow.p,
            x0,
            lambda points: on_copies(lambda *r: _products(flow, x0, *r), points, batching),
            n_steps=n_steps,
            quadrature=quadrature,
            chunks=chunks,
        )
    )


def _over_changes(flow: Flow, x0: Leaves, n_steps: int, chunks: Chunks) -> Leaves:
    """``integral df/da da`` from the values of both at the nodes."""

    def values(points: Leaves) -> tuple[Leaves, Leaves]:
        found = on_copies(lambda *r: sum(flow.both(*r), ()), points, chunks.batching)
        return found[: len(found) // 2], found[len(found) // 2 :]

    at_start = on_copies(flow.heads, each(lambda t: t[None], x0), chunks.batching)
    a0 = each(lambda t: t[0], at_start)
    return over_differences(flow.p, x0, a0, values, n_steps, chunks)


def _products(flow: Flow, x0: Leaves, rows: Leaves, copies: int) -> Leaves:
    """``df/da (da/dx (x - x0))`` at some rows."""
    lengths = each(lambda x, x0: (x - x0).expand(copies, *x.shape), flow.p.x, x0)
    tangents = flat_rows(lengths)
    if transforming():
        # vmap over the steps batches the rows and not the lengths. In-place operations of the
        # model fail unless tangents are batched where values are.
        tangents = each(lambda r, d: torch.zeros_like(r) + d, rows, tangents)
    return each(torch.mul, *flow.along(rows, tangents, copies))


@documented(AtLayer, Arguments, PathOptions)
def internal_influence(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    n_steps: int = 50,
    quadrature: str | Rule = "gauss_legendre",
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """The gradient at a layer, averaged along the inputs' path.

        A = integral_0^1 df/da(x0 + s (x - x0)) ds

    Returns:
        Attributions like the layer's activation.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.internal_influence(model, torch.randn(5, 3), layer="1", target=0).shape
        torch.Size([5, 4])

    Reference:
        Leino et al., Influence-Directed Explanations for Deep Convolutional Networks, 2018.
    """
    flow = flow_of(model_fn, inputs, layer, target, at, call, create_graph, rows=rows, apart=True)
    batching = flow.way(batching)
    x0 = fill_baselines(baselines, inputs, flow.p.x)
    return flow.result(
        over_path(
            flow.p,
            x0,
            lambda points: on_copies(lambda *r: flow.both(*r)[1], points, batching),
            n_steps=n_steps,
            quadrature=quadrature,
            chunks=Chunks(chunk_size, batching, progress, "internal_influence"),
        )
    )


@documented(AtNeuron, Arguments, PathOptions)
def neuron_conductance(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    target: Target = None,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    n_steps: int = 50,
    quadrature: str | Rule = "gauss_legendre",
    multiply_by_inputs: bool = True,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """The part of the inputs' integrated gradients that flows through one neuron.

        A = (x - x0) * integral_0^1 df/dn(x_s) dn/dx(x_s) ds,   x_s = x0 + s (x - x0)

    Args:
        neuron: n, an int, a tuple of ints and slices, one of either per example, or a callable from
            the layer's activation to (B,); several units count as their sum, or by the gradient of
            the callable.

    Returns:
        Attributions like the inputs; they sum to the neuron's :func:`layer_conductance`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.neuron_conductance(model, x, layer="1", neuron=2, target=0)
        >>> of_layer = attrfn.layer_conductance(model, x, layer="1", target=0)
        >>> torch.allclose(a.sum(1), of_layer[:, 2], atol=1e-6)
        True

    Reference:
        Shrikumar, Su and Kundaje, Computationally Efficient Measures of Internal Neuron Importance,
        2018.
    """
    flow = flow_of(model_fn, inputs, layer, target, at, call, create_graph, rows=rows)
    batching = flow.way(batching)
    p = flow.p
    chosen = choose(neuron, p.batch, "neuron")
    if flow.sites[0].whole is not None and not callable(chosen):
        raise ValueError(not_first(layer))
    x0 = fill_baselines(baselines, inputs, p.x)
    picked = functools.partial(_picked, flow, chosen, create_graph)
    total = over_path(
        p,
        x0,
        lambda points: on_copies(functools.partial(flow.back, picked), points, batching),
        n_steps=n_steps,
        quadrature=quadrature,
        chunks=Chunks(chunk_size, batching, progress, "neuron_conductance"),
    )
    if multiply_by_inputs:
        total = each(lambda x, x0, g: (x - x0) * g, p.x, x0, total)
    return p.result(total)


# df/dn dn/dx is the gradient of <df/da * dn/da, a(x)> with both factors held constant. dn/da picks
# the neuron: it is 1 at a single unit, and a callable weighs several units by it.
def _picked(flow: Flow, chosen: Chosen, create_graph: bool, a: Leaves, copies: int) -> Leaves:
    """dn/da at the activation of some copies."""
    site, batch = flow.sites[0], flow.p.batch
    neuron_of_copies = repeat_chosen(chosen, batch, copies)

    def neurons(*z: Tensor) -> Tensor:
        value = site.rebuild(z)
        if site.whole is not None and callable(chosen):
            found: Tensor = called("neuron", chosen, site.whole.plant(value))
            return found.sum()
        return select(value, neuron_of_copies, copies * batch, "neuron")

    return values_and_gradients(neurons, a, create_graph=create_graph)[1]
