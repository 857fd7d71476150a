"""Gradients, of inputs, layers and neurons: gradient, saliency, input x gradient."""

from __future__ import annotations

import optree
import torch

from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import explain
from attrfn._explain.forms import documented, form_of
from attrfn._explain.options import Arguments, AtLayer, AtNeuron, GraphOptions
from attrfn._explain.shared import laid_out
from attrfn._explain.tree import each, flatten
from attrfn._layers.at import at_neuron
from attrfn._layers.leaves import of_leaves
from attrfn._layers.one_pass import each_gradient
from attrfn._layers.rows import read
from attrfn._layers.split import split_once
from attrfn._torch.autodiff import keeps_graph, values_and_gradients
from attrfn._torch.typing import (
    At,
    Baselines,
    Layer,
    ModelFn,
    RowsOf,
    Target,
    Tree,
    Unpack,
)


@documented(Arguments, GraphOptions)
def gradient(
    model_fn: ModelFn, inputs: Tree, *, target: Target = None, create_graph: bool = False
) -> Tree:
    """Gradient of the explained output with respect to the inputs, with its sign.

        A = df(x)/dx

    Returns:
        Attributions of the inputs' structure, shapes and dtypes.

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


@documented(Arguments, GraphOptions)
def saliency(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    absolute: bool = True,
    create_graph: bool = False,
) -> Tree:
    """Magnitude of the gradient: how strongly the explained output reacts to each input.

        A = |df(x)/dx|

    Args:
        absolute: ``False`` keeps the sign, which is :func:`gradient`.

    Returns:
        Attributions like the inputs.

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


@documented(Arguments, GraphOptions)
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

    Returns:
        Attributions like the inputs; they sum to f(x) - f(x0) where f is affine.

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
    return p.result(each(lambda x, x0, g: (x - x0) * g, p.x, x0, grads))


@documented(AtLayer, GraphOptions)
def layer_activation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    at: At = "output",
    call: int | None = 0,
    create_graph: bool = False,
) -> Tree:
    """The output (or input) of a layer for the inputs of the model.

        A = head(x)

    Returns:
        The layer's value unchanged: a tensor, tuple, dict, ...

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> attrfn.layer_activation(model, torch.randn(5, 3), layer="0").shape
        torch.Size([5, 4])
    """
    flatten(inputs)  # refuses a leaf that is not a tensor, as every method does
    frozen = not keeps_graph(create_graph)
    halves = split_once(model_fn, layer, at=at, call=call, frozen=frozen)
    return read(halves, inputs, create_graph)


@documented(AtLayer, Arguments, GraphOptions)
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
        multiply_by_inputs: ``False`` returns the gradient df/da alone.

    Returns:
        Attributions like the layer's activation.

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

    def times(activation: Tree, grads: Tree, _: Layer, by_rows: bool) -> Tree:
        if not multiply_by_inputs:
            return grads
        found = of_leaves(torch.mul, activation, grads)
        if not by_rows:
            laid_out(optree.tree_leaves(found), ())
        return found

    return each_gradient(
        times,
        model_fn,
        inputs,
        layer,
        target=target,
        at=at,
        call=call,
        create_graph=create_graph,
    )


@form_of(gradient, AtNeuron)
def neuron_gradient(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[GraphOptions],
) -> Tree:
    """Gradient of a neuron with respect to the inputs.

        A = dn(x)/dx,   n = neuron of head(x)

    Returns:
        Attributions like the inputs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> a = attrfn.neuron_gradient(model, torch.randn(5, 3), layer="0", neuron=2)
        >>> torch.allclose(a, model[0].weight[2].expand(5, 3))
        True
    """
    return at_neuron(gradient, layer, neuron, at=at, call=call, rows=rows)(
        model_fn, inputs, **options
    )
