"""Batch norm folded into the linear layers before it, on the dictionary of parameters."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._rules.linear import folded
from attrfn._torch.guard import guarded
from attrfn._torch.private import BatchNorm, Convolution, TransposedConvolution
from attrfn._torch.say import say

# A batch norm in evaluation mode is y = x s + t with constants s and t per channel, so a linear
# layer before it can take both over: W' = W s, b' = b s + t. This changes no module. It changes a
# dictionary of parameters for functional_call, in which the batch norm then gets the statistics
# and weights of an identity: variance 1 - eps, so that var + eps is 1, mean 0, gain 1 and shift 0.
# Whatever has no place to go stays with the norm: the offset of a linear layer without a bias, as
# its shift or, without one, as its mean. Which layer precedes which norm is not in the modules but
# in the calls, which do not happen here. So the order of registration serves as a guess, and all
# that can be checked against it raises.
_BEFORE = (nn.Linear, Convolution)


@guarded
def fold_batch_norm(
    model: nn.Module,
    pairs: Iterable[tuple[str, str]] | None = None,
    *,
    params: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Parameters and buffers that make the batch norms of a model in evaluation mode identities.

        W' = W g / sqrt(var + eps),   y = W' x + (b - mean) g / sqrt(var + eps) + shift

    :func:`attrfn.lrp` does this itself while the model runs, for each batch norm that gets the
    output of a linear operation; this function serves other methods.

    **Without** ``pairs``, **modules must be registered in the order in which they are called.** The
    model does not run here, so nothing else is known. If a batch norm is called after another layer
    than the one registered before it, or if an operation is between the two, the model with the
    folded parameters gives other values: compare once with the model's own, or give the pairs.

    Args:
        model: A module; it is not changed.
        pairs: Qualified names ``(linear, batch_norm)``; None pairs each batch norm with the linear
            layer or convolution registered directly before it.
        params: Tensors by qualified name, which replace the model's own.

    Returns:
        Tensors by qualified name, for ``torch.func.functional_call(model, params, inputs)``.

    Raises:
        ValueError: A pair names no linear layer or convolution with a batch norm of its channels;
            one of the two is in another pair, or shares tensors with another module; or modules
            cannot be registered in the order of their calls.

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
    chosen = _neighbours(model) if pairs is None else _checked(pairs)
    for before, norm in chosen:
        if not _fit(modules.get(before), modules.get(norm)):
            raise ValueError(
                f"pairs has ({say(before)}, {say(norm)}), expected the names of a linear layer or "
                "convolution and of a batch norm with running statistics of as many channels"
            )
    _refuse_reused(model, [name for pair in chosen for name in pair])
    for before, norm in chosen:
        transposed = isinstance(modules[before], TransposedConvolution)
        _fold(found, before, norm, modules[norm].eps, transposed)
    return found


def _fold(found: dict[str, Tensor], before: str, norm: str, eps: float, transposed: bool) -> None:
    """Fold one batch norm into the layer before it, in the dictionary."""
    mean, var = found[f"{norm}.running_mean"], found[f"{norm}.running_var"]
    gain, shift = found.get(f"{norm}.weight"), found.get(f"{norm}.bias")
    bias = found.get(f"{before}.bias")
    weight, offset = folded(
        found[f"{before}.weight"], bias, mean, var, gain, shift, eps, transposed
    )
    found[f"{before}.weight"] = weight
    found[f"{norm}.running_var"] = torch.full_like(var, 1 - eps)
    if bias is not None:
        found[f"{before}.bias"], offset = offset, torch.zeros_like(offset)
    if shift is None:
        found[f"{norm}.running_mean"] = -offset
    else:
        found[f"{norm}.running_mean"] = torch.zeros_like(mean)
        found[f"{norm}.weight"] = torch.ones_like(shift)
        found[f"{norm}.bias"] = offset


def _checked(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    given: Any = pairs
    empty = isinstance(given, (tuple, list)) and not given
    found = [] if isinstance(given, (str, Tensor)) or not isinstance(given, Iterable) else [*given]
    named = [isinstance(p, (tuple, list)) and [type(n) for n in p] == [str, str] for p in found]
    if not all(named or [empty]):
        raise TypeError(f"pairs is {say(pairs)}, expected pairs of names (linear, batch_norm)")
    return found


def _neighbours(model: nn.Module) -> list[tuple[str, str]]:
    """Linear layers with the batch norm registered directly after them."""
    pairs = []
    for path, module in model.named_modules():
        children = [(f"{path}.{k}" if path else k, m) for k, m in module.named_children()]
        for i, ((before, layer), (norm, bn)) in enumerate(itertools.pairwise(children)):
            if not isinstance(layer, _BEFORE) or not isinstance(bn, BatchNorm):
                continue
            following = children[i + 2][1] if i + 2 < len(children) else None
            if isinstance(following, BatchNorm) or _width(layer) != bn.num_features:
                raise ValueError(
                    f"the batch norm {norm!r} is registered directly after {before!r}, but "
                    "another batch norm follows it or their channels differ, so modules are not "
                    "registered in the order of their calls: give pairs=[(linear, batch_norm), ...]"
                )
            if _fit(layer, bn):
                pairs.append((before, norm))
    return pairs


def _refuse_reused(model: nn.Module, names: list[str]) -> None:
    """Raise for a module that cannot be folded, because it is used in more than one place."""
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    uses = collections.Counter(id(t) for _, t in tensors)
    shared = {path.rpartition(".")[0] for path, t in tensors if uses[id(t)] > 1}
    times = collections.Counter(names)
    for name in names:
        if name in shared or times[name] > 1:
            raise ValueError(
                f"{name!r} is in several pairs, or shares its tensors with another module, so "
                "folding it would change its other uses: leave it out of pairs"
            )


def _fit(layer: nn.Module | None, bn: nn.Module | None) -> bool:
    if not isinstance(layer, _BEFORE) or not isinstance(bn, BatchNorm):
        return False
    # With groups, the output channels of a transposed convolution do not lie along one axis of its
    # weights, so that a scale per channel cannot be multiplied into them by a reshape.
    if bn.running_mean is None or (isinstance(layer, TransposedConvolution) and layer.groups > 1):
        return False
    return _width(layer) == bn.num_features


def _width(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
