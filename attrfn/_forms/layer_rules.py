"""Layer forms of DeepLIFT and LRP."""

from __future__ import annotations

from typing import Any

from attrfn._core.method import takes_distribution
from attrfn._core.typing import At, Baselines, ChunkSize, Layer, ModelFn, Target, Tree
from attrfn._forms.at import at_layer, each_layer
from attrfn._methods.deeplift import DeepLiftRule, deep_lift, deep_lift_shap
from attrfn._methods.lrp import lrp, lrp_rules
from attrfn._rules.formulas import LinearRule
from attrfn._rules.table import Rules


def layer_deep_lift(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    rule: DeepLiftRule = "rescale",
    multiply_by_inputs: bool = True,
    create_graph: bool = False,
) -> Tree:
    """DeepLIFT of a layer, compared with its activation at the baselines.

        A = (a - a0) m(a, a0),   a = head(x),  a0 = head(x0)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`layer_activation`; each of several is explained on its own.
        target: See :func:`gradient`.
        baselines: See :func:`input_x_gradient`, in the space of the inputs.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        rule: See :func:`deep_lift`.
        multiply_by_inputs: See :func:`deep_lift`.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the layer's activation; a list for several layers.

    Raises:
        UnsupportedOpError: See :func:`deep_lift`.
        TypeError: See :func:`layer_activation`.
        ValueError: See :func:`layer_activation` and :func:`deep_lift`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.layer_deep_lift(model, torch.randn(5, 3), layer="0", target=1).shape
        torch.Size([5, 4])

    Reference:
        Shrikumar, Greenside and Kundaje, Learning Important Features Through Propagating
        Activation Differences, 2017.
    """

    def one(layer: Layer) -> Any:
        return at_layer(deep_lift, layer, at=at, call=call)(
            model_fn,
            inputs,
            target=target,
            baselines=baselines,
            rule=rule,
            multiply_by_inputs=multiply_by_inputs,
            create_graph=create_graph,
        )

    return each_layer(one, layer)


@takes_distribution
def layer_deep_lift_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    baselines: Baselines,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
    rule: DeepLiftRule = "rescale",
    multiply_by_inputs: bool = True,
    chunk_size: ChunkSize = "auto",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """DeepSHAP of a layer, compared with its activations at a distribution of baselines.

        A = 1/K sum_k (a - a_k) m(a, a_k),   a = head(x),  a_k = head(b_k)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`layer_deep_lift`.
        baselines: See :func:`deep_lift_shap`, in the space of the inputs.
        target: See :func:`gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        rule: See :func:`deep_lift`.
        multiply_by_inputs: See :func:`deep_lift`.
        chunk_size: See :func:`deep_lift_shap`.
        create_graph: See :func:`gradient`.
        progress: See :func:`deep_lift_shap`.

    Returns:
        Attributions like the layer's activation; a list for several layers.

    Raises:
        UnsupportedOpError: See :func:`deep_lift`.
        TypeError: See :func:`layer_activation` and :func:`deep_lift_shap`.
        ValueError: See :func:`layer_activation` and :func:`deep_lift_shap`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.layer_deep_lift_shap(model, x, layer="0", target=1, baselines=pool).shape
        torch.Size([5, 4])

    Reference:
        Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017.
    """

    def one(layer: Layer) -> Any:
        return at_layer(deep_lift_shap, layer, at=at, call=call)(
            model_fn,
            inputs,
            target=target,
            baselines=baselines,
            rule=rule,
            multiply_by_inputs=multiply_by_inputs,
            chunk_size=chunk_size,
            create_graph=create_graph,
            progress=progress,
        )

    return each_layer(one, layer)


def layer_lrp(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
    rules: Rules | LinearRule | None = None,
    create_graph: bool = False,
) -> Tree:
    """LRP up to a layer: the relevance of its activation.

        A = a * d(target)/da by the rules,   a = head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`layer_activation`; each of several is explained on its own.
        target: See :func:`gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        rules: See :func:`lrp`; a rule for where the inputs are read does not apply at a layer.
        create_graph: See :func:`gradient`.

    Returns:
        Relevances like the layer's activation; a list for several layers.

    Raises:
        UnsupportedOpError: See :func:`lrp`.
        TypeError: See :func:`layer_activation` and :func:`lrp`.
        ValueError: See :func:`layer_activation`; or the rules name modules, which they cannot at a
            layer.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> first, second = attrfn.layer_lrp(model, torch.randn(5, 3), layer=["0", "1"], target=1)
        >>> first.shape, second.shape
        (torch.Size([5, 4]), torch.Size([5, 4]))

    Reference:
        Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
        Relevance Propagation, 2015.
    """
    chosen = lrp_rules(rules)
    inner = chosen._replace(linear=chosen.linear._replace(first=None))

    def one(layer: Layer) -> Any:
        return at_layer(lrp, layer, at=at, call=call)(
            model_fn, inputs, target=target, rules=inner, create_graph=create_graph
        )

    return each_layer(one, layer)
