"""Activation checkpointing inside a run of a model.

``torch.utils.checkpoint`` runs a part of the model again in the backward pass. There the values
that a method has planted at a layer are gone, and so is the mode of its rules: the part would
compute something else, in silence. So in such runs the function is called as it is, and its results
are kept. In all other runs checkpointing stays, in the form that ``torch.autograd.grad`` passes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from attrfn._torch.explanation import current
from attrfn._torch.private import in_transform, modes
from attrfn._torch.private_distributed import CHECKPOINT_OPTIONS, checkpointed


class _Thread(threading.local):
    edited = 0


_THREAD = _Thread()
_LOCK = threading.Lock()
watched = False
"""Whether :func:`watch` has done its work; asked before it is called, because that costs less."""


def watch() -> None:
    """See each call of ``checkpoint`` from now on.

    A function of torch is changed, once for the process. A model may hold ``checkpoint`` under any
    name, and it has no switch. Outside of this library's runs it does what it did: the thread tells
    whether such a run is on.
    """
    global watched
    with _LOCK:
        if not watched:
            watched = checkpointed(_instead)


@contextlib.contextmanager
def edited() -> Iterator[None]:
    """A run in which values of layers are read or replaced."""
    _THREAD.edited += 1
    try:
        yield
    finally:
        _THREAD.edited -= 1


def _instead(original: Any, function: Any, *args: Any, **options: Any) -> Any:
    """What ``checkpoint(function, *args, **options)`` does."""
    one = current()
    running = one is not None and one.running
    active = modes()
    ours = any(type(mode).__module__.startswith("attrfn.") for mode in active)
    if not (running or _THREAD.edited or ours):
        return original(function, *args, **options)
    if not (_THREAD.edited or active or in_transform()):
        return original(function, *args, **{**options, "use_reentrant": False})
    for name in CHECKPOINT_OPTIONS:
        options.pop(name, None)
    return function(*args, **options)
