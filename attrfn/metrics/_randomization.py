"""Parameter randomisation: whether attributions depend on what the model has learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import is_count
from attrfn._copies.progress import steps
from attrfn._explain.forms import form_of
from attrfn._layers.parameters import Parameters, parameters_of
from attrfn._random.keys import as_key
from attrfn._torch.typing import Key, Layer, Method, ModelFn, Tree, Unpack
from attrfn.metrics._around import again
from attrfn.metrics._direction import better
from attrfn.metrics._draws import Draw, redrawn
from attrfn.metrics._maps import flat_maps, in_dtype_of, undefined_where
from attrfn.metrics._options import AgainOptions
from attrfn.metrics.similarity import spearman

Order = Literal["top_down", "bottom_up", "independent"]
Similarity = Callable[[Tree, Tree], Tensor]


@better("lower")
@form_of(again)
def model_parameter_randomization(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    order: Order = "top_down",
    layers: Sequence[Layer] | None = None,
    draw: Draw | None = None,
    similarity: Similarity = spearman,
    absolute: bool = False,
    **options: Unpack[AgainOptions],
) -> dict[str, Tensor]:
    """Model parameter randomisation: how similar attributions stay while layers lose their weights.

        similarity(A(f), A(f with the parameters of the layers so far drawn at random))

    From the last layer to the first (``"top_down"``) or from the first to the last, each in
    addition to those before, or each alone (``"independent"``). The order is that of the first
    calls. For noisy methods give ``noise_tunnel(method, ...)``. Where the first layers are intact
    the similarity has a floor, and it is lower for noisy maps of any kind.

    Args:
        order: ``"top_down"``, ``"bottom_up"`` or ``"independent"``.
        layers: The layers to randomise, modules or qualified names; ``None``: all that own
            parameters.
        draw: ``draw(name, parameter, key) -> tensor``. The default draws linear layers and
            convolutions from U(+-1/sqrt(fan in)), recurrent layers from U(+-1/sqrt(hidden)),
            embeddings from N(0, 1), resets norms with their statistics, and draws all else with the
            mean and deviation of its own entries.
        similarity: ``similarity(a, b) -> (B,)``. What it returns is returned for each layer: with
            ``lambda trained, drawn: drawn`` the maps themselves, for :func:`attrfn.viz.sanity`.
        absolute: Compare absolute attributions, which changes the verdict on signed maps.
        key: An int or a key of :mod:`attrfn.random`, (2,).
        chunk_size: Without an effect: nothing is explained in copies.

    Returns:
        A similarity per example, (B,), for each layer by its name, in the order of randomisation.

    Raises:
        TypeError: The model function hides its module.
        ValueError: A layer owns no parameter of the model.

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        >>> found = attrfn.metrics.model_parameter_randomization(
        ...     model, torch.randn(5, 3), attrfn.gradient, draw=lambda name, p, key: -p
        ... )
        >>> {name: values[0].item() for name, values in found.items()}
        {'1': -1.0, '0': 1.0}

    Reference:
        Adebayo et al., Sanity Checks for Saliency Maps, 2018. https://arxiv.org/abs/1810.03292
        Binder et al., Shortcomings of Top-Down Randomization-Based Sanity Checks for Evaluations of
        Deep Neural Network Explanations, 2023. https://arxiv.org/abs/2211.12486
    """
    if order not in ("top_down", "bottom_up", "independent"):
        raise ValueError(f"order is {order!r}, expected 'top_down', 'bottom_up' or 'independent'")
    a = again(model_fn, inputs, method, **options)
    m, key = parameters_of(model_fn, inputs), _one_key(options.get("key", 0))
    chosen = _chosen(m, layers)
    chosen = chosen if order == "bottom_up" else chosen[::-1]

    def maps(f: ModelFn) -> Tree:
        found = method(f, inputs, **a.options)
        return optree.tree_map(torch.abs, found) if absolute else found

    found: dict[str, Tensor] = {}
    label = "model_parameter_randomization"
    with steps(len(chosen) + 1, label, options.get("progress", False)) as advance:
        trained: Tree = maps(model_fn)
        new: dict[str, Tensor] = {}
        advance(1)
        for layer in chosen:
            drawn = redrawn(m, layer, draw, key)
            # A tied parameter has changed with the first of its layers.
            new = drawn if order == "independent" else {**drawn, **new}
            found[layer] = similarity(trained, maps(m.replaced(new)))
            advance(1)
    return found


@better("higher")
@form_of(again)
def efficient_mprt(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    n_bins: int = 100,
    draw: Draw | None = None,
    **options: Unpack[AgainOptions],
) -> Tensor:
    """Efficient MPRT: how much more entropy attributions have once the model is randomised.

        (H(A') - H(A)) / H(A),   H = entropy of a histogram over the range of the map,
        A' = attributions of the model with the parameters of all layers drawn at random

    Args:
        n_bins: The number of bins of the histogram.
        draw: As for :func:`attrfn.metrics.model_parameter_randomization`.
        key: An int or a key of :mod:`attrfn.random`, (2,).
        chunk_size: Without an effect: nothing is explained in copies.

    Returns:
        One relative rise per example, (B,); nan where H(A) is 0.

    Raises:
        TypeError: The model function hides its module.

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        >>> attrfn.metrics.efficient_mprt(model, torch.randn(5, 3), attrfn.gradient).shape
        torch.Size([5])

    Reference:
        Hedström et al., A Fresh Look at Sanity Checks for Saliency Maps, 2024.
        https://arxiv.org/abs/2405.02383
    """
    if not is_count(n_bins):
        raise ValueError(f"n_bins is {n_bins!r}, expected an int of at least 1")
    a = again(model_fn, inputs, method, **options)
    m, key = parameters_of(model_fn, inputs), _one_key(options.get("key", 0))
    new: dict[str, Tensor] = {}
    for layer in m.layers:
        new = {**redrawn(m, layer, draw, key), **new}
    with steps(2, "efficient_mprt", options.get("progress", False)) as advance:
        here = method(model_fn, inputs, **a.options)
        advance(1)
        there = method(m.replaced(new), inputs, **a.options)
        advance(1)
    before, after = _histogram_entropy(here, n_bins), _histogram_entropy(there, n_bins)
    return in_dtype_of(here, (after - before) / undefined_where(before == 0, before))


def _histogram_entropy(maps: Tree, n_bins: int) -> Tensor:
    """The entropy of a histogram of each example's map over its own range, (B,)."""
    a, _ = flat_maps(maps)
    low, high = a.amin(-1, keepdim=True), a.amax(-1, keepdim=True)
    span = (high - low).masked_fill(high == low, 1)
    bins = ((a - low) / span * n_bins).nan_to_num().long().clamp(0, n_bins - 1)
    counts = a.new_zeros(a.shape[0], n_bins).scatter_add(1, bins, torch.ones_like(a))
    entropy = torch.special.entr(counts / a.shape[1]).sum(-1)
    return undefined_where(~a.isfinite().all(-1), entropy)


def _chosen(m: Parameters, layers: Sequence[Layer] | None) -> list[str]:
    """Names of layers in the order of their first call."""
    if layers is None:
        return list(m.layers)
    given = [layers] if isinstance(layers, (str, torch.nn.Module)) else list(layers)
    wanted = {m.name_of(layer) for layer in given}  # type: ignore[arg-type]
    return [name for name in m.layers if name in wanted]


def _one_key(key: Key) -> Tensor:
    words = as_key(key)
    if words.ndim != 1:
        raise ValueError(
            f"key has shape {tuple(words.shape)}, expected a single key (2,): all examples share "
            "the model"
        )
    return words
