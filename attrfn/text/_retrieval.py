"""Which passage an answer comes from: by a number of runs, level by level, or one left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import attrfn
from attrfn import surrogates
from attrfn._copies.batch import is_count
from attrfn._explain.flags import checks_flags
from attrfn._explain.options import BlackBox
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Key, Method, ModelFn
from attrfn.text._adapters import adapter
from attrfn.text._answers import answer_of
from attrfn.text._attribute import attribute, on_device, prompt_of
from attrfn.text._from_text import By, of_tokens
from attrfn.text._parts_type import Game, Parts, TextAttribution
from attrfn.text._plan import outputs
from attrfn.text._segment import strip
from attrfn.text._tokens import tokens_of

EXACT = 10  # parts, whose Shapley values take 1,024 runs
RUNS = 64  # ContextCite's default
# ContextCite's penalty, for columns of unit variance and the mean over the answer's tokens; the
# standard deviation of a fair coin carries it to columns of zeros and ones.
ALPHA, DEVIATION = 0.01, 0.5


@checks_flags
def retrieval(runs: int | None = None, *, key: Key = 0) -> Method:
    """A method for passages that suits the number of runs.

        2^n runs and more:  exact Shapley values
        2 n and more:       KernelSHAP
        less:               lasso of random ablations, as ContextCite:  with N answer tokens
                            argmin_a 1/(2 S) sum_s (v(z_s) - b - a z_s)^2 + 0.01 N 0.5 |a|_1

    With few runs a lasso finds the few passages that matter, where least squares drown them in
    noise; KernelSHAP is the better one where runs suffice, and shares the credit of passages that
    repeat each other.

    Args:
        runs: How many sets of passages are tried. None: all for up to 10 parts, else 64.
        key: For the sets that are drawn.

    Returns:
        A method for :func:`attribute`, or for a game: ``method(game.fn, game.full)``.

    Raises:
        ValueError: ``runs`` is not a number, or less than 2.

    Example:
        >>> import torch
        >>> from attrfn import text
        >>> v = lambda z: 3 * z[:, :1] * z[:, 1:2] + z[:, 2:]
        >>> text.retrieval()(v, torch.ones(1, 3))
        tensor([[[1.5000, 1.5000, 1.0000]]])

    Reference:
        Cohen-Wang, Shah, Georgiev and Madry, ContextCite: Attributing Model Generation to Context,
        2024. https://arxiv.org/abs/2409.00729
    """
    if runs is not None and (not is_count(runs) or runs < 2):
        raise ValueError(f"runs is {say(runs)}, expected None or a number of at least 2")

    def method(
        model_fn: ModelFn,
        inputs: Tensor,
        *,
        tokens: Tensor | None = None,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
    ) -> Tensor:
        n = inputs.shape[1]
        count = runs or (2**n if n <= EXACT else RUNS)
        more: dict[str, Any] = {"chunk_size": chunk_size, "progress": progress}
        if n <= 20 and 2**n <= count:
            found = attrfn.shapley_values(model_fn, inputs, **more)
        elif count >= 2 * n:
            found = attrfn.kernel_shap(model_fn, inputs, n_samples=count, key=key, **more)
        else:
            found = attrfn.lime(
                model_fn,
                inputs,
                n_samples=count,
                key=key,
                similarity=surrogates.constant(),
                surrogate=_lasso(tokens),
                **more,
            )
        return found[:, None] if found.ndim == 2 else found  # type: ignore[no-any-return]

    method.__name__ = "retrieval"
    method.records = (BlackBox,)  # type: ignore[attr-defined]
    method.takes_tokens = True  # type: ignore[attr-defined]
    return method


def _lasso(tokens: Tensor | None) -> surrogates.Surrogate:
    """A lasso whose penalty grows with how many answer tokens an output is about, (K,)."""
    fit = surrogates.lasso(ALPHA * DEVIATION)

    def scaled(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        size = y.new_ones(y.shape[2]) if tokens is None else tokens.to(y)[-y.shape[2] :]
        return fit(z, y / size, w) * size[:, None]

    return scaled


@checks_flags
def levels(
    method: Method,
    model: Any,
    tokenizer: Any,
    prompt: Any,
    answer: Any = None,
    *,
    by: Sequence[By] = ("sentence", "word"),
    best: int = 1,
    max_new_tokens: int = 64,
    **options: Any,
) -> tuple[TextAttribution, ...]:
    """The passages that drove an answer, then the sentences of the best, then their words.

    Each level is a game of its own, in which all but the best parts of the level before is fixed:
    one of 20 passages, one of its 10 sentences and one of its 15 words take 45 parts and not 3000.

    Args:
        method: As of :func:`attribute`, for all levels.
        model: As of :func:`attribute`.
        tokenizer: As of :func:`attribute`.
        prompt: Parts, such as those of :func:`documents`, which are the first level; or a text or
            a chat, of which the first of ``by`` are.
        answer: As of :func:`attribute`; if it is generated, then once.
        by: What the parts of each further level are.
        best: How many parts of a level are cut up for the next one: those of the greatest total.
        max_new_tokens: The most tokens of an answer that is None.
        **options: As of :func:`attribute`; ``remove`` may be a list with an entry for each level.

    Returns:
        One result for each level; ``spans`` are those of characters of the whole prompt.

    Raises:
        ValueError: ``best`` is not a number of parts, or the parts' tokens are not those that the
            tokenizer makes of their text.

    Reference:
        Monteiro Paes et al., Multi-Level Explanations for Generative Language Models, 2024.
        https://arxiv.org/abs/2403.14459
    """
    if not is_count(best):
        raise ValueError(f"best is {say(best)}, expected a number of parts, at least 1")
    units = list(by) if not isinstance(by, str) else [by]
    if not units:
        raise ValueError("by is empty, expected the parts of at least one level, such as ['word']")
    to = adapter(model)
    first = prompt if isinstance(prompt, Parts) else prompt_of(prompt, tokenizer, units.pop(0))
    these = on_device(first, to)
    given = answer_of(to, tokenizer, these, answer, max_new_tokens)
    removals = _per_level(options.pop("remove", None), 1 + len(units))
    found = [attribute(method, to, tokenizer, these, given, remove=removals[0], **options)]
    for unit, remove in zip(units, removals[1:], strict=True):
        these = on_device(_within(these, _best(found[-1], best), unit, tokenizer), to)
        found.append(attribute(method, to, tokenizer, these, given, remove=remove, **options))
    return tuple(found)


def _per_level(remove: Any, n: int) -> list[Any]:
    if not isinstance(remove, (list, tuple)) or hasattr(remove, "_fields"):
        return [remove] * n
    if len(remove) != n:
        raise ValueError(f"remove has {len(remove)} entries, expected one for each of {n} levels")
    return list(remove)


def _best(result: TextAttribution, best: int) -> list[int]:
    """The parts of the greatest total, in the order of the text."""
    order = result.total.argsort(descending=True, stable=True)
    return sorted(order[:best].tolist())


def _within(these: Parts, chosen: list[int], by: By, tokenizer: Any) -> Parts:
    """Smaller parts of some parts; all other tokens are fixed."""
    if these.spans is None:
        raise ValueError("prompt has parts without spans, expected those of text.parts or the like")
    spans = [strip(these.text, *these.spans[k].tolist()) for k in chosen]
    for special in (True, False):
        tokens = tokens_of(these.text, tokenizer, special=special)
        if tokens.ids == these.ids[0].tolist():
            return of_tokens(these.text, tokens, by, inside=spans)
    raise ValueError(
        "prompt has parts whose tokens the tokenizer does not make of their text, so that smaller "
        "parts are unknown: give parts of text.parts, chat_parts or documents"
    )


@checks_flags
def leave_one_out(played: Game, *, chunk_size: int | None = None) -> Tensor:
    """What each score loses when one part is left out.

        A[i, k] = s_i(all parts) - s_i(all but k)

    Feature ablation with all texts in one call, so that a causal model with a cache runs what lies
    before part k once, and not again for each part: for a prompt of P tokens, an answer of N and
    parts that begin at t_k and have l_k tokens about P + sum_k (P - t_k - l_k + N) tokens. Put what
    varies last.

    Args:
        played: What :func:`game` returned.
        chunk_size: How many texts at once; None: all.

    Returns:
        (1, N, n).

    Example:
        >>> import torch
        >>> from attrfn import text
        >>> bag = lambda ids: torch.nn.functional.one_hot(ids, 3).float().cumsum(1)
        >>> parts = text.Parts(torch.tensor([[2, 0, 1, 1]]), torch.tensor([-1, 0, 1, 1]), 2)
        >>> text.leave_one_out(text.game(bag, parts, answer=[[0]], score="logit"))
        tensor([[[1., 0.]]])
    """
    n = played.full.shape[1]
    z = torch.cat([played.full, played.full - torch.eye(n).to(played.full)])
    size = len(z) if chunk_size is None else chunk_size
    scores = torch.cat([outputs(played.fn, rows) for rows in torch.split(z, size)])
    return (scores[:1] - scores[1:]).T[None]
