"""Maps of a layer's channels, which all class activation maps share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import optree
import torch.nn.functional as F
from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._explain.options import GraphOptions
from attrfn._explain.tree import batch_size, flatten
from attrfn._layers.one_pass import each_gradient
from attrfn._model.source import describe
from attrfn._torch.guard import called
from attrfn._torch.say import say
from attrfn._torch.typing import At, Layer, ModelFn, Target, Tree

Reshape: TypeAlias = Callable[[Any], Tensor]

# The modes of interpolate that fit the map's dimensions: torch's own error does not name upsample.
MODES = {
    1: ("nearest", "nearest-exact", "linear", "area"),
    2: ("nearest", "nearest-exact", "bilinear", "bicubic", "area"),
    3: ("nearest", "nearest-exact", "trilinear", "area"),
}


class CamOptions(GraphOptions, total=False):
    """What every class activation map takes.

    Raises:
        TypeError: The activation is not a single tensor.
        ValueError: The activation has no channels, or ``upsample`` does not fit the map.
    """

    relu: bool
    """Set negative values to zero, as the papers do: only support for the target is left."""

    upsample: str | None
    """A mode of ``torch.nn.functional.interpolate`` (``"nearest"``, ``"bilinear"``, ...) that
    resizes the map to the inputs' size, or ``None``."""

    reshape: Reshape | None
    """From the layer's activation to (B, C, *spatial) if it has another form, such as
    ``attrfn.layouts.tokens(skip=1)`` for the tokens of a ViT; it may move and drop elements."""

    # AtLayer explains these two, and Arguments the target below.
    at: At
    call: int | None


class GradientCamOptions(CamOptions, total=False):
    """What a class activation map by gradients takes."""

    target: Target

    per_channel: bool
    """Leave out the sum over the channels: a map (B, C, *spatial)."""


def channel_map(
    weigh: Callable[[Tensor, Tensor], Tensor],
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
    per_channel: bool = False,
    create_graph: bool = False,
) -> Tree:
    """Sum over the channels of ``weigh(activation, gradient)``, rectified and resized."""
    batch = batch_size(flatten(inputs)[0])

    def one(a: Tree, g: Tree, layer: Layer, by_rows: bool) -> Tree:
        check_reshape(by_rows, layer, reshape)

        def of_tensor(a: Any, g: Any) -> Tensor:
            parts = [channels(t, layer, reshape, batch) for t in (a, g)]
            weighted = weigh(*parts)
            weighted = weighted if per_channel else weighted.sum(1, keepdim=True)
            return finish(weighted, inputs, relu, upsample)

        # A layer with several tensors has a map of each, unless reshape makes one of them.
        return of_tensor(a, g) if reshape is not None else optree.tree_map(of_tensor, a, g)

    return each_gradient(
        one,
        model_fn,
        inputs,
        layer,
        target=target,
        at=at,
        call=call,
        create_graph=create_graph,
    )


def check_reshape(by_rows: bool, layer: Layer, reshape: Reshape | None) -> None:
    """Refuse a layer without examples in dimension 0, unless ``reshape`` brings them there."""
    if not by_rows and reshape is None:
        raise ValueError(
            f"layer {describe(layer)} does not have the examples in dimension 0, expected reshape= "
            "to bring its value into the form (B, C, *spatial), such as attrfn.layouts.frames(5) "
            "for rows that are 5 frames of each example"
        )


def channels(value: Any, layer: Layer, reshape: Reshape | None, batch: int) -> Tensor:
    """The activation (or gradient) as (B, C, *spatial)."""
    value = value if reshape is None else called("reshape", reshape, value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"layer {describe(layer)} gives a {type(value).__name__}, expected one tensor "
            "(B, channels, *spatial): choose another layer, or pick the tensor with reshape="
        )
    if value.ndim < 2:
        raise ValueError(
            f"layer {describe(layer)} gives shape {tuple(value.shape)}, expected (B, channels, "
            "*spatial): choose a layer with channels, or bring it into this form with reshape="
        )
    if reshape is not None and len(value) != batch:
        raise ValueError(
            f"reshape returned shape {tuple(value.shape)} for {batch} example(s), expected (B, C, "
            "*spatial) with the examples in dimension 0"
        )
    return value


def finish(maps: Tensor, inputs: Tree, relu: bool, upsample: str | None) -> Tensor:
    """Rectify, and resize to the inputs' spatial size."""
    maps = maps.clamp(min=0) if relu else maps
    if upsample is None:
        return maps
    sizes = [tuple(x.shape[2:]) for x in flatten(inputs)[0] if x.ndim == maps.ndim]
    if not sizes or maps.ndim < 3:
        raise ValueError(
            f"upsample is {say(upsample)}, but no input has the {maps.ndim - 2} spatial "
            "dimension(s) of the map: use upsample=None, or reshape= for a layer of tokens"
        )
    modes = MODES[maps.ndim - 2] if maps.ndim < 6 else ()
    if not is_one_of(upsample, *modes):
        raise ValueError(
            f"upsample is {say(upsample)}, expected None or one of {', '.join(modes)} for a map "
            f"with {maps.ndim - 2} spatial dimension(s)"
        )
    return F.interpolate(maps, size=sizes[0], mode=upsample)


def flat(t: Tensor) -> Tensor:
    """(B, C, *spatial) -> (B, C, places)."""
    return t.reshape(*t.shape[:2], math.prod(t.shape[2:]))


def total(t: Tensor) -> Tensor:
    """Sum over the places, (B, C, 1, ...)."""
    return flat(t).sum(2).reshape(*t.shape[:2], *[1] * (t.ndim - 2))


def mean(t: Tensor) -> Tensor:
    """Mean over the places, (B, C, 1, ...)."""
    return total(t) / max(math.prod(t.shape[2:]), 1)
