"""Conductance costs one pass a node, and has the lowest error for its time.

The error is the relative L1 distance to the conductance of many nodes. The default is compared with
the exact integrand at the nodes of Gauss and Legendre (``quadrature="gauss_legendre"``) and with
Captum's differences. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _harness import model_and_batch, parser, seconds, table, write
from _real_models import REAL
from captum.attr import LayerConductance
from torch import Tensor, nn

import attrfn

NAME = "conductance_costs_one_pass"
NODES = {"small": (8, 16, 32, 64), "real": (8, 16)}
DENSE = {"small": 4000, "real": 96}


class Net(NamedTuple):
    """A model with inputs, a baseline and a layer."""

    name: str
    size: str
    model: nn.Module
    x: Tensor
    x0: Tensor
    layer: str


def smooth(dtype: torch.dtype, act: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    """A small convolutional net with an activation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), act(), nn.Conv2d(8, 8, 3), act(), nn.Flatten()),
        *(nn.Linear(8 * 12 * 12, 32), act(), nn.Linear(32, 10)),
    )
    return model.to(dtype).eval(), torch.randn(2, 1, 16, 16, dtype=dtype)


def nets(device: str) -> list[Net]:
    """Smooth and kinked nets, and one of real size with a blurred and a black baseline."""
    found = []
    for name, act, dtype in (
        ("smooth CNN, float64", nn.Tanh, torch.float64),
        ("ReLU CNN", nn.ReLU, torch.float32),
    ):
        model, x = smooth(dtype, act)
        found.append(Net(name, "small", model, x, torch.zeros_like(x), "2"))
    model, x, _ = model_and_batch("transformer", 2, "cpu")
    found.append(Net("transformer", "small", model, x, torch.zeros_like(x), "encoder.layers.0"))
    torch.manual_seed(0)
    model = REAL["EfficientNet"]().eval()
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 28, 28), size=(224, 224), mode="bilinear")
    blurred = torch.nn.functional.avg_pool2d(x, 31, 1, 15)
    for name, x0 in (("blurred", blurred), ("zero", torch.zeros_like(x))):
        found.append(Net(f"EfficientNet, {name} baseline", "real", model, x, x0, "head.0"))
    return [
        n._replace(model=n.model.to(device), x=n.x.to(device), x0=n.x0.to(device)) for n in found
    ]


def ways(net: Net, n: int) -> dict[str, Callable[[], Any]]:
    """The three ways with n nodes; Captum makes its first step of two nodes."""

    def ours(**options: Any) -> Callable[[], Tensor]:
        given = {"layer": net.layer, "target": 1, "baselines": net.x0, "n_steps": n, **options}
        return lambda: attrfn.layer_conductance(net.model, net.x, **given)

    captum = LayerConductance(net.model, net.model.get_submodule(net.layer))
    return {
        "attrfn": ours(),
        "attrfn, exact": ours(quadrature="gauss_legendre"),
        "Captum": lambda: captum.attribute(net.x, net.x0, target=1, n_steps=n - 1),
        "Captum, best": lambda: captum.attribute(
            net.x, net.x0, target=1, n_steps=n - 1, internal_batch_size=4 * len(net.x)
        ),
    }


def rows_of(net: Net, device: str, repeats: int) -> list[dict[str, object]]:
    """Error and time of each way, in interleaved rounds."""
    given = {"layer": net.layer, "target": 1, "baselines": net.x0}
    dense = attrfn.layer_conductance(net.model, net.x, **given, n_steps=DENSE[net.size])
    found = []
    for n in NODES[net.size]:
        runs = ways(net, n)
        errors = {
            name: float((run().detach() - dense).abs().sum() / dense.abs().sum())
            for name, run in runs.items()
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                times[name].append(seconds(run, device))
        found += [
            {
                "net": net.name,
                "nodes": n,
                "way": name,
                "relative L1 error": f"{errors[name]:.1e}",
                "ms": f"{1000 * min(times[name]):.1f}",
                "of Captum's time": f"{ratio_to(times, name):.2f}",
            }
            for name in runs
        ]
    return found


def ratio_to(times: dict[str, list[float]], name: str) -> float:
    """The median ratio to the faster of Captum's two ways in the same round."""
    other = [min(both) for both in zip(times["Captum"], times["Captum, best"], strict=True)]
    return statistics.median(a / b for a, b in zip(times[name], other, strict=True))


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rows = []
    for net in nets(args.device):
        if args.quick and net.size == "real":
            continue
        rows += rows_of(net, args.device, 1 if args.quick else args.repeats)
        print(f"{net.name} is done", flush=True)
    text = table(rows)
    print(text)
    if not args.quick:
        write(NAME, "Conductance: error and time of each way", args.device, text)


if __name__ == "__main__":
    main()
