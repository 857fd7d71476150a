"""Plain gradients: gradient, saliency, input x gradient."""

from __future__ import annotations

from attrfn._core.baseline import fill_baselines
from attrfn._core.derive import values_and_gradients
from attrfn._core.explain import explain
from attrfn._core.typing import Baselines, ModelFn, Target, Tree


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
