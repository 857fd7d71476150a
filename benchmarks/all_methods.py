"""Every method on three models: time and peak memory, next to the floor and to Captum.

The floor is a bare batched pass of the rows that a method has to look at, with frozen parameters
and the best chunk size. attrfn runs as it is called, its chunk size the best of the default, 8 and
4 copies, eager and as one compiled graph (of the default or 8). "own" is what a call takes outside
of the model's forward and backward passes: the method's own arithmetic and its fixed cost. Captum
is run with its defaults, and tuned: parameters frozen, and the best of its settings for the size
of a batch. Prints a table and writes it to benchmarks/results/, as Markdown, as CSV and as a
picture; with --models and --methods the other rows stay those of the last table.

--check times a few methods only, eager and some of them compiled, as ratios to the floor, and fails
where one is more than 15 % over the committed table.
"""

from __future__ import annotations

import copy
import csv
import ctypes
import gc
import inspect
import math
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _cases import CASES, HEADS, LAYERS, Bench, Case, Run
from _harness import (
    MODELS,
    Outside,
    kind,
    machine,
    medians,
    model_and_batch,
    parser,
    path_of,
    peak_mb,
    ratio,
    seconds,
    table,
    write,
    write_csv,
)
from torch import Tensor, nn

import attrfn

NAME = "all_methods"
BATCH = 16
WHO = ("floor", "own", "eager", "compiled", "Captum", "tuned")
CHECKED = (
    "gradient",
    "integrated_gradients",
    "smoothgrad",
    "deep_lift",
    "lrp",
    "feature_ablation",
    "shapley_value_sampling",
    "layer_conductance",
)
# Compiled for the check, too: one on each model, because that takes its time.
COMPILED = {
    "MLP": ("deep_lift",),
    "CNN": ("integrated_gradients",),
    "transformer": ("feature_ablation",),
}
SLACK = 0.15
FAILED = "attrfn fails"
FLOOR_ROWS = (16, 64, 256, 1024)
MOST_ROUNDS = 25


def bench(name: str, device: str) -> Bench:
    model, x, target = model_and_batch(name, BATCH, device)
    others = torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(1)).to(device)
    return Bench(name, model, x, target, others, LAYERS[name])


def frozen(b: Bench) -> Bench:
    return b._replace(model=copy.deepcopy(b.model).requires_grad_(False))


def eager(case: Case, b: Bench, **tuning: Any) -> Run:
    options = {**case.options(b), **({"target": b.target} if case.target else {}), **tuning}
    return lambda: case.method(b.model, b.x, **options)


def compiled(case: Case, b: Bench, **tuning: Any) -> Run:
    changing = {"target": b.target} if case.target else {}
    run = attrfn.compile(case.method, b.model, dynamic=False, **case.options(b), **tuning)
    return lambda: run(b.x, **changing)


def tunings(case: Case) -> list[dict[str, Any]]:
    """What may be chosen for attrfn: the size that it takes by itself, 8 copies at once, or 4."""
    chunked = "chunk_size" in options_of(case) and case.rows > 8
    return [{}, {"chunk_size": 8}, {"chunk_size": 4}] if chunked else [{}]


def floor(case: Case, b: Bench, at_once: int) -> Run:
    """A bare pass of as many rows, ``at_once`` in a batch."""
    model, n = frozen(b).model, case.rows * BATCH
    size = min(at_once, n)
    x = b.x.repeat(case.rows, *(1 for _ in b.x.shape[1:]))  # as many in memory as a method looks at
    index = b.target.repeat(case.rows)[:, None]

    def chunk(x: Tensor, index: Tensor) -> Tensor:
        if not case.backward:
            with torch.no_grad():
                return model(x)
        z = x.detach().requires_grad_()
        return torch.autograd.grad(model(z).gather(1, index).sum(), z)[0]

    def run() -> None:
        for start in range(0, n, size):
            chunk(x[start : start + size], index[start : start + size])

    return run


def rows_at_once(run: Run, model: nn.Module) -> int:
    """The most rows that a run shows the model in one batch."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    run()
    hook.remove()
    return max(sizes)


def own(case: Case, b: Bench, eager: Run, rows: int, device: str) -> Run:
    """The method without the model's passes, but with those that a tangent is counted as."""
    if not case.tangent:
        return Outside(eager, b.model, device)
    head, n = HEADS[b.name](frozen(b).model), case.rows * BATCH
    x = b.x.repeat(case.rows, *(1 for _ in b.x.shape[1:]))

    def run() -> None:
        eager()
        with torch.no_grad():
            for start in range(0, n, rows):
                head(x[start : start + rows])

    return Outside(run, b.model, device)


def options_of(case: Case) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(case.method).parameters


def best(runs: Sequence[Run], device: str) -> int:
    """Which is the fastest of some, each run three times."""
    if len(runs) == 1:
        return 0
    for run in runs:
        run()
    rounds = [[seconds(run, device) for run in runs] for _ in range(3)]
    times = [min(of_run) for of_run in zip(*rounds, strict=True)]
    return times.index(min(times))


def fastest(runs: Sequence[Run], device: str) -> Run:
    return runs[best(runs, device)]


def runs_of(case: Case, b: Bench, device: str, compiling: bool) -> tuple[dict[str, Run], list[str]]:
    """What is timed, by who; and notes on what is not."""
    notes: list[str] = []
    sizes = [size for size in FLOOR_ROWS if size <= case.rows * BATCH]
    runs = {"floor": fastest([floor(case, b, size) for size in sizes], device)}
    ours = tunings(case)
    tuning = ours[best([eager(case, b, **t) for t in ours], device)]
    runs["eager"] = eager(case, b, **tuning)
    rows = rows_at_once(runs["eager"], b.model)
    if case.own:
        runs["own"] = own(case, b, runs["eager"], rows, device)
    want = runs["eager"]()
    if compiling:
        few = ours[min(ours.index(tuning), 1)]  # chunks, because each is a part of the graph
        runs["compiled"] = compiled(case, b, **few)
        close(runs["compiled"](), want, 1e-2)  # kinks: single precision falls on either side
    if case.captum is not None:
        alone = b._replace(model=copy.deepcopy(b.model))  # it leaves hooks behind where it fails
        try:
            runs["Captum"] = case.captum(alone)
            found = runs["Captum"]()
            runs["tuned"] = fastest(captums_best(case, b), device)
            runs["tuned"]()
        except Exception as error:  # Captum raises errors of many types
            runs.pop("Captum", None)
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            notes.append(f"Captum does not run it: {line[:100].replace('|', '/')}")
        else:
            if b.name in case.agrees:
                close(found, want, 1e-2)
            elif case.agrees and gap(found, want) > 1e-2:
                notes.append("Captum runs, but computes other numbers")
    return runs, notes


def captums_best(case: Case, b: Bench) -> list[Run]:
    """Captum's settings, with frozen parameters where it takes these."""
    assert case.captum is not None
    try:
        cold = frozen(b)
        case.captum(cold)()
    except Exception:
        cold = b._replace(model=copy.deepcopy(b.model))
    return [case.captum(cold, **tuning) for tuning in case.tunings]


def gap(found: Tensor, want: Tensor) -> float:
    found = found[0] if isinstance(found, tuple) else found
    return float((found.detach() - want).abs().max() / want.abs().max())


def close(found: Tensor, want: Tensor, tolerance: float) -> None:
    if (apart := gap(found, want)) > tolerance:
        raise AssertionError(f"the results differ by {apart:.1e} of the largest attribution")


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return 1e3 * low, 1e3 * middle, 1e3 * high


def timed(name: str, args: Any) -> Iterator[dict[str, Any]]:
    """The rows of one model; one that fails has a note and no figures."""
    for method, case in CASES.items():
        if name not in case.models or (args.methods and method not in args.methods):
            continue
        torch._dynamo.reset()
        gc.collect()
        row: dict[str, Any] = {"model": name, "method": method, "rows": case.rows * BATCH}
        try:
            row |= measured(case, bench(name, args.device), args)
        except Exception as error:  # the other rows are still worth their time
            line = (str(error).strip().splitlines() or [""])[0][:100].replace("|", "/")
            row |= figures({}, {}) | {"note": f"{FAILED}: {type(error).__name__}: {line}"}
        print(table([shown(row)]).splitlines()[-1], row["note"], flush=True)
        yield row


def measured(case: Case, b: Bench, args: Any) -> dict[str, Any]:
    """Times, ratios and peaks of a row."""
    runs, notes = runs_of(case, b, args.device, not args.no_compile)
    times = medians(runs, args.repeats, args.device, cold=True, most=MOST_ROUNDS)
    measuring = {} if args.no_memory else {who: runs[who] for who in WHO[2:] if who in runs}
    peaks = {who: memory(run, args.device) for who, run in measuring.items()}
    return figures(times, peaks) | {"note": "; ".join(notes)}


def figures(times: Mapping[str, Sequence[float]], peaks: Mapping[str, float]) -> dict[str, float]:
    """The columns of a row, nan where something was not measured."""
    row = {}
    for who in WHO:
        low, middle, high = quartiles(times[who]) if who in times else (math.nan,) * 3
        row |= {f"{who} ms": middle, f"{who} q1": low, f"{who} q3": high}
    for who in WHO[2:]:
        row[f"{who} / floor"] = ratio(times[who], times["floor"]) if who in times else math.nan
    for who in ("eager", "compiled"):
        both = {"tuned", who} <= times.keys()
        row[f"tuned / {who}"] = ratio(times["tuned"], times[who]) if both else math.nan
    row["eager / bar"] = math.nan
    if {"eager", "own"} <= times.keys():
        bar = [1.05 * f + o for f, o in zip(times["floor"], times["own"], strict=True)]
        row["eager / bar"] = ratio(times["eager"], bar)
    return row | {f"{who} MB": peaks.get(who, math.nan) for who in WHO[2:]}


def memory(run: Run, device: str) -> float:
    """Peak extra memory of a run, after what earlier ones left behind is given back."""
    gc.collect()
    if kind(device) == "cpu":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return peak_mb(run, device)


def shown(row: Mapping[str, object]) -> dict[str, str]:
    """A row of the Markdown table."""

    def text(key: str, digits: int) -> str:
        value = row[key]
        return "-" if math.isnan(value) else f"{value:.{digits}f}"

    cells = {"model": row["model"], "method": row["method"], "rows": int(row["rows"])}
    for who in WHO:
        spread = f" ({text(f'{who} q1', 2)}-{text(f'{who} q3', 2)})"
        middle = text(f"{who} ms", 2)
        cells[f"{who} ms"] = middle if middle == "-" else middle + spread
    for who in WHO[2:]:
        cells[f"{who} / floor"] = text(f"{who} / floor", 2)
    for who in WHO[2:]:
        cells[f"{who} MB"] = text(f"{who} MB", 1)
    return cells


def summary(rows: Sequence[Mapping[str, float]]) -> str:
    """The bars, and which rows miss them."""

    def mean(ratios: Sequence[float]) -> float:
        return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else math.nan

    both = [r for r in rows if not math.isnan(r["tuned ms"])]
    lines = []
    for who, bar in (("eager", None), ("compiled", 1.3)):
        gains = [r[f"tuned / {who}"] for r in both]
        slower = [
            f"{r['model']} {r['method']} {g:.2f}" for r, g in zip(both, gains, strict=True) if g < 1
        ]
        text = f"- {who}, over Captum tuned: {mean(gains):.2f}x in the geometric mean"
        text += f" (bar: {bar}x)" if bar else ""
        text += f" of {len(both)} rows, slower on {len(slower)}"
        lines.append(text + (f": {', '.join(slower)}." if slower else "."))
    default = mean([r["Captum ms"] / r["eager ms"] for r in both])
    lines.append(f"- eager, over Captum's defaults: {default:.2f}x.")
    owns = [r for r in rows if not math.isnan(r["eager / bar"])]
    late = [
        f"{r['model']} {r['method']} {r['eager / bar']:.2f}" for r in owns if r["eager / bar"] > 1
    ]
    text = f"- eager within 1.05 x floor + own: {len(owns) - len(late)} of {len(owns)} rows"
    lines.append(text + (f"; not {', '.join(late)}." if late else "."))
    done = [r for r in rows if not math.isnan(r["compiled / floor"])]
    far = sorted(done, key=lambda r: -r["compiled / floor"])[:5]
    text = ", ".join(f"{r['model']} {r['method']} {r['compiled / floor']:.1f}" for r in far)
    lines.append(f"- compiled, furthest from the floor: {text}.")
    return "\n".join(lines)


def picture(rows: Sequence[Mapping[str, float]], path: Path, device: str) -> None:
    """Each method's time over the floor, a panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    marks = {
        "Captum": ("#b8b8b8", "o", "Captum, default"),
        "tuned": ("#6f6f6f", "o", "Captum, tuned"),
        "eager": ("#2a78d6", "D", "attrfn"),
        "compiled": ("#d9480f", "D", "attrfn, compiled"),
    }
    methods = list(dict.fromkeys(r["method"] for r in rows))
    place = {method: -i for i, method in enumerate(methods)}
    models = list(dict.fromkeys(r["model"] for r in rows))
    figure, panels = plt.subplots(
        1, len(models), figsize=(11, 0.2 * len(methods) + 1.4), sharey=True, squeeze=False
    )
    for panel, model in zip(panels[0], models, strict=True):
        panel.axvline(1, color="black", linewidth=0.8)
        mine = [r for r in rows if r["model"] == model]
        for who, (colour, mark, label) in marks.items():
            x = [r[f"{who} / floor"] for r in mine]
            y = [place[r["method"]] for r in mine]
            panel.scatter(x, y, 16, colour, mark, label=label, zorder=3, linewidths=0)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(LogLocator(2))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(model, fontsize=10)
        panel.set_xlabel("time / floor", fontsize=9)
        panel.set_yticks(list(place.values()), list(place), fontsize=7.5)
        panel.set_ylim(min(place.values()) - 0.7, 0.7)
        panel.grid(axis="y", linewidth=0.3, color="#dddddd")
        panel.grid(axis="x", linewidth=0.3, color="#dddddd")
        panel.tick_params(axis="both", length=2, labelsize=7.5)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, fontsize=9, frameon=False)
    figure.text(0.5, 0.002, machine(device), ha="center", fontsize=6.5, color="#777777")
    figure.tight_layout(rect=(0, 0.015, 1, 0.965))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def save(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write rows in place of those that the table has for them, and return them all, in order."""
    known = {(r["model"], r["method"]): r for r in (last_table(path) if path.exists() else [])}
    known |= {(r["model"], r["method"]): r for r in rows}
    order = [(model, method) for model in MODELS for method in CASES]
    merged = [known[key] for key in order if key in known]
    write_csv(path, merged)
    return merged


def last_table(path: Path) -> list[dict[str, Any]]:
    """The rows of the committed table."""

    def value(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    with path.open(newline="") as file:
        return [{key: value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def check(args: Any) -> None:
    """Compare some ratios with the committed table."""
    path = path_of(NAME, args.device, "csv")
    known = {(r["model"], r["method"]): r for r in (last_table(path) if path.exists() else [])}
    rows, missing, failed = [], [], []
    for name in args.models:
        for method in CHECKED:
            row = known.get((name, method), {})
            compiling = method in COMPILED[name] and not args.no_compile
            before = {
                who: row.get(f"{who} / floor", math.nan)
                for who in ("eager", *(["compiled"] if compiling else []))
            }
            missing += [f"{name} {method} {who}" for who, r in before.items() if math.isnan(r)]
            before = {who: r for who, r in before.items() if not math.isnan(r)}
            if not before:
                continue
            now = checked(CASES[method], bench(name, args.device), before, args)
            for who, r in before.items():
                cells = {"model": name, "method": method, "": who, "committed": f"{r:.2f}"}
                rows.append(
                    cells | {"now": f"{now[who]:.2f}", "change": f"{now[who] / r - 1:+.0%}"}
                )
                if now[who] > r * (1 + SLACK):
                    line = f"{now[who]:.2f}x the floor, {r:.2f}x committed"
                    failed.append(f"{name} {method} {who}: {line}")
    if rows:
        print(table(rows))
    if missing:
        print(f"not compared, the committed table has no figure: {', '.join(missing)}")
    if failed:
        sys.exit(f"more than {SLACK:.0%} slower than the committed table:\n" + "\n".join(failed))
    if not rows:
        sys.exit(f"nothing to compare: {path.name} has none of the rows, run {NAME}.py first")


def checked(case: Case, b: Bench, before: Mapping[str, float], args: Any) -> dict[str, float]:
    """The ratios now; what a noisy moment made slow is timed again, twice at most."""
    now: dict[str, float] = dict.fromkeys(before, math.inf)
    for _ in range(3):
        slow = [who for who in before if now[who] > before[who] * (1 + SLACK)]
        if not slow:
            break
        torch._dynamo.reset()
        runs, _ = runs_of(case._replace(captum=None), b, args.device, "compiled" in slow)
        times = medians(runs, args.repeats, args.device, cold=True)
        now |= {who: min(now[who], ratio(times[who], times["floor"])) for who in slow}
    return now


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    flags.add_argument("--methods", nargs="*", choices=list(CASES), help="these only")
    flags.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    flags.add_argument("--no-memory", action="store_true", help="leave memory out")
    flags.add_argument("--report", action="store_true", help="only write of the last table")
    flags.add_argument("--check", action="store_true", help="compare with the committed table")
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # Captum's on hooks, in every run
    if args.check:
        check(args)
        return
    if args.quick:
        args.repeats, args.no_compile, args.no_memory = 3, True, True
    path = path_of(NAME, args.device, "csv")
    if args.report:
        report(last_table(path), args)
        return
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in args.models:
        for row in timed(name, args):
            failed += [f"{name} {row['method']}"] if row["note"].startswith(FAILED) else []
            rows = [row] if args.no_compile else save(path, [row])
    failure = f"failed: {', '.join(failed)}" if failed else None
    if args.no_compile:
        sys.exit(failure)
    report(rows, args)
    sys.exit(failure)


def report(rows: Sequence[Mapping[str, Any]], args: Any) -> None:
    """The page and the picture of a table."""
    notes = [f"{r['model']}, {r['method']}: {r['note']}" for r in rows if r["note"]]
    bars = summary(rows)
    print(bars)
    caption = (
        f"Batches of {BATCH}; medians (and quartiles) of {args.repeats} to {MOST_ROUNDS} "
        "interleaved rounds in an order drawn anew, with other work before each run (cold caches); "
        "ratios are taken within a round, then their median. rows: what a method has to look at. "
        "Memory is the peak beyond what a run finds, of the whole process on a CPU."
    )
    parts = [caption, bars, table([shown(row) for row in rows]), "Notes:"]
    text = "\n\n".join(parts) + "\n\n" + "\n".join(f"- {note}" for note in notes)
    path = write(NAME, "Every method beside the floor and Captum", args.device, text)
    picture(rows, path.with_suffix(".png"), args.device)


if __name__ == "__main__":
    main()
