"""Class activation maps: sums of a layer's channels, weighted by their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._methods.maps import Reshape, channel_map, mean, total
from attrfn._torch.typing import At, Layer, ModelFn, Target, Tree


def grad_cam(
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
    create_graph: bool = False,
) -> Tree:
    """Grad-CAM: channels weighted by their mean gradient.

        A = sum_c w_c a_c,   w_c = mean_hw df/da_c

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: A layer with channels in dimension 1, usually the last convolution; each layer of a
            list is explained on its own.
        target: See :func:`gradient`.
        relu: Keep what speaks for the target only, as the paper does.
        upsample: A mode of ``torch.nn.functional.interpolate`` (``"nearest"``, ``"bilinear"``, ...)
            that takes the map to the inputs' size, or None.
        reshape: From the layer's activation to (B, C, *spatial) where it has another form, such as
            ``lambda a: a[:, 1:].mT.unflatten(2, (14, 14))`` for the tokens of a ViT.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        create_graph: See :func:`gradient`.

    Returns:
        A map (B, 1, *spatial) of the layer, or of the inputs' size with ``upsample``.

    Raises:
        TypeError: See :func:`layer_gradient_x_activation`; or the activation is no single tensor.
        ValueError: See :func:`layer_gradient_x_activation`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3),
        ...     torch.nn.ReLU(),
        ...     torch.nn.Flatten(),
        ...     torch.nn.Linear(144, 2),
        ... )
        >>> attrfn.grad_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization, 2017.
    """

    def weigh(a: Tensor, g: Tensor) -> Tensor:
        return mean(g) * a

    return channel_map(
        weigh, model_fn, inputs, layer, target, relu, upsample, reshape, at, call, create_graph
    )


def hires_cam(
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
    create_graph: bool = False,
) -> Tree:
    """HiResCAM: every place weighted by its own gradient.

        A = sum_c df/da_c * a_c

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`grad_cam`.
        target: See :func:`gradient`.
        relu: See :func:`grad_cam`.
        upsample: See :func:`grad_cam`.
        reshape: See :func:`grad_cam`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        create_graph: See :func:`gradient`.

    Returns:
        A map, see :func:`grad_cam`; it sums to f up to the bias where only a linear layer follows.

    Raises:
        TypeError: See :func:`grad_cam`.
        ValueError: See :func:`grad_cam`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3),
        ...     torch.nn.ReLU(),
        ...     torch.nn.Flatten(),
        ...     torch.nn.Linear(144, 2),
        ... )
        >>> attrfn.hires_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Draelos and Carin, Use HiResCAM Instead of Grad-CAM for Faithful Explanations of
        Convolutional Neural Networks, 2020.
    """

    def weigh(a: Tensor, g: Tensor) -> Tensor:
        return g * a

    return channel_map(
        weigh, model_fn, inputs, layer, target, relu, upsample, reshape, at, call, create_graph
    )


def grad_cam_plus_plus(
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
    create_graph: bool = False,
) -> Tree:
    """Grad-CAM++: channels weighted by their positive gradients, each place by its share.

        A = sum_c w_c a_c,   w_c = sum_hw alpha_c relu(df/da_c),
        alpha_c = g^2 / (2 g^2 + sum_hw(a_c) g^3),   g = df/da_c

    The paper explains exp(f), which only scales the map of an image by the positive exp(f).

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`grad_cam`.
        target: See :func:`gradient`.
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
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3),
        ...     torch.nn.ReLU(),
        ...     torch.nn.Flatten(),
        ...     torch.nn.Linear(144, 2),
        ... )
        >>> attrfn.grad_cam_plus_plus(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Chattopadhay et al., Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
        Convolutional Networks, 2018.
    """

    def weigh(a: Tensor, g: Tensor) -> Tensor:
        share = 2 * g**2 + total(a) * g**3
        alpha = g**2 / torch.where(share == 0, torch.ones_like(share), share)
        return total(alpha * g.clamp(min=0)) * a

    return channel_map(
        weigh, model_fn, inputs, layer, target, relu, upsample, reshape, at, call, create_graph
    )


def xgrad_cam(
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
    create_graph: bool = False,
) -> Tree:
    """XGrad-CAM: channels weighted by their gradients where they are active.

        A = sum_c w_c a_c,   w_c = sum_hw(a_c df/da_c) / sum_hw(a_c)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`grad_cam`.
        target: See :func:`gradient`.
        relu: See :func:`grad_cam`.
        upsample: See :func:`grad_cam`.
        reshape: See :func:`grad_cam`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        create_graph: See :func:`gradient`.

    Returns:
        A map, see :func:`grad_cam`; it sums to that of :func:`hires_cam`.

    Raises:
        TypeError: See :func:`grad_cam`.
        ValueError: See :func:`grad_cam`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3),
        ...     torch.nn.ReLU(),
        ...     torch.nn.Flatten(),
        ...     torch.nn.Linear(144, 2),
        ... )
        >>> attrfn.xgrad_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Fu et al., Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs,
        2020.
    """

    def weigh(a: Tensor, g: Tensor) -> Tensor:
        size = total(a)
        return total(a * g) / torch.where(size == 0, torch.ones_like(size), size) * a

    return channel_map(
        weigh, model_fn, inputs, layer, target, relu, upsample, reshape, at, call, create_graph
    )


def layer_cam(
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
    create_graph: bool = False,
) -> Tree:
    """LayerCAM: every place weighted by its positive gradient.

        A = sum_c relu(df/da_c) * a_c

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`grad_cam`.
        target: See :func:`gradient`.
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
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3),
        ...     torch.nn.ReLU(),
        ...     torch.nn.Flatten(),
        ...     torch.nn.Linear(144, 2),
        ... )
        >>> attrfn.layer_cam(model, torch.randn(5, 1, 8, 8), layer="1", target=0).shape
        torch.Size([5, 1, 6, 6])

    Reference:
        Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, 2021.
    """

    def weigh(a: Tensor, g: Tensor) -> Tensor:
        return g.clamp(min=0) * a

    return channel_map(
        weigh, model_fn, inputs, layer, target, relu, upsample, reshape, at, call, create_graph
    )
