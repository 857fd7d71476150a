"""Perturbation methods cost what their forward passes cost.

The floor is bare forward passes of as many rows under no_grad, in the same chunks: no copies are
made, masked or put together again. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import functools
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from _harness import Cnn, Transformer, median, medians, parser, ratio, seconds, table, write
from captum import attr
from torch import Tensor, nn

import attrfn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import calls is deprecated
    import shap

SAMPLES = 512
ORDERINGS = 25
Run = Callable[[], object]


class Cnn64(Cnn):
    """The same convolutions on 3 x 64 x 64 images."""

    shape = (3, 64, 64)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64 * 16 * 16, 10)


class Tabular(nn.Module):
    """Two hidden layers of width 128 on 13 columns."""

    shape = (13,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(13, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Case(NamedTuple):
    """What is timed.

    Attributes:
        method: A method of attrfn and its options.
        captum: The method of Captum, from a model, and its options.
        model: The class of the model.
        batch: How many rows.
        copies: How many perturbed copies of the batch.
        plain: How many unperturbed ones.
        chunks: How many copies at once.
        evals: Captum's perturbations_per_eval, to search the best of.
        shap: From model, inputs and target to a run, where shap has the method.
        agrees: Asserts that two results agree.
        slow: How many rounds Captum's slow runs take part in, 0 for all.
        at_least: How many times faster than Captum's default it has to be.
    """

    method: Callable
    options: Mapping[str, object]
    captum: Callable
    captum_options: Mapping[str, object]
    model: type[nn.Module]
    batch: int
    copies: int
    plain: int
    chunks: Sequence[int]
    evals: Sequence[int]
    shap: Callable | None = None
    agrees: Callable | None = None
    slow: int = 0
    at_least: float = 3


def tokens() -> Tensor:
    return torch.arange(32)[:, None]


def superpixels() -> Tensor:
    return torch.arange(16).reshape(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)


def permutation_explainer(model: nn.Module, x: Tensor, target: Tensor) -> Run:
    """As many orderings (forward and backward count two), one row after the other."""
    masker = shap.maskers.Independent(np.zeros((1, 13)))
    explainer = shap.PermutationExplainer(numpy_of(model, x.device), masker, seed=0)
    evals = (ORDERINGS // 2) * 2 * 13 + 1
    return lambda: explainer(x.cpu().numpy(), max_evals=evals, silent=True)


def kernel_explainer(model: nn.Module, x: Tensor, target: Tensor) -> Run:
    explainer = shap.KernelExplainer(numpy_of(model, x.device), np.zeros((1, 13)))
    rows = x.cpu().numpy()
    return lambda: explainer.shap_values(rows, nsamples=SAMPLES, l1_reg=False, silent=True)


def numpy_of(model: nn.Module, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    def f(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(rows.astype(np.float32)).to(device)).cpu().numpy()

    return f


def equal(case: Case, model: nn.Module, x: Tensor, target: Tensor) -> None:
    """The two define the same numbers."""
    want = captum_run(case, model, x, target, case.evals[-1])()
    torch.testing.assert_close(eager(case, model, x, target, "auto")(), want, rtol=1e-3, atol=1e-4)


def within_errors(case: Case, model: nn.Module, x: Tensor, target: Tensor) -> None:
    """Both are means over random orderings."""
    want = captum_run(case, model, x, target, case.evals[-1])()
    got, error = case.method(model, x, target=target, return_stderr=True, **case.options)
    gap = (got - want).abs()
    assert (gap < 6 * 2**0.5 * error + 1e-4).all(), (gap / error).max()


def near_exact(case: Case, model: nn.Module, x: Tensor, target: Tensor) -> None:
    """Both are near the exact Shapley values, ours nearer."""
    x, target = x[:4], target[:4]
    exact = attrfn.shapley_values(model, x, target=target)
    ours = case.method(model, x, target=target, **case.options)
    theirs = captum_run(case, model, x, target, case.evals[-1])()
    gaps = [float(((a - exact) ** 2).mean() / (exact**2).mean()) for a in (ours, theirs)]
    assert gaps[0] < gaps[1] < 0.05, gaps


def same_draws(case: Case, model: nn.Module, x: Tensor, target: Tensor) -> None:
    """The same lasso from the same draws, up to sklearn's tolerance."""
    z = torch.rand(SAMPLES, 13, generator=torch.Generator().manual_seed(0)) < 0.5
    z = z.to(x.device)

    def draws(original: Tensor, **options: object) -> Iterator[Tensor]:
        yield from z[:, None].long()

    captum = attr.Lime(model, perturb_func=draws)
    x, target = x[:4], target[:4]
    want = captum.attribute(x, target=target, n_samples=SAMPLES, perturbations_per_eval=SAMPLES)
    got = attrfn.lime(
        model,
        x,
        target=target,
        n_samples=SAMPLES,
        perturb=lambda keys, n: z[:, None],
        chunk_size=None,
    )
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3)


def cases() -> dict[str, Case]:
    def occlusion(model: type[nn.Module], batch: int, stride: int, windows: int) -> Case:
        shape = {"window": (3, 8, 8), "stride": (3, stride, stride)}
        sliding = {"sliding_window_shapes": shape["window"], "strides": shape["stride"]}
        return Case(
            attrfn.occlusion,
            shape,
            attr.Occlusion,
            sliding,
            model,
            batch,
            windows,
            1,
            (4, 16) if batch == 1 else (1, 4),
            (1, 2, 4, 16, windows),
            agrees=equal,
        )

    def ablation(batch: int) -> Case:
        return Case(
            attrfn.feature_ablation,
            {"feature_mask": tokens()},
            attr.FeatureAblation,
            {"feature_mask": tokens()[None]},
            Transformer,
            batch,
            32,
            1,
            (8, 32) if batch == 1 else (1, 4),
            (1, 2, 4, 8, 32),
            agrees=equal,
        )

    orderings = {"n_samples": ORDERINGS}
    coalitions = {"n_samples": SAMPLES}
    return {
        "occlusion, CNN 32 x 32, 49 windows, 1 image": occlusion(Cnn, 1, 4, 49),
        "occlusion, CNN 32 x 32, 49 windows, 8 images": occlusion(Cnn, 8, 4, 49),
        "occlusion, CNN 64 x 64, 64 windows, 1 image": occlusion(Cnn64, 1, 8, 64),
        "feature ablation, transformer, 32 tokens, 1 text": ablation(1),
        "feature ablation, transformer, 32 tokens, 8 texts": ablation(8),
        "Shapley sampling, MLP, 13 columns, 64 rows": Case(
            attrfn.shapley_value_sampling,
            orderings,
            attr.ShapleyValueSampling,
            orderings,
            Tabular,
            64,
            ORDERINGS * 12,
            2,
            (4, 30, 300),
            (1, 4, 13),
            shap=permutation_explainer,
            agrees=within_errors,
        ),
        "Shapley sampling, CNN, 16 superpixels, 1 image": Case(
            attrfn.shapley_value_sampling,
            {"feature_mask": superpixels(), **orderings},
            attr.ShapleyValueSampling,
            {"feature_mask": superpixels()[None, None], **orderings},
            Cnn,
            1,
            ORDERINGS * 15,
            2,
            (5, 15, 75),
            (1, 4, 16),
            agrees=within_errors,
        ),
        "KernelSHAP, MLP, 13 columns, 64 rows": Case(
            attrfn.kernel_shap,
            coalitions,
            attr.KernelShap,
            coalitions,
            Tabular,
            64,
            SAMPLES,
            2,
            (8, 64, 512),
            (1, 64, 512),
            shap=kernel_explainer,
            agrees=near_exact,
            slow=1,
            at_least=10,
        ),
        "LIME, MLP, 13 columns, 64 rows": Case(
            attrfn.lime,
            coalitions,
            attr.Lime,
            coalitions,
            Tabular,
            64,
            SAMPLES,
            1,
            (8, 64, 512),
            (1, 64, 512),
            agrees=same_draws,
            slow=1,
            at_least=10,
        ),
    }


def floor(case: Case, model: nn.Module, x: Tensor, chunk: int) -> Run:
    """As many rows through the bare model."""
    sizes = [chunk] * (case.copies // chunk) + [case.copies % chunk] * (case.copies % chunk > 0)
    sizes += [1] * case.plain
    rows = x.repeat(chunk, *[1] * (x.ndim - 1))

    def run() -> None:
        with torch.no_grad():
            for size in sizes:
                model(rows[: size * len(x)])

    return run


def eager(case: Case, model: nn.Module, x: Tensor, target: Tensor, chunk: int | str) -> Run:
    options = {"chunk_size": chunk, **case.options}
    return functools.partial(case.method, model, x, target=target, **options)


def compiled(case: Case, model: nn.Module, x: Tensor, target: Tensor, chunk: int) -> Run:
    """The whole method in one graph; draws depend on the key alone, as in eager mode."""
    n = case.options["feature_mask"].unique().numel() if "feature_mask" in case.options else None
    options = {"chunk_size": chunk, **case.options} | ({"n_features": n} if n else {})

    def whole(x: Tensor, target: Tensor) -> Tensor:
        return case.method(model, x, target=target, **options)

    graph = torch.compile(whole, fullgraph=True, dynamic=False)
    return lambda: graph(x, target)


def captum_run(case: Case, model: nn.Module, x: Tensor, target: Tensor, evals: int) -> Run:
    method = case.captum(model)
    options = {"perturbations_per_eval": evals, **case.captum_options}
    return lambda: method.attribute(x, target=target, **options)


def best_captum(case: Case, model: nn.Module, x: Tensor, target: Tensor, device: str) -> int:
    """The perturbations_per_eval that is fastest here; one short run of each where it is slow."""
    part = slice(0, 4 if case.slow else None)
    runs = {n: captum_run(case, model, x[part], target[part], n) for n in case.evals}
    for run in runs.values():
        run()
    tries = 1 if case.slow else 3
    return min(runs, key=lambda n: min(seconds(runs[n], device) for _ in range(tries)))


def timed(
    runs: Mapping[tuple, Run], slow: Sequence[tuple], rounds: int, repeats: int, device: str
) -> tuple[dict, dict]:
    """Interleaved times of the runs, and of the slow ones with all others once in each round."""
    fast = medians({k: r for k, r in runs.items() if k not in slow}, repeats, device)
    times = {k: [] for k in runs}
    for _ in range(rounds if slow else 0):
        for key, run in runs.items():
            n = 1 if key in slow else 3
            times[key].append(statistics.median(seconds(run, device) for _ in range(n)))
    return fast, times


def rows_of(name: str, case: Case, args) -> tuple[list[dict[str, object]], str]:
    torch.manual_seed(0)
    model = case.model().eval().requires_grad_(False).to(args.device)
    x = torch.randn(case.batch, *case.model.shape, device=args.device)
    target = torch.arange(case.batch, device=args.device) % 3
    case.agrees(case, model, x, target)
    evals = best_captum(case, model, x, target, args.device)

    runs: dict[tuple[str, object], Run] = {}
    runs |= {("floor", c): floor(case, model, x, c) for c in case.chunks}
    runs |= {("attrfn", c): eager(case, model, x, target, c) for c in (*case.chunks, "auto")}
    try:
        for c in case.chunks[-2:] if case.model is Tabular else case.chunks[-1:]:
            run = compiled(case, model, x, target, c)
            torch.testing.assert_close(run(), runs["attrfn", "auto"](), rtol=1e-3, atol=1e-4)
            runs["attrfn compiled", c] = run
    except Exception as error:  # the compiler's are of many types
        print(f"{name}: not compiled: {(str(error).splitlines() or [''])[0]}")
    slow = [("Captum, default", 1)]
    runs[slow[0]] = captum_run(case, model, x, target, 1)
    if evals != 1:
        slow.append(("Captum, best", evals))
        runs[slow[1]] = captum_run(case, model, x, target, evals)
    if case.shap is not None:
        slow.append(("shap", "-"))
        runs[slow[-1]] = case.shap(model, x, target)
    slow = slow if case.slow else []

    fast, together = timed(runs, slow, case.slow, args.repeats, args.device)

    def quotient(a: tuple, b: tuple) -> float:
        both_fast = a in fast and b in fast
        return ratio(fast[a], fast[b]) if both_fast else ratio(together[a], together[b])

    def ms(key: tuple) -> float:
        return 1e3 * median(fast[key] if key in fast else together[key])

    best = min((k for k in runs if k[0] == "floor"), key=ms)
    default = ("Captum, default", 1)
    other = ("Captum, best", evals) if evals != 1 else default
    rows = []
    for key in runs:
        what, chunk = key
        same = ("floor", chunk) if ("floor", chunk) in runs else best
        rows.append(
            {
                "case": name,
                "what": what,
                "copies at once": chunk,
                "ms": f"{ms(key):.2f}",
                "/ floor, same chunk": f"{quotient(key, same):.2f}",
                "/ floor, best chunk": f"{quotient(key, best):.2f}",
                "/ Captum, default": f"{quotient(key, default):.3f}",
                "/ Captum, best": f"{quotient(key, other):.3f}",
            }
        )
    texts = []
    for what in ("attrfn", "attrfn compiled"):
        kept = [k for k in runs if k[0] == what]
        if kept:
            ours = min(kept, key=ms)
            texts.append(
                f"  - {what}: "
                + bar(quotient(ours, best), 1.05, "of the floor", least=False)
                + ", "
                + bar(quotient(default, ours), case.at_least, "times Captum's default speed")
                + ", "
                + bar(quotient(other, ours), 1.0, "times Captum's best speed")
            )
    limit = (
        f"- {name} (the floor is {quotient(default, best):.1f} times as fast as Captum's default):"
    )
    return rows, "\n".join([limit, *texts])


def bar(value: float, limit: float, of: str, least: bool = True) -> str:
    met = value >= limit if least else value <= limit
    sign = ">=" if least else "<="
    return f"{value:.2f} {of} ({sign} {limit:g}: {'met' if met else 'MISSED'})"


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.repeats = 1
    rows, bars = [], []
    for name, case in cases().items():
        if args.quick and (case.batch == 8 or case.slow):
            continue
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Captum's advice on batches, in every run
            found, bar = rows_of(name, case, args)
        rows += found
        bars.append(bar)
        print(table(found), bar, sep="\n\n", end="\n\n", flush=True)
    caption = (
        f"shap {shap.__version__}. Medians of {args.repeats} interleaved rounds; Captum and shap "
        "in KernelSHAP and LIME: one round. The floor is bare forward passes of as many rows. "
        "Captum, best: perturbations_per_eval searched over a list, shown under copies at once. "
        f"shap: KernelExplainer, nsamples={SAMPLES}, l1_reg=False; PermutationExplainer, 24 "
        "orderings."
    )
    text = "\n\n".join([table(rows), caption, "Bars, attrfn at its best chunk:", "\n".join(bars)])
    if not args.quick:
        write("perturbation_costs_its_forwards", "Perturbation: time", args.device, text)


if __name__ == "__main__":
    main()
