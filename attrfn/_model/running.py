"""Runs of private copies that need more than a call."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from attrfn._model.private_copy import PrivateCopy
from attrfn._model.source import Source
from attrfn._torch import checkpointing
from attrfn._torch.typing import ModelFn


def run_watched(
    private: PrivateCopy, model: ModelFn, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Any
) -> Any:
    """Run a private copy with interventions, or one of a model that several processes share.

    Args:
        private: The walk that built it.
        model: The copy, as a model function.
        args: Positional arguments.
        kwargs: Keyword arguments.
        sites: The modules with interventions.
    """
    with checkpointing.edited() if sites else contextlib.nullcontext():
        if private.sharded is None:
            return model(*args, **kwargs)
        return private.sharded.run(model, args, kwargs)


def intervene(private: PrivateCopy, sites: Sequence[nn.Module], interventions: Any) -> None:
    """Put interventions around the forward of some modules of a private copy."""
    for site, intervention in zip(sites, interventions, strict=False):
        if private.sharded is not None and intervention is not None:
            intervention = private.sharded.around(intervention)
        site._attrfn_intervention = intervention


def check_sharded(private: PrivateCopy, src: Source) -> None:
    """Refuse what a model of ``fully_shard`` cannot take.

    Raises:
        ValueError: Other tensors are in place of its parameters, or one rescales its weights.
    """
    if private.sharded is None or not private.sharded.states:
        return
    why = "functional_call gives it other parameters" if src.params else ""
    why = "an embedding with max_norm writes into its weights" if private.rescales else why
    if why:
        raise ValueError(
            f"the model is one of fully_shard, whose hooks put the parameters in their places, and "
            f"{why}: explain the model before it is sharded"
        )
