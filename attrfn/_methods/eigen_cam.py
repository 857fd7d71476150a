"""Class activation maps without a gradient: the layer's first principal component."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._layers.at import each_layer, locate
from attrfn._methods.maps import Reshape, channels, finish, flat
from attrfn._torch.precision import matmul
from attrfn._torch.typing import At, Layer, ModelFn, Tree


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

    The sign of v, which the decomposition leaves open, is that which makes the map's sum positive.

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`grad_cam`.
        relu: See :func:`grad_cam`.
        upsample: See :func:`grad_cam`.
        reshape: See :func:`grad_cam`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        create_graph: See :func:`gradient`.

    Returns:
        A map, see :func:`grad_cam`.

    Raises:
        TypeError: See :func:`grad_cam`.
        ValueError: See :func:`grad_cam`.

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
        a = channels(here.activation, layer, reshape)
        m = flat(a).mT.to(wide(a.dtype))
        v = torch.linalg.svd(m, full_matrices=False).Vh[:, :1].mT
        projected = matmul(m, v).to(a.dtype)
        sign = torch.where(projected.sum(1, keepdim=True) < 0, -1.0, 1.0).to(a.dtype)
        return finish(
            (sign * projected).mT.reshape(a.shape[0], 1, *a.shape[2:]), inputs, relu, upsample
        )

    return each_layer(one, layer)
