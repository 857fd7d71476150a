"""``chunk_size="auto"`` takes at most 1.10 of the best fixed size in nine rows of ten, 1.25 in all.

Integrated gradients and feature ablation with each of some fixed sizes, and with the default, on
networks of real size and on the small ones. What a chunk costs depends on what the process did
before, because the C library keeps some of the memory that was freed: so each size has a process of
its own, in which the model has not run before. They take turns in a new random order. Further
tables compare the default with bare forward passes, and with a heap that gives its pages back.
Prints the tables and writes them to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx.experimental.symbolic_shapes  # which torch imports at its first backward pass
from _harness import MODELS, kind, parser, table, write, write_csv
from _real_models import REAL
from torch import Tensor, nn

import attrfn
from attrfn._copies import chunks

NAME = "chunks_are_the_right_size"
LARGE = ("EfficientNet", "ResNet", "ViT", "BERT")
USUAL, WORST = 1.10, 1.25
AUTO, GIVEN_BACK = "auto", "pages given back"
Run = Callable[[], object]


class Row(NamedTuple):
    """A net, the size of its batch, whether a backward pass follows, and the threads."""

    net: str
    batch: int
    gradient: bool
    threads: int

    @property
    def copies(self) -> int:
        """Steps or features."""
        if self.net in MODELS:
            return 64
        return 32 if self.net == "LSTM" else {1: 8, 4: 4, 16: 2}[self.batch]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The fixed sizes."""
        among = (1, 4, 8, 16, 32, 64) if self.net in MODELS else (1, 2, 4, 8, 16, 32)
        if self.threads > 1:  # with them a process takes seconds to start
            among = (1, 8, 32, 64) if self.copies > 8 else (1, 4)
        most = max(1, 1024 // self.batch)
        if self.net in LARGE and self.batch > 1:
            most = 2
        return tuple([s for s in among if s <= min(self.copies, most)])


class Turn(NamedTuple):
    """What one turn took: seconds, faults of pages, and the rows that the model saw at once."""

    seconds: float
    faults: int
    rows: tuple[int, ...]


class Job(NamedTuple):
    """What a process runs: a method with a size, or bare forward passes."""

    row: Row
    size: int | str
    bare: bool = False


class Process:
    """Runs a job when it is its turn."""

    # A fork takes no time to start. With threads it would hang at times, because those of the
    # parent are not there.

    def __init__(self, job: Job) -> None:
        go, self.go = os.pipe()
        found, done = os.pipe()
        if job.row.threads > 1:
            text = json.dumps([go, done, job])
            command = [sys.executable, __file__, "--serve", text]
            self.id = subprocess.Popen(command, pass_fds=(go, done)).pid
        else:
            self.id = os.fork()
            if self.id == 0:
                _serve(job, go, done)
        os.close(go)
        os.close(done)
        self.found = os.fdopen(found)

    def turn(self) -> Turn:
        os.write(self.go, b"1")
        line = self.found.readline()
        if not line:
            raise RuntimeError("a process has ended: see its error above")
        return Turn(*json.loads(line))

    def end(self) -> None:
        os.write(self.go, b"0")  # to close it is not enough: later forks have it open, too
        os.close(self.go)
        self.found.close()
        os.waitpid(self.id, 0)


def _serve(job: Job, go: int, done: int) -> None:
    """Run a job at each turn, then leave the process."""
    try:
        torch.set_num_threads(job.row.threads)
        warnings.simplefilter("ignore")  # of few steps
        run, rows = bare(job.row, job.size) if job.bare else method(job.row, job.size)
        # Seconds of the processor do not count what other programs do; threads wait for each other.
        clock = time.process_time if job.row.threads == 1 else time.perf_counter
        while os.read(go, 1) == b"1":
            rows.clear()
            faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, clock()
            run()
            took = clock() - start
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            os.write(done, (json.dumps([took, faults, rows]) + "\n").encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


@functools.lru_cache(maxsize=1)
def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return {**MODELS, **REAL}[name]().eval().requires_grad_(False)


def method(row: Row, size: int | str) -> tuple[Run, list[int]]:
    """A method with a size, warm; and the list of the rows that the model sees at once."""
    model = model_of(row.net)
    x = torch.randn(row.batch, *model.shape)
    mask = (torch.arange(x[0].numel()) % row.copies).reshape(x.shape[1:])
    chunks.check_rows = lambda *args: None  # once for each model, and not a matter of sizes
    if size == GIVEN_BACK:
        chunks.keep_pages = lambda: None
    given: dict[str, Any] = {"target": 1, "chunk_size": AUTO if size == GIVEN_BACK else size}
    if row.gradient:
        attrfn.integrated_gradients(lambda x: x.sum(1), torch.ones(1, 2), n_steps=row.copies)
        run = functools.partial(attrfn.integrated_gradients, model, x, n_steps=row.copies, **given)
    else:
        given |= {"feature_mask": mask, "n_features": row.copies}
        run = functools.partial(attrfn.feature_ablation, model, x, **given)
    warm(model, x, row.gradient)
    rows: list[int] = []
    forward = type(model).forward

    def noting(self: nn.Module, x: Tensor) -> Tensor:
        rows.append(len(x))
        return forward(self, x)

    type(model).forward = noting
    return run, rows


def bare(row: Row, size: int) -> tuple[Run, list[int]]:
    """As many rows through the bare model, those of x alone first."""
    model = model_of(row.net)
    x = torch.randn(row.batch, *model.shape)
    repeated = x.repeat(size, *[1] * (x.ndim - 1))
    warm(model, x, False)
    chunks.keep_pages()

    def run() -> None:
        with torch.no_grad():
            model(x)
            for start in range(0, row.copies, size):
                model(repeated[: row.batch * min(size, row.copies - start)])

    return run, []


def warm(model: nn.Module, x: Tensor, gradient: bool) -> None:
    """One pass, in which libraries prepare what they keep."""
    if not gradient:
        with torch.no_grad():
            model(x)
        return
    x = x.clone().requires_grad_()
    torch.autograd.grad(model(x).sum(), x)


def race(jobs: Mapping[Any, Job], repeats: int) -> dict[Any, list[Turn]]:
    """The turns of all processes; more than one for each while that takes only seconds."""
    processes = {key: Process(job) for key, job in jobs.items()}
    row = next(iter(jobs.values())).row
    turns: dict[Any, list[Turn]] = {key: [] for key in processes}
    keys, draw, start = list(processes), random.Random(0), time.perf_counter()
    # Libraries prepare what they keep for convolutions of a size in its first turn.
    least = 1 if row.net in LARGE and (row.batch > 1 or row.net in ("ViT", "BERT")) else 2
    while (done := len(turns[keys[0]])) < least or (
        done < repeats and time.perf_counter() - start < 3
    ):
        draw.shuffle(keys)
        for key in keys:
            turns[key].append(processes[key].turn())
    for process in processes.values():
        process.end()
    return turns


def best(turns: Sequence[Turn]) -> float:
    return min(t.seconds for t in turns)


def line_of(row: Row, repeats: int) -> dict[str, object]:
    """The default among fixed sizes."""
    turns = race({size: Job(row, size) for size in (AUTO, *row.sizes)}, repeats)
    ms = {size: 1e3 * best(t) for size, t in turns.items()}
    fixed = min(row.sizes, key=ms.__getitem__)
    rows = turns[AUTO][-1].rows[0 if row.gradient else 1 :]
    return {
        "net": row.net,
        "batch": row.batch,
        "passes": "gradients" if row.gradient else "forwards",
        "threads": row.threads,
        "copies": row.copies,
        "best size": fixed,
        "best, ms": f"{ms[fixed]:.1f}",
        "auto, ms": f"{ms[AUTO]:.1f}",
        "auto / best": f"{ms[AUTO] / ms[fixed]:.2f}",
        "sizes of auto": short([n // row.batch for n in rows]),
        "all sizes / best": ", ".join(f"{s}: {ms[s] / ms[fixed]:.2f}" for s in row.sizes),
    }


def short(sizes: Sequence[int]) -> str:
    """1 3 3 3 as 1, 3 x 3."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1][1] += 1
        else:
            runs.append([size, 1])
    return ", ".join(f"{n} x {size}" if n > 1 else str(size) for size, n in runs)


def beside_bare(row: Row, repeats: int) -> dict[str, object]:
    """Feature ablation by default against bare forward passes at their best size."""
    jobs: dict[Any, Job] = {size: Job(row, size, True) for size in row.sizes}
    turns = race({**jobs, AUTO: Job(row, AUTO)}, repeats)
    ms = {size: 1e3 * best(t) for size, t in turns.items()}
    fixed = min(row.sizes, key=ms.__getitem__)
    return {
        "net": row.net,
        "batch": row.batch,
        "copies": row.copies,
        "bare forwards, ms": f"{ms[fixed]:.1f}",
        "their best size": fixed,
        "feature_ablation, ms": f"{ms[AUTO]:.1f}",
        "/ bare": f"{ms[AUTO] / ms[fixed]:.2f}",
    }


def beside_given_back(row: Row, repeats: int) -> dict[str, object]:
    """The default in a fresh heap that keeps freed memory, and in one that gives it back."""
    turns = race({size: Job(row, size) for size in (AUTO, GIVEN_BACK)}, repeats)
    kept, back = (best(turns[size]) for size in (AUTO, GIVEN_BACK))
    return {
        "fresh heap": f"{row.net}, batch {row.batch}, "
        + ("gradients" if row.gradient else "forwards"),
        "pages kept, ms": f"{1e3 * kept:.1f}",
        "faults": min(t.faults for t in turns[AUTO]),
        "given back, ms": f"{1e3 * back:.1f}",
        "faults ": min(t.faults for t in turns[GIVEN_BACK]),
        "given back / kept": f"{back / kept:.2f}",
    }


def rows_of(quick: bool) -> list[Row]:
    if quick:
        nets = ("CNN", "transformer", "MLP", "LSTM")
        return [Row(net, 1, g, 1) for net in nets for g in (True, False)]
    every = [
        Row(net, batch, gradient, threads)
        for net in (*REAL, *MODELS)
        for batch in (1, 4, 16)
        for gradient in (True, False)
        for threads in (1, 2)
    ]
    # A copy of 16 rows is a chunk in any case, and takes long in the largest net.
    every = [r for r in every if r.net != "BERT" or r.batch < 16]
    every = [r for r in every if r.threads == 1 or r.batch == 1]
    # Two threads need the machine alone, so they go last.
    return sorted(every, key=lambda r: r.threads)


def printed(lines: list[dict[str, object]], line: dict[str, object]) -> None:
    lines.append(line)
    print(table(lines).splitlines()[-1], flush=True)


def bars(lines: Sequence[Mapping[str, object]]) -> str:
    ratios = [float(str(line["auto / best"])) for line in lines]
    usual = sum(r <= USUAL for r in ratios)
    met = "met" if usual >= 0.9 * len(ratios) else "MISSED"
    worst = "met" if max(ratios) <= WORST else "MISSED"
    return (
        f"- {usual} of {len(ratios)} rows take at most {USUAL:.2f} of the best size (90 %: {met})\n"
        f"- the worst takes {max(ratios):.2f} (at most {WORST}: {worst})"
    )


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--nets", nargs="*", choices=[*REAL, *MODELS], help="these alone")
    flags.add_argument("--serve", help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.serve:
        go, done, (row, size, is_bare) = json.loads(args.serve)
        _serve(Job(Row(*row), size, is_bare), go, done)
    if kind(args.device) != "cpu":
        flags.error("sizes on an accelerator follow from its memory alone")
    torch.set_num_threads(1)
    among = args.nets or [*REAL, *MODELS]
    lines: list[dict[str, object]] = []
    for row in rows_of(args.quick):
        if row.net in among:
            printed(lines, line_of(row, args.repeats))
    floor: list[dict[str, object]] = []
    for net in ("LSTM",) if args.quick else (*LARGE, "U-Net 3d", "LSTM"):
        if net in among:
            printed(floor, beside_bare(Row(net, 1, False, 1), args.repeats))
    heap: list[dict[str, object]] = []
    places = [("CNN", 1, True), ("CNN", 4, False), ("transformer", 16, True)]
    for net, batch, gradient in [*places, ("EfficientNet", 1, True), ("U-Net 3d", 1, False)]:
        if net in among and not (args.quick and net in REAL):
            printed(heap, beside_given_back(Row(net, batch, gradient, 1), args.repeats))
    caption = (
        f"Least of up to {args.repeats} turns, each size in a process of its own; with one thread "
        "seconds of the processor. Sizes are copies of the batch at once. Networks have random "
        "weights; the check of rows, which a model has once, is left out."
    )
    tables = "\n\n".join(table(t) for t in (lines, floor, heap) if t)
    text = f"{caption}\n\n{tables}\n\nBars:\n\n{bars(lines)}"
    print(text)
    if not args.quick and not args.nets:
        path = write(NAME, "chunk_size='auto' beside fixed sizes", args.device, text)
        write_csv(path.with_suffix(".csv"), lines)


if __name__ == "__main__":
    main()
