"""Methods with rules cost little more than a plain gradient, on small nets and on real sizes.

Each method is compared with a plain gradient of the same rows in the same run, and of twice as many
for DeepLIFT, which looks at inputs and baselines: attrfn.gradient, and the floor, a forward and a
backward pass with frozen parameters. Prints a table and writes it to benchmarks/results/, as
Markdown and as CSV. Networks of real size come at batch 1, with default settings and without other
libraries.
"""

from __future__ import annotations

import functools
import importlib.metadata as metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from _harness import Mlp, median, medians, parser, ratio, table, write, write_csv
from _real_models import REAL
from captum import attr
from torch import Tensor, nn

import attrfn

try:
    import zennit
    from zennit import composites as zennit_composites
    from zennit import rules as zennit_rules
    from zennit.attribution import Gradient
except (ImportError, RuntimeError):  # optional; its column is left out
    zennit = None

BATCHES = (1, 16)
Run = Callable[[], object]
Maker = Callable[[nn.Module, Tensor, Tensor], Run]


class Cnn(nn.Module):
    """Six convolutions on 3 x 32 x 32 images."""

    shape = (3, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate([(3, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 64)]):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i % 2 else []
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(64 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Transformer(nn.Module):
    """Two encoder layers on 32 tokens of width 64, with ReLU as a module."""

    shape = (32, 64)

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, activation=nn.ReLU(), batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


MODELS = {"MLP": Mlp, "CNN": Cnn, "transformer": Transformer}
LARGE = {name: REAL[name] for name in ("EfficientNet", "ResNet", "ViT", "BERT")}
ALL = (*MODELS, *LARGE)


class Case(NamedTuple):
    """A method.

    Attributes:
        method: The method of attrfn.
        options: Its options.
        bar: How many plain gradients it may take on small nets, or None.
        large_bar: How many floors it may take on nets of real size, or None.
        doubled: Whether those are of the doubled batch.
        captum: Captum's run, from a model, inputs and targets.
        zennit: The composite of zennit.
        models: Where it is timed.
        agrees: On which models the others compute the same numbers.
    """

    method: Callable[..., Tensor]
    options: Mapping[str, object] = {}
    bar: float | None = None
    large_bar: float | None = None
    doubled: bool = False
    captum: Maker | None = None
    zennit: Callable[[], object] | None = None
    models: Sequence[str] = ALL
    agrees: Sequence[str] = ("MLP", "CNN")


def captum_run(method: Callable[[nn.Module], attr.Attribution]) -> Maker:
    def make(model: nn.Module, x: Tensor, target: Tensor) -> Run:
        made = method(model)
        return lambda: made.attribute(x, target=target)

    return make


def zennit_epsilon() -> object:
    return zennit_composites.LayerMapComposite(
        [
            (zennit_composites.Activation, zennit_rules.Pass()),
            (zennit_composites.Linear, zennit_rules.Epsilon(1e-6)),
        ]
    )


CASES = {
    "guided backprop": Case(
        attrfn.guided_backprop,
        bar=1.3,
        large_bar=1.15,
        captum=captum_run(attr.GuidedBackprop),
        zennit=lambda: zennit_composites.GuidedBackprop(),
        agrees=tuple(MODELS),
    ),
    "DeepLIFT, rescale": Case(
        attrfn.deep_lift,
        bar=2.5,
        large_bar=1.2,
        doubled=True,
        captum=captum_run(attr.DeepLift),
        agrees=("MLP",),
    ),
    "DeepLIFT, reveal-cancel": Case(
        attrfn.deep_lift, {"rule": "reveal_cancel"}, doubled=True, models=tuple(MODELS)
    ),
    "LRP epsilon": Case(
        attrfn.lrp,
        {"rules": attrfn.rules.epsilon()},
        bar=3.0,
        large_bar=1.5,
        captum=captum_run(attr.LRP),
        zennit=zennit_epsilon,
    ),
    "LRP epsilon-plus": Case(
        attrfn.lrp,
        {"rules": attrfn.rules.epsilon_plus()},
        large_bar=2.0,
        zennit=lambda: zennit_composites.EpsilonPlus(),
    ),
    "LRP epsilon-alpha2-beta1": Case(
        attrfn.lrp, {"rules": attrfn.rules.epsilon_alpha2_beta1()}, large_bar=2.0
    ),
    "LRP epsilon-gamma-box": Case(
        attrfn.lrp,
        {"rules": attrfn.rules.epsilon_gamma_box(-5.0, 5.0)},
        large_bar=2.0,
        models=("CNN", "EfficientNet", "ResNet"),
    ),
    "AttnLRP": Case(
        attrfn.lrp,
        {"rules": attrfn.rules.attn_lrp()},
        large_bar=1.5,
        models=("transformer", "ViT", "BERT"),
    ),
}


def floor(model: nn.Module, x: Tensor, target: Tensor) -> Run:
    """A bare forward and backward pass."""
    index = target[:, None]

    def run() -> Tensor:
        z = x.detach().requires_grad_()
        return torch.autograd.grad(model(z).gather(1, index).sum(), z)[0]

    return run


def eager(case: Case, model: nn.Module, x: Tensor, target: Tensor) -> Run:
    return functools.partial(case.method, model, x, target=target, **case.options)


def compiled(case: Case, model: nn.Module, x: Tensor, target: Tensor) -> Run:
    """The whole method in one graph."""
    graph = attrfn.compile(case.method, model, dynamic=False, **case.options)
    return lambda: graph(x, target=target)


def zennit_run(case: Case, model: nn.Module, x: Tensor, target: Tensor) -> Run:
    """Rules are attached at each call, as Captum does it."""
    if case.method is attrfn.lrp and any(
        isinstance(m, nn.MultiheadAttention) for m in model.modules()
    ):
        raise NotImplementedError("it does not see the linear operations of nn.MultiheadAttention")
    composite = case.zennit()
    chosen = torch.eye(10, device=x.device)[target]

    def cotangent(output: Tensor) -> Tensor:
        return chosen * output if case.method is attrfn.lrp else chosen

    def run() -> Tensor:
        with Gradient(model=model, composite=composite, attr_output=cotangent) as attributor:
            return attributor(x.detach().requires_grad_())[1]

    return run


def first_words(error: Exception) -> str:
    """The first sentence of an error, shortened."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].replace("|", "/")
    return line if len(line) < 120 else line[:117].rsplit(" ", 1)[0] + " ..."


def runs_of(
    name: str, model: nn.Module, x: Tensor, target: Tensor, compiling: bool, others: bool
) -> tuple[dict[tuple[str, str], Run], list[str]]:
    """What is timed on one model, by method and by who runs it; and notes on what is not."""
    twice = torch.cat([x, torch.zeros_like(x)]), torch.cat([target, target])
    plain = Case(attrfn.gradient)
    runs: dict[tuple[str, str], Run] = {}
    notes: list[str] = []
    cases = {"gradient": plain, "gradient, doubled batch": plain}
    cases |= {k: c for k, c in CASES.items() if name in c.models}
    for method, case in cases.items():
        rows = twice if method == "gradient, doubled batch" else (x, target)
        if case is plain:
            runs[method, "floor"] = floor(model, *rows)
        ours = runs[method, "attrfn"] = eager(case, model, *rows)
        want = ours()
        more: dict[str, Callable[[], Run]] = {}
        if compiling and (case.bar is not None or method == "gradient"):
            more["compiled"] = functools.partial(compiled, case, model, *rows)
        if others and case.captum is not None:
            more["Captum"] = functools.partial(case.captum, model, *rows)
        if others and case.zennit is not None and zennit is not None:
            more["zennit"] = functools.partial(zennit_run, case, model, *rows)
        for who, make in more.items():
            try:
                run = make()
                found = run()
            except Exception as error:  # they and the compiler raise errors of many types
                notes.append(f"{name}, {method}, {who}: {first_words(error)}")
                continue
            if who == "compiled" or name in case.agrees:
                torch.testing.assert_close(found.detach(), want, rtol=1e-3, atol=1e-4)
            else:
                gap = float((found.detach() - want).abs().max() / want.abs().max())
                if gap > 1e-3:
                    notes.append(f"{name}, {method}, {who}: runs, but computes other numbers")
            runs[method, who] = run
    return runs, notes


def rows_of(name: str, batch: int, args) -> tuple[list[dict[str, object]], list[str]]:
    torch.manual_seed(0)
    large = name in LARGE
    model = (LARGE | MODELS)[name]().eval().requires_grad_(False).to(args.device)
    x = torch.randn(batch, *model.shape, device=args.device)
    target = torch.arange(batch, device=args.device) % 10
    compiling = batch in args.compile_at and not large
    runs, notes = runs_of(name, model, x, target, compiling, others=not large)
    times = medians(runs, min(args.repeats, 3) if large else args.repeats, args.device)

    def ms(key: tuple[str, str]) -> str:
        return f"{1e3 * median(times[key]):.2f}" if key in times else "-"

    def over(key: tuple[str, str], reference: tuple[str, str]) -> float | None:
        return ratio(times[key], times[reference]) if key in times else None

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = []
    for method in dict.fromkeys(method for method, _ in runs):
        case = CASES.get(method)
        doubled = case.doubled if case else "doubled" in method
        plain = "gradient, doubled batch" if doubled else "gradient"
        ours = over((method, "attrfn"), (plain, "attrfn"))
        bar = None if case is None else case.large_bar if large else case.bar
        if large:  # a bar holds over the floor there
            ours = over((method, "attrfn"), (plain, "floor"))
        row = {
            "model": name,
            "batch": batch,
            "method": method,
            "floor ms": ms((plain, "floor")),
            "gradient ms": ms((plain, "attrfn")),
            "attrfn ms": ms((method, "attrfn")),
            "compiled ms": ms((method, "compiled")),
            "Captum ms": ms((method, "Captum")),
            "zennit ms": ms((method, "zennit")),
            "attrfn / floor": shown(over((method, "attrfn"), (plain, "floor"))),
            "attrfn / gradient": shown(over((method, "attrfn"), (plain, "attrfn"))),
            "compiled / gradient": shown(over((method, "compiled"), (plain, "attrfn"))),
            "Captum / gradient": shown(over((method, "Captum"), (plain, "attrfn"))),
            "bar": "-" if bar is None else f"<= {bar:g}",
            "met": "-" if bar is None else "yes" if ours <= bar else "MISSED",
        }
        if zennit is None:
            del row["zennit ms"]
        rows.append(row)
    return rows, notes


def main() -> None:
    flags = parser(__doc__)
    text = "batch sizes at which methods with a bar are compiled; it takes most of the time"
    flags.add_argument("--compile-at", type=int, nargs="*", default=[1], help=text)
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.repeats, args.compile_at = 3, []
    rows: list[dict[str, object]] = []
    notes: list[str] = []
    for name in (*MODELS, *([] if args.quick else LARGE)):
        for batch in BATCHES[: 1 if args.quick or name in LARGE else None]:
            torch._dynamo.reset()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Captum's on hooks, in every run
                found, noted = rows_of(name, batch, args)
            rows += found
            notes += [note for note in noted if note not in notes]
            print(table(found), end="\n\n", flush=True)
    caption = (
        f"Medians of {args.repeats} interleaved rounds; ratios are taken within a round. Gradients "
        "beside DeepLIFT are of the doubled batch. A bar holds for attrfn / gradient in eager "
        "mode, and for attrfn / floor on networks of real size (3 rounds); compiled / "
        "gradient is over the gradient in eager mode, too. What has a bar on a small net is "
        f"compiled at batch sizes {args.compile_at}."
    )
    if zennit is not None:
        caption = f"zennit {metadata.version('zennit')}. {caption}"
    text = "\n\n".join([table(rows), caption, "Notes:"])
    text += "\n\n" + "\n".join(f"- {note}" for note in notes)
    print("\n\n".join([caption, *[f"- {note}" for note in notes]]))
    if args.quick:
        return
    path = write("rules_cost_little", "Rules: time over a plain gradient", args.device, text)
    write_csv(path.with_suffix(".csv"), rows)


if __name__ == "__main__":
    main()
