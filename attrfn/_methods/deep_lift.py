"""DeepLIFT and DeepSHAP: differences from a baseline, passed back from output to inputs."""

from __future__ import annotations

import torch

from attrfn._copies.batch import flat_rows, is_one_of, split_rows, wide
from attrfn._copies.chunks import Chunks, add, over_chunks
from attrfn._explain.baseline import baseline_distribution, fill_baselines, per_example
from attrfn._explain.explain import Explained, explain
from attrfn._explain.forms import documented, form_of
from attrfn._explain.introspect import takes_distribution
from attrfn._explain.options import (
    Arguments,
    AtLayer,
    AtNeuron,
    BaselineDistribution,
    ChunkOptions,
    LayerBaselines,
)
from attrfn._explain.tree import each
from attrfn._layers.at import at_layer, at_neuron
from attrfn._methods.deep_lift_options import DeepLiftOptions, DeepLiftRule, DeepShapOptions
from attrfn._model.uncompiled import uncompiled
from attrfn._rules.gradient import gradients_by_rules
from attrfn._rules.rescale import RESCALE
from attrfn._rules.reveal import REVEAL_CANCEL
from attrfn._rules.slopes import apart
from attrfn._rules.table import Rules
from attrfn._torch.say import say
from attrfn._torch.typing import (
    At,
    Baselines,
    ChunkSize,
    Layer,
    Leaves,
    ModelFn,
    RowsOf,
    Target,
    Tree,
    Unpack,
)
from attrfn._torch.units import active_units

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

    Completeness holds to rounding, on transformers and recurrent networks too: products have their
    own rule, and an operation without a rule raises :class:`UnsupportedOpError`.

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
    # A compiled model runs as one call, whose operations the rules do not see.
    p = explain(uncompiled(model_fn), inputs, target, create_graph=create_graph)
    x0 = fill_baselines(baselines, inputs, p.x)
    grads, _ = gradients_by_rules(p, _rules(rule), p.x, x0)
    if multiply_by_inputs:
        grads = each(lambda x, x0, m: apart(x, x0) * m, p.x, x0, grads)
    return p.result(grads)


@takes_distribution
@documented(BaselineDistribution, Arguments, DeepShapOptions, DeepLiftOptions, ChunkOptions)
def deep_lift_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines,
    rule: DeepLiftRule = "rescale",
    multiply_by_inputs: bool = True,
    per_baseline: bool = False,
    chunk_size: ChunkSize = "auto",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """DeepSHAP: the mean of DeepLIFT over all baselines of a distribution.

        A = 1/K sum_k (x - b_k) m(x, b_k),   sum(A) = f(x) - 1/K sum_k f(b_k)

    Args:
        multiply_by_inputs: ``False`` returns the mean of the multipliers.
        per_baseline: Return those of each baseline, (K, B, ...), and not their mean. Multipliers
            times other differences than (x - b_k) are hypothetical contributions.

    Returns:
        Attributions like the inputs, with K in front of the examples if ``per_baseline``.

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
    # Copy k of the batch is compared with baseline k, one for all its examples or one for each.
    pool = baseline_distribution(baselines, inputs, p.x)
    pool = each(lambda b, x: per_example(b, x).to(x.dtype), pool, p.x)

    def part(i: slice) -> Leaves:
        copies = i.stop - i.start
        starts = tuple([b[i] for b in pool])
        ends = tuple([x.expand(copies, *x.shape) for x in p.x])
        found = _multipliers(p, rules, ends, starts)
        if multiply_by_inputs:
            found = each(lambda x, x0, m: apart(x, x0) * m, ends, starts, found)
        return found if per_baseline else each(lambda m: m.sum(0, dtype=wide(m.dtype)), found)

    def append(a: Leaves, b: Leaves) -> Leaves:
        return each(lambda s, t: torch.cat([s, t]), a, b)

    n = pool[0].shape[0]
    chunks = Chunks(chunk_size, "fold", progress, "deep_lift_shap")
    merge = append if per_baseline else add
    total: Leaves = over_chunks(part, merge, n, chunks, p.x[0].device, x=p.x)
    return p.result(total if per_baseline else [t / n for t in total])


def _multipliers(p: Explained, rules: Rules, ends: Leaves, starts: Leaves) -> Leaves:
    """m(x, x0) for copies (S, B, ...) of the batch and of the baselines."""
    if p.batch and (units := active_units()) is not None:
        found: Leaves = p.in_unit(units, _by_rules, ends, "fold", rules, more=(starts,))
        return found
    copies = ends[0].shape[0]
    grads, _ = gradients_by_rules(p, rules, flat_rows(ends), flat_rows(starts), copies=copies)
    return split_rows(grads, copies)


def _by_rules(p: Explained, mapped: bool, starts: Leaves, rules: Rules) -> Leaves:
    return gradients_by_rules(p, rules, p.x, starts)[0]


def _rules(rule: DeepLiftRule) -> Rules:
    if isinstance(rule, Rules) and rule.complete:
        return rule
    if is_one_of(rule, *_RULES):
        return _RULES[rule]  # type: ignore[index]
    came = rule.name if isinstance(rule, Rules) else say(rule)
    raise ValueError(
        f"rule is {came}, expected 'rescale', 'reveal_cancel' or attrfn.rules.rescale()"
    )


@form_of(deep_lift, LayerBaselines, AtLayer)
def layer_deep_lift(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[DeepLiftOptions],
) -> Tree:
    """DeepLIFT of a layer, compared with its activation at the baselines.

        A = (a - a0) m(a, a0),   a = head(x),  a0 = head(x0)

    Returns:
        Attributions like the layer's activation; a list for several layers.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> attrfn.layer_deep_lift(model, torch.randn(5, 3), layer="0", target=1).shape
        torch.Size([5, 4])
    """
    return at_layer(deep_lift, layer, at=at, call=call, rows=rows)(
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
    rows: RowsOf = None,
    **options: Unpack[DeepShapOptions],
) -> Tree:
    """DeepSHAP of a layer, compared with its activations at a distribution of baselines.

        A = 1/K sum_k (a - a_k) m(a, a_k),   a = head(x),  a_k = head(b_k)

    Returns:
        Attributions like the layer's activation; a list for several layers.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.layer_deep_lift_shap(model, x, layer="0", target=1, baselines=pool).shape
        torch.Size([5, 4])
    """
    return at_layer(deep_lift_shap, layer, at=at, call=call, rows=rows)(
        model_fn, inputs, target=target, baselines=baselines, **options
    )


@form_of(deep_lift, AtNeuron)
def neuron_deep_lift(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[DeepLiftOptions],
) -> Tree:
    """DeepLIFT of a neuron with respect to the inputs.

        A = (x - x0) m,   sum(A) = n(x) - n(x0),   n = neuron of head(x)

    Returns:
        Attributions like the inputs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> attrfn.neuron_deep_lift(model, torch.randn(5, 3), layer="1", neuron=2).shape
        torch.Size([5, 3])
    """
    return at_neuron(deep_lift, layer, neuron, at=at, call=call, rows=rows)(
        model_fn, inputs, baselines=baselines, **options
    )


@form_of(deep_lift_shap, AtNeuron)
def neuron_deep_lift_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[DeepShapOptions],
) -> Tree:
    """DeepSHAP of a neuron with respect to the inputs.

        A = 1/K sum_k (x - b_k) m(x, b_k),   n = neuron of head(x)

    Returns:
        Attributions like the inputs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.neuron_deep_lift_shap(model, x, layer="1", neuron=2, baselines=pool).shape
        torch.Size([5, 3])
    """
    return at_neuron(deep_lift_shap, layer, neuron, at=at, call=call, rows=rows)(
        model_fn, inputs, baselines=baselines, **options
    )
