"""Tokens that all rows of a prompt share are run once.

A prompt of which 0, a half and nine tenths are a fixed prefix, and parts after it that are left out
one by one: the tokens that the model reads, counted, against those of whole rows; and the time of
both, against the floor, which is the counted tokens at the speed of plain forward passes. The game
is made before, with its check of the cache: what that reads stands apart. Prints a table and writes
it to benchmarks/results/.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from _harness import median, medians, parser, ratio, table, write
from _language_models import MODELS, PAD, forward, model, parts, prompt

import attrfn
from attrfn import text

Run = Callable[[], object]
P, N, PARTS = 320, 8, 16


class Tokens:
    """Counts the tokens that models of a class read."""

    def __init__(self, net: Any) -> None:
        self.kind = type(net)

    def of(self, run: Run) -> int:
        count = 0
        plain = self.kind.forward

        @functools.wraps(plain)
        def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += kwargs["input_ids"].numel()
            return plain(module, *args, **kwargs)

        with mock.patch.object(self.kind, "forward", counted):
            run()
        return count


def timed(name: str, share: float, args: Any) -> Iterator[dict[str, object]]:
    net = model(name, args.device)
    ids, answer = prompt(P, N, args.device)
    given = parts(ids, PARTS, int(share * P))
    z = torch.cat([torch.ones(1, PARTS), 1 - torch.eye(PARTS)]).to(args.device)
    make = functools.partial(text.game, net, given, answer=answer, remove=text.replace(PAD))
    games = {"plain": make(prefix=False), "shared": make()}
    runs: dict[str, Run] = {k: functools.partial(_played, game.fn, z) for k, game in games.items()}
    for run in runs.values():
        run()  # what a game learns at its first call
    count = Tokens(net)
    read = {k: count.of(run) for k, run in runs.items()}
    made = count.of(make)
    whole = ids.repeat(len(z), 1)
    plain_rows = functools.partial(forward, net, whole, answer)
    times = medians({**runs, "forwards": plain_rows}, args.repeats, args.device, cold=True)
    floor = [t * read["shared"] / read["plain"] for t in times["forwards"]]
    yield {
        "model": name,
        "prefix": f"{share:.1f}",
        "tokens without": read["plain"],
        "tokens with": read["shared"],
        "tokens of the check": made,
        "ms without": f"{1e3 * median(times['plain']):.0f}",
        "ms with": f"{1e3 * median(times['shared']):.0f}",
        "with / without": f"{ratio(times['shared'], times['plain']):.2f}",
        "with / floor": f"{ratio(times['shared'], floor):.2f}",
    }


def _played(fn: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return fn(z)


def methods(name: str, args: Any) -> Iterator[dict[str, object]]:
    """Methods that play the game, at a prefix of one half."""
    net = model(name, args.device)
    ids, answer = prompt(P, N, args.device)
    given = parts(ids, PARTS, P // 2)
    runs: dict[str, Run] = {}
    for prefix in (False, True):
        game = text.game(net, given, answer=answer, remove=text.replace(PAD), prefix=prefix)
        for method, more in ((attrfn.feature_ablation, {}), (attrfn.kernel_shap, SAMPLES)):
            run = functools.partial(method, game.fn, game.full, **more)
            runs[f"{method.__name__}, {prefix}"] = run
    times = medians(runs, args.repeats, args.device, cold=True)
    for method in ("feature_ablation", "kernel_shap"):
        without, shared = (times[f"{method}, {prefix}"] for prefix in (False, True))
        yield {
            "model": name,
            "method": method,
            "ms without": f"{1e3 * median(without):.0f}",
            "ms with": f"{1e3 * median(shared):.0f}",
            "with / without": f"{ratio(shared, without):.2f}",
        }


SAMPLES = {"n_samples": 4 * PARTS}


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    names = list(MODELS)[1:2] if args.quick else list(MODELS)
    rows = [row for name in names for share in (0.0, 0.5, 0.9) for row in timed(name, share, args)]
    found = table(rows) + "\n\n" + table([row for name in names for row in methods(name, args)])
    print(found)
    if not args.quick:
        title = f"Prompts of {P} tokens, {PARTS} parts, answers of {N} tokens"
        write("shared_prefixes_are_computed_once", title, args.device, found)


if __name__ == "__main__":
    main()
