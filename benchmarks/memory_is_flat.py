"""Peak memory over the number of steps, samples, features and baselines, at a fixed chunk size.

Each case runs in a process of its own, from few copies of the batch to many. What it needs beyond
its inputs may not grow with them, but for what the method keeps of each (a weight, an order).
Compiled code has the loop over chunks written out, and keeps more than one of them at times: some
cases are measured compiled, too, with up to 16 chunks. Prints a table and writes it to
benchmarks/results/.
"""

from __future__ import annotations

import ctypes
import gc
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from _harness import (
    kind,
    model_and_batch,
    parser,
    peak_mb,
    subprocess_json,
    table,
    write,
    write_csv,
)
from torch import Tensor, nn

import attrfn

BATCH = 8
CHUNK = 4
LAYER = "features.4"
NEURON = (2, 4, 4)
Method = Callable[..., Any]
Run = Callable[..., Any]  # of the model, the inputs and the number of copies, with options


class Case(NamedTuple):
    """A method, and the numbers of copies: few, more, most."""

    over: str
    run: Run
    sizes: tuple[int, int, int]
    target: bool = True


def squares(n: int, device: torch.device) -> Tensor:
    """The 32 x 32 pixels in n features, runs of them."""
    return (torch.arange(1024, device=device) * n // 1024).reshape(32, 32)


def channels(n: int, device: torch.device) -> Tensor:
    """The layer's 64 channels in n features."""
    return (torch.arange(64, device=device) * n // 64)[:, None, None]


def over(name: str, method: Method, **more: Any) -> Run:
    """A method over the values of one of its options."""
    return lambda model, x, n, **options: method(model, x, **{name: n}, **more, **options)


def pooled(method: Method, **more: Any) -> Run:
    """Over the number of samples, from eight baselines."""
    return lambda model, x, n, **options: method(
        model, x, n_samples=n, baselines=0.1 * x, **more, **options
    )


def of_baselines(method: Method, **more: Any) -> Run:
    """Over the number of baselines."""
    return lambda model, x, n, **options: method(
        model, x, baselines=0.1 * x[:1].repeat(n, 1, 1, 1), **more, **options
    )


def of_features(method: Method, **more: Any) -> Run:
    """Over the number of features."""
    return lambda model, x, n, **options: method(
        model, x, feature_mask=squares(n, x.device), n_features=n, **more, **options
    )


def grouped(method: Method, groups: int = 16, name: str = "n_samples", **more: Any) -> Run:
    """Over the values of an option, of some features."""
    return lambda model, x, n, **options: method(
        model,
        x,
        feature_mask=squares(groups, x.device),
        n_features=groups,
        **{name: n},
        **more,
        **options,
    )


def layer_features(model: Any, x: Tensor, n: int, **options: Any) -> Tensor:
    mask = channels(n, x.device)
    return attrfn.layer_feature_ablation(
        model, x, layer=LAYER, layer_mask=mask, n_features=n, **options
    )


def layer_permutation(model: Any, x: Tensor, n: int, **options: Any) -> Tensor:
    where = {"layer": LAYER, "layer_mask": channels(4, x.device), "n_features": 4}
    return attrfn.layer_feature_permutation(model, x, n_samples=n, **where, **options)


def tunnel(model: Any, x: Tensor, n: int, *, chunk_size: int, target: Tensor) -> Tensor:
    method = attrfn.noise_tunnel(attrfn.gradient, n_samples=n, stdevs=0.1, chunk_size=chunk_size)
    return method(model, x, target=target)


def of_channels(method: Method) -> Run:
    """Over the channels of a layer, of a model of its own, whose maps are small."""

    def run(model: Any, x: Tensor, n: int, **options: Any) -> Tensor:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, n, 3, stride=4, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        own = nn.Sequential(*layers, nn.Flatten(), nn.Linear(n, 10)).to(x.device)
        return method(own.requires_grad_(False), x, layer="1", **options)

    return run


AT = {"layer": LAYER}
NEURONS = {"layer": LAYER, "neuron": NEURON}
STEPS, MANY, SAMPLES, FEW = (8, 32, 128), (8, 64, 512), (64, 256, 1024), (4, 16, 64)

CASES = {
    "integrated_gradients": Case("n_steps", over("n_steps", attrfn.integrated_gradients), MANY),
    "gradient_shap": Case("n_samples", pooled(attrfn.gradient_shap, stdevs=0.1), STEPS),
    "smoothgrad": Case("n_samples", tunnel, STEPS),
    "integrated_hessians": Case(
        "n_steps", grouped(attrfn.integrated_hessians, 4, "n_steps"), (4, 8, 32)
    ),
    "deep_lift_shap": Case("baselines", of_baselines(attrfn.deep_lift_shap), FEW),
    "feature_ablation": Case("n_features", of_features(attrfn.feature_ablation), MANY),
    "feature_permutation": Case("n_samples", grouped(attrfn.feature_permutation), (2, 8, 32)),
    "shapley_values": Case("n_features", of_features(attrfn.shapley_values), (4, 7, 10)),
    "shapley_value_sampling": Case("n_samples", grouped(attrfn.shapley_value_sampling), FEW),
    "kernel_shap": Case("n_samples", grouped(attrfn.kernel_shap), SAMPLES),
    "lime": Case("n_samples", grouped(attrfn.lime), SAMPLES),
    "rise": Case("n_samples", over("n_samples", attrfn.rise), MANY),
    "interactions": Case("n_samples", grouped(attrfn.interactions, 6, index="shapley"), (2, 8, 32)),
    "layer_integrated_gradients": Case(
        "n_steps", over("n_steps", attrfn.layer_integrated_gradients, **AT), STEPS
    ),
    "layer_conductance": Case("n_steps", over("n_steps", attrfn.layer_conductance, **AT), STEPS),
    "internal_influence": Case("n_steps", over("n_steps", attrfn.internal_influence, **AT), STEPS),
    "layer_gradient_shap": Case("n_samples", pooled(attrfn.layer_gradient_shap, **AT), STEPS),
    "layer_deep_lift_shap": Case("baselines", of_baselines(attrfn.layer_deep_lift_shap, **AT), FEW),
    "layer_feature_ablation": Case("n_features", layer_features, FEW),
    "layer_feature_permutation": Case("n_samples", layer_permutation, (2, 8, 32)),
    "neuron_integrated_gradients": Case(
        "n_steps", over("n_steps", attrfn.neuron_integrated_gradients, **NEURONS), STEPS, False
    ),
    "neuron_gradient_shap": Case(
        "n_samples", pooled(attrfn.neuron_gradient_shap, **NEURONS), STEPS, False
    ),
    "neuron_conductance": Case(
        "n_steps", over("n_steps", attrfn.neuron_conductance, **NEURONS), STEPS
    ),
    "neuron_deep_lift_shap": Case(
        "baselines", of_baselines(attrfn.neuron_deep_lift_shap, **NEURONS), FEW, False
    ),
    "neuron_feature_ablation": Case(
        "n_features", of_features(attrfn.neuron_feature_ablation, **NEURONS), STEPS, False
    ),
    "ablation_cam": Case("channels", of_channels(attrfn.ablation_cam), STEPS),
    "score_cam": Case("channels", of_channels(attrfn.score_cam), STEPS),
}


COMPILED = {
    "integrated_gradients": (8, 32, 64),
    "feature_ablation": (8, 32, 64),
    "rise": (8, 32, 64),
    "integrated_hessians": (4, 8, 16),
}
SUFFIX = ", compiled"
ROWS = [*CASES, *(name + SUFFIX for name in COMPILED)]


def sizes_of(row: str) -> tuple[int, int, int]:
    """How many copies: few, more, most."""
    return COMPILED[row.removesuffix(SUFFIX)] if row.endswith(SUFFIX) else CASES[row].sizes


def runner(row: str, model: nn.Module, x: Tensor, options: dict[str, Any]) -> Callable[[int], Any]:
    """From a number of copies to what is measured, a call without arguments."""
    case = CASES[row.removesuffix(SUFFIX)]
    if not row.endswith(SUFFIX):
        return lambda n: lambda: case.run(model, x, n, chunk_size=CHUNK, **options)

    def compiled(n: int) -> Callable[[], Any]:
        def method(model: Any, x: Tensor, **options: Any) -> Any:
            return case.run(model, x, n, chunk_size=CHUNK, **options)

        explain = attrfn.compile(method, model, dynamic=False)
        explain(x, **options)  # compiles
        return lambda: explain(x, **options)

    return compiled


def measure(row: str, device: str) -> list[float]:
    """The peaks of a case; freed pages go back to the system before each."""
    model, x, target = model_and_batch("CNN", BATCH, device)
    model.requires_grad_(False)
    warnings.simplefilter("ignore")
    case = CASES[row.removesuffix(SUFFIX)]
    prepare = runner(row, model, x, {"target": target} if case.target else {})
    prepare(sizes_of(row)[0])()  # what is allocated once
    found = []
    for n in sizes_of(row):
        run = prepare(n)
        gc.collect()
        if kind(device) == "cpu":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        found.append(peak_mb(run, device))
    return found


def cells(row: str, peaks: Sequence[float]) -> dict[str, str]:
    line = {"method": row, "over": CASES[row.removesuffix(SUFFIX)].over}
    for column, n, peak in zip(("few", "more", "most"), sizes_of(row), peaks, strict=True):
        line[column], line[f"{column}, MB"] = str(n), f"{peak:.1f}"
    return line | {"most / few": f"{peaks[-1] / max(peaks[0], 0.1):.2f}"}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--methods", nargs="*", choices=ROWS, default=ROWS)
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(measure(args.memory_of, args.device)))
        return
    rows = []
    given = ["--device", args.device, "--threads", str(args.threads)]
    for name in args.methods[: 2 if args.quick else None]:
        rows.append(cells(name, subprocess_json(__file__, name, given)))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if args.quick or len(rows) < len(ROWS):
        return
    caption = (
        f"Images of 3 x 32 x 32, {BATCH} of them, {CHUNK} copies of the batch at once. Over "
        "channels the model and its activations grow with them; over baselines of a layer, their "
        "activations are kept. Compiled code has its chunks written out, up to 16 here, and "
        "computes some of what they need ahead."
    )
    text = f"{caption}\n\n{table(rows)}"
    path = write("memory_is_flat", "Peak memory at a fixed chunk size", args.device, text)
    write_csv(path.with_suffix(".csv"), rows)


if __name__ == "__main__":
    main()
