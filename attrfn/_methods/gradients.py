"""Plain gradients: gradient, saliency, input x gradient."""

from __future__ import annotations

import optree
import torch

from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import explain
from attrfn._explain.tree import flatten
from attrfn._layers.at import at_neuron, each_layer, read
from attrfn._layers.one_pass import activation_and_gradient
from attrfn._layers.split import split_once
from attrfn._torch.autodiff import values_and_gradients
from attrfn._torch.typing import (
    At,
    Baselines,
    Layer,
    ModelFn,
    Target,
    Tree,
)


def gradient(
    model_fn: ModelFn, inputs: Tree, *, target: Target = None, create_graph: bool = False
) -> Tree:
    """Gradient of the explained output with respect to the inputs, with its sign.

        A = df(x)/dx

    Args:
        model_fn: Called as ``model_fn(*inputs)`` when inputs is a tuple, else ``model_fn(inputs)``.
        inputs: A floating tensor (B, ...) or a pytree of those.
        target: Which scalar per example is explained: ``None`` (there is only one), an int, an
            integer tensor () or (B,), a tuple of ints and slices, a list with one int or tuple per
            example, or a callable ``outputs -> (B,)``.
        create_graph: Let ``.backward()`` on the result reach inputs and parameters. Inside a
            torch.func transform or torch.compile the result can be differentiated anyway.

    Returns:
        Attributions of the inputs' structure, shapes and dtypes.

    Raises:
        TypeError: An input is no floating tensor, or the target is of no known kind.
        ValueError: Batch sizes disagree, or the target does not fit the output.

    Example:
        >>> import torch, attrfn
        >>> def f(x):
        ...     return (x**2).sum(1)
        >>> attrfn.gradient(f, torch.tensor([[1.0, 2.0]]))
        tensor([[2., 4.]])

    Reference:
        Simonyan, Vedaldi and Zisserman, Deep Inside Convolutional Networks, 2013.
    """
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    _, grads = values_and_gradients(lambda *x: p.values(x), p.x, create_graph=create_graph)
    return p.result(grads)


def saliency(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    absolute: bool = True,
    create_graph: bool = False,
) -> Tree:
    """Magnitude of the gradient: how much the explained output reacts to each input.

        A = |df(x)/dx|

    Args:
        model_fn: See :func:`gradient`.
        inputs: See :func:`gradient`.
        target: See :func:`gradient`.
        absolute: ``False`` keeps the sign, which is :func:`gradient`.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the inputs.

    Raises:
        TypeError: See :func:`gradient`.
        ValueError: See :func:`gradient`.

    Example:
        >>> import torch, attrfn
        >>> attrfn.saliency(lambda x: -3 * x[:, 0], torch.ones(1, 2))
        tensor([[3., 0.]])

    Reference:
        Simonyan, Vedaldi and Zisserman, Deep Inside Convolutional Networks, 2013.
    """
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    _, grads = values_and_gradients(lambda *x: p.values(x), p.x, create_graph=create_graph)
    return p.result([g.abs() if absolute else g for g in grads])


def input_x_gradient(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    create_graph: bool = False,
) -> Tree:
    """Input times gradient, the first-order term of the change from the baseline.

        A = (x - x0) * df(x)/dx

    Args:
        model_fn: See :func:`gradient`.
        inputs: See :func:`gradient`.
        target: See :func:`gradient`.
        baselines: x0: ``None`` (zeros), a number, a tensor that broadcasts to the input, or a
            pytree prefix of those.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the inputs; they sum to f(x) - f(x0) where f is affine.

    Raises:
        TypeError: See :func:`gradient`.
        ValueError: See :func:`gradient`; or the baselines do not fit the inputs.

    Example:
        >>> import torch, attrfn
        >>> attrfn.input_x_gradient(lambda x: x @ torch.tensor([1.0, 2.0]), torch.ones(1, 2))
        tensor([[1., 2.]])

    Reference:
        Shrikumar, Greenside, Shcherbina and Kundaje, Not Just a Black Box: Learning Important
        Features Through Propagating Activation Differences, 2016.
    """
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    x0 = fill_baselines(baselines, inputs, p.x)
    _, grads = values_and_gradients(lambda *x: p.values(x), p.x, create_graph=create_graph)
    return p.result([(x - b) * g for x, b, g in zip(p.x, x0, grads, strict=True)])


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
