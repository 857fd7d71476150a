"""What ``import attrfn`` takes beyond torch's own import, in fresh processes.

Each round starts one process for each of the imports, in turn, and the time is taken inside it: of
``import torch``, of ``import attrfn`` after it, and of what else attrfn needs (optree). All
modules are compiled to bytecode first. The bar is 50 ms. Prints a table and writes it to
benchmarks/results/.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _harness import parser, table, write

BAR_MS = 50
CLOCKED = "import time\nstart = time.perf_counter()\n{}\nprint(1e3 * (time.perf_counter() - start))"
# What is imported before the clock starts, and after.
IMPORTS = {
    "import torch": ("", "import torch"),
    "import optree, after torch": ("import torch", "import optree"),
    "import attrfn, after torch": ("import torch", "import attrfn"),
    "import attrfn, after torch and optree": ("import torch, optree", "import attrfn"),
}
HELD = "import attrfn, after torch"


def milliseconds(before: str, clocked: str, cache: str) -> float:
    """One import in a fresh process, after what it may need, with bytecode kept in a folder."""
    paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONPYCACHEPREFIX": cache}
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    out = subprocess.run(
        [sys.executable, "-c", f"{before}\n{CLOCKED.format(clocked)}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=inherited | paths,
    )
    return float(out.stdout)


def main() -> None:
    flags = parser(__doc__)
    flags.set_defaults(repeats=15)
    args = flags.parse_args()
    if args.quick:
        args.repeats = 3
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    with tempfile.TemporaryDirectory() as cache:
        for pair in IMPORTS.values():
            milliseconds(*pair, cache)  # writes the bytecode
        for turn in range(args.repeats):
            for name in IMPORTS if turn % 2 == 0 else reversed(IMPORTS):
                times[name].append(milliseconds(*IMPORTS[name], cache))
    rows = []
    for name, found in times.items():
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        cells = {"": name, "ms": f"{middle:.1f}", "quartiles": f"{low:.1f}-{high:.1f}"}
        rows.append(cells | {"least": f"{min(found):.1f}"})
    took = statistics.median(times[HELD])
    bar = f"Bar: {HELD} takes at most {BAR_MS} ms: {'met' if took <= BAR_MS else 'MISSED'}."
    print(f"{table(rows)}\n\n{bar}")
    if args.quick:
        return
    caption = f"Medians of {args.repeats} interleaved rounds of fresh processes."
    write("import_is_fast", "Import time", "cpu", f"{caption}\n\n{table(rows)}\n\n{bar}")


if __name__ == "__main__":
    main()
