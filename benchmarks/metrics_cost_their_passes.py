"""Metrics cost the passes of the model that they need.

The floor is bare passes over as many rows, frozen parameters, in the same chunks. Captum runs
too if it has the metric, and Quantus if it can be imported: it is not a dependency, so
install it elsewhere and give the folder,

    pip install --no-deps --target DIR quantus==0.6.0 opencv-python-headless scikit-image \
        cachetools imageio lazy_loader tifffile networkx
    python benchmarks/metrics_cost_their_passes.py --quantus DIR

A second table compares values with both. Prints the tables and writes them to benchmarks/results/.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from _harness import median, medians, parser, ratio, seconds, table, write
from captum.attr import Saliency
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor, nn

import attrfn
from attrfn import metrics
from attrfn.metrics import similarity

Run = Callable[[], object]
CHUNKS = (1, 2, 4)


class Digits(nn.Module):
    """Two convolutions on 28 x 28 images."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(4)
        self.head = nn.Linear(16 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class Text(nn.Module):
    """Two encoder layers on 32 tokens of width 64."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Tabular(nn.Module):
    """Two hidden layers of width 512 on 784 features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "CNN, 64 images of 28 x 28": (Digits, (64, 1, 28, 28)),
    "MLP, 64 rows": (Tabular, (64, 784)),
    "transformer, 16 texts": (Text, (16, 32, 64)),
}


class Case(NamedTuple):
    """What is timed.

    Attributes:
        name: The metric.
        copies: The passes of the batch that it needs.
        backward: Whether those are forward and backward.
        ours: From a chunk size to the run.
        compiles: Whether it is also timed as one graph.
        captum: From a number of rows to Captum's run.
        quantus: From the module to Quantus' run.
        chunked: Whether the chunk size matters.
    """

    name: str
    copies: int
    backward: bool
    ours: Callable[..., Any]
    compiles: bool = False
    captum: Callable[[int | None], Any] | None = None
    quantus: Callable[[Any], Any] | None = None
    chunked: bool = True


def cases(model: nn.Module, x: Tensor, quick: bool) -> Iterator[Case]:
    target = torch.arange(len(x)) % 10
    a = attrfn.input_x_gradient(model, x, target=target)
    on = {"target": target}
    n = 10 if quick else 20
    elements = x[0].numel()

    @infidelity_perturb_func_decorator(True)
    def perturb(inputs: Tensor, baselines: Any = None) -> Tensor:
        return torch.where(torch.rand_like(inputs) < 0.5, 0.0, inputs)

    yield Case(
        "deletion, 28 steps",
        29,
        False,
        lambda c, x=x, a=a: metrics.deletion(model, x, a, **on, n_steps=28, chunk_size=c),
        True,
        quantus=lambda q: q.PixelFlipping(
            features_in_step=max(1, elements // 28),
            perturb_baseline=0.0,
            **QUIET,
            abs=False,
            normalise=False,
        ),
    )
    yield Case(
        f"infidelity, {n} samples",
        n + 1,
        False,
        lambda c, x=x, a=a: metrics.infidelity(model, x, a, **on, n_samples=n, chunk_size=c),
        True,
        lambda rows: infidelity(
            model, perturb, x, a, **on, n_perturb_samples=n, max_examples_per_batch=rows
        ),
    )
    yield Case(
        "faithfulness_correlation, 50 subsets",
        51,
        False,
        lambda c, x=x, a=a: metrics.faithfulness_correlation(
            model, x, a, **on, size=elements // 4, n_samples=50, chunk_size=c
        ),
        quantus=lambda q: q.FaithfulnessCorrelation(
            nr_runs=50,
            subset_size=elements // 4,
            perturb_baseline=0.0,
            **QUIET,
            abs=False,
            normalise=False,
            return_aggregate=False,
        ),
    )
    yield Case(
        f"sensitivity_max of saliency, {n} samples",
        n + 1,
        True,
        lambda c, x=x, a=a: metrics.sensitivity_max(
            model, x, attrfn.saliency, **on, n_samples=n, chunk_size=c
        ),
        True,
        lambda rows: sensitivity_max(
            Saliency(model).attribute, x, **on, n_perturb_samples=n, max_examples_per_batch=rows
        ),
    )
    layers = len([m for m in model.modules() if [*m.parameters(recurse=False)]])
    for name, similar in (("pearson", similarity.pearson), ("spearman", similarity.spearman)):
        yield Case(
            f"model_parameter_randomization, {layers} layers, {name}",
            layers + 1,
            True,
            lambda c, x=x, a=a, s=similar: metrics.model_parameter_randomization(
                model, x, attrfn.gradient, **on, similarity=s
            ),
            chunked=False,
        )
    if x.ndim == 4:
        yield Case(
            "road, 9 shares",
            19,
            False,
            lambda c, x=x, a=a: metrics.road(model, x, a, **on, chunk_size=c),
            quantus=lambda q: q.ROAD(
                percentages=list(range(10, 100, 10)), **QUIET, abs=False, normalise=False
            ),
        )


QUIET = {"disable_warnings": True, "display_progressbar": False}


def floor(model: nn.Module, x: Tensor, case: Case, chunk: int) -> Run:
    """Bare passes over the rows of the copies, ``chunk`` copies at once."""
    target = torch.arange(len(x)) % 10
    sizes = [min(chunk, case.copies - i) for i in range(0, case.copies, chunk)]
    rows = {size: (x.repeat(size, *[1] * (x.ndim - 1)), target.repeat(size)) for size in sizes}

    def run() -> None:
        for size in sizes:
            z, t = rows[size]
            if case.backward:
                z = z.detach().requires_grad_()
                torch.autograd.grad(model(z).gather(1, t[:, None]).sum(), z)
            else:
                with torch.no_grad():
                    model(z)

    return run


def compiled(case: Case, x: Tensor, a: Tensor) -> Run:
    """The whole metric as one graph, in four chunks: more would be more to compile."""
    run = torch.compile(lambda x, a: case.ours(-(-case.copies // 4), x, a))
    return lambda: run(x, a)


def rounds(runs: dict[str, Run], args: Any) -> int:
    """How many rounds: three where a round takes seconds, which vary less than milliseconds."""
    once = seconds(runs["floor, 1"], args.device)
    return min(args.repeats, 3) if once * len(runs) > 2 else args.repeats


def timed(name: str, args: Any, quantus: Any) -> Iterator[dict[str, object]]:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False)
    x = torch.rand(shape)
    target = torch.arange(len(x)) % 10
    a = attrfn.input_x_gradient(model, x, target=target)
    for case in cases(model, x, args.quick):
        runs: dict[str, Run] = {f"floor, {c}": floor(model, x, case, c) for c in CHUNKS}
        for c in (*CHUNKS, "auto") if case.chunked else (1,):
            runs[f"attrfn, {c}"] = functools.partial(case.ours, c)
        if case.compiles and not args.quick:
            runs["attrfn compiled, a quarter"] = compiled(case, x, a)
        if case.captum is not None:
            runs["Captum, default"] = functools.partial(case.captum, None)
            for c in CHUNKS:
                runs[f"Captum, {c}"] = functools.partial(case.captum, c * len(x))
        if quantus is not None and case.quantus is not None and x.ndim == 4:
            metric = case.quantus(quantus)
            given = {"x_batch": x.numpy(), "y_batch": target.numpy(), "a_batch": a.numpy()}
            runs["Quantus"] = functools.partial(metric, model=model, **given, device="cpu")
        times = medians(runs, rounds(runs, args), args.device)
        best = min((t for k, t in times.items() if k.startswith("floor")), key=median)
        captums = [t for k, t in times.items() if k.startswith("Captum")]
        fastest = min(captums, key=median) if captums else None
        for what, values in times.items():
            yield {
                "model": name,
                "metric": case.name,
                "what, copies at once": what,
                "ms": f"{1e3 * median(values):.1f}",
                "/ floor, best chunk": f"{ratio(values, best):.2f}",
                "/ Captum, best": f"{ratio(values, fastest):.2f}" if fastest else "",
            }
            print(name, case.name, what, f"{ratio(values, best):.2f}", sep=", ", flush=True)


def statistics_of(args: Any) -> Iterator[dict[str, object]]:
    """Statistics and localisation against one sort of the same numbers."""
    batch = 20 if args.quick else 100
    a = torch.rand(batch, 3, 224, 224)
    mask = torch.zeros(1, 1, 224, 224, dtype=torch.bool)
    mask[..., 50:150, 50:150] = True
    pooled = a.sum(1)
    for name, runs in (
        (
            "all elements",
            {"one sort": a.flatten(1).sort, "sparseness": lambda: metrics.sparseness(a)},
        ),
        (
            "pixels",
            {
                "one sort": pooled.flatten(1).sort,
                "relevance_rank": lambda: metrics.relevance_rank(a, mask),
                "localization_auc": lambda: metrics.localization_auc(a, mask),
            },
        ),
    ):
        times = medians(runs, min(args.repeats, 3), args.device)
        for what, values in times.items():
            yield {
                f"on ({batch}, 3, 224, 224)": f"{what}, {name}",
                "ms": f"{1e3 * median(values):.0f}",
                "/ one sort": f"{ratio(values, times['one sort']):.2f}",
            }


def values(quantus: Any) -> Iterator[dict[str, object]]:
    """Our numbers and theirs on the same perturbations, in float64."""
    torch.manual_seed(0)
    model = Digits().eval().double().requires_grad_(False)
    x = torch.rand(8, 1, 28, 28).double()
    target = torch.arange(8)
    a = attrfn.input_x_gradient(model, x, target=target)
    samples, on = 5, {"target": target}
    moves = 0.1 * torch.randn(samples, *x.shape, dtype=torch.float64)
    theirs = moves.transpose(0, 1).flatten(0, 1)  # (B * S, ...), example by example

    @infidelity_perturb_func_decorator(True)
    def perturb(inputs: Tensor, baselines: Any = None) -> Tensor:
        return inputs - theirs

    def ours(rows: Tensor, keys: Tensor) -> Tensor:
        return moves.flatten(0, 1)  # all samples at once

    all_at_once = {"n_samples": samples, "chunk_size": None}
    yield compared(
        "infidelity against Captum",
        metrics.infidelity(model, x, a, **on, perturb=ours, **all_at_once),
        infidelity(model, perturb, x, a, **on, n_perturb_samples=samples),
    )
    method = functools.partial(attrfn.saliency)
    yield compared(
        "sensitivity_max against Captum",
        metrics.sensitivity_max(
            model, x, method, **on, perturb=lambda x, keys: x + ours(x, keys), **all_at_once
        ),
        sensitivity_max(
            Saliency(model).attribute,
            x,
            lambda x, radius: x + theirs,
            n_perturb_samples=samples,
            **on,
        ),
    )
    if quantus is not None:
        yield from against_quantus(quantus, model, x, a, target)


def against_quantus(
    q: Any, model: nn.Module, x: Tensor, a: Tensor, target: Tensor
) -> Iterator[dict[str, object]]:
    """Where Quantus computes the same quantity; it divides nothing if it is told not to."""
    model, x, a = model.float(), x.float(), a.float()
    plain = {**QUIET, "abs": False, "normalise": False}
    mask = np.zeros((8, 1, 28, 28), dtype=bool)
    mask[..., 5:20, 8:20] = True
    given = {"x_batch": x.numpy(), "y_batch": target.numpy(), "a_batch": a.numpy()}

    def run(metric: Any, **more: Any) -> Tensor:
        found = metric(model=model, **given, device="cpu", **more)
        return torch.tensor(np.array(found), dtype=torch.float32)

    yield compared("sparseness", metrics.sparseness(a), run(q.Sparseness(**{**plain, "abs": True})))
    yield compared("complexity", metrics.complexity(a), run(q.Complexity(**{**plain, "abs": True})))
    inside = torch.from_numpy(mask)
    yield compared(
        "localization_auc", metrics.localization_auc(a, inside), run(q.AUC(**plain), s_batch=mask)
    )
    yield compared(
        "relevance_rank",
        metrics.relevance_rank(a, inside),
        run(q.RelevanceRankAccuracy(**plain), s_batch=mask),
    )
    curve = metrics.removal_curve(model, x, a, target=target, n_steps=28).values
    flipped = run(
        q.PixelFlipping(features_in_step=28, perturb_baseline=0.0, **plain), softmax=False
    )
    yield compared("removal_curve against PixelFlipping", curve[:, 1:], flipped)
    estimate = q.FaithfulnessEstimate(features_in_step=1, perturb_baseline=0.0, **plain)
    yield compared(
        "faithfulness_estimate",
        metrics.faithfulness_estimate(model, x, a, target=target),
        run(estimate, softmax=False),
    )


def compared(name: str, ours: Tensor, theirs: Tensor) -> dict[str, object]:
    gap = (ours - theirs).abs().max().item()
    return {
        "value": name,
        "ours, first": f"{ours.flatten()[0]:.6g}",
        "theirs, first": f"{theirs.flatten()[0]:.6g}",
        "largest difference": f"{gap:.1e}",
    }


def found_quantus(folder: str | None) -> Any:
    if folder is None:
        return None
    sys.path.append(folder)
    np.trapz = np.trapezoid  # gone in numpy 2.4; Quantus calls it
    warnings.simplefilter("ignore")
    import quantus

    return quantus


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--quantus", help="the folder with Quantus")
    p.set_defaults(repeats=5)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    quantus = found_quantus(args.quantus)
    compare = list(values(quantus))
    print(table(compare), flush=True)
    sorts = list(statistics_of(args))
    print(table(sorts), flush=True)
    names = list(MODELS)[:1] if args.quick else list(MODELS)
    rows: list[dict[str, object]] = []
    for name in names:
        rows += timed(name, args, quantus)
        if not args.quick:  # after each model, because all of them take long
            parts = [table(rows), "## Statistics", table(sorts), "## Values", table(compare)]
            write("metrics_cost_their_passes", "Metrics: time", args.device, "\n\n".join(parts))


if __name__ == "__main__":
    main()
