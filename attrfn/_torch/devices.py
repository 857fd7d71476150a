"""Where a model runs, whose weights may be elsewhere between its runs."""

from __future__ import annotations

import torch
from torch import nn

HOOK = "_hf_hook"
"""The attribute of a module with the hook of accelerate that brings its weights."""


def runs_on(module: nn.Module) -> torch.device | None:
    """The device to which the inputs of a model go; None if nothing tells."""
    first = next(module.parameters(), None)
    if first is None or not first.is_meta:
        return None if first is None else first.device
    for part in module.modules():
        place = getattr(part.__dict__.get(HOOK), "execution_device", None)
        if place is not None:
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return None
