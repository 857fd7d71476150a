"""The memory of ablation does not grow with the number of parts or the vocabulary, only with P.

Peak memory of ablating a prompt of 512 to 16k tokens in 8 and 32 parts, two rows at a time, against
one bare forward pass of two rows with the logits of the answer alone, and one with all logits.
Each case runs in its own process. Prints a table and writes it to
benchmarks/results/.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from _harness import parser, peak_mb, peak_mb_of, table, write
from _language_models import PAD, forward, model, parts, prompt

import attrfn
from attrfn import text

NAME = "Llama, 4 layers x 128"
VOCABULARY = 32_000
N = 8
LENGTHS = (512, 2048)


def run_of(case: str, args: Any) -> Any:
    kind, size, n = case.split(",")
    net = model(NAME, args.device, VOCABULARY)
    ids, answer = prompt(int(size), N, args.device)
    if kind == "forward":
        return functools.partial(forward, net, ids.repeat(2, 1), answer)
    if kind == "all logits":
        rows = torch.cat([ids, answer], 1).repeat(2, 1)

        def every() -> None:
            with torch.no_grad():
                net(input_ids=rows, use_cache=False).logits.log_softmax(-1)

        return every
    removal = text.delete() if kind == "delete" else text.replace(PAD)
    # The first part starts the prompt but for two tokens, so that little is shared.
    most = 2 * (int(size) + N)
    made = text.game(
        *(net, parts(ids, int(n), 2)),
        **{"answer": answer, "remove": removal, "prefix": False, "max_tokens": most},
    )
    return functools.partial(attrfn.feature_ablation, made.fn, made.full, chunk_size=2)


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(peak_mb(run_of(args.memory_of, args), args.device)))
        return
    flags = ["--device", args.device, "--threads", str(args.threads)]
    cases = ("forward", "replace", "delete", "all logits")
    rows = []
    for size in LENGTHS[:1] if args.quick else LENGTHS:
        for n in (8, 32):
            row: dict[str, object] = {"tokens": size, "parts": n}
            for kind in cases:
                if kind == "all logits" and size > LENGTHS[1]:
                    row[f"{kind}, MB"] = ""  # it takes gigabytes
                    continue
                row[f"{kind}, MB"] = f"{peak_mb_of(__file__, f'{kind},{size},{n}', flags):.0f}"
            rows.append(row)
    print(table(rows))
    if not args.quick:
        title = f"{NAME}, vocabulary {VOCABULARY}, answers of {N} tokens: peak memory"
        write("memory_of_long_prompts_is_flat", title, args.device, table(rows))


if __name__ == "__main__":
    main()
