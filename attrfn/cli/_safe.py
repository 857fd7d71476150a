"""A guard that lets nothing be unpickled.

The reader of ``.pt2`` programs unpickles what a file asks it to. Python announces each class or
function that a pickle names by the audit event ``pickle.find_class``; while the guard is up this is
an error, whoever unpickles. What torch reads with ``weights_only=True`` goes another way, and is
read.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
import threading
from collections.abc import Iterator

_ONLY, _NOT_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class PickleError(Exception):
    """Something would have been unpickled."""


class _Guard(threading.local):
    up = False


_GUARD = _Guard()


def _watch(event: str, args: tuple[object, ...]) -> None:
    if event == "pickle.find_class" and _GUARD.up:
        raise PickleError(".".join(map(str, args)))


@functools.cache
def _install() -> None:
    sys.addaudithook(_watch)  # for good: Python has no way to take it back


@contextlib.contextmanager
def nothing_unpickled(spec: str) -> Iterator[None]:
    """Refuse pickles in this thread.

    Args:
        spec: What is read, for the message.

    Raises:
        ValueError: Something would be unpickled; it is not.
    """
    _install()
    before = {name: os.environ.pop(name, None) for name in (_ONLY, _NOT_ONLY)}
    os.environ[_ONLY] = "1"
    _GUARD.up = True
    try:
        yield
    except (PickleError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"MODEL is {spec!r}, which holds a pickle ({_first(error)}), and reading one can run "
            "any code: export the model again with plain tensors, or give module:function"
        ) from error
    finally:
        _GUARD.up = False
        del os.environ[_ONLY]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:60]
