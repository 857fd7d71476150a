"""Ablation of a prompt costs the forward passes of its rows, for all answer tokens together.

The floor is bare forward passes of the same n + 1 rows with the logits of the answer alone, in the
number of rows at once that is fastest. attrfn replaces tokens by ids and by parts, by default and
with ``chunk_size=None``. Captum is measured without its cache: all tokens in one forward, and
token by token as it does by default. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _harness import median, medians, parser, ratio, table, write
from _language_models import MODELS, PAD, forward, model, parts, prompt
from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
from torch import Tensor

import attrfn
from attrfn import text

Run = Callable[[], object]
P, N = 28, 11
ROWS = (1, 4, 8, 16, P + 1)


class Numbers:
    """A tokenizer of numbers between spaces, which Captum needs."""

    pad_token_id = PAD

    def encode(self, text: str, add_special_tokens: Any = None, return_tensors: Any = None) -> Any:
        ids = [int(t) for t in text.split()]
        return torch.tensor([ids]) if return_tensors else ids

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return [str(int(i)) for i in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        return int(tokens) if isinstance(tokens, str) else [int(t) for t in tokens]

    def decode(self, ids: Any, **more: Any) -> str:
        return " ".join(str(int(i)) for i in ids)

    def __call__(self, text: str, **more: Any) -> dict[str, Any]:
        ids = self.encode(text)
        return {"input_ids": ids, "offset_mapping": [(i, i + 1) for i in range(len(ids))]}


def bare(net: Any, ids: Tensor, answer: Tensor, rows: int) -> None:
    """Forward passes of all rows, some at once."""
    every = ids.repeat(P + 1, 1)
    every[torch.arange(P), torch.arange(P)] = PAD
    for some in every.split(rows):
        forward(net, some, answer)


def captum(net: Any, ids: Tensor, answer: Tensor, whole: bool) -> Run:
    """Captum's ablation of tokens, without its cache, whose values are wrong."""
    tokenizer = Numbers()
    explainer = LLMAttribution(FeatureAblation(net), tokenizer)
    words = TextTokenInput(tokenizer.decode(ids[0]), tokenizer, baselines=PAD)
    options: dict[str, Any] = {"target": answer[0], "use_cached_outputs": False}
    if whole:
        options["forward_in_tokens"] = False
    return functools.partial(explainer.attribute, words, **options)


def timed(name: str, args: Any) -> Iterator[dict[str, object]]:
    net = model(name, args.device)
    ids, answer = prompt(P, N, args.device)
    ours: dict[str, Run] = {}
    f = text.scorer(net, answer)
    game = text.game(net, parts(ids, P), answer=answer, remove=text.replace(PAD))
    for size in ("auto", None):
        more = {"chunk_size": size}
        ours[f"scorer of ids, chunk_size={size!r}"] = functools.partial(
            attrfn.feature_ablation, f, ids, baselines=PAD, **more
        )
        ours[f"game of parts, chunk_size={size!r}"] = functools.partial(
            attrfn.feature_ablation, game.fn, game.full, **more
        )
    floors: dict[str, Run] = {
        f"floor, {rows} rows": functools.partial(bare, net, ids, answer, rows) for rows in ROWS
    }
    theirs: dict[str, Run] = {}
    if args.device == "cpu":
        theirs["Captum, all tokens at once"] = captum(net, ids, answer, whole=True)
        if not args.quick:
            theirs["Captum, by default"] = captum(net, ids, answer, whole=False)
    times = medians({**floors, **ours, **theirs}, args.repeats, args.device, cold=True)
    best = min(floors, key=lambda k: median(times[k]))
    for run in (*ours, *theirs):
        yield {
            "model": name,
            "run": run,
            "ms": f"{1e3 * median(times[run]):.1f}",
            "/ floor": f"{ratio(times[run], times[best]):.2f}",
            "rows at once of the floor": best.split()[1],
        }


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    names = list(MODELS)[1:2] if args.quick else list(MODELS)
    rows = [row for name in names for row in timed(name, args)]
    print(table(rows))
    if not args.quick:
        title = f"Ablation of a prompt of {P} tokens, for an answer of {N}"
        write("ablation_of_prompts_costs_its_forwards", title, args.device, table(rows))


if __name__ == "__main__":
    main()
