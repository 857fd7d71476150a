"""Values and gradients at many layers cost one pass forward and one back.

The floor is a bare pass with hooks that keep the layers' outputs, and their gradients by autograd;
for values alone it is the forward pass. Captum runs too, for one layer after the other and,
where it takes a list, for the list. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _harness import median, parser, ratio, seconds, table, write
from captum.attr import LayerConductance, LayerGradientXActivation
from torch import Tensor, nn

import attrfn

NAME = "many_layers_cost_one_pass"
BAR = 1.10


class Transformer(nn.Module):
    """Six layers of width 256."""

    def __init__(self) -> None:
        super().__init__()
        make = functools.partial(
            nn.TransformerEncoderLayer, 256, 4, 1024, 0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList([make() for _ in range(6)])
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Embedded(nn.Module):
    """GPT-2 of four layers by its embedded words: the logits of the last place."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        ends = {"bos_token_id": 0, "eos_token_id": 0}
        config = GPT2Config(vocab_size=1000, n_embd=256, n_layer=4, n_head=4, **ends)
        self.gpt2 = GPT2LMHeadModel(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.gpt2(inputs_embeds=x, use_cache=False).logits[:, -1]


class Net(NamedTuple):
    """A model with inputs and layers."""

    name: str
    model: nn.Module
    x: Tensor
    layers: list[str]


def nets(device: str) -> list[Net]:
    torch.manual_seed(0)
    six = Transformer().to(device).eval()
    inside = [f"layers.{i}{part}" for i in range(6) for part in (".linear2", "")]
    gpt2 = Embedded().to(device).eval()
    writers = [
        f"gpt2.transformer.h.{i}.{part}" for i in range(4) for part in ("attn.c_proj", "mlp")
    ]
    nine = [*writers, "gpt2.transformer.ln_f"]
    found = []
    for batch in (4, 16):
        x = torch.randn(batch, 64, 256, device=device)
        found.append(Net(f"transformer, batch {batch}", six, x, inside))
        found.append(Net(f"GPT-2, batch {batch}", gpt2, x, nine))
    return found


def with_hooks(net: Net, backward: bool) -> Callable[[], object]:
    """The bare pass: parameters record no graph, and hooks keep the outputs."""

    def run() -> object:
        kept: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, args: Any, out: Any) -> None:
            kept[name] = out[0] if isinstance(out, tuple) else out

        hooks = [
            net.model.get_submodule(name).register_forward_hook(functools.partial(keep, name))
            for name in net.layers
        ]
        parameters = [p for p in net.model.parameters() if p.requires_grad]
        for p in parameters:
            p.requires_grad_(False)
        try:
            with torch.set_grad_enabled(backward):
                out = net.model(net.x.clone().requires_grad_(backward))
                if backward:
                    return torch.autograd.grad(out[:, 1].sum(), list(kept.values()))
                return out, kept
        finally:
            for hook in hooks:
                hook.remove()
            for p in parameters:
                p.requires_grad_(True)

    return run


def ways(net: Net) -> dict[str, tuple[str, Callable[[], object]]]:
    """What is timed, each with the floor that it belongs to."""
    model, x, layers = net.model, net.x, net.layers
    modules = [model.get_submodule(name) for name in layers]
    given: dict[str, Any] = {"layer": layers, "target": 1}
    read = attrfn.activations(model, layers, frozen=True)

    def values() -> object:
        with torch.no_grad():
            return read(x)

    def loop(method: Callable[..., object], **options: Any) -> Callable[[], object]:
        return lambda: [method(model, x, layer=name, target=1, **options) for name in layers]

    def captum(kind: Any, which: list[Any], **options: Any) -> Callable[[], object]:
        return lambda: [kind(model, m).attribute(x, target=1, **options) for m in which]

    gradients = attrfn.layer_gradient_x_activation
    lrp = {"rules": attrfn.rules.attn_lrp()}
    of_last = functools.partial(attrfn.layer_lrp, model, x, layer=layers[0], target=1, **lrp)
    steps = {"n_steps": 4}
    one = functools.partial(attrfn.layer_conductance, model, x, layer=layers[0], target=1, **steps)
    return {
        "floor: forward": ("floor: forward", with_hooks(net, backward=False)),
        "activations": ("floor: forward", values),
        "floor: forward and back": ("floor: forward and back", with_hooks(net, backward=True)),
        "gradient x activation": ("floor: forward and back", lambda: gradients(model, x, **given)),
        "gradient x activation, layer by layer": ("floor: forward and back", loop(gradients)),
        "Captum, layer by layer": (
            "floor: forward and back",
            captum(LayerGradientXActivation, modules),
        ),
        "Captum, the list": (
            "floor: forward and back",
            captum(LayerGradientXActivation, [modules]),
        ),
        "floor: AttnLRP of the first layer": ("floor: AttnLRP of the first layer", of_last),
        "AttnLRP": (
            "floor: AttnLRP of the first layer",
            lambda: attrfn.layer_lrp(model, x, **given, **lrp),
        ),
        "floor: conductance of the first layer": ("floor: conductance of the first layer", one),
        "conductance": (
            "floor: conductance of the first layer",
            lambda: attrfn.layer_conductance(model, x, **given, **steps),
        ),
        "Captum's conductance, layer by layer": (
            "floor: conductance of the first layer",
            captum(LayerConductance, modules, n_steps=3),
        ),
    }


def rows_of(net: Net, device: str, repeats: int) -> list[dict[str, object]]:
    """Each way's time and its ratio to its floor, from interleaved rounds."""
    runs = ways(net)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):  # the first round warms up
        for name, (_, run) in runs.items():
            took = seconds(run, device)
            if i:
                times[name].append(took)
    return [
        {
            "net": net.name,
            "sites": len(net.layers),
            "what": name,
            "ms": f"{1000 * median(times[name]):.1f}",
            "of the floor": f"{ratio(times[name], times[floor]):.2f}",
        }
        for name, (floor, _) in runs.items()
    ]


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rows: list[dict[str, object]] = []
    for net in nets(args.device)[: 2 if args.quick else None]:
        rows += rows_of(net, args.device, 2 if args.quick else args.repeats)
        print(f"{net.name} is done", flush=True)
    text = table(rows)
    print(text)
    ours = [r for r in rows if r["what"] in ("activations", "gradient x activation")]
    worst = max(float(str(r["of the floor"])) for r in ours)
    print(f"values and gradients: at most {worst:.2f} of the floor, the bar is {BAR:.2f}")
    if not args.quick:
        write(NAME, "Many layers in one pass", args.device, text)


if __name__ == "__main__":
    main()
