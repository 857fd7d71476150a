"""Class activation maps without gradients: channels weighted by changes of the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attrfn._copies.chunks import Chunks
from attrfn._explain.features import features
from attrfn._explain.forms import documented
from attrfn._explain.masked import Masked, masked
from attrfn._explain.options import AtLayer, BlackBox, ChunkOptions
from attrfn._explain.target import choose, select
from attrfn._explain.tree import batch_size, flatten
from attrfn._layers.at import each_layer
from attrfn._layers.located import Located, locate
from attrfn._methods.maps import CamOptions, Reshape, channels, check_reshape, finish
from attrfn._torch.guard import called
from attrfn._torch.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    Layer,
    Leaves,
    ModelFn,
    Target,
    Tree,
)

_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


@documented(AtLayer, CamOptions, BlackBox, ChunkOptions)
def ablation_cam(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    relu: bool = False,
    upsample: str | None = None,
    reshape: Reshape | None = None,
    at: At = "output",
    call: int | None = 0,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Ablation-CAM: channels weighted by the share of the output that is lost without them.

        A = sum_c w_c a_c,   w_c = (f(x) - f(x with a_c := 0)) / f(x)

    Args:
        reshape: From the layer's activation to (B, C, *spatial) if it has another form; it may
            move and drop elements, but not compute with them.

    Returns:
        A map (B, 1, *spatial).

    Example:
        >>> import torch, attrfn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attrfn.ablation_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Desai and Ramaswamy, Ablation-CAM: Visual Explanations for Deep Convolutional Network via
        Gradient-free Localization, 2020.
    """
    chunks = Chunks(chunk_size, batching, progress, "ablation_cam", backward=False)
    if isinstance(layer, (list, tuple)):
        # Each map replaces its own layer only, but locate refuses layers that depend on each other,
        # as every method that replaces activations does.
        locate(model_fn, inputs, layer, at=at, call=call)

    def one(layer: Layer) -> Tensor:
        here = locate(model_fn, inputs, layer, at=at, call=call, create_graph=create_graph)
        check_reshape(here.layout is None, layer, reshape)
        a = channels(here.own, layer, reshape, batch_size(flatten(inputs)[0]))
        p, full, ablated = _without_channels(here, a, target, reshape, chunks, create_graph)
        safe = torch.where(full == 0, torch.ones_like(full), full)
        w = ((full - ablated) / safe).mT.to(a)  # (R, C)
        cam = (w.reshape(*w.shape, *[1] * (a.ndim - 2)) * a).sum(1, keepdim=True)
        return p.detached(finish(cam, inputs, relu, upsample))

    return each_layer(one, layer)


def _without_channels(
    here: Located,
    a: Tensor,
    target: Target,
    reshape: Reshape | None,
    chunks: Chunks,
    create_graph: bool,
) -> tuple[Masked, Tensor, Tensor]:
    """The values with all channels of a, (R,), and without each of them, (C, R)."""
    # A channel is a feature of the activation. Elements that reshape drops are one more feature
    # (n), which is present in every copy.
    n = a.shape[1]
    ids = torch.arange(n, device=a.device)
    others = F.pad(ids[:, None] != ids, (0, 1), value=True)
    if here.layout is None:
        p = masked(here.model, here.activation, target, None, chunks, create_graph=create_graph)
        _one_value(p)
        channel = _channel_of(here.activation, reshape, n)
        return p, *_ablated(p, channel, here.activation, others)
    # A copy is the whole value, and its outputs are one of each example.
    chosen = choose(target, len(a))
    model = here.apart(here.layout, lambda outputs: select(outputs, chosen, len(a)))
    p = masked(model, here.activation, None, None, chunks, create_graph=create_graph)
    there, move = here.layout, reshape or _as_it_is
    channel = there.option(_channels(there.leaves, there.filled, move, n))
    full, ablated = _ablated(p, channel, here.activation, others)
    return p, full.squeeze(-2), ablated.squeeze(-2)


@documented(AtLayer, CamOptions, BlackBox, ChunkOptions)
def score_cam(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    baselines: Baselines = None,
    relu: bool = False,
    upsample: str | None = None,
    reshape: Reshape | None = None,
    at: At = "output",
    call: int | None = 0,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Score-CAM: channels weighted by the output for the inputs that they mask.

        A = sum_c w_c a_c,   w = softmax_c(f(x0 + h_c (x - x0)) - f(x0)),
        h_c = a_c resized to the inputs (linearly), from 0 where it is least to 1 where it is most

    Args:
        inputs: The model's inputs; those with as many dimensions as the activation are masked.
        target: Which scalar of each example is explained, such as an int or a callable
            ``outputs -> (B,)``; the paper explains the probability of a class.

    Returns:
        A map (B, 1, *spatial).

    Raises:
        ValueError: No input has the map's number of dimensions.

    Example:
        >>> import torch, attrfn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attrfn.score_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Wang et al., Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
        Networks, 2020.
    """
    chunks = Chunks(chunk_size, batching, progress, "score_cam", backward=False)

    def one(layer: Layer) -> Tensor:
        here = locate(model_fn, inputs, layer, at=at, call=call, create_graph=create_graph)
        check_reshape(here.layout is None, layer, reshape)
        a = channels(here.own, layer, reshape, batch_size(flatten(inputs)[0]))
        p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
        _one_value(p)
        # The formula's f(x0) is the same for all channels: the softmax does not need it.
        w = _seen_through(p, a).mT.softmax(1).to(a)
        cam = (w.reshape(*w.shape, *[1] * (a.ndim - 2)) * a).sum(1, keepdim=True)
        return p.detached(finish(cam, inputs, relu, upsample))

    return each_layer(one, layer)


def _seen_through(p: Masked, a: Tensor) -> Tensor:
    """The values for inputs that each channel of a masks, (C, R)."""
    masks = [_channel_masks(a, x) for x in p.x]
    if all(m is None for m in masks):
        raise ValueError(
            f"layer gives maps with {a.ndim - 2} spatial dimension(s), but no input has as "
            "many: use ablation_cam, which needs none, or reshape="
        )

    # Inputs of another form than the map stay as they are.
    present = [torch.ones([1] * (x.ndim + 1), dtype=torch.bool, device=a.device) for x in p.x]

    def of_channels(i: slice) -> Leaves:
        pairs = zip(masks, present, strict=True)
        return tuple([one if m is None else m[i] for m, one in pairs])

    return p.over(a.shape[1], of_channels)


def _one_value(p: Masked) -> None:
    if p.per_batch:
        raise ValueError(
            "model_fn returns one value for the whole batch, expected one value per "
            "example, because each example has its own map"
        )
    if p.full.ndim > 1:
        raise ValueError(
            f"target is None, but model_fn returns shape {tuple(p.full.shape)}, "
            f"that is {p.full[0].numel()} values per example: choose one with target"
        )


def _ablated(p: Masked, channel: Tree, activation: Tree, others: Tensor) -> tuple[Tensor, Tensor]:
    """The values with all channels, (R, ...), and without each of them, (C, R, ...)."""
    these = features(channel, activation, p.x, others.shape[1])
    return p.full, p.over(len(others), lambda i: these.masks(others[i, None]))


def _channel_of(activation: Any, reshape: Reshape | None, n: int) -> Tensor:
    """The channel of each element of the activation, (1, ...); n for those that reshape drops."""
    if reshape is None:
        return torch.arange(n, device=activation.device).reshape(1, n, *[1] * (activation.ndim - 2))
    one = activation[:1]
    return _channels([one], lambda parts: parts[0], reshape, n)[0]


def _channels(
    leaves: Sequence[Tensor],
    filled: Callable[[list[Tensor]], Tree],
    reshape: Reshape,
    n: int,
) -> list[Tensor]:
    """The channel of each element of some tensors; n for those that reshape drops.

    Args:
        leaves: The tensors.
        filled: Puts others of their shapes into what reshape takes.
        reshape: From there to (B, n, *spatial).
        n: The number of channels.
    """
    # reshape is the user's and takes activations, so numbered places go through it: floating ones,
    # of float64, which counts exactly up to 2^53. 0 is what fills up a place without an element.
    sizes = [t.numel() for t in leaves]
    places = torch.arange(1, sum(sizes) + 1, dtype=torch.float64, device=leaves[0].device)
    moved = called("reshape", reshape, filled(_parts(places, leaves))).long()
    ids = torch.arange(n, device=moved.device).reshape(1, n, *[1] * (moved.ndim - 2))
    channel = torch.full((len(places) + 1,), n, device=moved.device)
    channel = channel.scatter(0, moved.flatten(), ids.expand(moved.shape).flatten())
    return _parts(channel[1:], leaves)


def _as_it_is(a: Any) -> Any:
    return a


def _parts(flat: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """A flat tensor as several of the shapes of others."""
    parts = torch.split(flat, [t.numel() for t in leaves])
    return [p.reshape(t.shape) for p, t in zip(parts, leaves, strict=True)]


def _channel_masks(a: Tensor, x: Tensor) -> Tensor | None:
    """H of each channel, (C, B, 1, *spatial), for an input of the map's form."""
    if x.ndim != a.ndim or a.ndim - 2 not in _SMOOTH or not x.is_floating_point():
        return None
    h = F.interpolate(a, size=x.shape[2:], mode=_SMOOTH[a.ndim - 2]).transpose(0, 1)
    places = tuple(range(2, h.ndim))
    low, high = h.amin(places, keepdim=True), h.amax(places, keepdim=True)
    span = torch.where(high == low, torch.ones_like(high), high - low)
    return ((h - low) / span)[:, :, None]
