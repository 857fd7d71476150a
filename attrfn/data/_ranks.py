"""Ranks: the processes that make a call together, and what they tell each other."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from attrfn.data._work import portable

T = TypeVar("T")
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LONG = timedelta(days=365)  # a rank may wait for the slowest one as long as that works
_CALLS = itertools.count()


class Ranks:
    """The processes that make a call together.

    Args:
        group: Their process group; None: the default one.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, in their order.

        Raises:
            RuntimeError: One of them has ended.
        """
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, value, group=self._group)
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.rank} waits for the others, one of which has ended: its own error "
                "says why; what is in a folder is kept, and the same call goes on there"
            ) from error
        return found

    def agreed(self, do: Callable[[], T]) -> list[T]:
        """What a function gives on each rank; if it raises on one, all ranks raise."""
        own: Exception | None = None
        sent: tuple[bool, Any, str]  # whether it is good, the value or the error, where
        try:
            sent = True, do(), ""
        except Exception as error:
            own = error
            sent = False, portable(error), traceback.format_exc()
        found: list[tuple[bool, Any, str]] = self.gathered(sent)
        failed = next((i for i, (good, _, _) in enumerate(found) if not good), None)
        if failed is None:
            return [value for _, value, _ in found]
        if failed == self.rank and own is not None:
            raise own
        raise found[failed][1] from RuntimeError(f"of rank {failed}:\n{found[failed][2]}")

    def together(self, do: Callable[[], T]) -> T:
        """What a function gives on this rank; if it raises on one, all ranks raise."""
        mine: list[T] = []
        self.agreed(lambda: mine.append(do()))
        return mine[0]


@contextlib.contextmanager
def ranks_of_process() -> Iterator[Ranks]:
    """The ranks, of the process group that there is or of one for this call.

    Raises:
        ValueError: The process has not been started as one of several.
    """
    if not dist.is_available():
        raise ValueError("engine is 'torchrun', and this build of torch has no torch.distributed")
    if dist.is_initialized():
        # That of the user may be one of NCCL, and gives up after some minutes.
        group = dist.new_group(backend="gloo", timeout=_LONG)
        try:
            yield Ranks(group)
        finally:
            dist.destroy_process_group(group)
        return
    for name in _VARIABLES:
        if not os.environ.get(name):
            raise ValueError(
                f"engine is 'torchrun', and {name} is not set in the environment: start the script "
                "by torchrun, such as torchrun --nproc-per-node=2 script.py, or use engine='local'"
            )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # The store of torchrun outlives ranks that it starts again, with what those before have left.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = f"attrfn.data/{start}/{size}/{next(_CALLS)}"
    store = c10d.PrefixStore(name, _store())
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_LONG)
    try:
        yield Ranks(None)
    finally:
        dist.destroy_process_group()


@functools.lru_cache(maxsize=1)
def _store() -> Any:
    """Where ranks meet; kept, because that of rank 0 may be the one that the others use."""
    return next(iter(rendezvous("env://")))[0]
