"""What modules change, mix or draw while they run, which training mode decides for most."""

from __future__ import annotations

import torch
from torch import nn

from attrfn._torch.private import BatchNorm, Dropout
from attrfn._torch.warn import warn

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def mixes_or_draws(module: nn.Module) -> bool:
    """Whether a module in training mode mixes rows or draws random numbers."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    if isinstance(module, Dropout):
        return module.p > 0
    return isinstance(module, (BatchNorm, nn.RReLU))


def changes(module: nn.Module) -> str:
    """Why a run would change this module itself, if it is one of torch's; else an empty string."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    # To ask a module for an attribute that it lacks takes microseconds.
    max_norm = getattr(module, "max_norm", None) if scripted else module.__dict__.get("max_norm")
    if max_norm is not None:
        return "its max_norm rescales its weights in any mode"
    if not module.training:
        return ""
    if scripted:
        own = any(True for _ in module.buffers())
        return "in training mode it may write into its buffers" if own else ""
    if isinstance(module, (BatchNorm, *_INSTANCE_NORMS)) and module.track_running_stats:
        return "in training mode its statistics move"
    return ""


def refuse_scripted(module: torch.jit.ScriptModule) -> None:
    """Refuse a scripted module that a run would change.

    Raises:
        ValueError: It has buffers and is in training mode, or has an embedding with max_norm.
    """
    for part in module.modules():
        if why := changes(part):
            raise ValueError(
                f"the model holds the scripted module {part.original_name}, which attrfn cannot "
                f"copy, and {why}: call model.eval(), or give the module without torch.jit"
            )


def refuse_tied(model: nn.Module) -> None:
    """Refuse an embedding that rescales weights which another module uses, too.

    Raises:
        ValueError: There is one.
    """
    # What the other module computes depends on the words of all rows, and on whether the embedding
    # ran before it or was replaced by its value.
    users: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            users[id(p)] = users.get(id(p), 0) + 1
    for module in model.modules():
        if getattr(module, "max_norm", None) is not None and any(
            users[id(p)] > 1 for p in module.parameters(recurse=False)
        ):
            raise ValueError(
                f"the model holds a {type(module).__name__} whose max_norm rescales weights that "
                "another module uses, so its rows depend on each other: rescale the weights once "
                "and set max_norm to None"
            )


def warn_noisy(noisy: list[str]) -> None:
    """Warn of the first of the modules that draw numbers or mix rows, if there are any."""
    if noisy:
        warn(
            f"the model is in training mode and holds {noisy[0]}, so its rows are random "
            "or depend on each other and attributions are not reproducible: call model.eval()"
        )
