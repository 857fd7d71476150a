"""How the cost of a method grows: with the batch, steps, samples, features and the model's width.

Each line is a method along one of them. A least-squares fit of ``time = fixed + unit * work`` gives
its constants, where work is the number of rows that the model sees; the exponent is the slope of
log time over log size between the two largest sizes, of the method and of its floor (a bare batched
pass of as many rows). Prints a table and writes it to benchmarks/results/, with all
measurements as CSV and a picture.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _harness import machine, median, medians, parser, ratio, table, write, write_csv
from torch import Tensor, nn

import attrfn

COLUMNS = 240  # of the data
WIDTH = 512  # of the model
BATCH = 16
Run = Callable[[], Any]
Method = Callable[..., Any]


class Line(NamedTuple):
    """A method along an axis.

    Attributes:
        axis: What grows.
        name: The method's.
        sizes: The values of what grows.
        run: From the model, the inputs, the targets and a size to the method's run.
        rows: From a size to the rows of the model, as a multiple of the batch.
        backward: Whether these rows need a backward pass.
    """

    axis: str
    name: str
    sizes: Sequence[int]
    run: Callable[[nn.Module, Tensor, Tensor, int], Run]
    rows: Callable[[int], int]
    backward: bool = True


def bound(method: Method, **options: Any) -> Method:
    def run(model: nn.Module, x: Tensor, target: Tensor, n: int) -> Run:
        given = {name: v(n) if callable(v) else v for name, v in options.items()}
        return lambda: method(model, x, target=target, **given)

    return run


def smoothgrad(model: nn.Module, x: Tensor, target: Tensor, n: int) -> Run:
    method = attrfn.noise_tunnel(attrfn.gradient, n_samples=n, stdevs=0.1)
    return lambda: method(model, x, target=target)


def groups(n: int) -> dict[str, Any]:
    return {"feature_mask": torch.arange(COLUMNS) * n // COLUMNS, "n_features": n}


def grouped(method: Method, **options: Any) -> Method:
    """With as many features as the size says."""

    def run(model: nn.Module, x: Tensor, target: Tensor, n: int) -> Run:
        return lambda: method(model, x, target=target, **groups(n), **options)

    return run


def sampled(method: Method) -> Method:
    """With as many samples as the size says, of 12 features."""

    def run(model: nn.Module, x: Tensor, target: Tensor, n: int) -> Run:
        return lambda: method(model, x, target=target, n_samples=n, **groups(12))

    return run


def one(n: int) -> int:
    return 1


def two(n: int) -> int:
    return 2


BATCHES, STEPS, SAMPLES = (1, 4, 16, 64, 256), (4, 16, 64, 256), (32, 128, 512, 2048)
WIDTHS, FEATURES, FEW = (64, 128, 256, 512, 1024), (8, 24, 80, 240), (4, 6, 8, 10)
STEP = {"n_steps": lambda n: n, "chunk_size": 16}

LINES = [
    Line("batch", "gradient", BATCHES, bound(attrfn.gradient), one),
    Line(
        "batch",
        "integrated_gradients, 16 steps",
        BATCHES,
        bound(attrfn.integrated_gradients, n_steps=16),
        lambda n: 16,
    ),
    Line("batch", "deep_lift", BATCHES, bound(attrfn.deep_lift), two),
    Line("batch", "lrp", BATCHES, bound(attrfn.lrp), one),
    Line(
        "batch",
        "feature_ablation, 24 features",
        BATCHES,
        lambda model, x, target, n: grouped(attrfn.feature_ablation)(model, x, target, 24),
        lambda n: 25,
        False,
    ),
    Line("n_steps", "integrated_gradients", STEPS, bound(attrfn.integrated_gradients, **STEP), int),
    Line(
        "n_steps",
        "layer_conductance",
        STEPS,
        bound(attrfn.layer_conductance, layer="1", **STEP),
        int,
    ),
    Line("n_samples", "smoothgrad", STEPS, smoothgrad, int),
    Line("n_samples", "kernel_shap, 12 features", SAMPLES, sampled(attrfn.kernel_shap), int, False),
    Line("n_samples", "lime, 12 features", SAMPLES, sampled(attrfn.lime), int, False),
    Line(
        "n_samples",
        "shapley_value_sampling, 12 features",
        (2, 8, 32),
        sampled(attrfn.shapley_value_sampling),
        lambda n: 12 * n,
        False,
    ),
    Line(
        "n_features",
        "feature_ablation",
        FEATURES,
        grouped(attrfn.feature_ablation),
        lambda n: n + 1,
        False,
    ),
    Line(
        "n_features",
        "kernel_shap, 512 samples",
        FEATURES,
        grouped(attrfn.kernel_shap, n_samples=512),
        lambda n: 512,
        False,
    ),
    Line(
        "n_features",
        "shapley_values",
        FEW,
        grouped(attrfn.shapley_values),
        lambda n: 2**n,
        False,
    ),
    Line("width", "gradient", WIDTHS, bound(attrfn.gradient), one),
    Line("width", "deep_lift", WIDTHS, bound(attrfn.deep_lift), two),
    Line("width", "lrp", WIDTHS, bound(attrfn.lrp), one),
]


def network(width: int, device: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(COLUMNS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)).eval().to(device)


def floor(model: nn.Module, x: Tensor, target: Tensor, times: int, backward: bool) -> Run:
    """A bare pass of ``times`` copies of the batch, at most 4,096 rows at once."""
    rows = x.repeat(min(times, max(1, 4096 // len(x))), 1)
    index = target.repeat(len(rows) // len(target))[:, None]

    def chunk(n: int) -> Tensor:
        if not backward:
            with torch.no_grad():
                return model(rows[:n])
        z = rows[:n].detach().requires_grad_()
        return torch.autograd.grad(model(z).gather(1, index[:n]).sum(), z)[0]

    def run() -> None:
        left = times * len(x)
        while left > 0:
            chunk(min(left, len(rows)))
            left -= len(rows)

    return run


def fit(work: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """The constants of ``fixed + unit * work``, by least squares of the relative errors."""
    w = torch.tensor(work, dtype=torch.float64)
    t = torch.tensor(times, dtype=torch.float64)
    A = torch.stack([torch.ones_like(w), w], 1) / t[:, None]
    fixed, unit = torch.linalg.lstsq(A, torch.ones_like(t)[:, None]).solution[:, 0].tolist()
    return fixed, unit


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    return math.log(times[-1] / times[-2]) / math.log(sizes[-1] / sizes[-2])


def measured(line: Line, args: Any) -> dict[str, Any]:
    sizes = line.sizes[:3] if args.quick else line.sizes
    ms: dict[str, list[float]] = {"method": [], "floor": []}
    work, over = [], []
    for n in sizes:
        model = network(n if line.axis == "width" else WIDTH, args.device).requires_grad_(False)
        batch = n if line.axis == "batch" else BATCH
        x = torch.randn(batch, COLUMNS, generator=torch.Generator().manual_seed(1))
        x, target = x.to(args.device), torch.arange(batch, device=args.device) % 10
        runs = {
            "method": line.run(model, x, target, n),
            "floor": floor(model, x, target, line.rows(n), line.backward),
        }
        times = medians(runs, args.repeats, args.device)
        for who in ms:
            ms[who].append(1e3 * median(times[who]))
        over.append(ratio(times["method"], times["floor"]))
        work.append(line.rows(n) * batch)
    return {"line": line, "sizes": sizes, "work": work, "over": over, **ms}


def figures(found: Mapping[str, Any]) -> list[dict[str, object]]:
    """A line's measurements, one a row, for other programs."""
    columns = zip(
        *(found[key] for key in ("sizes", "work", "method", "floor", "over")), strict=True
    )
    names = ("size", "rows", "ms", "floor ms", "/ floor")
    line = {"along": found["line"].axis, "method": found["line"].name}
    return [line | dict(zip(names, values, strict=True)) for values in columns]


def shown(found: Mapping[str, Any]) -> dict[str, str]:
    line, sizes = found["line"], found["sizes"]
    fixed, unit = fit(found["work"], found["method"])
    linear = line.axis != "width"  # a row of a wider model is another piece of work
    return {
        "along": line.axis,
        "method": line.name,
        "from": f"{sizes[0]}",
        "to": f"{sizes[-1]}",
        "ms": f"{found['method'][0]:.2f} - {found['method'][-1]:.2f}",
        "/ floor": f"{found['over'][0]:.2f} - {found['over'][-1]:.2f}",
        "exponent": f"{exponent(sizes, found['method']):.2f}",
        "floor's": f"{exponent(sizes, found['floor']):.2f}",
        "fixed ms": f"{max(fixed, 0):.2f}" if linear else "-",
        "us / row": f"{1e3 * unit:.2f}" if linear else "-",
    }


def picture(lines: Sequence[Mapping[str, Any]], path: Path, device: str) -> None:
    """A panel for each axis, both scales logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    colours = ("#2a78d6", "#d9480f", "#2b8a3e", "#862e9c", "#b08800")
    axes = list(dict.fromkeys(found["line"].axis for found in lines))
    figure, panels = plt.subplots(1, len(axes), figsize=(15, 3.6))
    for panel, axis in zip(panels, axes, strict=True):
        mine = [found for found in lines if found["line"].axis == axis]
        for colour, found in zip(colours, mine, strict=False):
            label = found["line"].name.split(",")[0]
            panel.plot(found["sizes"], found["method"], "o-", color=colour, ms=3, lw=1.2)
            panel.plot(found["sizes"], found["floor"], ":", color=colour, lw=1)
            panel.plot([], [], color=colour, lw=1.2, label=label)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(axis, fontsize=9)
        panel.tick_params(labelsize=7.5, length=2)
        panel.grid(linewidth=0.3, color="#dddddd")
        panel.legend(fontsize=6.5, frameon=False)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0].set_ylabel("ms (dotted: the floor)", fontsize=9)
    figure.text(0.5, 0.005, machine(device), ha="center", fontsize=6.5, color="#777777")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.repeats = 3
    lines = []
    for line in LINES:
        lines.append(measured(line, args))
        print(table([shown(lines[-1])]).splitlines()[-1], flush=True)
    text = table([shown(found) for found in lines])
    if args.quick:
        picture(lines, Path(tempfile.mkdtemp()) / "scaling.png", args.device)
        return
    caption = (
        f"An MLP of {COLUMNS} columns and two hidden layers of {WIDTH}, {BATCH} rows; medians of "
        f"{args.repeats} interleaved rounds. A row is one that the model sees."
    )
    path = write("scaling", "How the cost grows", args.device, f"{caption}\n\n{text}")
    write_csv(path.with_suffix(".csv"), [row for found in lines for row in figures(found)])
    picture(lines, path.with_suffix(".png"), args.device)


if __name__ == "__main__":
    main()
