"""Guided backpropagation and deconvolution: gradients with another rule for ReLU."""

from __future__ import annotations

from attrfn._explain.explain import Explained, explain
from attrfn._explain.forms import documented, form_of
from attrfn._explain.options import Arguments, AtNeuron, GraphOptions
from attrfn._layers.at import at_neuron
from attrfn._model.uncompiled import uncompiled
from attrfn._rules.errors import UnsupportedOpError
from attrfn._rules.gradient import gradients_by_rules
from attrfn._rules.hidden_relus import refuse_scripted
from attrfn._rules.relu import DECONV, GUIDED, on_clones
from attrfn._rules.table import Rules
from attrfn._torch.autodiff import transforming
from attrfn._torch.typing import At, Layer, Leaves, ModelFn, RowsOf, Target, Tree, Unpack
from attrfn._torch.warn import warn


@documented(Arguments, GraphOptions)
def guided_backprop(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    create_graph: bool = False,
) -> Tree:
    """Guided backpropagation: the gradient with negative parts cut off at every ReLU.

        g_in = max(g_out, 0) f'(x)   at y = f(x), for ReLU max(g_out, 0) 1[x > 0];   A = g at x

    Every form of ReLU counts: ``nn.ReLU``, even reused or in place, ``F.relu``, ``torch.relu``,
    ``x.relu()`` and ``x.clamp(min=0)``; so do ReLU6, hardtanh (also as a clamp between two
    numbers), threshold, leaky and parametric ReLU. Other activations keep their derivatives.

    Returns:
        Attributions like the inputs.

    Raises:
        UnsupportedOpError: The model has code that can hide a ReLU: a custom autograd.Function, a
            scripted or traced module.

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


@documented(Arguments, GraphOptions)
def deconvolution(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    create_graph: bool = False,
) -> Tree:
    """Deconvolution: the gradient with ReLU applied to gradients in place of activations.

        g_in = max(g_out, 0)   at y = f(x), such as ReLU;   A = g at the inputs

    The same operations count as ReLU as in :func:`guided_backprop`.

    Returns:
        Attributions like the inputs.

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
    # In eager mode the finished graph of guided backpropagation shows whether scripted code hides a
    # ReLU; elsewhere every scripted module is refused.
    if rules is not GUIDED or create_graph or transforming():
        refuse_scripted(model_fn, rules.name)
    p = explain(uncompiled(model_fn), inputs, target, create_graph=create_graph)
    try:
        grads, calls = _gradients(p, rules)
    except UnsupportedOpError:
        # The graph knows only that some code is hidden; this names the module, if it is scripted.
        refuse_scripted(model_fn, rules.name)
        raise
    if not calls and p.batch:
        warn(
            f"{rules.name} met no ReLU, so it is the plain gradient: it has a rule for ReLU, "
            "ReLU6, hardtanh, threshold, leaky and parametric ReLU, called as torch functions"
        )
    return p.result(grads)


def _gradients(p: Explained, rules: Rules) -> tuple[Leaves, list[str]]:
    try:
        return gradients_by_rules(p, rules, p.x)
    except RuntimeError as error:
        # The model writes again into what a ReLU wrote in place. torch.autograd cannot take that.
        if "modified by an inplace operation" not in str(error):
            raise
        return gradients_by_rules(p, on_clones(rules), p.x)


@form_of(guided_backprop, AtNeuron)
def neuron_guided_backprop(
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
    """Guided backpropagation of a neuron with respect to the inputs.

        A = guided gradient of n,   n = neuron of head(x)

    Returns:
        Attributions like the inputs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.neuron_guided_backprop(model, torch.randn(5, 3), layer="2", neuron=1).shape
        torch.Size([5, 3])
    """
    return at_neuron(guided_backprop, layer, neuron, at=at, call=call, rows=rows)(
        model_fn, inputs, **options
    )


@form_of(deconvolution, AtNeuron)
def neuron_deconvolution(
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
    """Deconvolution of a neuron with respect to the inputs.

        A = deconvolved gradient of n,   n = neuron of head(x)

    Returns:
        Attributions like the inputs.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> attrfn.neuron_deconvolution(model, torch.randn(5, 3), layer="2", neuron=1).shape
        torch.Size([5, 3])
    """
    return at_neuron(deconvolution, layer, neuron, at=at, call=call, rows=rows)(
        model_fn, inputs, **options
    )
