"""One call of ``explain``: what is read, in which batches, and where it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

import attrfn
from attrfn._copies.memory import budget, keep_pages, most_on_cpu
from attrfn._copies.progress import steps
from attrfn._torch.typing import ModelFn
from attrfn._torch.warn import each_once
from attrfn.data._ahead import ahead, delayed_interrupt
from attrfn.data._bound import shared_by_all
from attrfn.data._columns import Rows
from attrfn.data._digest import described, device_of, digest
from attrfn.data._folder import Folder
from attrfn.data._options import Options
from attrfn.data._read import Attributions, read
from attrfn.data._runner import Runner
from attrfn.data._sinks import INPUT_BYTES, MOST_BATCHES, Memory, Shards, tree_bytes
from attrfn.data._sources import Batch, Source

# The results that a model holds inside are about so many times its inputs, less for the rows of a
# table; a batch is as many rows as fit into the budget by that guess. Methods choose themselves how
# many copies of the batch they take.
_INSIDE, _INSIDE_OF_TABLES = 64, 16
# A call has a price of its own, so that on a CPU batches are larger than the chunks of a method.
_TIMES_ON_CPU = 4
_LEAST, _MOST = 8, 4096
_WITHOUT_A_GUESS = 32  # a token has few bytes, and its embedding has many


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
        manifest: What the manifest says, without the form of the attributions.
        gaps: From row to row, what is missing; None: to the end, wherever that is.
        size: The rows of a batch.
        rows: The rows after which a shard ends.
        now: How many rows are explained at once in the beginning.
        done: The lines of what is there.
    """

    manifest: dict[str, Any]
    gaps: list[tuple[int, int | None]]
    size: int
    rows: int
    now: int
    done: list[dict[str, Any]]


class Run:
    """One call of ``explain``."""

    def __init__(
        self, model_fn: ModelFn, data: Source, options: Options, skip: bool, progress: bool
    ) -> None:
        self.model_fn = model_fn
        self.data = data
        self.options = options
        self.skip = skip
        self.progress = progress
        self.device = device_of(model_fn)
        keep_pages()  # the results of a batch make room for those of the next

    def all(self, batch_size: int | str, sink: Memory) -> None:
        """Everything, into memory."""
        size = self.size(batch_size, self.data.first())
        runner = self.runner(size)
        end = 0
        batches = self.batches([(0, self.data.length)], size)
        with self.bar(0) as advance, each_once(), contextlib.closing(batches):
            for batch in batches:
                sink.put(runner.explain(batch))
                advance(batch.size)
                end = batch.start + batch.size
        self.check_end(end)

    def into(self, folder: Folder, batch_size: int | str, resume: bool) -> Attributions:
        """What is missing, into a folder."""
        plan = self.plan_into(folder, batch_size, resume)
        if not plan.gaps:
            return self.finished(folder, plan.done)
        sink = Shards(folder, plan.manifest, plan.rows)
        self.data.skip_to(plan.gaps[0][0])
        batches = self.batches(plan.gaps, plan.size, plan.rows)
        end, interrupted = self._written(batches, self.runner(plan.now), sink, plan.done)
        if interrupted:
            raise KeyboardInterrupt(f"{end} examples are in {folder.path}: call again to go on")
        return read(folder.path)

    def _written(
        self, batches: Generator[Batch, None, None], runner: Runner, sink: Shards, done: list[Any]
    ) -> tuple[int, bool]:
        """Explain batches and write them; the row after the last, and whether Ctrl-C came."""
        end = done[-1]["stop"] if done else 0
        with delayed_interrupt() as interrupt, each_once(), contextlib.closing(batches):
            try:
                with self.bar(sum(d["stop"] - d["start"] for d in done)) as advance:
                    for batch in batches:
                        if interrupt.is_pressed():
                            break
                        found = runner.explain(batch)
                        sink.put(found, runner.size)
                        advance(batch.size)
                        end = max(end, batch.start + batch.size)
                        if interrupt.is_pressed():
                            break
                    else:
                        self.check_end(end)
            except BaseException as error:
                sink.stop()
                # The workers of a DataLoader end at Ctrl-C, too, which is an error to the reader.
                if interrupt.is_pressed() and isinstance(error, ValueError):
                    return end, True
                raise
            sink.finish(None if interrupt.is_pressed() else end)
        return end, interrupt.is_pressed()

    def plan(self, batch_size: int | str) -> Plan:
        """All that there is."""
        first = self.data.first()
        size = self.size(batch_size, first)
        return Plan({}, [(0, self.data.length)], size, _shard_rows(size, first), size, [])

    def plan_into(self, folder: Folder, batch_size: int | str, resume: bool) -> Plan:
        """What is missing in a folder."""
        wanted = self.manifest()
        folder.open(wanted, resume)
        done = folder.done()
        old = folder.manifest
        total = folder.total() if old else None
        gaps = list(gaps_of(done, self.data.length if total is None else total))
        if not gaps:
            return Plan(wanted, [], 0, 0, 0, done)
        first = self.data.first()
        size = old["batch_size"] if old and batch_size == "auto" else self.size(batch_size, first)
        rows = old["shard_rows"] if old else _shard_rows(size, first)
        now = min(size, done[-1]["size"]) if done else size
        manifest = {**wanted, "batch_size": size, "shard_rows": rows}
        return Plan(manifest, gaps, size, rows, now, done)

    def finished(self, folder: Folder, done: list[Any]) -> Attributions:
        """Nothing is missing."""
        if not done:
            raise ValueError("data has no examples, expected at least one")
        if folder.total() is None:
            folder.finish(done[-1]["stop"])
        return read(folder.path)

    def check_end(self, end: int) -> None:
        """Refuse data that are none, or another number than they said.

        Raises:
            ValueError: They are.
        """
        length = self.data.length
        if end == 0:
            raise ValueError("data has no examples, expected at least one")
        self.options.check_total(end)
        if length is None:
            return
        more = self.data.read(length, length + 1) if end == length else None
        if end != length or more is not None:
            gave = "more" if more is not None else str(end)
            raise ValueError(
                f"data said that it has {length} examples and gave {gave}, expected the same "
                "number: what came is kept; repair its length and call again"
            )

    def runner(self, size: int) -> Runner:
        """What explains batches, so many rows at once."""
        model = shared_by_all(self.model_fn, self.data.length)
        return Runner(model, self.options, self.data, self.device, size, self.skip)

    def batches(
        self, gaps: list[tuple[int, int | None]], size: int, rows: int | None = None
    ) -> Generator[Batch, None, None]:
        """The batches of what is missing, read ahead where that takes time."""
        found = self.read(gaps, size, rows)
        try:
            yield from ahead(found) if self.data.slow else found
        finally:
            self.data.close()

    def read(
        self, gaps: list[tuple[int, int | None]], size: int, rows: int | None
    ) -> Generator[Batch, None, None]:
        """The batches of what is missing, read where they are used."""
        # Batches end at multiples of their size whatever is missing, so that an example is in the
        # same batch as in a call that ran through, and gets the same bits.
        for start, stop in gaps:
            while stop is None or start < stop:
                end = (start // size + 1) * size
                end = end if stop is None else min(end, stop)
                end = end if rows is None else min(end, (start // rows + 1) * rows)
                batch = self.data.read(start, end, self.skip)
                if batch is None:
                    return
                yield batch
                start += batch.size

    def bar(self, done: int) -> Any:
        """A bar for what is not done."""
        total = self.data.length
        left = None if total is None else total - done
        label = getattr(self.options.method, "__name__", "explain")
        return steps(left, label, self.progress, ("example", "examples"))

    def size(self, batch_size: int | str, first: Rows | None) -> int:
        """The rows of a batch."""
        if batch_size != "auto":
            return int(batch_size)
        if self.data.batch is not None:
            return self.data.batch
        if first is None:
            return _WITHOUT_A_GUESS
        if self.data.length is None and not self.data.of_examples:
            return len(first)
        return _guess(first, self.device)

    def manifest(self) -> dict[str, Any]:
        """What is known before anything has run."""
        options = self.options
        return {
            "format": 1,
            "attrfn": attrfn.__version__,
            "torch": str(torch.__version__),
            "method": described(options.method),
            "model": digest(self.model_fn),
            "options": {k: described(v) for k, v in sorted(options.given.items())},
            "columns": None if self.data.columns.given is None else repr(self.data.columns.given),
            "key": options.key.tolist(),
            "length": self.data.length,
            "table": self.data.columns.table,
        }


def gaps_of(done: list[Any], length: int | None) -> Iterator[tuple[int, int | None]]:
    """From row to row, what is missing; None: to the end, wherever that is."""
    start = 0
    for line in done:
        if start < line["start"]:
            yield start, line["start"]
        start = line["stop"]
    if length is None or start < length:
        yield start, length


def _shard_rows(size: int, first: Rows | None) -> int:
    """The rows of a shard: whole batches."""
    if first is None:
        return size
    bytes_ = tree_bytes(first.inputs) * size // max(1, len(first))
    return size * max(1, min(MOST_BATCHES, INPUT_BYTES // max(1, bytes_)))


def _guess(first: Rows, device: torch.device | None) -> int:
    """How many rows a batch has, a power of two."""
    x: list[Tensor] = optree.tree_leaves(first.inputs)
    if not all(t.is_floating_point() for t in x):
        return _WITHOUT_A_GUESS
    inside = _INSIDE_OF_TABLES if all(t.ndim <= 2 for t in x) else _INSIDE
    bytes_ = max(1, inside * tree_bytes(first.inputs) // max(1, len(first)))
    most = budget(device or torch.device("cpu"))
    if device is None or device.type == "cpu":
        most = min(_TIMES_ON_CPU * most, most_on_cpu())
    fits = most // bytes_
    return 1 << (max(_LEAST, min(_MOST, fits)).bit_length() - 1)
