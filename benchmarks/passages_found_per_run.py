"""How many runs it takes to find the passage that an answer comes from.

A language model answers from one fact that is planted in 10, 30 or 100 passages. For each method
and number of runs: how often that passage is first, and the rank correlation of the sums of the
passages' scores with the model's log-odds on held-out random ablations. Methods that need no runs
of ablations have one line. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _harness import parser, table, write
from _language import COLOURS, FIRST, NAMES, passages, trained
from torch import Tensor

import attrfn
from attrfn import surrogates, text
from attrfn.metrics import similarity

RUNS = (16, 32, 64, 128, 256)
HELD_OUT = 64  # ablations
ALPHA = 0.01 * 0.5  # ContextCite's, for one token


def lasso(runs: int, n: int) -> Any:
    options = {"surrogate": surrogates.lasso(ALPHA), "similarity": surrogates.constant()}
    return attrfn.lime, {"n_samples": runs, **options}


def kernel(runs: int, n: int) -> Any:
    return (attrfn.kernel_shap, {"n_samples": runs}) if runs >= 2 * n - 2 else None


METHODS: dict[str, Callable[[int, int], Any]] = {"lasso": lasso, "KernelSHAP": kernel}
METHODS["retrieval"] = lambda runs, n: (text.retrieval(runs), {})
ALONE: dict[str, tuple[Any, dict[str, Any]]] = {
    "ablation": (attrfn.feature_ablation, {}),
    "input x gradient": (attrfn.input_x_gradient, {}),
    "DeepLIFT": (attrfn.deep_lift, {}),
    "AttnLRP": (attrfn.lrp, {"rules": attrfn.rules.attn_lrp()}),
}


def prompts(model: Any, tokenizer: Any, n: int, count: int) -> Iterator[tuple[Any, str, int, Any]]:
    """Prompts, their answers, the place of the passage, and ablations with their log-odds."""
    draw = torch.Generator().manual_seed(n)
    for _ in range(count):
        texts, names, colours = passages(n, draw)
        k = int(torch.randint(n, (1,), generator=draw))
        parts = text.documents("{documents} {q}", texts, tokenizer, q=f"n{int(names[k])}")
        answer = FIRST["c"] + int(colours[k])
        game = text.game(model, parts, answer=[[answer]], score="log_odds")
        z = torch.randint(2, (HELD_OUT, n), generator=draw).float()
        with torch.no_grad():
            yield parts, f" c{int(colours[k])}", k, (z, game.fn(z)[:, 0])


def measured(model: Any, tokenizer: Any, cases: list[Any], method: Any) -> dict[str, object]:
    """The share of prompts whose passage is first, and the mean rank correlation."""
    first, correlation = 0, 0.0
    for parts, answer, k, (z, value) in cases:
        a: Tensor = text.attribute(
            method[0], model, tokenizer, parts, answer, score="log_odds", **method[1]
        ).total
        first += int(a.argmax()) == k
        correlation += float(similarity.spearman((z @ a)[None], value[None]))
    return {"found": f"{first / len(cases):.0%}", "rank": f"{correlation / len(cases):.3f}"}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--prompts", type=int, default=5)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    sizes, count, budgets = (10, 30, 100), args.prompts, RUNS
    if args.quick:
        sizes, count, budgets = (12,), 2, RUNS[:2]
    model, tokenizer = trained()
    lines: list[dict[str, object]] = []
    for n in sizes:
        cases = list(prompts(model, tokenizer, n, count))
        for name, make in METHODS.items():
            for runs in budgets:
                method = make(runs, n)
                if method is not None:
                    found = measured(model, tokenizer, cases, method)
                    lines.append({"passages": n, "method": name, "runs": runs, **found})
        for name, method in ALONE.items():
            runs = n + 1 if name == "ablation" else 1
            found = measured(model, tokenizer, cases, method)
            lines.append({"passages": n, "method": name, "runs": runs, **found})
        print(table([line for line in lines if line["passages"] == n]), end="\n\n", flush=True)
    caption = (
        f"Mean over {count} prompts of facts about {NAMES} names and {COLOURS} colours. found: how "
        f"often the passage with the fact is first; rank: Spearman's correlation with {HELD_OUT} "
        "held-out ablations. retrieval is text.retrieval(runs), which takes exact Shapley values "
        "from 2^n runs on, KernelSHAP from 2 n on and a lasso below. A run is a forward pass; "
        "gradients, DeepLIFT and AttnLRP add a backward pass, and DeepLIFT one forward pass."
    )
    title = "Passages found per run"
    write("passages_found_per_run", title, args.device, f"{caption}\n\n{table(lines)}")


if __name__ == "__main__":
    with warnings.catch_warnings():
        # Few runs are the point, and what is too few for an error is said by the table.
        warnings.filterwarnings("ignore", message="n_samples=.* are so few for")
        warnings.filterwarnings("ignore", message=".* has standard errors of")
        main()
