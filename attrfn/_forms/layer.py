"""Layer methods: what a layer's activation contributes to the output."""

from __future__ import annotations

import optree
import torch

from attrfn._core.method import takes_distribution
from attrfn._core.quadrature import Rule
from attrfn._core.split import split_once
from attrfn._core.tree import flatten
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
from attrfn._forms.at import at_layer, each_layer, read
from attrfn._forms.once import activation_and_gradient
from attrfn._methods.integrated import gradient_shap, integrated_gradients


def layer_activation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    at: At = "output",
    call: int | None = 0,
    create_graph: bool = False,
) -> Tree:
    """What a layer returns (or receives) for the inputs.

        A = head(x)

    Args:
        model_fn: A module, a bound method of one, or ``functools.partial`` of either.
        inputs: The model's inputs, a tensor (B, ...) or a pytree of those, integers too.
        layer: A module, its qualified name, or a list of either (then the result is a list).
        at: ``"output"`` or ``"input"`` of the layer.
        call: Which call of a layer that is used several times; ``None`` takes all (a tuple).
        create_graph: See :func:`gradient`.

    Returns:
        The layer's value as it is: a tensor, tuple, dict, ...

    Raises:
        TypeError: The model function hides its module.
        ValueError: The layer is no part of the model or is never called.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> attrfn.layer_activation(model, torch.randn(5, 3), layer="0").shape
        torch.Size([5, 4])
    """
    flatten(inputs)
    halves = split_once(model_fn, layer, at=at, call=call, frozen=not create_graph)
    return read(halves, inputs, create_graph)


def layer_gradient_x_activation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
    multiply_by_inputs: bool = True,
    create_graph: bool = False,
) -> Tree:
    """A layer's activation times the gradient of the output there.

        A = a * df/da,   a = head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`layer_activation`; each layer of a list is explained on its own.
        target: See :func:`gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        multiply_by_inputs: ``False`` returns the gradient df/da alone.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the layer's activation.

    Raises:
        TypeError: The model function hides its module, or the target is of no known kind.
        ValueError: The layer is never called, or the target does not fit the output.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.layer_gradient_x_activation(model, x, layer="0", target=1)
        >>> torch.allclose(a.sum(1), model(x)[:, 1], atol=1e-6)
        True

    Reference:
        Kindermans et al., Investigating the Influence of Noise and Distractors on the
        Interpretation of Neural Networks, 2016.
    """

    def one(layer: Layer) -> Tree:
        activation, grads = activation_and_gradient(
            model_fn, inputs, layer, target=target, at=at, call=call, create_graph=create_graph
        )
        return optree.tree_map(torch.mul, activation, grads) if multiply_by_inputs else grads

    return each_layer(one, layer)


def layer_integrated_gradients(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
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
    """Integrated gradients of a layer, along the path from head(x0) to head(x).

        A = (a - a0) * integral_0^1 df(a0 + s (a - a0))/da ds,   a = head(x), a0 = head(x0)

    This is ``at_layer(integrated_gradients, layer)``; the inputs may be integers (token ids).

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`at_layer`: the layers of a list are explained together.
        target: See :func:`gradient`.
        baselines: x0 in the space of the inputs, see :func:`input_x_gradient`.
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
        Attributions like the layer's activation; they sum to f(x) - f(x0) where the layer cuts the
        network.

    Raises:
        TypeError: See :func:`layer_gradient_x_activation`.
        ValueError: See :func:`layer_gradient_x_activation`; or an option is out of its range.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(8, 2)
        ... )
        >>> ids = torch.tensor([[1, 2], [3, 4]])
        >>> attrfn.layer_integrated_gradients(model, ids, layer="0", target=1).shape
        torch.Size([2, 2, 4])

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017.
    """
    return at_layer(integrated_gradients, layer, at=at, call=call)(
        model_fn,
        inputs,
        target=target,
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
def layer_gradient_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    baselines: Baselines,
    target: Target = None,
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
    """Expected gradients of a layer, between its activation and those of random baselines.

        A = E[(a' - c) * df(c + s (a' - c))/da],   a' = head(x) + noise,  c = head(b)

    This is ``at_layer(gradient_shap, layer)``: noise and path live at the layer.

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`at_layer`.
        baselines: See :func:`gradient_shap`, in the space of the inputs.
        target: See :func:`gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        n_samples: See :func:`gradient_shap`.
        stdevs: See :func:`gradient_shap`, in units of the layer.
        key: See :func:`gradient_shap`.
        multiply_by_inputs: See :func:`gradient_shap`.
        chunk_size: See :func:`gradient_shap`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`gradient`.
        progress: See :func:`integrated_gradients`.

    Returns:
        Attributions like the layer's activation.

    Raises:
        TypeError: See :func:`gradient_shap`.
        ValueError: See :func:`gradient_shap`; or the layer is never called.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.layer_gradient_shap(model, x, layer="1", target=0, baselines=pool).shape
        torch.Size([5, 4])

    Reference:
        Erion et al., Improving Performance of Deep Learning Models with Axiomatic Attribution
        Priors and Expected Gradients, 2021.
    """
    return at_layer(gradient_shap, layer, at=at, call=call)(
        model_fn,
        inputs,
        target=target,
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
