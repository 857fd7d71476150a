"""Class activation maps: sums of a layer's channels, weighted by their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._explain.forms import documented, form_of
from attrfn._explain.options import Arguments, AtLayer
from attrfn._explain.tree import batch_size, flatten
from attrfn._layers.at import each_layer
from attrfn._layers.located import locate
from attrfn._methods.maps import (
    CamOptions,
    GradientCamOptions,
    Reshape,
    channel_map,
    channels,
    check_reshape,
    finish,
    flat,
    mean,
    total,
)
from attrfn._torch.precision import matmul
from attrfn._torch.typing import At, Layer, ModelFn, Tree, Unpack


class Cam(Protocol):
    """The signature of a class activation map."""

    __name__: str

    def __call__(
        self,
        model_fn: ModelFn,
        inputs: Tree,
        *,
        layer: Layer,
        **options: Unpack[GradientCamOptions],
    ) -> Tree:
        """The map of one layer, or a list with the map of each layer."""


def cam(weigh: Callable[[Tensor, Tensor], Tensor]) -> Cam:
    """Make a class activation map of a weighing function.

    Args:
        weigh: From the activation a (B, C, *spatial) and the gradient g of the explained output
            there to the weighted activation, which is summed over the channels.
    """

    def run(
        model_fn: ModelFn, inputs: Tree, *, layer: Layer, **options: Unpack[GradientCamOptions]
    ) -> Tree:
        return channel_map(weigh, model_fn, inputs, layer=layer, **options)

    # The name and text of the weighing function, but not its signature, which functools.wraps would
    # make inspect show.
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(run, name, getattr(weigh, name))
    return form_of(channel_map, AtLayer, GradientCamOptions, CamOptions, Arguments)(run)


@cam
def grad_cam(a: Tensor, g: Tensor) -> Tensor:
    """Grad-CAM: channels weighted by their mean gradient.

        A = sum_c w_c a_c,   w_c = mean_hw df/da_c

    Returns:
        A map (B, 1, *spatial) of the layer, or of the inputs' size with ``upsample``.

    Example:
        >>> import torch, attrfn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attrfn.grad_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization, 2017.
    """
    return mean(g) * a


@cam
def hires_cam(a: Tensor, g: Tensor) -> Tensor:
    """HiResCAM: every place weighted by its own gradient.

        A = sum_c df/da_c * a_c

    Returns:
        A map (B, 1, *spatial); it sums to f up to the bias where only a linear layer follows.

    Example:
        >>> import torch, attrfn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attrfn.hires_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Draelos and Carin, Use HiResCAM Instead of Grad-CAM for Faithful Explanations of
        Convolutional Neural Networks, 2020.
    """
    return g * a


@cam
def grad_cam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Grad-CAM++: channels weighted by their positive gradients, each place by its share.

        A = sum_c w_c a_c,   w_c = sum_hw alpha_c relu(df/da_c),
        alpha_c = g^2 / (2 g^2 + sum_hw(a_c) g^3),   g = df/da_c

    The paper explains exp(f), which only scales the map of an image by the positive exp(f).

    Returns:
        A map (B, 1, *spatial).

    Example:
        >>> import torch, attrfn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attrfn.grad_cam_plus_plus(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Chattopadhay et al., Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
        Convolutional Networks, 2018.
    """
    # The denominator is 0 where g is 0, or where its terms cancel: alpha stays finite there.
    share = 2 * g**2 + total(a) * g**3
    alpha = g**2 / torch.where(share == 0, torch.ones_like(share), share)
    return total(alpha * g.clamp(min=0)) * a


@cam
def xgrad_cam(a: Tensor, g: Tensor) -> Tensor:
    """XGrad-CAM: channels weighted by their gradients where they are active.

        A = sum_c w_c a_c,   w_c = sum_hw(a_c df/da_c) / sum_hw(a_c)

    Returns:
        A map (B, 1, *spatial); it has the same sum as that of :func:`hires_cam`.

    Example:
        >>> import torch, attrfn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attrfn.xgrad_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Fu et al., Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs,
        2020.
    """
    size = total(a)
    return total(a * g) / torch.where(size == 0, torch.ones_like(size), size) * a


@cam
def layer_cam(a: Tensor, g: Tensor) -> Tensor:
    """LayerCAM: every place weighted by its positive gradient.

        A = sum_c relu(df/da_c) * a_c

    Returns:
        A map (B, 1, *spatial).

    Example:
        >>> import torch, attrfn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attrfn.layer_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, 2021.
    """
    return g.clamp(min=0) * a


@documented(AtLayer, CamOptions)
def eigen_cam(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    relu: bool = False,
    upsample: str | None = None,
    reshape: Reshape | None = None,
    at: At = "output",
    call: int | None = 0,
    create_graph: bool = False,
) -> Tree:
    """Eigen-CAM: the activation projected on its first principal direction; it needs no target.

        A = M v,   M = activation as (places, channels) = U S V^T,   v = first column of V

    The decomposition leaves the sign of v open; it is chosen so that the map's sum is positive.

    Returns:
        A map (B, 1, *spatial).

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
        >>> attrfn.eigen_cam(model, torch.randn(5, 1, 8, 8), layer="1").shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Muhammad and Yeasin, Eigen-CAM: Class Activation Map using Principal Components, 2020.
    """

    def one(layer: Layer) -> Tensor:
        here = locate(model_fn, inputs, layer, at=at, call=call, create_graph=create_graph)
        check_reshape(here.layout is None, layer, reshape)
        a = channels(here.own, layer, reshape, batch_size(flatten(inputs)[0]))
        m = flat(a).mT.to(wide(a.dtype))  # torch has no decomposition in half precision
        v = torch.linalg.svd(m, full_matrices=False).Vh[:, :1].mT
        projected = matmul(m, v).to(a.dtype)
        sign = torch.where(projected.sum(1, keepdim=True) < 0, -1.0, 1.0).to(a.dtype)
        return finish(
            (sign * projected).mT.reshape(a.shape[0], 1, *a.shape[2:]), inputs, relu, upsample
        )

    return each_layer(one, layer)
