"""What the benchmarks share: models, interleaved timing, peak memory, tables."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"
_COLD = 10  # repeats in a round
_ELSEWHERE = torch.zeros(2**23)  # 32 MiB, more than a core's caches


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of every benchmark."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    p.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    p.add_argument("--repeats", type=int, default=7, help="interleaved repeats")
    p.add_argument("--quick", action="store_true", help="fewer cases, to see that it runs")
    p.add_argument("--memory-of", help=argparse.SUPPRESS)
    return p


def kind(device: str) -> str:
    """Of "cuda:1" it is "cuda"."""
    return torch.device(device).type


def machine(device: str) -> str:
    """One line that says where the figures come from."""
    names = [f"torch {torch.__version__}"]
    with contextlib.suppress(metadata.PackageNotFoundError):  # not every benchmark needs it
        names.append(f"captum {metadata.version('captum')}")
    names.append(f"python {platform.python_version()}")
    if kind(device) == "cuda":
        return ", ".join([torch.cuda.get_device_name(device), *names])
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    return ", ".join([cpu, threads, *names])


class Cnn(nn.Module):
    """Three convolutions on 3 x 32 x 32 images."""

    shape = (3, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(64 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Transformer(nn.Module):
    """Two encoder layers on 32 tokens of width 64."""

    shape = (32, 64)

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Mlp(nn.Module):
    """Two hidden layers of width 512 on 784 features."""

    shape = (784,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


MODELS = {"CNN": Cnn, "transformer": Transformer, "MLP": Mlp}


def model_and_batch(name: str, batch: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A seeded model in evaluation mode, inputs and one target per example."""
    torch.manual_seed(0)
    model = MODELS[name]().eval().to(device)
    x = torch.randn(batch, *model.shape, device=device)
    return model, x, torch.arange(batch, device=device) % 10


def synchronize(device: str) -> None:
    if kind(device) == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: str) -> float:
    """One timed run."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


class Outside:
    """A method on a model, timed without the model: its forward and backward passes do not count.

    Args:
        run: Calls the method.
        model: The model.
        device: Where it is.
    """

    def __init__(self, run: Callable[[], object], model: nn.Module, device: str) -> None:
        self.run = run
        self.kind = type(model)
        self.device = device
        self.inside = 0.0  # seconds of the last run
        self.entered = False

    def __call__(self) -> object:
        self.inside = 0.0
        with (
            mock.patch.object(self.kind, "forward", self.timed(self.kind.forward)),
            mock.patch.object(torch.autograd, "grad", self.timed(torch.autograd.grad)),
        ):
            return self.run()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added to what is spent inside, once where calls nest."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.entered:
                return function(*args, **kwargs)
            self.entered = True
            synchronize(self.device)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(self.device)
                self.inside += time.perf_counter() - start
                self.entered = False

        return call


def medians(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str,
    *,
    cold: bool = False,
    most: int = 0,
) -> dict[str, list[float]]:
    """All timings of each run, interleaved so that a slow moment of the machine hits them all.

    Every run is repeated inside a round until the round has lasted long enough to be timed. With
    ``cold`` other work runs before each repeat, and each round draws its own order, so that
    no run finds in the caches what it, or its neighbour, left there. There are ``repeats`` rounds,
    or up to ``most`` while they take less than a quarter of a minute together.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    loops, whole = {}, 0.0
    for name, run in runs.items():
        run()
        once = max(seconds(run, device), 1e-6)
        loops[name] = max(1, int(0.05 / once))
        whole += once * min(loops[name], _COLD if cold else loops[name])
    names = list(runs)
    draw = random.Random(0)
    for turn in range(max(repeats, min(most, int(15 / whole)))):
        if cold:
            draw.shuffle(names)
        for name in names if cold or turn % 2 == 0 else reversed(names):
            n = min(loops[name], _COLD) if cold else loops[name]
            times[name].append(_mean_seconds(runs[name], n, device, cold))
    return times


def _mean_seconds(run: Callable[[], object], n: int, device: str, cold: bool) -> float:
    if not cold:
        return seconds(lambda: [run() for _ in range(n)], device) / n
    total = 0.0
    for _ in range(n):
        if kind(device) == "cpu":
            _ELSEWHERE.add_(1)
        total += seconds(run, device) - (run.inside if isinstance(run, Outside) else 0.0)
    return total / n


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median over the rounds of a / b, both taken in the same round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def peak_mb(run: Callable[[], object], device: str) -> float:
    """Peak extra memory of one run: on a GPU the allocator's, on the CPU the process's pages.

    Call it in a process of its own (see ``peak_mb_of``): pages that an earlier run left behind
    would hide this one's.
    """
    if kind(device) == "cuda":
        run()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 2**10


def subprocess_json(script: str, case: str, flags: Sequence[str]) -> Any:
    """What a script prints last when it measures the memory of a case in a fresh process."""
    out = subprocess.run(
        [sys.executable, script, "--memory-of", case, *flags],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        # Give freed blocks back to the system at once, so that pages are not counted twice.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    return json.loads(out.stdout.splitlines()[-1])


def peak_mb_of(script: str, case: str, flags: Sequence[str]) -> float:
    """The peak of one case, measured by the script in a fresh process."""
    return float(subprocess_json(script, case, flags))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table; the columns are the keys of the first."""
    names = list(rows[0])
    cells = [[str(row[name]) for name in names] for row in rows]
    widths = [max(len(n), *(len(c[i]) for c in cells)) for i, n in enumerate(names)]
    lines = [names, ["-" * w for w in widths], *cells]
    return "\n".join(
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def path_of(name: str, device: str, suffix: str) -> Path:
    """Where a result is kept: one file for each kind of device."""
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"{name}{'' if kind(device) == 'cpu' else '_' + kind(device)}.{suffix}"


def write(name: str, title: str, device: str, text: str) -> Path:
    """Write a result below benchmarks/results and say where."""
    path = path_of(name, device, "md")
    path.write_text(f"# {title}\n\n{machine(device)}\n\n{text}\n")
    print(f"\nwrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows for other programs; the columns are the keys of the first, floats have four digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
