"""Models of the usual size on a GPU: eager, compiled, in bfloat16 and with CUDA graphs.

The nets of `real_models.py`, EfficientNet-Lite0, ResNet-50, ViT-S/16 and a BERT-like encoder of
six layers, here all with random weights, at batches of 1 to 256. The floor is a bare batched pass
of the rows that a method has to look at, in float32 and eager mode, as many of them at once as the
method evaluates. Prints a table and writes it to benchmarks/results/; ``--device cpu --quick`` only
shows that it runs.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from _harness import kind, medians, parser, peak_mb, ratio, table, write, write_csv
from _real_models import EfficientNet, Encoder, ResNet, VisionTransformer
from torch import Tensor, nn

import attrfn

Run = Callable[[], Any]
BATCHES = (1, 8, 64, 256)
ROWS = 256  # that a method evaluates at once


# From whether it shall be quick to a model: then it has few layers.
NETS: dict[str, Callable[[bool], nn.Module]] = {
    "EfficientNet": lambda quick: EfficientNet(2) if quick else EfficientNet(),
    "ResNet": lambda quick: ResNet(8, (1, 1)) if quick else ResNet(),
    "ViT": lambda quick: VisionTransformer(1) if quick else VisionTransformer(),
    "BERT": lambda quick: Encoder(1) if quick else Encoder(),
}


class Case(NamedTuple):
    """A method: its options on a model, how many rows it looks at per example, and how."""

    method: Callable[..., Tensor]
    options: Callable[[str, Tensor], dict[str, Any]]
    rows: int
    backward: bool = True
    slow: bool = False  # to compile: minutes, because every operation has a rule


def pieces(name: str, x: Tensor) -> dict[str, Any]:
    """16 features: squares of an image, runs of tokens."""
    if x.ndim == 4:
        ids = torch.arange(x.shape[-1], device=x.device) * 4 // x.shape[-1]
        return {"feature_mask": 4 * ids[:, None] + ids, "n_features": 16}
    ids = torch.arange(x.shape[1], device=x.device) * 16 // x.shape[1]
    return {"feature_mask": ids[:, None], "n_features": 16}


def fixed(**options: Any) -> Callable[[str, Tensor], dict[str, Any]]:
    return lambda name, x: options


CASES = {
    "gradient": Case(attrfn.gradient, fixed(), 1),
    "integrated_gradients": Case(attrfn.integrated_gradients, fixed(n_steps=16), 16),
    "deep_lift": Case(attrfn.deep_lift, fixed(), 2, slow=True),
    "lrp": Case(attrfn.lrp, fixed(), 1, slow=True),
    "feature_ablation": Case(attrfn.feature_ablation, pieces, 17, backward=False),
}
WAYS: dict[str, tuple[torch.dtype, dict[str, Any] | None]] = {
    "eager": (torch.float32, None),
    "compiled": (torch.float32, {}),
    "compiled bfloat16": (torch.bfloat16, {}),
    "CUDA graphs": (torch.float32, {"mode": "reduce-overhead"}),
}


@functools.cache
def model_of(name: str, quick: bool, device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name](quick).eval().requires_grad_(False).to(device, dtype)


def inputs_of(name: str, batch: int, quick: bool, device: str) -> Tensor:
    shape = model_of(name, quick, device, torch.float32).shape
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *shape, generator=generator).to(device)


def floor(case: Case, model: nn.Module, x: Tensor, target: Tensor, at_once: int) -> Run:
    n = case.rows * len(x)
    rows = x.repeat(-(-at_once // len(x)), *(1 for _ in x.shape[1:]))[:at_once]
    index = target.repeat(-(-at_once // len(x)))[:at_once, None]

    def chunk(count: int) -> Tensor:
        if not case.backward:
            with torch.no_grad():
                return model(rows[:count])
        z = rows[:count].detach().requires_grad_()
        return torch.autograd.grad(model(z).gather(1, index[:count]).sum(), z)[0]

    return lambda: [chunk(min(at_once, n - i)) for i in range(0, n, at_once)]


def runs_of(name: str, case: Case, batch: int, args: Any) -> dict[str, Run]:
    """The floor and each way to run a method."""
    x = inputs_of(name, batch, args.quick, args.device)
    target = torch.arange(batch, device=args.device) % 10
    copies = max(1, min(ROWS // batch, case.rows))
    plain = model_of(name, args.quick, args.device, torch.float32)
    runs = {"floor": floor(case, plain, x, target, copies * batch)}
    chunk = {} if case.rows <= 2 else {"chunk_size": copies}
    eager_only = case.slow and batch not in args.rules_at
    ways = args.ways[:2] if args.quick and case.method is not attrfn.gradient else args.ways
    for way in [way for way in ways if not (eager_only and WAYS[way][1] is not None)]:
        dtype, compiling = WAYS[way]
        model = model_of(name, args.quick, args.device, dtype)
        options = {**case.options(name, x), **chunk}
        z = x.to(dtype)
        if compiling is None:
            run = functools.partial(case.method, model, **options)
        else:
            run = attrfn.compile(case.method, model, dynamic=False, **compiling, **options)
        runs[way] = functools.partial(run, z, target=target)
    return runs


def row_of(name: str, method: str, batch: int, args: Any) -> tuple[dict[str, Any], list[str]]:
    torch._dynamo.reset()
    case, notes = CASES[method], []
    runs = runs_of(name, case, batch, args)
    for who, run in list(runs.items()):
        try:
            run()
        except Exception as error:  # out of memory, or what cannot be captured
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            notes.append(f"{name} {method}, batch {batch}, {who}: {line[:120]}".replace("|", "/"))
            del runs[who]
    times = medians(runs, args.repeats, args.device)
    row: dict[str, Any] = {"model": name, "method": method, "batch": batch}
    for who in ("floor", *args.ways):
        row[f"{who} ms"] = 1e3 * statistics.median(times[who]) if who in times else math.nan
    for who in args.ways:
        both = who in times and "floor" in times
        row[f"{who} / floor"] = ratio(times[who], times["floor"]) if both else math.nan
    if kind(args.device) == "cuda":
        row |= {f"{who} MB": peak_mb(run, args.device) for who, run in runs.items()}
    return row, notes


def shown(row: dict[str, Any]) -> dict[str, str]:
    def text(key: str, value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return "-" if math.isnan(value) else f"{value:.0f}" if "MB" in key else f"{value:.2f}"

    return {key: text(key, value) for key, value in row.items()}


def aligned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows with the columns of the fullest, because what failed has no memory."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key, math.nan) for key in keys} for row in rows]


def main() -> None:
    flags = parser(__doc__)
    flags.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--models", nargs="*", choices=list(NETS), default=list(NETS))
    flags.add_argument("--methods", nargs="*", choices=list(CASES), default=list(CASES))
    flags.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    flags.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    text = "batches at which methods with rules are compiled, which takes minutes"
    flags.add_argument("--rules-at", nargs="*", type=int, default=[64], help=text)
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("highest")
    if args.quick:
        args.repeats, args.batches = 3, args.batches[:1]
    elif kind(args.device) == "cpu":
        print("nothing to do: torch sees no GPU (--quick runs a part of it on the CPU)")
        return
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for name in args.models:
        for method in args.methods:
            for batch in args.batches:
                row, noted = row_of(name, method, batch, args)
                rows, notes = [*rows, row], notes + noted
                print(table([shown(row)]).splitlines()[-1], *noted, flush=True)
    rows = aligned(rows)
    caption = (
        f"Medians of {args.repeats} interleaved rounds; the floor is eager in float32. At most "
        f"{ROWS} rows at once. Images of 224 x 224, texts of 128 tokens."
    )
    text = "\n\n".join([caption, table([shown(row) for row in rows]), *(f"- {n}" for n in notes)])
    print(text)
    if not args.quick:
        path = write("on_gpus", "On GPUs", args.device, text)
        write_csv(path.with_suffix(".csv"), rows)


if __name__ == "__main__":
    main()
