"""A special case in the library stays only while it wins 10 % somewhere.

Each case is timed as it is and switched off, on the small nets of the other benchmarks and on
networks of real size. It is switched off from outside, by putting the general code in its place:
the library has no option for it. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import contextlib
import functools
import random
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from _harness import MODELS, parser, ratio, seconds, table, write
from _real_models import REAL
from torch import Tensor, nn

import attrfn
from attrfn import random as attrfn_random
from attrfn._compile import compiled
from attrfn._copies import chunks
from attrfn._explain import masked
from attrfn._methods import gradient_shap, guided, lime, noise_tunnel, rise
from attrfn._model import bind, private_copy
from attrfn._random import draws, philox
from attrfn._rules import decompositions, relu

LAYERS = {"MLP": "layers.1", "CNN": "features.4", "transformer": "encoder.layers.0"}
NAME = "special_cases_earn_their_place"
GROUPS = 16
ENOUGH = 1.1  # times as long without the case
BUDGET = 4.0  # seconds for a row, after which there are no more than FEWEST rounds
FEWEST = 5
Off = Callable[[], Sequence[contextlib.AbstractContextManager[Any]]]


class Net(NamedTuple):
    """A model with inputs."""

    name: str
    model: nn.Module
    x: Tensor

    @property
    def layer(self) -> str:
        return LAYERS.get(self.name) or self.model.layer

    @property
    def features(self) -> Mapping[str, Any]:
        """16 features: runs of columns or tokens, or squares of pixels."""
        shape = self.x.shape[1:]
        if len(shape) == 3:
            side = torch.arange(4).repeat_interleave(shape[1] // 4)
            return {"feature_mask": 4 * side[:, None] + side, "n_features": GROUPS}
        ids = torch.arange(shape[0]) // (shape[0] // GROUPS)
        return {"feature_mask": ids[:, None] if len(shape) == 2 else ids, "n_features": GROUPS}


class Row(NamedTuple):
    """What is timed: a method with its options on a net."""

    net: str
    batch: int
    method: str
    options: Mapping[str, Any] = {}
    grouped: bool = False
    backend: str | None = None  # of attrfn.compile


class Case(NamedTuple):
    """A special case: what it is, how it is switched off, and where it could win."""

    name: str
    off: Off
    rows: Sequence[Row]


def put(place: Any, **others: Any) -> list[contextlib.AbstractContextManager[Any]]:
    """Other values for the names of a module or class."""
    return [mock.patch.object(place, name, value) for name, value in others.items()]


def on(method: str, *places: tuple[str, int], **options: Any) -> list[Row]:
    """The same method on several nets."""
    return [Row(net, batch, method, options) for net, batch in places]


def grouped(method: str, *places: tuple[str, int], **options: Any) -> list[Row]:
    return [Row(net, batch, method, options, True) for net, batch in places]


def no_filter() -> Sequence[contextlib.AbstractContextManager[Any]]:
    def settings(backend: Any, mode: Any, dynamic: Any) -> dict[str, Any]:
        return {"backend": backend, "dynamic": dynamic}

    return put(compiled, settings=settings)


def no_packed_rules() -> Sequence[contextlib.AbstractContextManager[Any]]:
    @contextlib.contextmanager
    def torchs() -> Iterator[None]:
        shortcut = decompositions.multi_head_attention_forward  # its rule holds it, not its name
        code = shortcut.__code__
        shortcut.__code__ = (lambda *args, **options: _torch_attention(*args, **options)).__code__  # noqa: F821
        try:
            yield
        finally:
            shortcut.__code__ = code

    return [torchs()]


def no_at_once() -> Sequence[contextlib.AbstractContextManager[Any]]:
    places = (masked, noise_tunnel, gradient_shap, lime, rise)
    return [p for m in places for p in put(m, at_once=lambda make, n, elements: make)]


def always_cloned() -> Sequence[contextlib.AbstractContextManager[Any]]:
    general = masked.call_model
    return put(masked, call_model=lambda f, inputs, fresh=False: general(f, inputs))


def no_fused() -> Sequence[contextlib.AbstractContextManager[Any]]:
    general = private_copy.no_fast_path
    return put(private_copy, no_fast_path=lambda cls, state, fused: general(cls, state, False))


def always_new() -> Sequence[contextlib.AbstractContextManager[Any]]:
    def take(self: Any) -> Any:
        none = [None] * len(self.layers)
        private = bind._private_copy(self.src, self.layers, none, True, self.fused)
        return bind._Built(*private, ready=False)

    return put(bind.Reused, _take=take)


SMALL = ("MLP", "CNN", "transformer")
CASES = [
    Case(
        "compiled code without guards that cannot fail",
        no_filter,
        [
            Row("MLP", 1, "layer_activation", {}, False, "inductor"),
            Row("MLP", 16, "layer_activation", {}, False, "inductor"),
            Row("MLP", 1, "gradient", {}, False, "inductor"),
            Row("transformer", 1, "layer_activation", {}, False, "inductor"),
            Row("EfficientNet", 1, "gradient", {}, False, "eager"),
        ],
    ),
    Case(
        "rules: self-attention in few calls",
        no_packed_rules,
        [
            *on("deep_lift", ("transformer", 1), ("transformer", 16), ("BERT", 1)),
            *on("lrp", ("transformer", 1), ("ViT", 1), rules=attrfn.rules.attn_lrp()),
        ],
    ),
    Case(
        "guided backpropagation: a ReLU writes in place",
        lambda: put(guided, GUIDED=relu.on_clones(relu.GUIDED)),
        [*on("guided_backprop", ("ResNet", 1), ("ResNet", 4))],
    ),
    Case(
        "draws of all chunks made at once",
        no_at_once,
        [
            *on("rise", ("CNN", 1), n_samples=128, grid=4),
            *grouped("lime", ("MLP", 16), n_samples=128),
            *on("gradient_shap", ("MLP", 16), n_samples=8, stdevs=0.1),
            *on("gradient_shap", ("MLP", 1), n_samples=64, stdevs=0.1, chunk_size=8),
        ],
    ),
    Case(
        "random: few blocks from Python's ints",
        lambda: put(philox, _FEW=0),
        [
            *on("gradient_shap", ("MLP", 1), ("CNN", 1), n_samples=8, stdevs=0.1),
            *grouped("shapley_value_sampling", ("MLP", 1), ("MLP", 16), n_samples=8),
            *grouped("feature_permutation", ("MLP", 4)),
        ],
    ),
    Case(
        "random: blocks in parts that a cache holds",
        lambda: put(philox, CHUNK=2**62),
        [
            *on("gradient_shap", ("EfficientNet", 1), n_samples=8, stdevs=0.1),
            Row("4 million numbers", 1, "random.normal"),
        ],
    ),
    Case(
        "random: erfinv as a polynomial in compiled code",
        lambda: put(draws, erfinv=torch.erfinv),
        [
            Row("MLP", 16, "gradient_shap", {"n_samples": 8, "stdevs": 0.1}, False, "inductor"),
        ],
    ),
    Case(
        "perturbed inputs given to the model uncopied",
        always_cloned,
        [
            *grouped("feature_ablation", *[(net, b) for net in SMALL for b in (1, 16)]),
            *grouped("feature_ablation", ("EfficientNet", 1), chunk_size=4),
        ],
    ),
    Case(
        "torch's fused encoder layers where nothing is differentiated",
        no_fused,
        [
            *grouped("feature_ablation", ("transformer", 1), ("transformer", 16)),
            *grouped("feature_ablation", ("ViT", 1), ("BERT", 1)),
        ],
    ),
    Case(
        "the first chunk as large as usually fits",
        lambda: put(chunks, unmeasured_copies=lambda x: 0),
        on("integrated_gradients", *[(net, b) for net in SMALL for b in (1, 16)], n_steps=32),
    ),
    Case(
        "small results left out where a chunk is measured",
        lambda: put(chunks, _NEGLIGIBLE=0),
        on("integrated_gradients", ("transformer", 16), ("EfficientNet", 1), n_steps=8),
    ),
    Case(
        "private copies used again",
        always_new,
        [
            *on("integrated_gradients", ("MLP", 1), n_steps=32, chunk_size=4),
            *on("integrated_gradients", ("transformer", 1), n_steps=32, chunk_size=4),
            *on("integrated_gradients", ("EfficientNet", 1), n_steps=8, chunk_size=1),
            *grouped("feature_ablation", ("EfficientNet", 1), chunk_size=1),
        ],
    ),
]


@functools.cache
def net(name: str, batch: int) -> Net:
    torch.manual_seed(0)
    model = {**MODELS, **REAL}[name]().eval().requires_grad_(False)
    return Net(name, model, torch.randn(batch, *model.shape))


def prepared(row: Row, off: Off | None) -> Callable[[], object]:
    """A run of a row; where it is compiled, with the case on or off."""
    if row.method == "random.normal":
        return lambda: attrfn_random.normal(0, (2**22,))
    n = net(row.net, row.batch)
    method = getattr(attrfn, row.method)
    given = {**row.options, **(n.features if row.grouped else {})}
    if row.method == "layer_feature_ablation":
        del given["feature_mask"]
        given = {**given, "layer_mask": n.features["feature_mask"]}
    if row.method.startswith("layer_"):
        given["layer"] = n.layer
    if row.method == "lrp":
        given.setdefault("rules", attrfn.rules.epsilon())
    target = {} if row.method == "layer_activation" else {"target": 1}
    if row.method == "gradient_shap":
        given["baselines"] = torch.zeros_like(n.x)
    if row.method in ("gradient_shap", "feature_permutation", "shapley_value_sampling"):
        given["key"] = 0
    if row.method in ("lime", "kernel_shap", "rise"):
        given["key"] = 0
    if row.backend is None:
        return lambda: method(n.model, n.x, **target, **given)
    with contextlib.ExitStack() as stack:
        for patch in off() if off else ():
            stack.enter_context(patch)
        explain = attrfn.compile(method, n.model, backend=row.backend, **given)
        explain(n.x, **target)
    return lambda: explain(n.x, **target)


def timed(row: Row, off: Off, rounds: int) -> dict[str, list[float]]:
    """Seconds of a row with the case and without, in rounds whose order is drawn."""
    kept = prepared(row, None)
    other = kept if row.backend is None else prepared(row, off)
    runs = {"with": (kept, None), "without": (other, None if row.backend else off)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    once = 0.0
    for turn in range(-1, rounds):
        names = list(runs)
        random.Random(turn).shuffle(names)
        for name in names:
            call, patches = runs[name]
            loops = 1 if turn < 0 else max(1, int(0.03 / once))
            with contextlib.ExitStack() as stack:
                for patch in patches() if patches else ():
                    stack.enter_context(patch)
                call()
                took = seconds(lambda c=call, n=loops: [c() for _ in range(n)], "cpu") / loops
            if turn < 0:
                once = max(took, 1e-6)
            else:
                times[name].append(took)
        if turn >= FEWEST - 1 and (turn + 1) * 4 * max(once, 0.03) > BUDGET:
            break
    return times


def measured(case: Case, row: Row, rounds: int) -> dict[str, object]:
    times = timed(row, case.off, rounds)
    each = [b / a for a, b in zip(times["with"], times["without"], strict=True)]
    found = ratio(times["without"], times["with"])
    low, _, high = statistics.quantiles(each, n=4)
    how = "" if row.backend is None else f", compiled ({row.backend})"
    options = ", ".join(f"{k}={v}" for k, v in row.options.items() if isinstance(v, (int, float)))
    return {
        "case": case.name,
        "net": row.net,
        "batch": row.batch,
        "method": f"{row.method}{f' ({options})' if options else ''}{how}",
        "with ms": f"{1e3 * statistics.median(times['with']):.2f}",
        "without ms": f"{1e3 * statistics.median(times['without']):.2f}",
        "without / with": f"{found:.2f}",
        "quartiles": f"{low:.2f} to {high:.2f}",
        "wins": "yes" if found >= ENOUGH else "no",
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--only", default="", help="the cases with this in their names")
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rounds = 3 if args.quick else max(args.repeats, 25)
    rows = []
    for case in CASES:
        for row in case.rows[: 2 if args.quick else None] if args.only in case.name else ():
            rows.append(measured(case, row, rounds))
            print(*rows[-1].values(), sep=" | ", flush=True)
    text = (
        f"Medians of {FEWEST} to {rounds} interleaved rounds in an order drawn anew; ratios are "
        "taken within a round, then their median and quartiles. Real networks have random weights."
    )
    print("\n" + table(rows))
    if not args.quick and not args.only:
        write(
            NAME,
            "Special cases: time without over time with",
            args.device,
            f"{table(rows)}\n\n{text}",
        )


if __name__ == "__main__":
    main()
