"""How long attrfn.compile takes, and compiling the model's own forward and backward pass.

What is compiled of a method with chunks is one pass of the model, so that its ratio to the model's
own pass should be about 1 (perturbation methods compile a forward pass only), whatever the number
of steps, samples or features. Its graph holds for all numbers of rows; so does that of the model's
own pass where it is "for all rows", while the other one is for the rows that it sees. The time is
that of the first call without that of the second one, on one compile thread and without inductor's
caches. "graphs" counts those of the first call, "more" those that a call with other steps or
samples and half of the examples adds. "gain" is the time of the method in eager mode over that of
compiled code, next to the same for the model's own pass: if inductor does not make the model
faster, no method on it gains. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch
from _harness import MODELS, parser, table, write
from _real_models import REAL
from float32_kinks import load
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import attrfn

LAYERS = {"MLP": "layers.1", "CNN": "features.4", "transformer": "encoder.layers.0"}
Given = dict[str, Any]


def cases(name: str, x: Tensor) -> dict[str, tuple[Callable[..., Any], Given, Given, Given]]:
    """Methods with the options that stay, those of a call, and those of another one."""
    pool = {"baselines": torch.zeros_like(x[:1]).repeat(3, *[1] * (x.ndim - 1))}
    mask = torch.arange(x[0].numel()).reshape(x.shape[1:]) * 12 // x[0].numel()
    found: dict[str, tuple[Callable[..., Any], Given, Given, Given]] = {
        "gradient": (attrfn.gradient, {}, {}, {}),
        "integrated_gradients": (attrfn.integrated_gradients, {}, {"n_steps": 20}, {"n_steps": 8}),
        "feature_ablation": (
            attrfn.feature_ablation,
            {},
            {"feature_mask": mask},
            {"feature_mask": mask // 2},
        ),
        "deep_lift_shap": (attrfn.deep_lift_shap, {}, pool, {"baselines": pool["baselines"][:2]}),
    }
    if name in LAYERS:
        layer = {"layer": LAYERS[name]}
        found["layer_conductance"] = (
            attrfn.layer_conductance,
            layer,
            {"n_steps": 20},
            {"n_steps": 8},
        )
    return found


def best(run: Callable[[], object], other: Callable[[], object], repeats: int) -> float:
    """The ratio of the shortest times, interleaved."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for f, of in zip((run, other), times, strict=True):
            start = time.perf_counter()
            f()
            of.append(time.perf_counter() - start)
    return min(times[0]) / min(times[1])


def first_and_second(run: Callable[[], object]) -> float:
    """The seconds of the first call beyond those of the second."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


def own_pass(model: Any, x: Tensor, target: Tensor, all_rows: bool = False) -> Tensor:
    z = x.detach().requires_grad_()
    if all_rows:
        torch._dynamo.mark_dynamic(z, 0)
    return torch.autograd.grad(model(z).gather(1, target[:, None]).sum(), z)[0]


def row(
    method: tuple[Callable[..., Any], Given, Given, Given],
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    args: Any,
) -> dict[str, Any]:
    """Seconds, graphs and gain of a method."""
    f, fixed, changing, others = method
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(args.backend)
    explain = attrfn.compile(f, model, backend=counter, **fixed)
    seconds = first_and_second(lambda: explain(x, target=target, **changing))
    graphs = counter.frame_count
    half = max(1, len(x) // 2)
    explain(x[:half], target=target[:half], **others)
    return {
        "seconds": seconds,
        "graphs": graphs,
        "more": counter.frame_count - graphs,
        "gain": best(
            lambda: f(model, x, target=target, **fixed, **changing),
            lambda: explain(x, target=target, **changing),
            args.repeats,
        ),
    }


def measured(name: str, model: nn.Module, x: Tensor, args: Any) -> list[dict[str, Any]]:
    target = torch.arange(len(x)) % 10
    floors, gains = {}, {}
    for of in ("these rows", "all rows"):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=args.backend)
        run = functools.partial(own_pass, compiled, x, target, of == "all rows")
        floors[of] = first_and_second(run)
        gains[of] = best(lambda: own_pass(model, x, target), run, args.repeats)
    rows = [
        _line(name, f"the model's own pass, for {of}", s, floors, 1, 0, gains[of])
        for of, s in floors.items()
    ]
    print(*rows, sep="\n", flush=True)
    for method, case in cases(name, x).items():
        if args.methods and method not in args.methods:
            continue
        found = row(case, model, x, target, args)
        seconds = found.pop("seconds")
        rows.append(_line(name, method, seconds, floors, **found))
        print(rows[-1], flush=True)
    return rows


def _line(
    model: str,
    method: str,
    seconds: float,
    floors: dict[str, float],
    graphs: int,
    more: int,
    gain: float,
) -> dict[str, Any]:
    return {
        "model": model,
        "method": method,
        "compile s": f"{seconds:.1f}",
        **{f"of own, {of}": f"{seconds / s:.2f}" for of, s in floors.items()},
        "graphs": graphs,
        "more": more,
        "gain": f"{gain:.2f}",
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--models", nargs="*", default=[*MODELS, *REAL])
    flags.add_argument("--methods", nargs="*")
    flags.add_argument("--backend", default="inductor")
    flags.add_argument("--weights", action="store_true", help="EfficientNet with its weights")
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    torch.compile(torch.sin, backend=args.backend)(torch.ones(2))  # the compiler's own start
    for name in args.models:
        torch.manual_seed(0)
        kind = {**MODELS, **REAL}[name]
        model = load() if args.weights and name == "EfficientNet" else kind()
        x = torch.randn(2 if name in REAL else 8, *kind.shape)
        rows += measured(name, model.eval().requires_grad_(False), x, args)
    text = table(rows)
    print(text)
    if not (args.quick or args.methods or args.backend != "inductor"):
        write("compile_time", "Time to compile", args.device, text)


if __name__ == "__main__":
    main()
