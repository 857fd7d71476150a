"""Guided backpropagation and deconvolution: gradients with another rule for ReLU."""

from __future__ import annotations

from attrfn._core.bind import uncompiled
from attrfn._core.derive import transforming
from attrfn._core.explain import explain
from attrfn._core.typing import ModelFn, Target, Tree
from attrfn._core.warn import warn
from attrfn._rules.errors import UnsupportedOpError
from attrfn._rules.gradient import gradients_by_rules
from attrfn._rules.relu import DECONV, GUIDED
from attrfn._rules.table import Rules
from attrfn._rules.unseen import refuse_scripted


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
