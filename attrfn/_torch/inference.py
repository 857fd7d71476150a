"""Models that use inference mode: they run as they would under ``torch.no_grad()``.

What is made in inference mode cannot be part of a graph later: torch raises an error where it is
saved for a backward pass. Few models do that, and so nothing is done before that error. Then the
call is repeated with a mode that runs each operation outside of inference mode.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._torch import pytree

_THREAD = threading.local()  # .on: whether models run without inference mode in this thread


@contextlib.contextmanager
def as_no_grad() -> Iterator[None]:
    """While active, ``call_model`` runs models of this thread without inference mode."""
    _THREAD.on = True
    try:
        yield
    finally:
        _THREAD.on = False


def is_as_no_grad() -> bool:
    """Whether :func:`as_no_grad` is active in this thread."""
    return getattr(_THREAD, "on", False)


class AsNoGrad(TorchFunctionMode):
    """Runs operations of inference mode under no_grad, and takes copies of inference tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        inference = torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if inference else contextlib.nullcontext():
            args, kwargs = pytree.tree_map_only(Tensor, normal, (args, kwargs or {}))
            with torch.no_grad() if inference else contextlib.nullcontext():
                return func(*args, **kwargs)


def normal(t: Tensor) -> Tensor:
    """A copy of an inference tensor; any other tensor as it is."""
    return t.clone() if t.is_inference() else t
