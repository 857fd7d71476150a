"""Guided Grad-CAM: guided backpropagation times Grad-CAM."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._explain.forms import documented
from attrfn._explain.options import Arguments, AtLayer
from attrfn._explain.tree import flatten
from attrfn._layers.at import each_layer
from attrfn._methods.cam import grad_cam
from attrfn._methods.guided import guided_backprop
from attrfn._methods.maps import MODES, CamOptions, Reshape, channels
from attrfn._torch.say import say
from attrfn._torch.typing import At, Layer, ModelFn, Target, Tree


@documented(AtLayer, CamOptions, Arguments)
def guided_grad_cam(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    interpolate_mode: str = "nearest",
    reshape: Reshape | None = None,
    at: At = "output",
    call: int | None = 0,
    create_graph: bool = False,
) -> Tree:
    """Guided Grad-CAM: guided backpropagation where Grad-CAM supports the target.

        A = guided backpropagation * resize(max(Grad-CAM, 0))

    Args:
        inputs: Floating tensors with the spatial dimensions of the map.
        interpolate_mode: How the map is resized to the inputs, a mode of
            ``torch.nn.functional.interpolate``.

    Returns:
        Attributions like the inputs.

    Raises:
        ValueError: An input has other dimensions than the map.

    Example:
        >>> import torch, attrfn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attrfn.guided_grad_cam(model, torch.randn(5, 1, 8, 8), layer="0", target=0).shape
        torch.Size([5, 1, 8, 8])

    Reference:
        Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization, 2017.
    """
    # The guided gradients do not depend on the layer: all layers of a list share them.
    grads = guided_backprop(model_fn, inputs, target=target, create_graph=create_graph)
    leaves, rebuild = flatten(grads)

    def one(layer: Layer) -> Any:
        cam = grad_cam(
            model_fn,
            inputs,
            layer=layer,
            target=target,
            relu=True,
            reshape=reshape,
            at=at,
            call=call,
            create_graph=create_graph,
        )
        cam = channels(cam, layer, None, 0)  # a single one
        return rebuild([g * _resized(cam, g, interpolate_mode) for g in leaves])

    return each_layer(one, layer)


def _resized(cam: Tensor, like: Tensor, mode: str) -> Tensor:
    if like.ndim != cam.ndim or cam.ndim < 3:
        raise ValueError(
            f"inputs has a tensor of shape {tuple(like.shape)}, expected the "
            f"{cam.ndim - 2} spatial dimension(s) of the layer's map: bind other tensors with "
            "functools.partial, or use reshape= for a layer of tokens"
        )
    modes = MODES[cam.ndim - 2] if cam.ndim < 6 else ()
    if not is_one_of(mode, *modes):
        raise ValueError(
            f"interpolate_mode is {say(mode)}, expected one of {', '.join(modes)} for a map with "
            f"{cam.ndim - 2} spatial dimension(s)"
        )
    return F.interpolate(cam, size=like.shape[2:], mode=mode)
