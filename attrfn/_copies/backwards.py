"""How many backward passes over one forward pass run at once, by a rule of bytes and operations."""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from attrfn._copies.batch import join_copies
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._copies.memory import Peak, budget, out_of_memory, unmeasured_copies
from attrfn._copies.sizes import Took
from attrfn._torch.autodiff import batched_pull, transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.one_run import OneRun, one_run
from attrfn._torch.typing import Leaves

# Backward passes that vmap runs together read the results of one forward pass, and make gradients
# of their own. They win where operations are small, and lose where gradients leave the caches:
# benchmarks/all_outputs_cost_one_forward.py.
_ROOM = 8  # times the budget, for the results of the forward pass times the outputs
_CONVOLVED = 2**18  # bytes of a convolution's mean result, above which one by one is faster
# The fewest outputs that are worth vmap: where one by one shares the forward pass as well, and
# elsewhere, where two to four at once took up to 1.2 of as many calls.
_SHARING, _OTHERS = 4, 8
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

    def together(self, device: torch.device, shares: bool) -> int:
        """How many outputs are explained at once.

        Args:
            device: Where the model runs.
            shares: Whether outputs that are explained one by one share a forward pass.
        """
        if device.type != "cpu":
            return max(1, budget(device) // max(1, self.bytes))
        if shares and self.convolved > _CONVOLVED * self.convolutions:
            return 1
        # The measurement counts twice what a graph keeps, for its gradients.
        many = _ROOM * budget(device) // max(1, self.bytes // 2)
        fewest = _SHARING if shares else _OTHERS
        return many if many >= fewest else 1


class Outputs(Protocol):
    """A method, which explains some of the outputs of a model."""

    @property
    def in_chunks(self) -> bool:
        """Whether the method has chunks of copies."""

    @property
    def backward(self) -> bool:
        """Whether the method takes gradients."""

    @property
    def ours(self) -> bool:
        """Whether it is a method of this library, which explains the target that it is given."""

    def part(self, i: slice) -> Leaves:
        """The attributions of some outputs, (S, B, ...) each, by vmap if there are several."""

    def columns(self, outputs: Any) -> Tensor:
        """All that is explained of the outputs, (B, N)."""

    def from_gradients(self, i: slice, run: OneRun, grads: Leaves) -> tuple[Leaves, Leaves]:
        """The attributions of some outputs, and the values (S, B) whose gradients they took."""


def all_outputs(of: Outputs, n: int, chunks: Chunks, x: Leaves) -> Leaves:
    """The attributions of n outputs, (n, B, ...) each.

    Where the size of chunks is ``"auto"`` and outputs may not fit into memory, the first one is
    explained by itself, and measured. If the method takes one gradient of the model, a forward
    pass serves all outputs.

    Args:
        of: Explains some of them.
        n: The number of outputs.
        chunks: How many at once.
        x: The leaves of the inputs.
    """
    device = x[0].device
    if chunks.size != "auto" or n == 1 or not of.backward or is_compiling() or transforming():
        with one_run() if chunks.size == 1 else contextlib.nullcontext():
            return over_chunks(of.part, join_copies, n, chunks, device, x=x)
    with one_run() as run:
        if unmeasured_copies(x) >= n:
            shares = _takes_one_gradient(of, run)
            together = functools.partial(_from_one_run, of, run) if shares else of.part
            return over_chunks(together, join_copies, n, chunks, device, x=x)
        with Passes() as peak:
            first = of.part(slice(0, 1))
        size = peak.together(device, bool(run.rows)) if peak.has_graph else n
        if size == 1:
            chunks = chunks._replace(size=1)
        shares = size > 1 and of.ours and bool(run.rows)
        together = functools.partial(_from_one_run, of, run) if shares else of.part
        # If memory runs out, there are fewer.
        one_copy = Took(budget(device) // size, 2**62)
        rest = over_chunks(
            lambda i: together(slice(i.start + 1, i.stop + 1)),
            *(join_copies, n - 1, chunks, device, one_copy, x),
        )
        return join_copies(first, rest)


def _takes_one_gradient(of: Outputs, run: OneRun) -> bool:
    """Whether a method takes one gradient of the model, for which its forward pass is kept."""
    if not of.ours or of.in_chunks:
        return False
    run.probing = True
    try:
        of.part(slice(0, 1))
    finally:
        run.probing = False
    return bool(run.rows)


def _from_one_run(of: Outputs, run: OneRun, i: slice) -> Leaves:
    """The attributions of some outputs from their gradients, by one batched backward pass."""
    if i.stop - i.start == 1 or not run.rows:
        return of.part(i)
    try:
        values, grads = _gradients(of, run, i)
        found, seen = of.from_gradients(i, run, grads)
        if seen and all(_equal(v, values) for v in seen):
            return found
    except RuntimeError as error:
        if out_of_memory(error):
            raise  # else an operation whose backward pass cannot be batched
    run.stop()  # the method takes gradients of something else
    return of.part(i)


def _gradients(of: Outputs, run: OneRun, i: slice) -> tuple[Tensor, Leaves]:
    """The values (S, B) of some outputs and their gradients (S, B, ...), over the shared run."""
    with torch.inference_mode(False), torch.enable_grad():
        columns = of.columns(run.again())
    one_hot = torch.zeros(i.stop - i.start, *columns.shape, device=columns.device).to(columns)
    one_hot.diagonal(i.start, 0, 2).fill_(1)
    with warnings.catch_warnings():
        # An operation without a batching rule runs once for each output, as it would otherwise.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        grads = batched_pull(columns, run.rows, one_hot)
    return columns.detach()[:, i].T, grads


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
