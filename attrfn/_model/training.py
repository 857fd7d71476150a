"""What modules change or mix while they run, which training mode decides for most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from attrfn._torch.explanation import current
from attrfn._torch.private import BatchNorm
from attrfn._torch.warn import warn

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def mixes(module: nn.Module) -> bool:
    """Whether a module takes statistics over the batch, so that rows depend on each other."""
    return isinstance(module, BatchNorm) and (
        module.training or (module.running_mean is None and module.running_var is None)
    )


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


def warn_mixing(mixing: Sequence[nn.Module]) -> None:
    """Warn of the first of the modules that mix rows, and give the model whole batches alone."""
    if not mixing:
        return
    one = current()
    if one is None or not one.mixes:
        kind, training = type(mixing[0]).__name__, mixing[0].training
        what = f"is in training mode and holds {kind}"
        what = what if training else f"holds a {kind} without running statistics"
        how = "call model.eval()" if training else "give it running statistics"
        warn(
            f"the model {what}, so its rows depend on each other and the batch is explained as a "
            f"whole: {how}"
        )
    if one is not None:
        one.mixes = True
        one.needs_whole_batches()
