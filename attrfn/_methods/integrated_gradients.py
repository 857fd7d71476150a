"""Integrated gradients, of inputs, layers and neurons."""

from __future__ import annotations

import torch

from attrfn._copies.chunks import Chunks
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import explain
from attrfn._explain.forms import documented, form_of
from attrfn._explain.options import Arguments, AtLayer, AtNeuron, LayerBaselines, PathOptions
from attrfn._explain.path import over_path
from attrfn._explain.path_gap import warn_of_gap
from attrfn._explain.quadrature import Rule
from attrfn._explain.tolerance import to_tolerance
from attrfn._explain.tree import each
from attrfn._layers.at import at_layer, at_neuron
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import makes_fakes
from attrfn._torch.say import say
from attrfn._torch.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    Layer,
    ModelFn,
    RowsOf,
    Target,
    Tree,
    Unpack,
)


@documented(Arguments, PathOptions)
def integrated_gradients(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    n_steps: int = 50,
    quadrature: str | Rule = "gauss_legendre",
    multiply_by_inputs: bool = True,
    tolerance: float | None = None,
    check_completeness: bool = True,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Integral of the gradient along the straight path from the baseline to the input.

        A = (x - x0) * integral_0^1 df(x0 + a (x - x0))/dx da
          = (x - x0) * sum_k w_k df(x0 + a_k (x - x0))/dx

    Returns:
        Attributions like the inputs; they sum to f(x) - f(x0) (completeness).

    Example:
        >>> import torch, attrfn
        >>> def f(x):
        ...     return x[:, 0] * x[:, 1]
        >>> attrfn.integrated_gradients(f, torch.tensor([[2.0, 3.0]])).round(decimals=4)
        tensor([[3., 3.]])

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017.
    """
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    x0 = fill_baselines(baselines, inputs, p.x)
    chunks = Chunks(chunk_size, batching, progress, "integrated_gradients")
    if tolerance is None:
        total = over_path(
            p,
            x0,
            lambda points: p.gradients(points, batching)[1],
            n_steps=n_steps,
            quadrature=quadrature,
            chunks=chunks,
        )
    else:
        _check_tolerance(tolerance)
        # All at once would mean as many as are open, until memory runs out.
        chunks = chunks._replace(size=chunk_size or n_steps)
        total = to_tolerance(p, x0, n_steps, quadrature, tolerance, chunks)
    lengths = each(torch.sub, p.x, x0)
    parts = each(torch.mul, lengths, total)
    # Inside transforms the gap cannot be read.
    checked = check_completeness and tolerance is None and p.batch
    if checked and not (transforming() or makes_fakes()):
        warn_of_gap("integrated_gradients", n_steps, p, x0, parts, chunks)
    return p.result(parts if multiply_by_inputs else total)


def _check_tolerance(tolerance: float) -> None:
    if transforming():
        raise ValueError(
            "tolerance cannot be met inside a torch.func transform or torch.compile, because the "
            "number of steps depends on values: set n_steps instead"
        )
    if type(tolerance) not in (int, float) or not tolerance > 0:
        raise ValueError(
            f"tolerance is {say(tolerance)}, expected a number above 0 in units of the output"
        )


@form_of(integrated_gradients, LayerBaselines, AtLayer)
def layer_integrated_gradients(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[PathOptions],
) -> Tree:
    """Integrated gradients of a layer, along the path from head(x0) to head(x).

        A = (a - a0) * integral_0^1 df(a0 + s (a - a0))/da ds,   a = head(x), a0 = head(x0)

    This is ``at_layer(integrated_gradients, layer)``; the inputs may be integers (token ids).

    Returns:
        Attributions like the layer's activation; they sum to f(x) - f(x0) where the layer cuts the
        network (the output depends on the input only through the layer).


    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(8, 2)
        ... )
        >>> ids = torch.tensor([[1, 2], [3, 4]])
        >>> attrfn.layer_integrated_gradients(model, ids, layer="0", target=1).shape
        torch.Size([2, 2, 4])
    """
    return at_layer(integrated_gradients, layer, at=at, call=call, rows=rows)(
        model_fn, inputs, target=target, **options
    )


@form_of(integrated_gradients, AtNeuron)
def neuron_integrated_gradients(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[PathOptions],
) -> Tree:
    """Integrated gradients of a neuron with respect to the inputs.

        A = (x - x0) * integral_0^1 dn(x0 + s (x - x0))/dx ds,   n = neuron of head(x)

    Returns:
        Attributions like the inputs; they sum to n(x) - n(x0).


    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.neuron_integrated_gradients(model, x, layer="1", neuron=2)
        >>> n = model[:2](x) - model[:2](0 * x)
        >>> torch.allclose(a.sum(1), n[:, 2], atol=1e-5)
        True
    """
    return at_neuron(integrated_gradients, layer, neuron, at=at, call=call, rows=rows)(
        model_fn, inputs, **options
    )
