"""Integrated gradients meet a tolerance with few gradients, also where doubling the steps does not.

The tolerance is a share of the smallest change of the output in the batch. Counts are gradients and
forward passes an example; doubling starts with the same steps and stops at a limit, and Captum gets
as many steps as the example with the most. Counts do not depend on the load of the machine. Prints
a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _harness import parser, table, write
from captum.attr import IntegratedGradients
from torch import Tensor, nn

import attrfn

NAME = "integrated_gradients_to_a_tolerance"
MOST = 3150  # gradients of an example by doubling from 50 steps


class Counted:
    """A model function that counts its rows."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self.f, self.gradients, self.forwards = f, 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.gradients += len(x)
        else:
            self.forwards += len(x)
        return self.f(x)


def language_model(kind: str, layers: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A small decoder with RMSNorm on embeddings, random weights."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().double()
    x = model.get_input_embeddings()(torch.randint(50, (4, 7))).detach()
    return lambda e: model(inputs_embeds=e).logits[:, -1, 3], x


def convolutional(act: type[nn.Module]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A small convolutional net."""
    torch.manual_seed(1)
    body = (nn.Conv2d(1, 8, 3), act(), nn.Conv2d(8, 8, 3), act(), nn.Flatten())
    model = nn.Sequential(*body, nn.Linear(512, 32), act(), nn.Linear(32, 1)).double()
    return lambda x: model(x)[:, 0], 2 * torch.randn(4, 1, 12, 12, dtype=torch.float64)


def nets(
    quick: bool,
) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor, tuple[float, ...]]]:
    """Name, model, inputs and shares."""
    yield "smooth CNN", *convolutional(nn.Tanh), (1e-3, 1e-5)
    yield "ReLU CNN", *convolutional(nn.ReLU), (1e-2, 1e-3)
    if not quick:
        yield "Mistral, 3 layers", *language_model("Mistral", 3), (1e-2, 1e-3, 1e-5)
        yield "Llama, 6 layers", *language_model("Llama", 6), (1e-2, 1e-3)


def row(name: str, f: Callable[[Tensor], Tensor], x: Tensor, share: float) -> dict[str, object]:
    """What each way takes, and the gap that it leaves."""
    with torch.no_grad():
        change = f(x) - f(0 * x)
    tolerance = share * float(change.abs().min())

    def gap(a: Tensor) -> float:
        return float((a.flatten(1).sum(1) - change).abs().max()) / tolerance

    counted = Counted(f)
    attrfn.integrated_gradients(counted, x, n_steps=2, check_completeness=False)
    counted.gradients = counted.forwards = 0  # whether rows mix is tried once for each model
    ours = gap(attrfn.integrated_gradients(counted, x, tolerance=tolerance))
    gradients = counted.gradients / len(x)
    steps = 50
    taken = 0
    while True:
        left = gap(attrfn.integrated_gradients(f, x, n_steps=steps, check_completeness=False))
        taken += steps
        if left <= 1 or taken >= MOST:
            break
        steps *= 2
    captum: Any = IntegratedGradients(f)
    a = captum.attribute(x, n_steps=round(gradients), internal_batch_size=64)
    return {
        "net": name,
        "tolerance / change": f"{share:.0e}",
        "gap / tolerance": f"{ours:.2f}",
        "gradients": f"{gradients:.0f}",
        "forwards": f"{counted.forwards / len(x):.0f}",
        "doubling: gradients": f"{taken}" if left <= 1 else f"> {taken}",
        "doubling: gap / tolerance": f"{left:.2g}",
        "Captum, as many steps: gap / tolerance": f"{gap(a):.2g}",
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rows = [row(n, f, x, share) for n, f, x, shares in nets(args.quick) for share in shares]
    text = table(rows)
    print(text)
    if not args.quick:
        title = "Integrated gradients to a tolerance: gradients an example"
        write(NAME, title, args.device, text)


if __name__ == "__main__":
    main()
