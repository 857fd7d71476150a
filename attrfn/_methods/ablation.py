"""Ablation: what the output loses when a feature is replaced."""

from __future__ import annotations

import torch

from attrfn._copies.chunks import Chunks
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.features import features
from attrfn._explain.masked import masked
from attrfn._explain.tree import flatten
from attrfn._layers.at import at_neuron, each_layer, locate
from attrfn._torch.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    Layer,
    ModelFn,
    Target,
    Tree,
)


def feature_ablation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Feature ablation: what the output loses when a feature is replaced by its baseline.

        A_k = f(x) - f(x with feature k := x0)

    Works with any model function, also one that is no torch code: tensors, arrays and numbers are
    taken as outputs, and ``chunk_size=1`` shows it one copy of the batch at a time.

    Args:
        model_fn: Called as ``model_fn(*inputs)`` for a tuple, else ``model_fn(inputs)``; it need
            not be differentiable.
        inputs: A tensor or pytree of tensors of any dtype with the examples in dimension 0.
        target: Which output is explained, see :func:`gradient`; ``None`` explains all of them.
        baselines: x0, see :func:`input_x_gradient`; for integers an integer, such as a padding id.
        feature_mask: The feature of each element: integers that broadcast to the inputs, or a
            pytree prefix of those. Equal ids are one feature, in different tensors too; gaps do not
            matter. ``None``: each element is a feature.
        n_features: The ids are 0 to ``n_features - 1``. Needed inside torch.compile, where the ids
            of a ``feature_mask`` cannot be counted; and where a mask that differs from example to
            example shall give an example alone the draws that it gets in a batch.
        chunk_size: How many copies of the batch are evaluated at once: ``"auto"`` (what memory
            holds), ``None`` (all) or a number; see :func:`integrated_gradients`.
        batching: See :func:`integrated_gradients`.
        create_graph: Let ``.backward()`` reach through the attributions to inputs and parameters;
            inside transforms and torch.compile it always can.
        progress: Show a progress bar over the copies.

    Returns:
        Attributions like the inputs; every element has the score of its feature. One value for the
        whole batch gives (1, ...), outputs (B, K...) without a target give (B, K..., ...).

    Raises:
        TypeError: An argument is of no known kind.
        ValueError: Shapes disagree, or an option is out of its range.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 2]
        >>> attrfn.feature_ablation(f, torch.tensor([[2.0, 3.0, 4.0]]))
        tensor([[6., 6., 4.]])
        >>> attrfn.feature_ablation(
        ...     f, torch.tensor([[2.0, 3.0, 4.0]]), feature_mask=torch.tensor([0, 1, 1])
        ... )
        tensor([[ 6., 10., 10.]])

    Reference:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    chunks = Chunks(chunk_size, batching, progress, "feature_ablation", backward=False)
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    these = features(feature_mask, inputs, p.x, n_features)
    ids = torch.arange(these.n, device=p.device)
    ablated = p.over(these.n, lambda i: these.masks((ids[i, None] != ids)[:, None]))
    return p.result(these.elements((p.full - ablated).movedim(0, -1)))


def layer_feature_ablation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    layer_baselines: Baselines = None,
    layer_mask: Tree = None,
    n_features: int | None = None,
    at: At = "output",
    call: int | None = 0,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Feature ablation of a layer: what the output loses when a part of the activation is replaced.

        A_k = f(x) - tail(a with part k := a0, x),   a = head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`; each layer of a list is ablated on its own.
        layer: See :func:`layer_activation`.
        target: See :func:`feature_ablation`.
        layer_baselines: a0, in the form of the activation (unlike the baselines of
            :func:`at_layer`, which are inputs); None is zero.
        layer_mask: The part that each element of the activation belongs to, in the form of
            ``feature_mask`` of :func:`feature_ablation`.
        n_features: See :func:`feature_ablation`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        chunk_size: See :func:`feature_ablation`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`feature_ablation`.
        progress: See :func:`feature_ablation`.

    Returns:
        Attributions like the activation, see :func:`feature_ablation`.

    Raises:
        TypeError: See :func:`layer_gradient_x_activation`.
        ValueError: See :func:`layer_gradient_x_activation` and :func:`feature_ablation`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.layer_feature_ablation(model, x, layer="0", target=1)
        >>> torch.allclose(a, model[0](x) * model[1].weight[1], atol=1e-6)
        True

    Reference:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """

    def one(layer: Layer) -> Tree:
        here = locate(model_fn, inputs, layer, at=at, call=call, create_graph=create_graph)
        leaves, rebuild = flatten(here.activation)
        features(layer_mask, here.activation, leaves, n_features, "layer_mask")
        a0 = fill_baselines(layer_baselines, here.activation, leaves, "layer_baselines")
        return feature_ablation(
            here.model,
            here.activation,
            target=target,
            baselines=rebuild(a0),
            feature_mask=layer_mask,
            n_features=n_features,
            chunk_size=chunk_size,
            batching=batching,
            create_graph=create_graph,
            progress=progress,
        )

    return each_layer(one, layer)


def neuron_feature_ablation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    at: At = "output",
    call: int | None = 0,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Feature ablation of a neuron: what the neuron loses when a feature is replaced.

        A_k = n(x) - n(x with feature k := x0),   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`feature_ablation`.
        layer: See :func:`layer_activation`.
        neuron: See :func:`neuron_gradient`.
        baselines: See :func:`feature_ablation`.
        feature_mask: See :func:`feature_ablation`.
        n_features: See :func:`feature_ablation`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        chunk_size: See :func:`feature_ablation`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`feature_ablation`.
        progress: See :func:`feature_ablation`.

    Returns:
        Attributions like the inputs, see :func:`feature_ablation`.

    Raises:
        TypeError: See :func:`neuron_gradient`.
        ValueError: See :func:`neuron_gradient` and :func:`feature_ablation`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.neuron_feature_ablation(model, x, layer="0", neuron=2)
        >>> torch.allclose(a, x * model[0].weight[2], atol=1e-6)
        True

    Reference:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    return at_neuron(feature_ablation, layer, neuron, at=at, call=call)(
        model_fn,
        inputs,
        baselines=baselines,
        feature_mask=feature_mask,
        n_features=n_features,
        chunk_size=chunk_size,
        batching=batching,
        create_graph=create_graph,
        progress=progress,
    )
