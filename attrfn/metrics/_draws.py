"""Random parameters for a layer: those that it could have had before training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrfn import random
from attrfn._layers.parameters import Parameters

Draw = Callable[[str, Tensor, Tensor], Tensor]

Kinds = tuple[type[nn.Module], ...]

_LINEAR: Kinds = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LINEAR += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS: Kinds = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORMS += (nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS += (nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()  # torch >= 2.4
_RECURRENT: Kinds = (nn.RNNBase, nn.RNNCellBase)


def redrawn(m: Parameters, layer: str, draw: Draw | None, key: Tensor) -> dict[str, Tensor]:
    """New tensors for the parameters of a layer, and for its statistics where it has some."""
    places = {name: i for i, name in enumerate(m.tensors)}
    module = m.layers[layer]
    new: dict[str, Tensor] = {}
    for name in m.owned[layer]:
        old, own = m.tensors[name].detach(), random.fold_in(key, places[name])
        found = _default(module, name, old, own) if draw is None else draw(name, old, own)
        new[name] = _checked(found, name, old)
    if draw is None and isinstance(module, _NORMS):
        prefix = f"{layer}." if layer else ""
        for name, value in module.named_buffers(recurse=False):
            if name in ("running_mean", "running_var"):
                new[prefix + name] = torch.full_like(value, float(name == "running_var"))
    return new


def _checked(found: object, name: str, old: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != old.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"draw returned {shape} for {name!r}, expected a tensor of shape {tuple(old.shape)}"
        )
    return found.detach().to(old)


def _default(module: nn.Module, name: str, p: Tensor, key: Tensor) -> Tensor:
    """The usual draw for a kind of layer."""
    if isinstance(module, _NORMS):
        return torch.full_like(p, float(name.rpartition(".")[2] == "weight"))
    if isinstance(module, _LINEAR):
        weight: Any = module.weight
        return _uniform(p, key, weight[0].numel())
    if isinstance(module, _RECURRENT):
        hidden: Any = module.hidden_size
        return _uniform(p, key, hidden)
    normal = random.normal(key, p.shape, dtype=p.dtype, device=p.device)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        padding = getattr(module, "padding_idx", None)
        rows = torch.arange(p.shape[0], device=p.device)[:, None]
        return normal if padding is None else normal.masked_fill(rows == padding, 0)
    # Class tokens, scales, positions: numbers like their own.
    return p.mean() + p.std(correction=0) * normal


def _uniform(p: Tensor, key: Tensor, inputs: int) -> Tensor:
    bound = 1 / math.sqrt(max(inputs, 1))
    return random.uniform(key, p.shape, dtype=p.dtype, minval=-bound, maxval=bound, device=p.device)
