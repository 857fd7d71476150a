"""Attacks cost the forward and backward passes of the model that they need.

The floor is bare passes over as many rows, with frozen parameters: one for FGSM, one for each step
of PGD, and the passes of the search's attacks and of what they end with. Captum's FGSM and PGD
run too. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from _harness import median, medians, parser, ratio, table, write
from captum.robust import FGSM, PGD
from torch import Tensor, nn

from attrfn import robust

Run = Callable[[], object]
STEPS = 20
VALUES = torch.linspace(0, 0.4, 9)


def tiny() -> nn.Module:
    """A perceptron that takes microseconds, so that an attack's own time shows."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))


def wide() -> nn.Module:
    """A perceptron on 784 features."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))


def digits() -> nn.Module:
    """Two convolutions on 28 x 28 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16 * 49, 10)),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small MLP, 16 rows of 20": (tiny, (16, 20)),
    "MLP, 64 rows of 784": (wide, (64, 784)),
    "CNN, 32 images of 28 x 28": (digits, (32, 1, 28, 28)),
}


class Case(NamedTuple):
    """What is timed.

    Attributes:
        name: The attack.
        backward: The forward and backward passes of the batch that it needs.
        forward: The forward passes that it needs beyond those.
        ours: Its run.
        captum: Captum's.
    """

    name: str
    backward: int
    forward: int
    ours: Run
    captum: Run | None


def negative_log_likelihood(outputs: Tensor, labels: Tensor) -> Tensor:
    """Captum's default takes probabilities; this is the loss of logits."""
    return nn.functional.cross_entropy(outputs, labels, reduction="none")


def cases(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Case]:
    on: dict[str, Any] = {"target": y}
    fast, walk = (kind(model, negative_log_likelihood) for kind in (FGSM, PGD))
    yield Case(
        *("fgsm", 1, 0),
        lambda: robust.fgsm(model, x, **on, epsilon=0.1),
        lambda: fast.perturb(x, epsilon=0.1, **on),
    )
    for norm, theirs in (("linf", "Linf"), ("l2", "L2")):
        common = {"radius": 0.3, "step_size": 0.03}
        yield Case(
            *(f"pgd, {norm}, {STEPS} steps", STEPS, 0),
            functools.partial(
                robust.pgd,
                *(model, x),
                **{**on, **common, "n_steps": STEPS, "norm": norm, "random_start": False},
            ),
            functools.partial(
                walk.perturb, x, step_num=STEPS, norm=theirs, random_start=False, **common, **on
            ),
        )
    yield Case(
        *(f"pgd, linf, random start, {STEPS} steps", STEPS, 0),
        functools.partial(robust.pgd, model, x, **on, radius=0.3, n_steps=STEPS),
        None,
    )

    def attack(inputs: Tensor, value: Tensor, keys: Tensor, *, y: Tensor) -> Any:
        return robust.fgsm(model, inputs, target=y, epsilon=value)

    bound = functools.partial(attack, y=y)
    for mode, tried in (("linear", len(VALUES)), ("binary", 4)):
        yield Case(
            *(f"min_param_perturbation of fgsm, {mode}, {len(VALUES)} values", tried, tried),
            functools.partial(
                robust.min_param_perturbation, model, x, bound, values=VALUES, mode=mode, **on
            ),
            None,
        )


def floor(model: nn.Module, x: Tensor, y: Tensor, case: Case) -> Run:
    """Bare passes, one batch at a time."""

    def run() -> None:
        for _ in range(case.backward):
            z = x.detach().requires_grad_()
            torch.autograd.grad(model(z).gather(1, y[:, None]).sum(), z)
        with torch.no_grad():
            for _ in range(case.forward):
                model(x)

    return run


def timed(name: str, args: Any) -> Iterator[dict[str, object]]:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False)
    x = torch.rand(shape)
    y = model(x).argmax(1)
    for case in cases(model, x, y):
        runs: dict[str, Run] = {"floor": floor(model, x, y, case), "attrfn": case.ours}
        if case.captum is not None:
            runs["Captum"] = case.captum
        times = medians(runs, args.repeats, args.device)
        captum = times.get("Captum")
        yield {
            "model": name,
            "attack": case.name,
            "ms": f"{1e3 * median(times['attrfn']):.2f}",
            "/ floor": f"{ratio(times['attrfn'], times['floor']):.2f}",
            "Captum / floor": f"{ratio(captum, times['floor']):.2f}" if captum else "",
            "/ Captum": f"{ratio(times['attrfn'], captum):.2f}" if captum else "",
        }


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for name in MODELS for row in timed(name, args)]
    print(table(rows))
    if not args.quick:
        write("attacks_cost_their_passes", "Attacks: time", args.device, table(rows))


if __name__ == "__main__":
    main()
