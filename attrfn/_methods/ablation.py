"""Ablation: what the output loses when a feature is replaced."""

from __future__ import annotations

import torch

from attrfn._copies.chunks import Chunks
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.features import features, masked_features
from attrfn._explain.forms import documented, form_of
from attrfn._explain.masked import masked
from attrfn._explain.options import (
    AtLayer,
    AtNeuron,
    BlackBox,
    ChunkOptions,
    LayerFeatures,
    PerturbationOptions,
)
from attrfn._explain.tree import flatten
from attrfn._layers.at import at_neuron
from attrfn._layers.located import locate
from attrfn._torch.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    Layer,
    ModelFn,
    OfLayer,
    RowsOf,
    Target,
    Tree,
    Unpack,
)


@documented(BlackBox, PerturbationOptions, scores="shared")
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

    Works with any model function, not only with torch code: outputs may be tensors, arrays or
    numbers, and ``chunk_size=1`` gives the function one copy of the batch at a time.

    Returns:
        Attributions like the inputs; every element has the score of its feature. With one value for
        the whole batch they are (1, ...).

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
    p, these = masked_features(p, feature_mask, inputs, n_features)
    # Copy i of the batch lacks feature i. Masks are made for the copies of a chunk alone: those of
    # all n features at once would be n times the inputs.
    ids = torch.arange(these.n, device=p.device)
    ablated = p.over(these.n, lambda i: these.masks((ids[i, None] != ids)[:, None]))
    return p.result(these.elements((p.full - ablated).movedim(0, -1)))


@form_of(feature_ablation, AtLayer, LayerFeatures)
def layer_feature_ablation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    layer_baselines: OfLayer = None,
    layer_mask: OfLayer = None,
    n_features: int | None = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[ChunkOptions],
) -> Tree:
    """Feature ablation of a layer: what the output loses when a part of the activation is replaced.

        A_k = f(x) - tail(a with part k := a0, x),   a = head(x)

    Returns:
        Attributions like the activation; every element has the score of its part.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.layer_feature_ablation(model, x, layer="0", target=1)
        >>> torch.allclose(a, model[0](x) * model[1].weight[1], atol=1e-6)
        True
    """
    here = locate(
        model_fn,
        inputs,
        layer,
        at=at,
        call=call,
        rows=rows,
        create_graph=options.get("create_graph", False),
    )
    # Checked here under the names that the user gave: the method at the layer would call them
    # baselines and feature_mask.
    leaves, rebuild = flatten(here.activation)
    mask = here.option(layer_mask, "layer_mask")
    base = here.option(layer_baselines, "layer_baselines")
    features(mask, here.activation, leaves, n_features, "layer_mask")
    a0 = fill_baselines(base, here.activation, leaves, "layer_baselines")
    given = {"target": target, "feature_mask": mask, "n_features": n_features}
    return here.explained(feature_ablation, {**given, "baselines": rebuild(a0), **options})


@form_of(feature_ablation, AtNeuron)
def neuron_feature_ablation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[PerturbationOptions],
) -> Tree:
    """Feature ablation of a neuron: what the neuron loses when a feature is replaced.

        A_k = n(x) - n(x with feature k := x0),   n = neuron of head(x)

    Returns:
        Attributions like the inputs; every element has the score of its feature.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> a = attrfn.neuron_feature_ablation(model, x, layer="0", neuron=2)
        >>> torch.allclose(a, x * model[0].weight[2], atol=1e-6)
        True
    """
    if neuron is None:  # as a target it would stand for every neuron
        raise TypeError("neuron is None, expected an int, a tuple of ints and slices or a callable")
    return at_neuron(feature_ablation, layer, neuron, at=at, call=call, rows=rows)(
        model_fn, inputs, **options
    )
