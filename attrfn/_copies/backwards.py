"""How many backward passes over one forward pass run at once, by a rule of bytes and operations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import join_copies
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._copies.memory import Peak, budget, unmeasured_copies
from attrfn._copies.sizes import Took
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.one_run import one_run
from attrfn._torch.typing import Leaves

# Backward passes that vmap runs together read the results of one forward pass, and make gradients
# of their own. They win where operations are small, and lose where gradients leave the caches:
# benchmarks/all_outputs_cost_one_forward.py.
_ROOM = 8  # times the budget, for the results of the forward pass times the outputs
_CONVOLVED = 2**18  # bytes of a convolution's mean result, above which one by one is faster
# The fewest outputs that are worth vmap: where one by one shares the forward pass as well; where
# the method has chunks, which vmap evaluates all at once; and elsewhere.
_SHARING, _IN_CHUNKS, _OTHERS = 4, 8, 2
_CONVOLUTIONS = frozenset(
    f"conv{transposed}{d}d" for transposed in ("", "_transpose") for d in (1, 2, 3)
)


class Passes(Peak):
    """The bytes of a run, and those of the results of its convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0
        self.convolved = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function."""
        result = super().__torch_function__(func, types, args, kwargs)
        if getattr(func, "__name__", "") in _CONVOLUTIONS and isinstance(result, Tensor):
            self.convolutions += 1
            self.convolved += result.numel() * result.element_size()
        return result

    def together(self, device: torch.device, shares: bool, in_chunks: bool) -> int:
        """How many outputs are explained at once.

        Args:
            device: Where the model runs.
            shares: Whether outputs that are explained one by one share a forward pass.
            in_chunks: Whether the method has chunks of copies.
        """
        if device.type != "cpu":
            return max(1, budget(device) // max(1, self.bytes))
        if shares and self.convolved > _CONVOLVED * self.convolutions:
            return 1
        # The measurement counts twice what a graph keeps, for its gradients.
        many = _ROOM * budget(device) // max(1, self.bytes // 2)
        fewest = _SHARING if shares else _IN_CHUNKS if in_chunks else _OTHERS
        return many if many >= fewest else 1


def all_outputs(
    part: Callable[[slice], Leaves], n: int, chunks: Chunks, x: Leaves, *, in_chunks: bool
) -> Leaves:
    """The attributions of n outputs, (n, B, ...) each.

    Where the size of chunks is ``"auto"``, the first output is explained by itself, and measured.
    Outputs that are explained one after the other share a forward pass where the method has one.

    Args:
        part: From a slice of the outputs to their attributions, by vmap if there are several.
        n: The number of outputs.
        chunks: How many at once.
        x: The leaves of the inputs.
        in_chunks: Whether the method has chunks of copies.
    """
    device = x[0].device
    measured = chunks.size == "auto" and not (is_compiling() or transforming())
    if not measured or unmeasured_copies(x) >= n:
        with one_run() if chunks.size == 1 else contextlib.nullcontext():
            return over_chunks(part, join_copies, n, chunks, device, x=x)
    with one_run() as run:
        with Passes() as peak:
            first = part(slice(0, 1))
        if n == 1:
            return first
        size = peak.together(device, bool(run.rows), in_chunks) if peak.has_graph else n
        if size > 1:
            run.stop()
        # If memory runs out, there are fewer.
        one_copy = Took(budget(device) // size, 2**62)
        rest = over_chunks(
            lambda i: part(slice(i.start + 1, i.stop + 1)),
            join_copies,
            n - 1,
            chunks if size > 1 else chunks._replace(size=1),
            device,
            one_copy,
            x,
        )
        return join_copies(first, rest)
