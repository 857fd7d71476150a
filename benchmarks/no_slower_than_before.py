"""No method is slower than in another version of the library: both are timed in alternation.

    python benchmarks/no_slower_than_before.py --before PATH_OF_THE_OTHER_TREE

Every method of `_cases.py` on three models, as it is called by default. One process for each tree;
in a round each times the same row right after the other, in random order, so that a slow
moment of the machine hits both. A ratio is taken within a round; the median over the rounds is what
the table shows. With --compiled the rows are compiled first (which takes its time: choose some with
--methods). Fails where a row is more than 10 % slower.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import IO

import torch
from _cases import CASES, LAYERS, Bench
from _harness import MODELS, model_and_batch, parser, table, write

NAME = "no_slower_than_before"
BATCH = 16
SLACK = 1.10
LONG_ENOUGH = 0.02  # seconds: shorter runs are repeated within a round
Row = tuple[str, str]


def serve(compiled: bool) -> None:
    """Time the rows that are asked for on stdin, one line each, with the library that is found."""
    import attrfn

    runs = {}
    print(attrfn.__file__, flush=True)
    for line in sys.stdin:
        name, method = line.split()
        if (name, method) not in runs:
            model, x, target = model_and_batch(name, BATCH, "cpu")
            generator = torch.Generator().manual_seed(1)
            others = torch.randn(8, *x.shape[1:], generator=generator)
            case, b = CASES[method], Bench(name, model, x, target, others, LAYERS[name])
            options, changing = case.options(b), {"target": target} if case.target else {}
            if compiled:
                graph = attrfn.compile(case.method, model, dynamic=False, **options)
                run = lambda graph=graph, x=x, changing=changing: graph(x, **changing)  # noqa: E731
            else:
                every = {**options, **changing}
                run = lambda m=case.method, f=model, x=x, o=every: m(f, x, **o)  # noqa: E731
            run()
            start = time.perf_counter()
            run()
            runs = {(name, method): (run, time.perf_counter() - start)}
        run, took = runs[name, method]
        times = max(1, int(LONG_ENOUGH / max(took, 1e-6)))
        start = time.perf_counter()
        for _ in range(times):
            run()
        print((time.perf_counter() - start) / times, flush=True)


class Worker:
    """A process that times rows with the library of a tree."""

    def __init__(self, tree: Path, compiled: bool) -> None:
        own = Path(__file__)
        self.process = subprocess.Popen(
            [sys.executable, str(own), "--serve", *(["--compiled"] if compiled else [])],
            env={**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{own.parent}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = Path(self.read()).parents[1]
        if found != tree.resolve():
            raise SystemExit(f"the library of {tree} is not found: {found} comes first")

    def read(self) -> str:
        out: IO[str] = self.process.stdout  # type: ignore[assignment]
        return out.readline().strip()

    def seconds(self, row: Row) -> float:
        given: IO[str] = self.process.stdin  # type: ignore[assignment]
        given.write(" ".join(row) + "\n")
        given.flush()
        return float(self.read())


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--before", type=Path, help="the tree of the other version")
    flags.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    flags.add_argument("--methods", nargs="*", choices=list(CASES), default=list(CASES))
    flags.add_argument("--compiled", action="store_true")
    flags.add_argument("--serve", action="store_true", help="for the script itself")
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    if args.serve:
        serve(args.compiled)
        return
    if args.before is None:
        raise SystemExit("--before is missing, expected the tree of the other version")
    trees = {"before": args.before, "after": Path(__file__).parents[1]}
    workers = {who: Worker(tree.resolve(), args.compiled) for who, tree in trees.items()}
    rows, slower = [], []
    for name in args.models:
        for method in args.methods:
            if name not in CASES[method].models:
                continue
            rounds = []
            for _ in range(args.repeats):
                order = random.sample(list(workers), 2)
                rounds.append({who: workers[who].seconds((name, method)) for who in order})
            ratio = statistics.median([r["after"] / r["before"] for r in rounds])
            ms = {who: 1e3 * statistics.median([r[who] for r in rounds]) for who in workers}
            row = {"model": name, "method": method}
            row |= {f"{who} ms": f"{t:.2f}" for who, t in ms.items()} | {"ratio": f"{ratio:.2f}"}
            print(*row.values(), flush=True)
            rows.append(row)
            slower += [f"{name} {method} {ratio:.2f}"] if ratio > SLACK else []
    ratios = [float(row["ratio"]) for row in rows]
    text = (
        f"Batches of {BATCH}, default settings, {'compiled' if args.compiled else 'eager'}; "
        f"medians over {args.repeats} rounds in which both versions take turns.\n\n"
        f"- ratio after / before: {statistics.geometric_mean(ratios):.2f} in the geometric mean of "
        f"{len(ratios)} rows, {max(ratios):.2f} at most\n"
        f"- rows more than 10 % slower: {', '.join(slower) or 'none'}\n\n{table(rows)}"
    )
    write(NAME, "No method is slower than before", args.device, text)
    sys.exit(f"slower: {', '.join(slower)}" if slower else None)


if __name__ == "__main__":
    main()
