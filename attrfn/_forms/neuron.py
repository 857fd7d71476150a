"""Neuron methods: what the inputs contribute to one neuron of a layer."""

from __future__ import annotations

from attrfn._core.method import takes_distribution
from attrfn._core.quadrature import Rule
from attrfn._core.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    Key,
    Layer,
    ModelFn,
    Target,
    Tree,
)
from attrfn._forms.at import at_neuron
from attrfn._methods.gradient import gradient
from attrfn._methods.integrated import gradient_shap, integrated_gradients


def neuron_gradient(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    at: At = "output",
    call: int | None = 0,
    create_graph: bool = False,
) -> Tree:
    """Gradient of a neuron with respect to the inputs.

        A = dn(x)/dx,   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: Floating tensors, see :func:`gradient`.
        layer: See :func:`layer_activation`.
        neuron: An int, a tuple of ints and slices (slices are summed), one of either per example,
            or a callable from the layer's activation to (B,).
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the inputs.

    Raises:
        TypeError: The model function hides its module, or the neuron is of no known kind.
        ValueError: The layer is never called, or the neuron does not exist.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> a = attrfn.neuron_gradient(model, torch.randn(5, 3), layer="0", neuron=2)
        >>> torch.allclose(a, model[0].weight[2].expand(5, 3))
        True

    Reference:
        Simonyan, Vedaldi and Zisserman, Deep Inside Convolutional Networks, 2013.
    """
    return at_neuron(gradient, layer, neuron, at=at, call=call)(
        model_fn, inputs, create_graph=create_graph
    )


def neuron_integrated_gradients(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines = None,
    at: At = "output",
    call: int | None = 0,
    n_steps: int = 50,
    quadrature: str | Rule = "gauss_legendre",
    multiply_by_inputs: bool = True,
    tolerance: float | None = None,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Integrated gradients of a neuron with respect to the inputs.

        A = (x - x0) * integral_0^1 dn(x0 + s (x - x0))/dx ds,   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: Floating tensors, see :func:`gradient`.
        layer: See :func:`layer_activation`.
        neuron: See :func:`neuron_gradient`.
        baselines: x0, see :func:`input_x_gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        n_steps: See :func:`integrated_gradients`.
        quadrature: See :func:`integrated_gradients`.
        multiply_by_inputs: See :func:`integrated_gradients`.
        tolerance: See :func:`integrated_gradients`.
        chunk_size: See :func:`integrated_gradients`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`gradient`.
        progress: See :func:`integrated_gradients`.

    Returns:
        Attributions like the inputs; they sum to n(x) - n(x0).

    Raises:
        TypeError: See :func:`neuron_gradient`.
        ValueError: See :func:`neuron_gradient`; or an option is out of its range.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.neuron_integrated_gradients(model, x, layer="1", neuron=2)
        >>> n = attrfn.layer_activation(model, x, layer="1") - attrfn.layer_activation(
        ...     model, 0 * x, layer="1"
        ... )
        >>> torch.allclose(a.sum(1), n[:, 2], atol=1e-5)
        True

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017.
    """
    return at_neuron(integrated_gradients, layer, neuron, at=at, call=call)(
        model_fn,
        inputs,
        baselines=baselines,
        n_steps=n_steps,
        quadrature=quadrature,
        multiply_by_inputs=multiply_by_inputs,
        tolerance=tolerance,
        chunk_size=chunk_size,
        batching=batching,
        create_graph=create_graph,
        progress=progress,
    )


@takes_distribution
def neuron_gradient_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines,
    at: At = "output",
    call: int | None = 0,
    n_samples: int = 5,
    stdevs: Tree = 0.0,
    key: Key = 0,
    multiply_by_inputs: bool = True,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Expected gradients of a neuron with respect to the inputs.

        A = E[(x' - b) * dn(b + s (x' - b))/dx],   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: Floating tensors, see :func:`gradient`.
        layer: See :func:`layer_activation`.
        neuron: See :func:`neuron_gradient`.
        baselines: See :func:`gradient_shap`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        n_samples: See :func:`gradient_shap`.
        stdevs: See :func:`gradient_shap`.
        key: See :func:`gradient_shap`.
        multiply_by_inputs: See :func:`gradient_shap`.
        chunk_size: See :func:`gradient_shap`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`gradient`.
        progress: See :func:`integrated_gradients`.

    Returns:
        Attributions like the inputs; their expected sum is n(x) - E n(b).

    Raises:
        TypeError: See :func:`neuron_gradient` and :func:`gradient_shap`.
        ValueError: See :func:`neuron_gradient` and :func:`gradient_shap`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.neuron_gradient_shap(model, x, layer="1", neuron=2, baselines=pool).shape
        torch.Size([5, 3])

    Reference:
        Erion et al., Improving Performance of Deep Learning Models with Axiomatic Attribution
        Priors and Expected Gradients, 2021.
    """
    return at_neuron(gradient_shap, layer, neuron, at=at, call=call)(
        model_fn,
        inputs,
        baselines=baselines,
        n_samples=n_samples,
        stdevs=stdevs,
        key=key,
        multiply_by_inputs=multiply_by_inputs,
        chunk_size=chunk_size,
        batching=batching,
        create_graph=create_graph,
        progress=progress,
    )
