"""Integrated gradients cost what their 50 gradients cost.

The floor is a bare batched forward and backward pass of the same rows with frozen parameters, in
the same chunks. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import json

import torch
from _harness import (
    MODELS,
    median,
    medians,
    model_and_batch,
    parser,
    peak_mb,
    peak_mb_of,
    ratio,
    seconds,
    table,
    write,
)
from captum.attr import IntegratedGradients
from torch import Tensor, nn

import attrfn

STEPS = 50
CHUNKS = {1: (10, 25, 50), 8: (2, 5, 25), 32: (1, 2, 10)}  # batch: copies of it at once
MEMORY_AT = 8
NAMES = {
    "floor": "floor",
    "eager": "attrfn",
    "compiled": "attrfn compiled",
    "captum": "Captum, best",
}


def floor(model: nn.Module, x: Tensor, target: Tensor, chunk: int):
    """Forward and backward of 50 copies of the batch, ``chunk`` copies at a time."""
    for p in model.parameters():
        p.requires_grad_(False)
    rows = x.repeat(chunk, *[1] * (x.ndim - 1))
    index = target.repeat(chunk)[:, None]

    def run() -> None:
        for _ in range(STEPS // chunk):
            z = rows.detach().requires_grad_()
            torch.autograd.grad(model(z).gather(1, index).sum(), z)

    return run


def eager(model: nn.Module, x: Tensor, target: Tensor, chunk: int | str):
    return lambda: attrfn.integrated_gradients(
        model, x, target=target, n_steps=STEPS, chunk_size=chunk
    )


def compiled(model: nn.Module, x: Tensor, target: Tensor, chunk: int):
    """One graph for ``chunk`` steps, called for each chunk of nodes; the sum stays outside."""
    nodes, weights = attrfn_nodes()

    def part(x: Tensor, target: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
        return attrfn.integrated_gradients(
            model, x, target=target, quadrature=lambda n: (nodes, weights)
        )

    graph = torch.compile(part, fullgraph=True, dynamic=False)

    def run() -> Tensor:
        return sum(
            graph(x, target, nodes[i : i + chunk], weights[i : i + chunk])
            for i in range(0, STEPS, chunk)
        )

    return run


def attrfn_nodes() -> tuple[Tensor, Tensor]:
    from attrfn._explain.quadrature import quadrature_rule

    return quadrature_rule("gauss_legendre", STEPS)


def captum(model: nn.Module, x: Tensor, target: Tensor, rows: int | None):
    method = IntegratedGradients(model)
    return lambda: method.attribute(x, target=target, n_steps=STEPS, internal_batch_size=rows)


def best_captum(model: nn.Module, x: Tensor, target: Tensor, device: str):
    """Captum at the internal_batch_size that is fastest here."""
    batch = len(x)
    sizes = [*sorted({batch * c for c in (1, 2, 5, 10, 25)}), None]
    runs = {size: captum(model, x, target, size) for size in sizes}
    for run in runs.values():
        run()
    best = min(runs, key=lambda s: min(seconds(runs[s], device) for _ in range(3)))
    return best, runs[best]


def case(kind: str, name: str, batch: int, chunk: int | str, device: str):
    model, x, target = model_and_batch(name, batch, device)
    make = {"floor": floor, "eager": eager, "compiled": compiled}
    if kind == "captum":
        return captum(model, x, target, chunk or None)
    return make[kind](model, x, target, chunk)


def rows_of(name: str, batch: int, args, flags: list[str]) -> list[dict[str, object]]:
    model, x, target = model_and_batch(name, batch, args.device)
    frozen = model_and_batch(name, batch, args.device)[0]
    size, captum_run = best_captum(model, x, target, args.device)
    runs = {("floor", c): floor(frozen, x, target, c) for c in CHUNKS[batch]}
    runs |= {("eager", c): eager(model, x, target, c) for c in (*CHUNKS[batch], "auto")}
    runs |= {("compiled", c): compiled(model, x, target, c) for c in CHUNKS[batch][1:]}
    runs[("captum", size or 0)] = captum_run
    want = captum_run()
    for key, run in runs.items():
        if key[0] in ("eager", "compiled"):
            torch.testing.assert_close(run(), want, rtol=1e-3, atol=1e-4)
    times = medians(runs, args.repeats, args.device)
    best = min((k for k in runs if k[0] == "floor"), key=lambda k: median(times[k]))
    rows = []
    for kind, chunk in runs:
        same = ("floor", chunk) if ("floor", chunk) in runs else best
        memory = "-"
        if batch == MEMORY_AT:
            peak = peak_mb_of(__file__, f"{kind} {name} {batch} {chunk}", flags)
            memory = f"{peak:.0f}"
        shown = f"{chunk or 'all'} rows" if kind == "captum" else f"{chunk} copies"
        shown = "auto" if chunk == "auto" else shown
        t = times[(kind, chunk)]
        rows.append(
            {
                "model": name,
                "batch": batch,
                "what": NAMES[kind],
                "at once": shown,
                "ms": f"{1e3 * median(t):.2f}",
                "/ floor, same chunk": f"{ratio(t, times[same]):.2f}",
                "/ floor, best chunk": f"{ratio(t, times[best]):.2f}",
                "/ Captum": f"{ratio(t, times[('captum', size or 0)]):.2f}",
                "peak MiB": memory,
            }
        )
    return rows


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        kind, name, batch, chunk = args.memory_of.split()
        at_once = chunk if chunk == "auto" else int(chunk)
        run = case(kind, name, int(batch), at_once, args.device)
        if kind == "compiled":
            run()  # what the compiler itself takes is not part of a run
        print(json.dumps(peak_mb(run, args.device)))
        return
    flags = ["--device", args.device, "--threads", str(args.threads)]
    rows: list[dict[str, object]] = []
    for name in ("MLP",) if args.quick else MODELS:
        for batch in list(CHUNKS)[: 1 if args.quick else None]:
            torch._dynamo.reset()
            rows += rows_of(name, batch, args, flags)
            print(table(rows), end="\n\n", flush=True)
    if not args.quick:
        title = f"Integrated gradients, {STEPS} steps: time and memory"
        write("integrated_gradients_costs_its_gradients", title, args.device, table(rows))


if __name__ == "__main__":
    main()
