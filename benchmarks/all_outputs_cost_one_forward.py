"""All outputs cost one forward pass, and a backward pass each.

The floors of the gradient are one forward pass and N backward passes, once by vmap over all
cotangents, once one after the other over the same graph, with frozen parameters; the better of the
two is what counts. Other methods are compared with a loop of calls, one for each output, and
everything with Captum's loop. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from _harness import Cnn, Mlp, median, medians, parser, ratio, table, write
from _real_models import EfficientNet
from captum.attr import (
    LRP,
    DeepLift,
    IntegratedGradients,
    LayerGradientXActivation,
    Saliency,
)
from torch import Tensor, nn

import attrfn

Run = Callable[[], object]


class Transformer(nn.Module):
    """Six encoder layers of width 256 on 32 tokens, and 20 outputs."""

    shape = (32, 256)
    layer = "encoder.layers.2.linear2"

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(256, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Net(NamedTuple):
    """A model, the sizes of its batches, the number of outputs, and a layer."""

    build: Callable[[], Any]
    batches: tuple[int, ...]
    outputs: int
    layer: str


NETS = {
    "MLP": Net(Mlp, (1, 16), 10, "layers.0"),
    "CNN, 32 px": Net(Cnn, (1, 16), 10, "features.3"),
    "transformer, 6 x 256": Net(Transformer, (1, 4), 20, Transformer.layer),
    "EfficientNet-Lite0, 224 px": Net(EfficientNet, (1,), 10, EfficientNet.layer),
}


def floors(model: nn.Module, x: Tensor, n: int) -> dict[str, Run]:
    """One forward pass and n backward passes."""

    def passes(together: bool) -> None:
        z = x.detach().requires_grad_()
        outputs = model(z)
        one_hot = torch.eye(outputs.shape[1])[:n, None].expand(n, *outputs.shape)
        if together:
            torch.autograd.grad(outputs, z, one_hot, is_grads_batched=True)
            return
        for k in range(n):
            torch.autograd.grad(outputs, z, one_hot[k], retain_graph=True)

    return {
        "vmap": functools.partial(passes, together=True),
        "one by one": functools.partial(passes, together=False),
    }


def methods(net: Net, model: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Names, methods, and Captum's call for a target."""
    layer = functools.partial(attrfn.layer_gradient_x_activation, layer=net.layer)
    path = functools.partial(attrfn.integrated_gradients, n_steps=8)
    theirs = functools.partial(IntegratedGradients(model).attribute, n_steps=8)
    at = LayerGradientXActivation(model, model.get_submodule(net.layer))
    yield "gradient", attrfn.gradient, functools.partial(Saliency(model).attribute, abs=False)
    yield "layer_gradient_x_activation", layer, at.attribute
    yield "integrated_gradients, 8 steps", path, theirs
    yield "deep_lift", attrfn.deep_lift, DeepLift(model).attribute
    yield "lrp", attrfn.lrp, LRP(model).attribute


def works(run: Run) -> bool:
    """Whether Captum takes the model: its DeepLIFT and LRP refuse some layers."""
    try:
        run()
    except Exception:
        return False
    return True


def timed(name: str, net: Net, batch: int, args: Any) -> Iterator[dict[str, object]]:
    torch.manual_seed(0)
    model = net.build().eval().requires_grad_(False)
    x, n = torch.randn(batch, *net.build.shape), net.outputs  # type: ignore[attr-defined]
    for method, ours, theirs in methods(net, model):
        if args.quick and method != "gradient":
            continue
        every = attrfn.each_output(ours, n=n)
        runs: dict[str, Run] = {
            "attrfn": functools.partial(every, model, x),
            "calls": lambda ours=ours: [ours(model, x, target=k) for k in range(n)],
        }
        captum: Run = lambda theirs=theirs: [theirs(x, target=k) for k in range(n)]  # noqa: E731
        if works(captum):
            runs["Captum"] = captum
        if method == "gradient":
            runs |= floors(model, x, n)
        times = medians(runs, args.repeats, args.device)
        of = functools.partial(ratio, times["attrfn"])
        bare = min([times[k] for k in ("vmap", "one by one") if k in times], key=median, default=[])
        yield {
            "model": name,
            "B": batch,
            "method": method,
            "N": n,
            "ms": f"{1e3 * median(times['attrfn']):.2f}",
            "/ floor by vmap": f"{of(times['vmap']):.2f}" if bare else "",
            "/ floor one by one": f"{of(times['one by one']):.2f}" if bare else "",
            "/ better floor": f"{of(bare):.2f}" if bare else "",
            "/ N calls": f"{of(times['calls']):.2f}",
            "/ Captum": f"{of(times['Captum']):.2f}" if "Captum" in times else "",
        }


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    rows = [
        row
        for name, net in NETS.items()
        for batch in net.batches
        for row in timed(name, net, batch, args)
    ]
    print(table(rows))
    if not args.quick:
        write("all_outputs_cost_one_forward", "All outputs: time", args.device, table(rows))


if __name__ == "__main__":
    main()
