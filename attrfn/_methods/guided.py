"""Guided backpropagation and deconvolution: gradients with another rule for ReLU."""

from __future__ import annotations

from attrfn._explain.explain import explain
from attrfn._layers.at import at_neuron
from attrfn._model.bind import uncompiled
from attrfn._rules.errors import UnsupportedOpError
from attrfn._rules.gradient import gradients_by_rules
from attrfn._rules.relu import DECONV, GUIDED
from attrfn._rules.table import Rules
from attrfn._rules.unseen import refuse_scripted
from attrfn._torch.autodiff import transforming
from attrfn._torch.typing import At, Layer, ModelFn, Target, Tree
from attrfn._torch.warn import warn


def guided_backprop(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    create_graph: bool = False,
) -> Tree:
    """Guided backpropagation: the gradient with negative parts cut off at every ReLU.

        g_in = max(g_out, 0) 1[x > 0]   at y = max(x, 0);   A = g at the inputs

    Every form of ReLU counts: ``nn.ReLU``, also reused or in place, ``F.relu``, ``torch.relu``,
    ``x.relu()`` and ``x.clamp(min=0)``. Other activations keep their derivatives.

    Args:
        model_fn: See :func:`gradient`.
        inputs: See :func:`gradient`.
        target: See :func:`gradient`.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the inputs.

    Raises:
        UnsupportedOpError: The model has code in which ReLUs cannot be seen: a custom
            autograd.Function, a scripted or traced module, checkpointing.
        TypeError: See :func:`gradient`.
        ValueError: See :func:`gradient`.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x.relu() @ torch.tensor([1.0, -1.0, 1.0])
        >>> attrfn.guided_backprop(f, torch.tensor([[1.0, 1.0, -1.0]]))
        tensor([[1., 0., 0.]])

    Reference:
        Springenberg, Dosovitskiy, Brox and Riedmiller, Striving for Simplicity: The All
        Convolutional Net, 2014.
    """
    return _with_rules(model_fn, inputs, target, GUIDED, create_graph)


def deconvolution(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    create_graph: bool = False,
) -> Tree:
    """Deconvolution: the gradient with ReLU applied to gradients in place of activations.

        g_in = max(g_out, 0)   at y = max(x, 0);   A = g at the inputs

    What counts as ReLU is said at :func:`guided_backprop`.

    Args:
        model_fn: See :func:`gradient`.
        inputs: See :func:`gradient`.
        target: See :func:`gradient`.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the inputs.

    Raises:
        UnsupportedOpError: See :func:`guided_backprop`.
        TypeError: See :func:`gradient`.
        ValueError: See :func:`gradient`.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x.relu() @ torch.tensor([1.0, -1.0, 1.0])
        >>> attrfn.deconvolution(f, torch.tensor([[1.0, 1.0, -1.0]]))
        tensor([[1., 0., 1.]])

    Reference:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    return _with_rules(model_fn, inputs, target, DECONV, create_graph)


def _with_rules(
    model_fn: ModelFn, inputs: Tree, target: Target, rules: Rules, create_graph: bool
) -> Tree:
    """The gradient under rules for rectifiers."""
    if rules is not GUIDED or create_graph or transforming():  # else the graph shows it
        refuse_scripted(model_fn, rules.name)
    p = explain(uncompiled(model_fn), inputs, target, create_graph=create_graph)
    try:
        grads, calls = gradients_by_rules(p, rules, p.x)
    except UnsupportedOpError:
        refuse_scripted(model_fn, rules.name)  # knows its name
        raise
    if not calls and p.batch:
        warn(
            f"{rules.name} met no ReLU, so it is the plain gradient: it has a rule for max(x, 0) "
            "only, called as a torch function while the model runs"
        )
    return p.result(grads)


def neuron_guided_backprop(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    at: At = "output",
    call: int | None = 0,
    create_graph: bool = False,
) -> Tree:
    """Guided backpropagation of a neuron, see :func:`guided_backprop`.

        A = guided gradient of n,   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`gradient`.
        layer: See :func:`layer_activation`.
        neuron: See :func:`neuron_gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the inputs.

    Raises:
        TypeError: See :func:`neuron_gradient`.
        ValueError: See :func:`neuron_gradient`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.neuron_guided_backprop(model, torch.randn(5, 3), layer="2", neuron=1).shape
        torch.Size([5, 3])

    Reference:
        Springenberg, Dosovitskiy, Brox and Riedmiller, Striving for Simplicity: The All
        Convolutional Net, 2014.
    """
    return at_neuron(guided_backprop, layer, neuron, at=at, call=call)(
        model_fn, inputs, create_graph=create_graph
    )


def neuron_deconvolution(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    at: At = "output",
    call: int | None = 0,
    create_graph: bool = False,
) -> Tree:
    """Deconvolution of a neuron, see :func:`deconvolution`.

        A = deconvolved gradient of n,   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`gradient`.
        layer: See :func:`layer_activation`.
        neuron: See :func:`neuron_gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        create_graph: See :func:`gradient`.

    Returns:
        Attributions like the inputs.

    Raises:
        TypeError: See :func:`neuron_gradient`.
        ValueError: See :func:`neuron_gradient`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.neuron_deconvolution(model, torch.randn(5, 3), layer="2", neuron=1).shape
        torch.Size([5, 3])

    Reference:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    return at_neuron(deconvolution, layer, neuron, at=at, call=call)(
        model_fn, inputs, create_graph=create_graph
    )
