"""One forward pass for the backward passes of several calls of a method."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from attrfn._torch import pytree
from attrfn._torch.private import in_transform, is_wrapped
from attrfn._torch.typing import Leaves


class OneRun:
    """A run of a model on some rows, whose graph serves later runs of it on equal rows.

    A method that runs another model or other rows as well, such as the chunks of a path, shares
    nothing.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.rows: Leaves = ()
        self.outputs: Any = None
        self.served: Leaves = ()
        self.stopped = False
        self.grads: Leaves | None = None  # which stand for a backward pass
        self.seen: list[Tensor] = []  # the values whose gradients they are

    def stop(self) -> None:
        """Share nothing from now on."""
        self.stopped, self.model, self.rows, self.outputs = True, None, (), None

    def around(self, f: Callable[..., Tensor], z: Leaves) -> tuple[Tensor, Leaves]:
        """Values ``f(*z)``, and the leaves of their graph: z, or those of the shared run."""
        values, served = self._watched(f, z)
        if served and self.stopped:  # another run followed in the same function
            values, served = self._watched(f, z)
        return values, served or z

    def _watched(self, f: Callable[..., Tensor], z: Leaves) -> tuple[Tensor, Leaves]:
        self.served = ()
        values = f(*z)
        return values, self.served

    def known(self, f: Callable[..., Tensor], x: Leaves) -> tuple[Tensor, Leaves] | None:
        """Values ``f(*x)`` and the gradients that stand for theirs; None for another function."""
        if self.grads is None:
            return None
        values, served = self._watched(f, x)
        if not served:
            return None
        self.seen.append(values)
        return values, self.grads

    def again(self) -> Any:
        """The outputs of the run; a target may write into them."""
        return pytree.tree_map_only(Tensor, Tensor.clone, self.outputs)

    def of(self, model: Any, rows: Leaves, run: Callable[[], Any]) -> Any:
        """What a run of the model returns for rows that are leaves of a graph.

        Args:
            model: The user's model function, which tells models apart.
            rows: Its inputs.
            run: Runs it.
        """
        if self.grads is not None:
            plain = not any(is_wrapped(t) for t in rows)
            if not (plain and model is self.model and _equal(rows, self.rows)):
                return run()
        elif self.stopped or model is None or not self._fit(rows):
            return run()
        elif not self.rows:
            self.model, self.rows, self.outputs = model, rows, run()
        elif model is not self.model or not _equal(rows, self.rows):
            self.stop()
            return run()
        self.served = self.rows
        return self.again()

    def _fit(self, rows: Leaves) -> bool:
        return not in_transform() and all(t.requires_grad and t.is_leaf for t in rows)


class _Thread(threading.local):
    run: OneRun | None = None


_THREAD = _Thread()


def shared_run() -> OneRun | None:
    """The run that calls in this thread share, or None."""
    return _THREAD.run


@contextlib.contextmanager
def one_run() -> Iterator[OneRun]:
    """Let calls of a method share a run of the model."""
    surrounding, _THREAD.run = _THREAD.run, OneRun()
    try:
        yield _THREAD.run
    finally:
        _THREAD.run = surrounding


def _equal(a: Leaves, b: Leaves) -> bool:
    return len(a) == len(b) and all(
        s.shape == t.shape and s.dtype == t.dtype and torch.equal(s, t)
        for s, t in zip(a, b, strict=True)
    )
