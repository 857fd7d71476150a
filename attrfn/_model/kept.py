"""Private copies that are kept between the calls of one function, while the model stays the same.

Inside one call of a method the user's model does not change, and its copies serve all runs. A
function that the user calls again and again may meet another model each time: it was trained, its
mode changed, a layer was put in another's place. So before a copy is taken the user's modules are
compared with what they were when it was built, by identity and not by value, which costs a tenth of
a new copy. Parameters share the user's memory, so that training is fine; buffers, which have
memory of their own, are compared by value.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._model.bind import Reused, bind_source
from attrfn._model.private_copy import CONTAINERS
from attrfn._model.snapshot import DICTS, Contents, Snapshot
from attrfn._model.source import Source
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import makes_fakes
from attrfn._torch.private import is_wrapped
from attrfn._torch.typing import ModelFn


class Kept:
    """A source as a model function of its arguments.

    Args:
        src: The source, without bound arguments.
        frozen: Detach the parameters.
    """

    def __init__(self, src: Source, *, frozen: bool) -> None:
        self.src = src._replace(args=(), kwargs={})
        self.frozen = frozen
        self.last: tuple[_Originals, Reused] | None = None

    def model(self) -> ModelFn:
        """The model function for one call."""
        # A copy with attached parameters is a part of one graph, and one that was made inside a
        # transform holds tensors of it.
        detached = self.frozen or not torch.is_grad_enabled()
        if not detached or transforming() or makes_fakes() or self.src.params is not None:
            return bind_source(self.src, (), (), frozen=self.frozen)
        last = self.last  # another thread may put another one there meanwhile
        if last is None or not last[0].unchanged():
            last = self.last = (_Originals(self.src.module), Reused(self.src))
        return last[1]


class _Originals:
    """What the user's modules are."""

    def __init__(self, root: nn.Module) -> None:
        self.snapshots: list[Snapshot | Contents] = []
        self.parameters: list[tuple[Tensor, int, torch.Size]] = []
        self.readable = True
        # By id; the objects are held, so that no new one gets the id of one that is gone.
        self.seen: dict[int, Any] = {}
        self._look(root)

    def _look(self, value: Any) -> None:
        """Note a module or a container, and what is in it."""
        if isinstance(value, functools.partial):
            self._look(value.args)
            self._look(value.keywords)
        elif isinstance(value, tuple):
            for part in value:
                self._look(part)
        elif isinstance(value, (nn.Module, *CONTAINERS)) and id(value) not in self.seen:
            self.seen[id(value)] = value
            if isinstance(value, nn.Module):
                self._module(value)
                return
            self.snapshots.append(contents := Contents.of(value))
            for part in contents.held:
                self._look(part)

    def _module(self, module: nn.Module) -> None:
        state = module.__dict__
        empty = [v for v in state.values() if type(v) in DICTS and not v]
        self.snapshots.append(Snapshot(state, list(state.values()), empty, []))
        for value in state.values():
            if not (type(value) in DICTS and not value):  # most are empty
                self._look(value)
        for p in module.parameters(recurse=False):
            if type(p) not in (nn.Parameter, Tensor) or not _has_memory(p):
                self.readable = False
            else:
                self.parameters.append((p, p.data_ptr(), p.shape))

    def unchanged(self) -> bool:
        """Whether they still are."""
        return (
            self.readable
            and all(p.data_ptr() == at and p.shape == shape for p, at, shape in self.parameters)
            and all(snapshot.unchanged() for snapshot in self.snapshots)
        )


def _has_memory(p: Tensor) -> bool:
    """Whether a parameter is in memory of its own, which its pointer tells."""
    return p.layout is torch.strided and not (p.is_meta or is_wrapped(p))
