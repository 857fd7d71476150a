"""How much memory a run of a model takes, and how much it may take."""

from __future__ import annotations

import os
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._torch import pytree
from attrfn._torch.compiling import is_compiling
from attrfn._torch.private import (
    is_wrapped,
    no_overrides,
    says_out_of_memory,
    storage_id,
    unwrapped,
)
from attrfn._torch.typing import Leaves

_BLOW_UP = 64  # how much larger than its inputs a usual model becomes inside ...
_OF_ROWS = 16  # ... if these are (B, features), without channels at many places
# Not to start with one copy wins 1.6: integrated_gradients of the MLP, batch 1, in
# benchmarks/special_cases_earn_their_place.py.
_UNMEASURED = 2**25, 64  # bytes and copies: an unusual model takes many times more
_MOST_ON_CPU = 2**23  # for each thread; more rows at once are slower there: caches, page faults


class Peak(TorchFunctionMode):
    """While active, the greatest number of bytes that results of operations hold at once.

    Works on every device and for the calling thread alone, which no allocator's counter does. A
    result that autograd may keep counts twice: until the end of the run and again in the backward
    pass.

    Args:
        least: Results of fewer bytes that autograd does not keep are left out, because counting
            takes its time.
    """

    def __init__(self, least: int = 0) -> None:
        super().__init__()
        self.least = least
        self.kept = False  # something, for a backward pass
        self.bytes = 0
        self._now = 0
        self._holders: dict[int, int] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_compiling():
            return result
        first = args[0] if args else None
        if isinstance(result, Tensor):
            self._count(result, first)
        elif isinstance(result, (tuple, list, dict)):
            pytree.tree_map_only(Tensor, lambda t: self._count(t, first), result)
        return result

    def _count(self, t: Tensor, of: object) -> None:
        if not t.requires_grad and t.numel() * t.element_size() < self.least:
            return
        with no_overrides():
            data = _bare(t)
            if not _is_strided(data):
                return
            storage = data.untyped_storage()
            size, place, kept = storage.nbytes(), storage_id(storage), data.requires_grad
            if place not in self._holders and _has(of, place):  # a view of what was there before
                return
        if kept:
            self.kept = True
            self._now += 2 * size if place not in self._holders else 0
            self._holders[place] = -1
        elif self._holders.get(place, 0) >= 0:
            self._now += size if place not in self._holders else 0
            self._holders[place] = self._holders.get(place, 0) + 1
            weakref.finalize(t, self._release, place, size)
        self.bytes = max(self.bytes, self._now)

    def _release(self, place: int, size: int) -> None:
        holders = self._holders.get(place, 0)
        if holders == 1:
            del self._holders[place]
            self._now -= size
        elif holders > 1:
            self._holders[place] = holders - 1


def _bare(t: Tensor) -> Tensor:
    """A tensor without the wrappers of torch.func."""
    while is_wrapped(t):
        t = unwrapped(t)
    return t


def _has(x: object, place: int) -> bool:
    """Whether something is a tensor on a storage."""
    if not isinstance(x, Tensor) or not _is_strided(bare := _bare(x)):
        return False
    return storage_id(bare.untyped_storage()) == place


def _is_strided(t: Tensor) -> bool:
    """Whether a tensor has one storage, which sparse ones have not."""
    return t.layout == torch.strided and not t.is_mkldnn


def budget(device: torch.device) -> int:
    """The bytes that a chunk may take: half of what an accelerator has free, 8 MiB for a thread."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + cached) // 2
    return min(_MOST_ON_CPU * torch.get_num_threads(), _free_on_cpu() // 4)


def unmeasured_copies(x: Leaves) -> int:
    """How many copies of the inputs may be tried before anything was measured, perhaps 0."""
    most, copies = _UNMEASURED
    bytes_ = sum(t.numel() * t.element_size() for t in x)
    floating = all(t.is_floating_point() for t in x)  # a token is small, and its embedding is not
    blow_up = _OF_ROWS if all(t.ndim <= 2 for t in x) else _BLOW_UP
    return min(copies, most // (blow_up * bytes_)) if bytes_ and floating else 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and says_out_of_memory(error)
    )


def _free_on_cpu() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 4 * _MOST_ON_CPU
