"""How much memory a run of a model takes, and how much it may take.

``chunk_size="auto"`` has to know how many copies of a batch fit. No formula tells what a model
holds inside, so a run of it is measured: a TorchFunctionMode adds up the results of its operations
as they come and go. Allocators have counters on GPUs only, and all threads share them. On an
accelerator the limit is its free memory. On a CPU it is the caches: chunks that leave them are
slower, although memory would hold more. :mod:`attrfn._copies.sizes` makes a size of both.
"""

from __future__ import annotations

import functools
import os
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._torch import pytree, ranks
from attrfn._torch.compiling import is_compiling
from attrfn._torch.private import (
    is_wrapped,
    no_overrides,
    says_out_of_memory,
    storage_id,
    unwrapped,
)
from attrfn._torch.typing import Leaves

# The first chunk runs before anything is measured. It is sized by a guess: the results that a usual
# model holds are this many times its inputs, less for inputs (B, features), which have no channels
# at many places. A guess that is too high makes the first chunk small, and so slow. To guess at all
# wins 1.6 over a first chunk of one copy: integrated_gradients of the MLP, batch 1, in
# benchmarks/special_cases_earn_their_place.py.
_INSIDE_PER_INPUT = 64
_INSIDE_PER_FEATURE = 16
# At most this many bytes by that guess, and as many copies: an unusual model takes far more,
# and these bound what it can take before the measurement.
_UNMEASURED_BYTES, _UNMEASURED_COPIES = 2**25, 64
# Bytes for each thread, about its share of the caches. More at once is slower on a CPU: its caches
# no longer hold the results, and large blocks cost a page fault for each page of each result.
_CPU_BYTES_PER_THREAD = 2**23
# Just below the 32 MiB above which glibc gives every block back to the system when it is freed.
_KEPT_BLOCK = 2**25 - 2**16


class Peak(TorchFunctionMode):
    """While active, the greatest number of bytes that results of operations hold at once.

    Works on every device, and for the calling thread alone. A result that autograd may keep counts
    twice: until the end of the run, and again for its gradient in the backward pass.

    Args:
        least: Smaller results that autograd does not keep are left out, because counting takes
            time.
    """

    # Bytes are counted by storage, because several tensors may be views of one. A storage that was
    # there before, such as that of a weight, does not count: an operation that returns a view of it
    # gets it in its first argument. A counted storage has as many holders as tensors that are
    # alive; a finalizer of each takes its part away. One that autograd may keep has no end here
    # (-1).

    def __init__(self, least: int = 0) -> None:
        super().__init__()
        self.least = least
        self.has_graph = False  # whether autograd keeps results for a backward pass
        self.bytes = 0
        self.largest = 0  # bytes of a single result
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
        argument = args[0] if args else None
        if isinstance(result, Tensor):
            self._count(result, argument)
        elif isinstance(result, (tuple, list, dict)):
            pytree.tree_map_only(Tensor, lambda t: self._count(t, argument), result)
        return result

    def _count(self, t: Tensor, argument: object) -> None:
        if not t.requires_grad and t.numel() * t.element_size() < self.least:
            return
        with no_overrides():
            data = _without_transforms(t)
            if not _is_strided(data):
                return
            storage = data.untyped_storage()
            size, place, in_graph = storage.nbytes(), storage_id(storage), data.requires_grad
            if place not in self._holders and _is_on(argument, place):
                return
        self.largest = max(self.largest, size)
        if in_graph:
            self.has_graph = True
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


def _without_transforms(t: Tensor) -> Tensor:
    """A tensor without the wrappers of torch.func."""
    while is_wrapped(t):
        t = unwrapped(t)
    return t


def _is_on(x: object, place: int) -> bool:
    """Whether a value is a tensor on a storage."""
    if not isinstance(x, Tensor) or not _is_strided(data := _without_transforms(x)):
        return False
    return storage_id(data.untyped_storage()) == place


def _is_strided(t: Tensor) -> bool:
    """Whether a tensor has one storage; sparse tensors have several or none."""
    return t.layout == torch.strided and not t.is_mkldnn


def budget(device: torch.device) -> int:
    """The bytes that a chunk may take: half of what an accelerator has free, 8 MiB for a thread."""
    if device.type == "cuda":
        # torch's own cache counts as free. The other half is for what is not counted, such as the
        # workspaces of kernels.
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return ranks.least((free + cached) // 2)
    return min(_CPU_BYTES_PER_THREAD * torch.get_num_threads(), most_on_cpu())


def most_on_cpu() -> int:
    """The bytes that a chunk on a CPU may take at all: a quarter of what is free."""
    return ranks.least(_free_on_cpu() // 4)


@functools.cache
def keep_pages() -> None:
    """Let the process keep the memory of freed results, up to 64 MiB, for the next chunk.

    glibc gives freed blocks back to the system until the program has freed a large one, and each
    page of the next result costs a fault then. One block is freed here, whose pages are not used.
    """
    # It wins 1.2: the rows "fresh heap" of benchmarks/chunks_are_the_right_size.py.
    bytes(_KEPT_BLOCK)


def unmeasured_copies(x: Leaves) -> int:
    """How many copies of the inputs may run before anything is measured, perhaps 0."""
    bytes_ = sum(t.numel() * t.element_size() for t in x)
    # Integers tell nothing: a token has few bytes, and its embedding has many.
    if not bytes_ or not all(t.is_floating_point() for t in x):
        return 0
    inside = _INSIDE_PER_FEATURE if all(t.ndim <= 2 for t in x) else _INSIDE_PER_INPUT
    return min(_UNMEASURED_COPIES, _UNMEASURED_BYTES // (inside * bytes_))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and says_out_of_memory(error)
    )


def _free_on_cpu() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 4 * _CPU_BYTES_PER_THREAD
