"""DeepLIFT and DeepSHAP: differences from a baseline, passed back from output to inputs."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from attrfn._copies.batch import flat_rows, split_rows, wide
from attrfn._copies.chunks import Chunks, add, over_chunks
from attrfn._explain.baseline import baseline_distribution, fill_baselines, per_example
from attrfn._explain.explain import explain
from attrfn._explain.forms import documented, form_of
from attrfn._explain.introspect import takes_distribution
from attrfn._explain.options import Arguments, AtLayer, GraphOptions
from attrfn._explain.tree import each
from attrfn._layers.at import at_layer, at_neuron
from attrfn._model.bind import uncompiled
from attrfn._rules.gradient import gradients_by_rules
from attrfn._rules.rescale import RESCALE
from attrfn._rules.reveal import REVEAL_CANCEL
from attrfn._rules.table import Rules
from attrfn._torch.typing import (
    At,
    Baselines,
    ChunkSize,
    Layer,
    Leaves,
    ModelFn,
    Target,
    Tree,
    Unpack,
)

DeepLiftRule = Literal["rescale", "reveal_cancel"] | Rules


class DeepLiftOptions(GraphOptions, total=False):
    """What DeepLIFT and its forms take.

    Raises:
        UnsupportedOpError: The model calls an operation that the rules do not cover.
        ValueError: The rule has an unknown name, or the model takes another path for the baselines
            than for the inputs.
    """

    rule: DeepLiftRule
    """``"rescale"``; ``"reveal_cancel"``, which gives separate multipliers to what pushes an
    activation up and to what pulls it down; or one of :func:`attrfn.rules.rescale` and
    :func:`attrfn.rules.reveal_cancel`, extended."""

    multiply_by_inputs: bool
    """``False`` returns the multipliers m."""


class DeepShapOptions(DeepLiftOptions, total=False):
    """What DeepSHAP and its forms take."""

    chunk_size: ChunkSize
    """How many baselines are compared at once: ``"auto"`` (what memory holds; inside a transform
    all), ``None`` (all) or a number."""

    progress: bool
    """Show a progress bar over the baselines."""


_RULES = {"rescale": RESCALE, "reveal_cancel": REVEAL_CANCEL}


@documented(Arguments, DeepLiftOptions)
def deep_lift(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    rule: DeepLiftRule = "rescale",
    multiply_by_inputs: bool = True,
    create_graph: bool = False,
) -> Tree:
    """DeepLIFT: multipliers that carry the change of each operation from a baseline to the inputs.

        A = (x - x0) m,   m of y = f(x):  (f(x) - f(x0)) / (x - x0),   sum(A) = f(x) - f(x0)

    Products (attention, gates, normalisations) have a rule of their own, so that completeness
    holds to rounding on transformers and recurrent networks too. An operation that would break it
    raises :class:`UnsupportedOpError`.

    Returns:
        Attributions like the inputs; they sum to f(x) - f(x0).

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: (x[:, 0] + x[:, 1] - 1).relu()
        >>> attrfn.deep_lift(f, torch.tensor([[1.0, 1.0]]))
        tensor([[0.5000, 0.5000]])

    Reference:
        Shrikumar, Greenside and Kundaje, Learning Important Features Through Propagating
        Activation Differences, 2017.
    """
    p = explain(uncompiled(model_fn), inputs, target, create_graph=create_graph)
    x0 = fill_baselines(baselines, inputs, p.x)
    grads, _ = gradients_by_rules(p, _rules(rule), p.x, x0)
    if multiply_by_inputs:
        grads = each(lambda x, x0, m: (x - x0) * m, p.x, x0, grads)
    return p.result(grads)


@takes_distribution
@documented(Arguments, DeepShapOptions)
def deep_lift_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines,
    rule: DeepLiftRule = "rescale",
    multiply_by_inputs: bool = True,
    chunk_size: ChunkSize = "auto",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """DeepSHAP: the mean of DeepLIFT over all baselines of a distribution.

        A = 1/K sum_k (x - b_k) m(x, b_k),   sum(A) = f(x) - 1/K sum_k f(b_k)

    Args:
        baselines: K baselines, a tensor (K, ...) or a pytree of those like the inputs; (K, B, ...)
            holds K for each example.
        multiply_by_inputs: ``False`` returns the mean of the multipliers.

    Returns:
        Attributions like the inputs.

    Raises:
        TypeError: The baselines are no tensors.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x @ torch.tensor([1.0, 2.0])
        >>> attrfn.deep_lift_shap(f, torch.ones(1, 2), baselines=torch.tensor([[0.0, 0], [1, 1]]))
        tensor([[0.5000, 1.0000]])

    Reference:
        Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017.
    """
    rules = _rules(rule)
    p = explain(uncompiled(model_fn), inputs, target, create_graph=create_graph)
    pool = baseline_distribution(baselines, inputs, p.x)
    pairs = tuple([per_example(b, x).to(x.dtype) for b, x in zip(pool, p.x, strict=True)])

    def part(i: slice) -> Leaves:
        copies = i.stop - i.start
        starts = [b[i] for b in pairs]
        ends = [x.expand(copies, *x.shape) for x in p.x]
        rows, rows0 = flat_rows(tuple(ends)), flat_rows(tuple(starts))
        grads, _ = gradients_by_rules(p, rules, rows, rows0, copies=copies)
        found = split_rows(grads, copies)
        if multiply_by_inputs:
            found = each(lambda x, x0, m: (x - x0) * m, tuple(ends), tuple(starts), found)
        return tuple([m.sum(0, dtype=wide(m.dtype)) for m in found])

    n = pairs[0].shape[0]
    chunks = Chunks(chunk_size, "fold", progress, "deep_lift_shap")
    total: tuple[Tensor, ...] = over_chunks(part, add, n, chunks, p.x[0].device, x=p.x)
    return p.result([t / n for t in total])


def _rules(rule: DeepLiftRule) -> Rules:
    if isinstance(rule, Rules):
        if not rule.complete:
            raise ValueError(
                f"rule is {rule.name}, expected 'rescale', 'reveal_cancel' or "
                "attrfn.rules.rescale()"
            )
        return rule
    if rule not in _RULES:
        raise ValueError(f"rule is {rule!r}, expected 'rescale' or 'reveal_cancel'")
    return _RULES[rule]


@form_of(deep_lift, AtLayer)
def layer_deep_lift(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    **options: Unpack[DeepLiftOptions],
) -> Tree:
    """DeepLIFT of a layer, compared with its activation at the baselines.

        A = (a - a0) m(a, a0),   a = head(x),  a0 = head(x0)

    Args:
        baselines: x0 in the space of the inputs; the head carries it to the layer.

    Returns:
        Attributions like the layer's activation; a list for several layers.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.layer_deep_lift(model, torch.randn(5, 3), layer="0", target=1).shape
        torch.Size([5, 4])
    """
    return at_layer(deep_lift, layer, at=at, call=call)(
        model_fn, inputs, target=target, baselines=baselines, **options
    )


@form_of(deep_lift_shap, AtLayer)
def layer_deep_lift_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    baselines: Baselines,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
    **options: Unpack[DeepShapOptions],
) -> Tree:
    """DeepSHAP of a layer, compared with its activations at a distribution of baselines.

        A = 1/K sum_k (a - a_k) m(a, a_k),   a = head(x),  a_k = head(b_k)

    Args:
        baselines: K baselines in the space of the inputs, as for :func:`deep_lift_shap`.

    Returns:
        Attributions like the layer's activation; a list for several layers.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.layer_deep_lift_shap(model, x, layer="0", target=1, baselines=pool).shape
        torch.Size([5, 4])
    """
    return at_layer(deep_lift_shap, layer, at=at, call=call)(
        model_fn, inputs, target=target, baselines=baselines, **options
    )


@form_of(deep_lift, AtLayer)
def neuron_deep_lift(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    **options: Unpack[DeepLiftOptions],
) -> Tree:
    """DeepLIFT of a neuron with respect to the inputs.

        A = (x - x0) m,   sum(A) = n(x) - n(x0),   n = neuron of head(x)

    Returns:
        Attributions like the inputs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.neuron_deep_lift(model, torch.randn(5, 3), layer="1", neuron=2).shape
        torch.Size([5, 3])
    """
    return at_neuron(deep_lift, layer, neuron, at=at, call=call)(
        model_fn, inputs, baselines=baselines, **options
    )


@form_of(deep_lift_shap, AtLayer)
def neuron_deep_lift_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines,
    at: At = "output",
    call: int | None = 0,
    **options: Unpack[DeepShapOptions],
) -> Tree:
    """DeepSHAP of a neuron with respect to the inputs.

        A = 1/K sum_k (x - b_k) m(x, b_k),   n = neuron of head(x)

    Returns:
        Attributions like the inputs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.neuron_deep_lift_shap(model, x, layer="1", neuron=2, baselines=pool).shape
        torch.Size([5, 3])
    """
    return at_neuron(deep_lift_shap, layer, neuron, at=at, call=call)(
        model_fn, inputs, baselines=baselines, **options
    )
