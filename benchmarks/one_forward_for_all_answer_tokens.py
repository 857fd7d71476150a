"""Gradients of all answer tokens cost one forward pass, and their backward passes in one vmap.

The floor is one forward pass of the prompt with its answer, and the vector-Jacobian products of all
N scores with respect to the embeddings by ``torch.func.vmap``. Compared with it are ``each_output``
of gradient and of input x gradient, a loop of calls for each token, and Captum's gradients. The
memory of the longest answer is that of chunks of 8 tokens against all at once. Prints a table and
writes it to benchmarks/results/.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _harness import median, medians, parser, peak_mb, peak_mb_of, ratio, table, write
from _language_models import MODELS, model, prompt
from captum.attr import LayerGradientXActivation
from torch import Tensor

import attrfn
from attrfn import text

Run = Callable[[], object]
P = 28
SIZES = (1, 8, 32)
LONGEST = 128


def scores(net: Any, embeddings: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """The log-probabilities of the answer, (1, N), from the embeddings of the prompt."""
    tail = net.get_input_embeddings()(answer[:, :-1])
    n = answer.shape[1]
    logits = net(
        inputs_embeds=torch.cat([embeddings, tail], 1), use_cache=False, logits_to_keep=n
    ).logits
    return logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0]


def floor(net: Any, ids: Tensor, answer: Tensor) -> Tensor:
    """One forward pass, and N backward passes together."""
    embeddings = net.get_input_embeddings()(ids).detach().requires_grad_()
    found = scores(net, embeddings, ids, answer)[0]

    def pull(v: Tensor) -> Tensor:
        return torch.autograd.grad(found, embeddings, v, retain_graph=True)[0]

    return torch.func.vmap(pull)(torch.eye(len(found), device=ids.device))


def ours(net: Any, ids: Tensor, answer: Tensor, method: Any, size: Any = None) -> Run:
    """``each_output`` of a method at the embedding."""
    f = text.scorer(net, answer)
    moved = attrfn.at_layer(method, net.get_input_embeddings())
    every = attrfn.each_output(moved, n=answer.shape[1], chunk_size=size)
    return functools.partial(every, f, ids)


def loop(net: Any, ids: Tensor, answer: Tensor) -> Run:
    """A call for each token of the answer."""
    f = text.scorer(net, answer)
    moved = attrfn.at_layer(attrfn.gradient, net.get_input_embeddings())
    return lambda: [moved(f, ids, target=i) for i in range(answer.shape[1])]


def captum(net: Any, ids: Tensor, answer: Tensor) -> Run:
    """Captum's method at the embedding, a call for each token."""
    n = answer.shape[1]

    def f(rows: Tensor) -> Tensor:
        whole = torch.cat([rows, answer[:, :-1].expand(len(rows), -1)], 1)
        logits = net(input_ids=whole, use_cache=False, logits_to_keep=n).logits
        return logits.log_softmax(-1).gather(-1, answer.expand(len(rows), -1)[..., None])[..., 0]

    explainer = LayerGradientXActivation(f, net.get_input_embeddings())
    return lambda: [explainer.attribute(ids, target=i) for i in range(n)]


def timed(name: str, n: int, args: Any) -> Iterator[dict[str, object]]:
    net = model(name, args.device)
    ids, answer = prompt(P, n, args.device)
    runs: dict[str, Run] = {
        "floor": functools.partial(floor, net, ids, answer),
        "each_output(gradient)": ours(net, ids, answer, attrfn.gradient),
        "each_output(input_x_gradient)": ours(net, ids, answer, attrfn.input_x_gradient),
        "loop of gradient": loop(net, ids, answer),
        "Captum": captum(net, ids, answer),
    }
    if args.device != "cpu":
        del runs["Captum"]
    small = "x 128" in name  # a round of the large one takes minutes
    times = medians(runs, args.repeats if small else 2, args.device, cold=small)
    for run in list(runs)[1:]:
        yield {
            "model": name,
            "answer": n,
            "run": run,
            "ms": f"{1e3 * median(times[run]):.1f}",
            "/ floor": f"{ratio(times[run], times['floor']):.2f}",
        }


def memory(args: Any) -> Iterator[dict[str, object]]:
    """Of the longest answer, in chunks and at once, each in a process of its own."""
    flags = ["--device", args.device, "--threads", str(args.threads)]
    for size in ("8", "None"):
        yield {
            "answer": LONGEST,
            "chunk_size": size,
            "peak MB": f"{peak_mb_of(__file__, size, flags):.0f}",
        }


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    name = "Llama, 4 layers x 128"
    if args.memory_of:
        net = model(name, args.device)
        ids, answer = prompt(P, LONGEST, args.device)
        size = None if args.memory_of == "None" else int(args.memory_of)
        print(json.dumps(peak_mb(ours(net, ids, answer, attrfn.gradient, size), args.device)))
        return
    names, sizes = ([name], SIZES[:2]) if args.quick else (list(MODELS), SIZES)
    rows = [row for name in names for n in sizes for row in timed(name, n, args)]
    found = f"{table(rows)}\n\nMemory of gradient, {name}:\n\n{table(list(memory(args)))}"
    print(found)
    if not args.quick:
        title = f"Gradients of each answer token, prompts of {P} tokens"
        write("one_forward_for_all_answer_tokens", title, args.device, found)


if __name__ == "__main__":
    main()
