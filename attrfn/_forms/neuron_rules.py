"""DeepLIFT and DeepSHAP of neurons."""

from __future__ import annotations

from attrfn._core.method import takes_distribution
from attrfn._core.typing import At, Baselines, ChunkSize, Layer, ModelFn, Target, Tree
from attrfn._forms.at import at_neuron
from attrfn._methods.deeplift import DeepLiftRule, deep_lift, deep_lift_shap


def neuron_deep_lift(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    rule: DeepLiftRule = "rescale",
    multiply_by_inputs: bool = True,
    create_graph: bool = False,
) -> Tree:
    """DeepLIFT of a neuron with respect to the inputs.

        A = (x - x0) m,   sum(A) = n(x) - n(x0),   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: Floating tensors, see :func:`gradient`.
        layer: See :func:`layer_activation`.
        neuron: See :func:`neuron_gradient`.
        baselines: See :func:`input_x_gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        rule: See :func:`deep_lift`.
        multiply_by_inputs: See :func:`deep_lift`.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the inputs.

    Raises:
        UnsupportedOpError: See :func:`deep_lift`.
        TypeError: See :func:`neuron_gradient`.
        ValueError: See :func:`neuron_gradient` and :func:`deep_lift`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.neuron_deep_lift(model, torch.randn(5, 3), layer="1", neuron=2).shape
        torch.Size([5, 3])

    Reference:
        Shrikumar, Greenside and Kundaje, Learning Important Features Through Propagating
        Activation Differences, 2017.
    """
    return at_neuron(deep_lift, layer, neuron, at=at, call=call)(
        model_fn,
        inputs,
        baselines=baselines,
        rule=rule,
        multiply_by_inputs=multiply_by_inputs,
        create_graph=create_graph,
    )


@takes_distribution
def neuron_deep_lift_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines,
    at: At = "output",
    call: int | None = 0,
    rule: DeepLiftRule = "rescale",
    multiply_by_inputs: bool = True,
    chunk_size: ChunkSize = "auto",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """DeepSHAP of a neuron with respect to the inputs.

        A = 1/K sum_k (x - b_k) m(x, b_k),   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: Floating tensors, see :func:`gradient`.
        layer: See :func:`layer_activation`.
        neuron: See :func:`neuron_gradient`.
        baselines: See :func:`deep_lift_shap`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        rule: See :func:`deep_lift`.
        multiply_by_inputs: See :func:`deep_lift`.
        chunk_size: See :func:`deep_lift_shap`.
        create_graph: See :func:`gradient`.
        progress: See :func:`deep_lift_shap`.

    Returns:
        Attributions like the inputs.

    Raises:
        UnsupportedOpError: See :func:`deep_lift`.
        TypeError: See :func:`neuron_gradient` and :func:`deep_lift_shap`.
        ValueError: See :func:`neuron_gradient` and :func:`deep_lift_shap`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.neuron_deep_lift_shap(model, x, layer="1", neuron=2, baselines=pool).shape
        torch.Size([5, 3])

    Reference:
        Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017.
    """
    return at_neuron(deep_lift_shap, layer, neuron, at=at, call=call)(
        model_fn,
        inputs,
        baselines=baselines,
        rule=rule,
        multiply_by_inputs=multiply_by_inputs,
        chunk_size=chunk_size,
        create_graph=create_graph,
        progress=progress,
    )
