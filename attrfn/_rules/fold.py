"""Batch norm folded into the linear layers before it, on the dictionary of parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from attrfn._rules.linear import folded

_BEFORE = (nn.Linear, _ConvNd)


def fold_batch_norm(
    model: nn.Module,
    pairs: Iterable[tuple[str, str]] | None = None,
    *,
    params: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Parameters and buffers with which a model in evaluation mode does without its batch norms.

        W' = W g / sqrt(var + eps),   y = W' x + (b - mean) g / sqrt(var + eps) + shift

    :func:`attrfn.lrp` does this by itself while the model runs, for each batch norm that gets the
    output of a linear operation; this function is for everything else.

    Args:
        model: A module; it stays as it is.
        pairs: Qualified names ``(linear, batch_norm)``; None pairs each batch norm with the linear
            layer or convolution registered directly before it, if their channels agree.
        params: Tensors that stand for the model's own, by qualified name.

    Returns:
        Tensors by qualified name, for ``torch.func.functional_call(model, params, inputs)``.

    Raises:
        ValueError: A pair names no linear layer or convolution with a batch norm of its channels.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
        >>> x = torch.randn(5, 3)
        >>> y = torch.func.functional_call(model, attrfn.rules.fold_batch_norm(model), x)
        >>> torch.allclose(y, model(x), atol=1e-6)
        True
    """
    found = {**dict(model.named_parameters()), **dict(model.named_buffers()), **(params or {})}
    modules = dict(model.named_modules())
    for before, norm in _neighbours(model) if pairs is None else pairs:
        layer, bn = modules.get(before), modules.get(norm)
        if not _fit(layer, bn):
            raise ValueError(
                f"pairs has ({before!r}, {norm!r}), expected the names of a linear layer or "
                "convolution and of a batch norm with running statistics of as many channels"
            )
        assert isinstance(bn, _BatchNorm)
        mean, var = found[f"{norm}.running_mean"], found[f"{norm}.running_var"]
        gain, shift = found.get(f"{norm}.weight"), found.get(f"{norm}.bias")
        weight, offset = folded(
            found[f"{before}.weight"],
            found.get(f"{before}.bias"),
            mean,
            var,
            gain,
            shift,
            bn.eps,
            transposed=isinstance(layer, _ConvTransposeNd),
        )
        found[f"{before}.weight"] = weight
        found[f"{norm}.running_var"] = torch.full_like(var, 1 - bn.eps)
        if f"{before}.bias" in found:
            found[f"{before}.bias"], offset = offset, torch.zeros_like(offset)
        if shift is None:  # nowhere to put what is left but the mean
            found[f"{norm}.running_mean"] = -offset
        else:
            found[f"{norm}.running_mean"] = torch.zeros_like(mean)
            found[f"{norm}.weight"] = torch.ones_like(shift)
            found[f"{norm}.bias"] = offset
    return found


def _neighbours(model: nn.Module) -> list[tuple[str, str]]:
    """Linear layers with the batch norm registered directly behind them."""
    pairs = []
    for path, module in model.named_modules():
        children = [(f"{path}.{k}" if path else k, m) for k, m in module.named_children()]
        for (before, layer), (norm, bn) in itertools.pairwise(children):
            if _fit(layer, bn):
                pairs.append((before, norm))
    return pairs


def _fit(layer: nn.Module | None, bn: nn.Module | None) -> bool:
    if not isinstance(layer, _BEFORE) or not isinstance(bn, _BatchNorm):
        return False
    if bn.running_mean is None or (isinstance(layer, _ConvTransposeNd) and layer.groups > 1):
        return False
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return bool(width == bn.num_features)
