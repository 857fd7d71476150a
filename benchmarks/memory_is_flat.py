"""Peak memory over the number of steps, samples and features, at a fixed chunk size.

Each case runs in a process of its own. What it needs beyond its inputs may not grow with the number
of copies of the batch, but for what the method keeps of each (a weight, an order). Prints a table
and writes it to benchmarks/results/.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from _harness import model_and_batch, parser, peak_mb, peak_mb_of, table, write
from torch import Tensor

import attrfn

BATCH = 8
CHUNK = 4
LAYER = "features.4"


def squares(n: int) -> Tensor:
    """The 32 x 32 pixels in n features, runs of them."""
    return (torch.arange(1024) * n // 1024).reshape(32, 32)


def grouped(method: Callable[..., Any]) -> Callable[..., Any]:
    def run(model: Any, x: Tensor, n: int, **options: Any) -> Tensor:
        return method(model, x, feature_mask=squares(16).to(x.device), n_samples=n, **options)

    return run


def tunnel(model: Any, x: Tensor, n: int, *, chunk_size: int, target: Tensor) -> Tensor:
    method = attrfn.noise_tunnel(attrfn.gradient, n_samples=n, stdevs=0.1, chunk_size=chunk_size)
    return method(model, x, target=target)


def ablation(model: Any, x: Tensor, n: int, **options: Any) -> Tensor:
    return attrfn.feature_ablation(model, x, feature_mask=squares(n).to(x.device), **options)


def steps(method: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return lambda model, x, n, **options: method(model, x, n_steps=n, **more, **options)


def samples(method: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return lambda model, x, n, **options: method(
        model, x, n_samples=n, baselines=0.1 * x, **more, **options
    )


CASES: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "integrated_gradients, n_steps": (steps(attrfn.integrated_gradients), (8, 64, 512)),
    "layer_integrated_gradients, n_steps": (
        steps(attrfn.layer_integrated_gradients, layer=LAYER),
        (8, 64, 512),
    ),
    "layer_conductance, n_steps": (steps(attrfn.layer_conductance, layer=LAYER), (8, 64, 512)),
    "gradient_shap, n_samples": (samples(attrfn.gradient_shap, stdevs=0.1), (8, 64, 512)),
    "smoothgrad, n_samples": (tunnel, (8, 64, 512)),
    "feature_ablation, n_features": (ablation, (8, 64, 512)),
    "shapley_value_sampling, n_samples": (grouped(attrfn.shapley_value_sampling), (4, 16, 64)),
    "kernel_shap, n_samples": (grouped(attrfn.kernel_shap), (64, 256, 1024)),
    "lime, n_samples": (grouped(attrfn.lime), (64, 256, 1024)),
    "rise, n_samples": (
        lambda model, x, n, **options: attrfn.rise(model, x, n_samples=n, **options),
        (8, 64, 512),
    ),
}


def measure(what: str, device: str) -> float:
    name, n = what.rsplit(":", 1)
    method, sizes = CASES[name]
    model, x, target = model_and_batch("CNN", BATCH, device)
    model.requires_grad_(False)
    warnings.simplefilter("ignore")
    options = {"chunk_size": CHUNK, "target": target}
    method(model, x, sizes[0], **options)  # what is allocated once
    return peak_mb(lambda: method(model, x, int(n), **options), device)


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(measure(args.memory_of, args.device))
        return
    rows = []
    flags = ["--device", args.device, "--threads", str(args.threads)]
    for name, (_, sizes) in list(CASES.items())[: 1 if args.quick else None]:
        row = {"method, over": name}
        found = []
        for column, n in zip(("few", "more", "most"), sizes, strict=True):
            found.append(peak_mb_of(__file__, f"{name}:{n}", flags))
            row[column], row[f"{column}, MB"] = str(n), f"{found[-1]:.1f}"
        row["most / few"] = f"{found[-1] / found[0]:.2f}"
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
    if args.quick:
        return
    caption = f"A CNN on {BATCH} images of 3 x 32 x 32, {CHUNK} copies of the batch at once."
    text = f"{caption}\n\n{table(rows)}"
    write("memory_is_flat", "Peak memory at a fixed chunk size", args.device, text)


if __name__ == "__main__":
    main()
