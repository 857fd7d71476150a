"""A data set costs its explaining: reading, writing and keys per example take no time beside it.

The floor is a bare loop: the method over batches of tensors in memory, results kept. The batches
are as large as ``batch_size="auto"`` makes them, for the floor too. Beside it run
``attrfn.data.explain`` on those tensors, on a data set of single examples, and from that into a
folder that is synced to the disk. The bar is 0.95 of the floor's examples per second. A second
table has what a key for each example costs in place of one for all, a third the memory of a folder
and of a running mean against the length of the data. Prints the tables and writes them to
benchmarks/results/.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _harness import MODELS, median, medians, parser, peak_mb, peak_mb_of, ratio, table, write
from torch import Tensor
from torch.utils.data import Dataset

import attrfn
import attrfn.data
from attrfn import random

KEYS = 32
explain = functools.partial(attrfn.data.explain, progress=False)


class Drawn(Dataset):
    """Examples that are made when they are asked for, and their targets."""

    def __init__(self, rows: int, shape: tuple[int, ...]) -> None:
        self.rows = rows
        self.base = torch.randn(64, *shape)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.base[i % 64] * (1 + i / self.rows), i % 10


METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "saliency": (attrfn.saliency, {}),
    "integrated_gradients, 20 steps": (
        attrfn.integrated_gradients,
        {"n_steps": 20, "check_completeness": False},
    ),
    "gradient_shap, 20 samples": (
        attrfn.gradient_shap,
        {"n_samples": 20, "baselines": 0.0},
    ),
}
CASES = [
    ("MLP", "saliency", 32768),
    ("MLP", "integrated_gradients, 20 steps", 2048),
    ("transformer", "saliency", 8192),
    ("transformer", "gradient_shap, 20 samples", 512),
    ("CNN", "saliency", 4096),
    ("CNN", "integrated_gradients, 20 steps", 256),
]


def whole(data: Drawn) -> tuple[Tensor, Tensor]:
    found = [data[i] for i in range(len(data))]
    return torch.stack([x for x, _ in found]), torch.tensor([y for _, y in found])


def options_of(method: str, shape: tuple[int, ...]) -> dict[str, Any]:
    options = dict(METHODS[method][1])
    if "baselines" in options:
        options["baselines"] = torch.zeros(1, *shape)
    return options


def speed(args: Any) -> Iterator[dict[str, object]]:
    for name, label, rows in CASES[:2] if args.quick else CASES:
        rows = rows // 16 if args.quick else rows
        torch.manual_seed(0)
        model = MODELS[name]().eval().requires_grad_(False).to(args.device)
        data = Drawn(rows, MODELS[name].shape)
        x, y = (t.to(args.device) for t in whole(data))
        method, options = METHODS[label][0], options_of(label, MODELS[name].shape)
        options = {k: v.to(args.device) if isinstance(v, Tensor) else v for k, v in options.items()}
        folder = Path(tempfile.mkdtemp())
        number = itertools.count()
        run = functools.partial(
            explain, method, model, data, columns={"inputs": 0, "target": 1}, **options
        )
        in_memory = functools.partial(explain, method, model, x, target=y, **options)

        def into(run=run, folder=folder, number=number) -> Any:
            return run(out=folder / str(next(number)))

        size = into().manifest["batch_size"]

        def floor(method=method, model=model, x=x, y=y, options=options, size=size) -> object:
            cuts = [slice(i, i + size) for i in range(0, len(x), size)]
            return [method(model, x[c], target=y[c], **options).cpu() for c in cuts]

        runs = {"floor": floor, "tensors": in_memory, "data set": run, "folder": into}
        times = medians(runs, args.repeats, args.device)
        shutil.rmtree(folder)
        yield {
            "model": name,
            "method": label,
            "rows": rows,
            "batch": size,
            "rows / s": f"{rows / median(times['floor']):.0f}",
            **{
                f"{k} / floor": f"{ratio(times['floor'], times[k]):.2f}"
                for k in ("tensors", "data set", "folder")
            },
        }


def keys(args: Any) -> Iterator[dict[str, object]]:
    """One call for a batch, with one key and with a key for each example."""
    torch.manual_seed(0)
    model = MODELS["MLP"]().eval().requires_grad_(False).to(args.device)
    x = torch.randn(KEYS, *MODELS["MLP"].shape, device=args.device)
    mask = (torch.arange(x.shape[1], device=args.device) // 49)[None]
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "gradient_shap": (attrfn.gradient_shap, {"baselines": torch.zeros_like(x[:1])}),
        "kernel_shap": (attrfn.kernel_shap, {"feature_mask": mask, "n_samples": 100}),
        "lime": (attrfn.lime, {"feature_mask": mask, "n_samples": 100}),
        "shapley_value_sampling": (
            attrfn.shapley_value_sampling,
            {"feature_mask": mask, "n_samples": 2},
        ),
    }
    each = random.fold_in(0, torch.arange(KEYS, device=args.device))
    for name, (method, options) in cases.items():
        run = functools.partial(method, model, x, target=3, **options)
        runs = {"one key": functools.partial(run, key=0), "keys": functools.partial(run, key=each)}
        times = medians(runs, args.repeats, args.device)
        yield {
            "method": name,
            "one key, ms": f"{1e3 * median(times['one key']):.2f}",
            "a key each / one key": f"{ratio(times['keys'], times['one key']):.2f}",
        }


def memory_of(case: str, device: str) -> None:
    """The peak of one run, in a process of its own."""
    where, rows = case.split()
    torch.manual_seed(0)
    model = MODELS["CNN"]().eval().requires_grad_(False).to(device)
    data = Drawn(int(rows), MODELS["CNN"].shape)
    more = {"reduce": "mean_abs"} if where == "mean" else {"out": tempfile.mkdtemp()}
    columns = {"inputs": 0, "target": 1}
    run = functools.partial(explain, attrfn.saliency, model, columns=columns, **more)
    attrfn.data.explain(attrfn.saliency, model, data.base, target=0, progress=False)
    print(json.dumps(peak_mb(lambda: run(data=data), device)))


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        memory_of(args.memory_of, args.device)
        return
    tables = [table(list(speed(args))), table(list(keys(args)))]
    flags = ["--device", args.device, "--threads", str(args.threads)]
    lengths = (256, 1024) if args.quick else (1024, 2048, 4096)
    tables.append(
        table(
            [
                {
                    "rows": rows,
                    "MB of attributions": f"{rows * 3 * 32 * 32 * 4 / 2**20:.0f}",
                    "folder, MB": f"{peak_mb_of(__file__, f'folder {rows}', flags):.0f}",
                    "mean_abs, MB": f"{peak_mb_of(__file__, f'mean {rows}', flags):.0f}",
                }
                for rows in lengths
            ]
        )
    )
    print("\n\n".join(tables))
    if not args.quick:
        text = "\n\n".join(tables)
        write("data_costs_its_explaining", "Data sets: speed and memory", args.device, text)


if __name__ == "__main__":
    main()
