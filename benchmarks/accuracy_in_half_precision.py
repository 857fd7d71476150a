"""Every method in lower precision: how far it is from the same in float64.

The model and its inputs are of the type, or of float32 under autocast, which makes a layer's
activations bfloat16, and so what explains them. The distance is the norm of the difference over the
norm of the attributions in float64. "gradient" shows what the type itself costs: one pass of the
model. A method whose sum over many passes were kept in the type would be far above it. Prints a
table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from typing import Any

import torch
from _cases import CASES, LAYERS, Bench, Case
from _harness import MODELS, model_and_batch, parser, table, write, write_csv
from torch import Tensor

BATCH = 4
TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "autocast to bfloat16": torch.float32,
}


def bench(name: str, device: str, dtype: torch.dtype) -> Bench:
    """The same numbers in every type: those that bfloat16 and float16 hold."""
    model, x, target = model_and_batch(name, BATCH, device)
    others = torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(1)).to(device)

    def held(t: Tensor) -> Tensor:
        return t.to(torch.bfloat16).to(torch.float16).to(dtype)

    model = copy.deepcopy(model)
    for p in [*model.parameters(), *model.buffers()]:
        if p.is_floating_point():
            p.data = held(p.data)
    return Bench(name, model, held(x), target, held(others), LAYERS[name])


def result(case: Case, b: Bench, autocast: bool) -> Tensor:
    options = {**case.options(b), **({"target": b.target} if case.target else {})}
    with torch.autocast(b.x.device.type, torch.bfloat16, enabled=autocast):
        found: Tensor = case.method(b.model, b.x, **options)
    of_layer = autocast and "layer" in inspect.signature(case.method).parameters
    if found.dtype not in (b.x.dtype, *([torch.bfloat16] if of_layer else [])):
        raise AssertionError(f"attributions are {found.dtype}, inputs are {b.x.dtype}")
    return found.double()


def error(found: Tensor, want: Tensor) -> float:
    return float((found - want).norm() / want.norm())


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    failed = []
    for name in args.models:
        make = functools.cache(functools.partial(bench, name, args.device))
        for method, case in list(CASES.items())[: 3 if args.quick else None]:
            if name not in case.models:
                continue
            want = result(case, make(torch.float64), False)
            row = {"model": name, "method": method}
            for kind, dtype in TYPES.items():
                try:
                    value = error(result(case, make(dtype), kind.startswith("autocast")), want)
                except Exception as problem:
                    failed.append(f"{name}, {method}, {kind}: {problem}".splitlines()[0][:200])
                    value = math.nan
                row[kind] = "-" if math.isnan(value) else f"{value:.1e}"
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    print("\n".join(failed))
    if args.quick:
        return
    caption = "Relative to the norm of the attributions in float64; batches of 4."
    notes = "\n".join(f"- {line}" for line in failed)
    text = f"{caption}\n\n{table(rows)}" + (f"\n\nNot to be had:\n\n{notes}" if failed else "")
    path = write("accuracy_in_half_precision", "Accuracy in lower precision", args.device, text)
    write_csv(path.with_suffix(".csv"), rows)


if __name__ == "__main__":
    main()
