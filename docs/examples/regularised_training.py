"""Right for the right reasons: a network is told during training which pixels not to use.

Below every training image is a margin of two rows in which one pixel gives the digit away, a
decoy. A plain network reads it and is worse where the margin is empty. Another one is penalised for
gradients in the margin: the attributions of each batch are computed, and differentiated, in every
step.

Reference:
    Ross et al., Right for the Right Reasons: Training Differentiable Models by Constraining their
    Explanations, 2017.
"""

import argparse
import contextlib
import shutil
import threading
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import attrfn

MARGIN = torch.zeros(10, 8)
MARGIN[8:] = 1
LEAST_GAIN = 2.0  # points of accuracy


def with_margin(images: Tensor, digits: Tensor | None = None) -> Tensor:
    """Images with two more rows, (B, 1, 10, 8): empty, or with a bright pixel for the digit."""
    margin = torch.zeros(len(images), 16)
    if digits is not None:
        margin[torch.arange(len(images)), digits] = 1
    return torch.cat([images, margin.view(-1, 1, 2, 8)], 2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1280, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def loss(model: nn.Module, x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Cross entropy, and the squared gradient of all log-probabilities in the margin."""
    plain = F.cross_entropy(model(x), y)
    if not weight:
        return plain

    def log_probabilities(z: Tensor) -> Tensor:
        return model(z).log_softmax(-1).sum(-1)

    reasons = attrfn.gradient(log_probabilities, x, create_graph=True)
    return plain + weight * (reasons * MARGIN).square().sum((1, 2, 3)).mean()


@contextlib.contextmanager
def saying(what: str, seconds: float = 5) -> Iterator[None]:
    """Print every few seconds that something still goes on."""
    over = threading.Event()

    def say() -> None:
        start = time.perf_counter()
        while not over.wait(seconds):
            print(f"{what} for {time.perf_counter() - start:.0f} s", flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def train(
    x: Tensor, y: Tensor, weight: float, steps: int, name: str, compiled: bool
) -> tuple[nn.Module, float]:
    """The trained network, and how many steps it took per second, without the compilation."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    objective = torch.compile(loss, fullgraph=True, dynamic=False) if compiled else loss
    start = time.perf_counter()
    for step in range(steps):
        if step == 5:
            start = time.perf_counter()
        if step % 50 == 0:
            print(f"{name}: step {step} of {steps}", flush=True)
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        # The first step of a compiled objective waits for the compiler.
        with saying(f"{name}: compiling") if step == 0 else contextlib.nullcontext():
            objective(model, x[batch], y[batch], weight).backward()
        optimizer.step()
    return model.eval(), (steps - 5) / (time.perf_counter() - start)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def main(weight: float, steps: int) -> None:
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    torch.manual_seed(0)
    train_x, test_x = with_margin(x[:1300], y[:1300]), with_margin(x[1300:])
    found, speed = {}, {}
    kinds = ("", ", compiled") if any(map(shutil.which, ("c++", "g++", "clang++"))) else ("",)
    for name, w in (("plain", 0.0), ("regularised", weight)):
        for kind in kinds:
            model, speed[name + kind] = train(train_x, y[:1300], w, steps, name + kind, bool(kind))
            found[name + kind] = accuracy(model, test_x, y[1300:])
            seen = accuracy(model, with_margin(x[1300:], y[1300:]), y[1300:])
            print(
                f"{name + kind:>22}: {found[name + kind]:6.1%} without decoys, {seen:6.1%} with "
                f"them; {speed[name + kind]:5.0f} steps per second"
            )
    for kind in kinds:
        cost = speed[f"plain{kind}"] / speed[f"regularised{kind}"]
        print(f"a regularised step takes {cost:.1f} plain ones{kind}")
    gain = 100 * min(found[f"regularised{kind}"] - found[f"plain{kind}"] for kind in kinds)
    print(f"the right reasons are worth {gain:.1f} points of accuracy without decoys")
    if gain < LEAST_GAIN:
        raise SystemExit(f"that is less than the {LEAST_GAIN:g} points that they should be worth")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weight", type=float, default=10.0, help="of the penalty")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    main(args.weight, args.steps)
