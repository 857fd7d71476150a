"""Perturbation at layers and neurons."""

from __future__ import annotations

from attrfn._core.baseline import fill_baselines
from attrfn._core.features import features
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
from attrfn._forms.at import at_neuron, each_layer, locate
from attrfn._methods.ablation import feature_ablation
from attrfn._methods.permutation import Permute, feature_permutation


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


def layer_feature_permutation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    layer_mask: Tree = None,
    n_features: int | None = None,
    n_samples: int = 1,
    key: Key = 0,
    permute: Permute | None = None,
    at: At = "output",
    call: int | None = 0,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Feature permutation of a layer: parts of the activation shuffled among the examples.

        A_k = f(x) - mean_s tail(a with part k of row b := that of row pi_sk(b), x),   a = head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`; at least two examples.
        layer: See :func:`layer_activation`; each layer of a list is permuted on its own.
        target: See :func:`feature_ablation`.
        layer_mask: See :func:`layer_feature_ablation`; the same for all examples.
        n_features: See :func:`feature_ablation`.
        n_samples: See :func:`feature_permutation`.
        key: See :func:`feature_permutation`.
        permute: See :func:`feature_permutation`.
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
        ValueError: See :func:`layer_gradient_x_activation` and :func:`feature_permutation`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> attrfn.layer_feature_permutation(model, x, layer="0", target=1).shape
        torch.Size([5, 4])

    Reference:
        Breiman, Random Forests, 2001.
    """

    def one(layer: Layer) -> Tree:
        here = locate(model_fn, inputs, layer, at=at, call=call, create_graph=create_graph)
        leaves, _ = flatten(here.activation)
        features(layer_mask, here.activation, leaves, n_features, "layer_mask")
        return feature_permutation(
            here.model,
            here.activation,
            target=target,
            feature_mask=layer_mask,
            n_features=n_features,
            n_samples=n_samples,
            key=key,
            permute=permute,
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
