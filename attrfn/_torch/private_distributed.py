"""Private names of torch.distributed and of activation checkpointing, each once.

See :mod:`attrfn._torch.private`. Nothing here imports ``torch.distributed``, which a process loads
when it shards a model; an object of its tells that it is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

PRE_HOOKS = "_forward_pre_hooks"
"""Where a module keeps the hooks that run before its forward."""

CHECKPOINTED_MODULE = "_checkpoint_wrapped_module"
"""The submodule of torch's ``checkpoint_wrapper(module)`` that holds the module itself."""

FLAT_WEIGHTS = ("_flat_weights", "_flat_weights_names")
"""The list of weights that a recurrent layer of torch reads, and their names."""

MOVES = frozenset(
    {
        "RegisterPostBackwardFunctionBackward",  # fully_shard, around the inputs of a module
        "_FromTorchTensorBackward",  # DTensor.from_local
        "_ToTorchTensorBackward",  # DTensor.to_local
        "RedistributeBackward",
        "NestedRedistributeBackward",
        "_AllReduceForwardBackward",  # the tensor parallel layers of transformers
        "_AllReduceBackwardBackward",
        "_WaitTensorBackward",
    }
)
"""Names of nodes of the graph that carry values between processes and compute nothing else.

They belong to functions of autograd, which modes of functions do not see.
"""


def is_dtensor(t: Tensor) -> bool:
    """Whether a tensor is a DTensor, which holds a part of its values in each process."""
    tensor = sys.modules.get("torch.distributed.tensor")
    kind: Any = getattr(tensor, "DTensor", None)
    return kind is not None and isinstance(t, kind)


def is_ddp(cls: type) -> bool:
    """Whether a class of modules is DistributedDataParallel."""
    return issubclass(cls, nn.parallel.DistributedDataParallel)


def is_fsdp1(cls: type) -> bool:
    """Whether a class of modules is FullyShardedDataParallel, the predecessor of fully_shard."""
    file: Any = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    return file is not None and issubclass(cls, file.FullyShardedDataParallel)


def fsdp_state(hook: Any) -> Any:
    """The state of ``fully_shard`` to which a hook belongs, or None."""
    # A hook that several modules share is a function around a function around the state's method.
    inner = hook
    while not hasattr(inner, "__self__") and hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    owner = getattr(inner, "__self__", None)
    bases = type(owner).__mro__
    return owner if any(base.__name__ == "FSDPState" for base in bases) else None


def fsdp_parts(state: Any) -> Iterator[tuple[nn.Module, Tensor]]:
    """The modules whose parameters a state gathers, each with a sharded parameter."""
    for group in state._fsdp_param_groups:
        for p in group.fsdp_params:
            info = p._module_info
            for module in (info.module, *info.shared_modules):
                yield module, p.sharded_param


def fsdp_running(states: list[Any]) -> list[Callable[[Tensor], Tensor]]:
    """What gathers the weights for a backward pass, of each sharded module whose forward runs.

    ``fully_shard`` calls it by a hook on what the module returns.
    """
    return [s._pre_backward for s in states if s._training_state.name == "FORWARD"]


def fsdp_resets(state: Any) -> bool:
    """Whether this torch can reset a sharded model after a run that was left early."""
    return hasattr(state, "_reset_iter_state")


def fsdp_reset(state: Any) -> None:
    """Give a root's modules their shards back, as after a step of training."""
    if state._is_root:  # None before its first run
        state._reset_iter_state()


def checkpointed(instead: Callable[..., Any]) -> bool:
    """Let ``torch.utils.checkpoint.checkpoint`` call ``instead(original, *args, **options)``.

    Returns:
        Whether it does: the module is loaded, and this torch has the place.
    """
    file: Any = sys.modules.get("torch.utils.checkpoint")
    inner = getattr(getattr(file, "checkpoint", None), "__wrapped__", None)
    if inner is None:
        return False
    # torch keeps here what it calls in place of the function, so that its compiler leaves it alone.
    place = "__dynamo_disable"
    known = getattr(inner, place, None)

    def _there(*args: Any, **options: Any) -> Any:
        return instead(known or _uncompiled(inner), *args, **options)

    setattr(inner, place, _uncompiled(_there))
    return True


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as the compiler leaves it alone, if the process has loaded the compiler."""
    compiler: Any = sys.modules.get("torch._dynamo")
    found: Callable[..., Any] = function if compiler is None else compiler.disable(function)
    return found


CHECKPOINT_OPTIONS = (
    *("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug"),
    "early_stop",
)
"""What ``checkpoint`` takes for itself; all other arguments are those of the function."""
