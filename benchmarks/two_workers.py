"""Two workers: what Ray and torchrun cost beside the same rows in one process.

One process, two actors of Ray and two ranks of torchrun explain the same data set into a folder,
with one thread each. The first table has the rows per second of each, of what a longer call takes
more than a shorter one, beside those of one process; on a machine with two free cores twice as many
are the most. The second has what a short call takes, for which Ray starts its actors, and what a
batch more takes, with batches of one row, whose explaining takes little. Starting Ray and the ranks
does not count. Prints the tables and writes them to benchmarks/results/.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from _harness import MODELS, median, parser, table, write
from torch import Tensor
from torch.utils.data import Dataset

import attrfn
import attrfn.data

WORKERS = 2
CASES = {"CNN": 32, "transformer": 32, "MLP": 128}
ROWS = {"CNN": 16384, "transformer": 32768, "MLP": 262144}


class Drawn(Dataset):
    """Examples that are made when they are asked for, and their targets."""

    def __init__(self, rows: int, shape: tuple[int, ...]) -> None:
        self.rows = rows
        self.base = torch.randn(64, *shape)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.base[i % 64] * (1 + i / self.rows), i % 10


def call(name: str, rows: int, batch: int) -> Callable[..., object]:
    """A call of explain, the same in every process."""
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    return functools.partial(
        attrfn.data.explain,
        attrfn.saliency,
        model,
        Drawn(rows, MODELS[name].shape),
        columns={"inputs": 0, "target": 1},
        batch_size=batch,
        progress=False,
    )


def repeated(run: Callable[..., object], repeats: int, out: Path, **more: Any) -> list[float]:
    """The seconds of calls, each into a folder of its own, after one that warms up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        run(out=out / str(i), **more)
        times.append(time.perf_counter() - start)
    return times[1:]


def rank(name: str, rows: str, batch: str, repeats: str, out: str) -> None:
    """What torchrun starts."""
    torch.set_num_threads(1)
    run = call(name, int(rows), int(batch))
    times = repeated(run, int(repeats), Path(out), engine="torchrun")
    if os.environ["RANK"] == "0":
        print(json.dumps(times))


def by_torchrun(name: str, rows: int, batch: int, repeats: int, out: Path) -> list[float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={WORKERS}", __file__, "--rank"]
    command += [name, str(rows), str(batch), str(repeats), str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def folders() -> Iterator[Callable[[], Path]]:
    root, number = Path(tempfile.mkdtemp()), itertools.count()
    try:
        yield lambda: root / str(next(number))
    finally:
        shutil.rmtree(root)


def timings(name: str, rows: int, batch: int, repeats: int) -> dict[str, list[float]]:
    """The seconds of a call by each engine."""
    run = call(name, rows, batch)
    engine = attrfn.data.Ray(workers=WORKERS)
    with folders() as out:
        return {
            "local": repeated(run, repeats, out()),
            "Ray": repeated(run, repeats, out(), engine=engine),
            "torchrun": by_torchrun(name, rows, batch, repeats, out()),
        }


def more(
    name: str, few: int, many: int, batch: int, repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The seconds of a short call, and what a longer one takes more for each row."""
    short, long = (timings(name, rows, batch, repeats) for rows in (few, many))
    a, b = ({k: median(t) for k, t in times.items()} for times in (short, long))
    return a, {k: max(b[k] - a[k], 1e-9) / (many - few) for k in a}


def speed(repeats: int, quick: bool) -> Iterator[dict[str, object]]:
    for name, batch in list(CASES.items())[-1 if quick else 0 :]:
        rows = ROWS[name] // (16 if quick else 1)
        _, per_row = more(name, rows // 8, rows, batch, repeats)
        yield {
            "model": name,
            "batch": batch,
            "local, rows / s": f"{1 / per_row['local']:.0f}",
            **{f"{k} / local": f"{per_row['local'] / per_row[k]:.2f}" for k in ("Ray", "torchrun")},
        }


def overhead(repeats: int, quick: bool) -> Iterator[dict[str, object]]:
    """Of batches of one row."""
    short, per_row = more("MLP", 8 * WORKERS, 128 if quick else 4096, 1, repeats)
    for engine, seconds in per_row.items():
        yield {
            "engine": engine,
            "a short call, ms": f"{1e3 * short[engine]:.1f}",
            "a batch more, ms": f"{1e3 * seconds:.2f}",
        }


def main() -> None:
    args = parser(__doc__).parse_args()
    import ray

    torch.set_num_threads(1)
    start = time.perf_counter()
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    started = time.perf_counter() - start
    repeats = 1 if args.quick else min(args.repeats, 3)  # of calls that take seconds
    tables = [
        table(list(speed(repeats, args.quick))),
        table(list(overhead(repeats, args.quick))),
        f"Ray {metadata.version('ray')}, which starts in {started:.1f} s; {WORKERS} workers.",
    ]
    ray.shutdown()
    text = "\n\n".join(tables)
    print(text)
    if not args.quick:
        write("two_workers", "Two workers: Ray and torchrun", args.device, text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(*sys.argv[2:])
    else:
        main()
