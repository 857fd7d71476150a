"""What compiling and bfloat16 cost beside what they gain, for integrated gradients.

One image, or one text, and 20 steps, on the small nets of the other benchmarks and on networks of
the size that people explain. The compilation is timed without a cache. Prints a table and writes it
to benchmarks/results/.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from unittest import mock

import torch
from _harness import MODELS, median, medians, parser, seconds, table, write
from _real_models import REAL
from torch.nn import functional

import attrfn

NAME = "compiling_takes_minutes"
STEPS = 20


def row(name: str, repeats: int, device: str) -> dict[str, object]:
    """The times of a network: eager, compiled, in bfloat16; and how near bfloat16 comes."""
    torch.manual_seed(0)
    model = {**MODELS, **REAL}[name]().eval().to(device)
    x = torch.randn(1, *model.shape, device=device)
    explain = functools.partial(attrfn.integrated_gradients, n_steps=STEPS, target=1)
    half, y = copy.deepcopy(model).bfloat16(), x.bfloat16()
    fast = attrfn.compile(attrfn.integrated_gradients, model, n_steps=STEPS)
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict("os.environ", {"TORCHINDUCTOR_CACHE_DIR": cache}),
    ):
        first = seconds(lambda: fast(x, target=1), device)
    runs = {
        "eager": lambda: explain(model, x),
        "compiled": lambda: fast(x, target=1),
        "bfloat16": lambda: explain(half, y),
    }
    times = {run: median(found) for run, found in medians(runs, repeats, device).items()}
    saved = times["eager"] - times["compiled"]
    exact, rounded = explain(model, x).flatten(), explain(half, y).float().flatten()
    return {
        "model": name,
        "eager ms": f"{1e3 * times['eager']:.1f}",
        "compiled ms": f"{1e3 * times['compiled']:.1f}",
        "compiling s": f"{first:.0f}",
        "pays after": f"{first / saved:.0f} calls" if saved > 0 else "never",
        "bfloat16 ms": f"{1e3 * times['bfloat16']:.1f}",
        "cosine to float32": f"{functional.cosine_similarity(exact, rounded, dim=0):.2f}",
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    names = ["MLP"] if args.quick else [*MODELS, *REAL]
    rows = []
    for name in names:
        rows.append(row(name, 3 if args.quick else args.repeats, args.device))
        print(table(rows[-1:]), flush=True)
    if not args.quick:
        caption = f"Integrated gradients with {STEPS} steps of one example; random weights."
        write(NAME, "Compiling and bfloat16", args.device, f"{caption}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
