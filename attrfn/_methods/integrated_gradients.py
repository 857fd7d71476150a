"""Integrated gradients, of inputs, layers and neurons."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._copies.chunks import Chunks
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import Explained, explain
from attrfn._explain.forms import documented, form_of
from attrfn._explain.options import Arguments, AtLayer, AtNeuron, LayerBaselines, PathOptions
from attrfn._explain.path import over_path
from attrfn._explain.path_gap import warn_of_gap
from attrfn._explain.quadrature import Rule, rule_and_inner
from attrfn._explain.tree import each, row_total
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
    Leaves,
    ModelFn,
    Target,
    Tree,
    Unpack,
)
from attrfn._torch.warn import warn

# 1,024 times the first number of steps. A gap that is still open is mostly that of a jump in the
# model, which more steps do not close; each doubling costs as much as all before it.
_MOST_DOUBLINGS = 10


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
    values: list[Tensor] = []

    def gradients(points: Leaves) -> Leaves:
        found, grads = p.gradients(points, batching)
        values.append(found.detach())
        return grads

    def integral(
        n: int, chunk_size: ChunkSize, table: tuple[Tensor, Tensor] | None = None
    ) -> Leaves:
        return over_path(
            p,
            x0,
            gradients,
            n_steps=n,
            quadrature=quadrature,
            chunks=Chunks(chunk_size, batching, progress, "integrated_gradients"),
            table=table,
        )

    lengths = each(torch.sub, p.x, x0)
    if tolerance is None:
        # Inside transforms the gap cannot be read.
        readable = p.batch and not (transforming() or makes_fakes())
        both = rule_and_inner(quadrature, n_steps) if readable else None
        total = integral(n_steps, chunk_size, both)
        if both is not None:
            total, inner = zip(*[t.unbind() for t in total], strict=True)
            warn_of_gap(
                "integrated_gradients", n_steps, len(both[0]), lengths, inner, total, values
            )
    else:
        # All at once would mean twice as many with each doubling, until memory runs out.
        at_once = functools.partial(integral, chunk_size=chunk_size or n_steps)
        total = _refined(p, x0, at_once, n_steps, tolerance)
    # A view would keep both integrals.
    return p.result(
        each(torch.mul, lengths, total) if multiply_by_inputs else each(torch.clone, total)
    )


def _refined(
    p: Explained, x0: Leaves, integral: Callable[[int], Leaves], n: int, tolerance: float
) -> Leaves:
    """Double the steps until the largest completeness gap is below the tolerance."""
    # Each round starts again: the nodes of Gauss and Legendre for 2 n steps share none with those
    # for n. The gap is measured against f(x) - f(x0), which needs no second integral.
    if transforming():
        raise ValueError(
            "tolerance cannot be met inside a torch.func transform or torch.compile, because the "
            "number of steps depends on values: set n_steps instead"
        )
    if type(tolerance) not in (int, float) or not tolerance > 0:
        raise ValueError(
            f"tolerance is {say(tolerance)}, expected a number above 0 in units of the output"
        )
    with torch.no_grad():
        change = p.values(p.x) - p.values(x0)
    for doubling in range(_MOST_DOUBLINGS + 1):
        total = integral(n * 2**doubling)
        with torch.no_grad():
            gap = (row_total(each(lambda x, x0, g: (x - x0) * g, p.x, x0, total)) - change).abs()
        if p.batch == 0 or float(gap.max()) <= tolerance:
            return total
        if not bool(gap.isfinite().all()):
            break  # a gradient is nan or infinite, and stays so
    warn(
        f"integrated_gradients missed tolerance={tolerance} with {n * 2**doubling} steps, "
        f"the largest gap is {float(gap.max()):.3g}: the model may jump along the path"
    )
    return total


@form_of(integrated_gradients, LayerBaselines, AtLayer)
def layer_integrated_gradients(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
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
    return at_layer(integrated_gradients, layer, at=at, call=call)(
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
    return at_neuron(integrated_gradients, layer, neuron, at=at, call=call)(
        model_fn, inputs, **options
    )
