"""One call for texts: which part of a prompt drove which token of an answer."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import is_count
from attrfn._explain.flags import checks_flags
from attrfn._torch.devices import runs_on
from attrfn._torch.say import say
from attrfn._torch.typing import Method
from attrfn._torch.warn import warn
from attrfn.text._adapter import Adapter
from attrfn.text._adapters import adapter
from attrfn.text._answers import Answer, answer_of, follows
from attrfn.text._from_text import By, parts
from attrfn.text._layers import name_of
from attrfn.text._methods import explained_by
from attrfn.text._parts_type import Parts, TextAttribution
from attrfn.text._plan import Plan
from attrfn.text._prompts import chat_parts
from attrfn.text._removal import Removal, delete, replace
from attrfn.text._scorer import runner_up
from attrfn.text._scores import Score, check_score
from attrfn.text._tokens import decoded, id_of


@checks_flags
def attribute(
    method: Method,
    model: Any,
    tokenizer: Any,
    prompt: Any,
    answer: Any = None,
    *,
    by: By = "word",
    remove: Removal | None = None,
    foil: Any = None,
    other: Any = None,
    score: Score = "log_prob",
    whole: bool = False,
    answer_context: bool = False,
    batch: int | None = None,
    max_new_tokens: int = 64,
    **options: Any,
) -> TextAttribution:
    r"""Which part of a prompt drove which token of an answer, and the answer as a whole.

    Perturbation methods explain the game of :func:`game`, in which parts are there or removed. All
    others explain the embeddings of the prompt's tokens, or a layer's activation there; a part has
    the sum over its tokens. All tokens of the answer are explained together, from one forward pass
    for each set of parts.

    Args:
        method: Any method of attrfn, or one made by :func:`attrfn.at_layer` and the like.
        model: A causal language model, an encoder-decoder, or what :func:`causal`, :func:`seq2seq`
            or :func:`classifier` makes of a model.
        tokenizer: One with offsets, as of :func:`parts`, and with ``decode``.
        prompt: A text; the messages of a chat; two texts, for a classifier; or parts, whose tokens
            are taken as they are.
        answer: A text, which begins where the prompt ends, with its space; its token ids; for a
            classifier a class; or None, for the answer that the model finds most likely token by
            token.
        by: The parts of a text, as of :func:`parts`.
        remove: What the model sees in the place of a part: :func:`delete`, :func:`replace`,
            :func:`template`, :func:`unattended`, or :func:`embedding`. None replaces words and
            tokens by the mask or the padding token and deletes others. Methods that explain
            embeddings start from ``embedding(value)`` or ``replace(id)``; None is
            ``embedding(0)``.
        foil: Why the answer and not this one: a text or ids, as long as the answer; or "next", for
            the runner-up at each place.
        other: Another answer of any length, which the whole answer is compared with.
        score: The score of each token; see :func:`scorer`.
        whole: Explain the score of the whole answer only.
        answer_context: Take the tokens of the answer as further parts, which matter to later ones;
            for perturbation methods.
        batch: How many texts, or answer tokens, run at once; None: what memory holds.
        max_new_tokens: The most tokens of an answer that is None.
        **options: The method's options.

    Returns:
        Values (N, n) for N answer tokens and n parts; (1, n) with ``whole`` or ``other``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The prompt is empty, the foil is not as long as the answer, the prompt is
            longer than the model, there is no neutral replacement, or the method gives no number
            for each part.

    Example:
        >>> import re, torch, attrfn
        >>> from attrfn import text
        >>> words = ["<pad>", "is", "Paris", "Rome", "France", "Italy"]
        >>> def tokenizer(text, **options):
        ...     found = [m for m in re.finditer(r"\s*\w+", text)]
        ...     ids = [words.index(m[0].strip()) for m in found]
        ...     return {"input_ids": ids, "offset_mapping": [m.span() for m in found]}
        >>> tokenizer.decode = lambda ids: "".join(" " + words[i] for i in ids)
        >>> tokenizer.pad_token_id = 0
        >>> weight = torch.zeros(6, 6)
        >>> weight[4, 2] = weight[5, 3] = 9.0  # France: Paris; Italy: Rome
        >>> model = lambda ids: weight[ids].cumsum(1)
        >>> ablation = attrfn.feature_ablation
        >>> a = text.attribute(ablation, model, tokenizer, "France is", " Paris", foil=" Rome")
        >>> a.answer, a.parts, a.values
        ((' Paris',), ('France', 'is'), tensor([[9., 0.]]))
    """
    check_score(score, foil)
    _check(foil, other, score, batch)
    given = adapter(model)
    these = on_device(prompt_of(prompt, tokenizer, by), given)
    target = answer_of(given, tokenizer, these, answer, max_new_tokens)
    _warn_of_end(given, tokenizer, these)
    plan = Plan(
        model=given,
        parts=these,
        answer=target.ids,
        foil=_foil(given, tokenizer, these, foil, target),
        other=None if other is None else answer_of(given, tokenizer, these, other, 1, "other").ids,
        score=score,
        remove=remove,
        default=lambda: _default_removal(these, tokenizer),
        whole=whole or other is not None,
        context=answer_context,
        batch=batch,
    )
    found = explained_by(method, plan, options)
    texts = ("".join(target.texts),) if len(found.values) != len(target.texts) else target.texts
    labels, spans = these.labels, these.spans
    if answer_context:
        labels, spans = labels + target.texts, _with_answer(spans, target.texts, these.text)
    return found._replace(
        parts=labels,
        answer=texts,
        spans=spans,
        score=score if isinstance(score, str) else getattr(score, "__name__", "score"),
        method=name_of(method),
    )


def _check(foil: Any, other: Any, score: Score, batch: Any) -> None:
    """Refuse options that exclude each other."""
    if other is not None and (foil is not None or score in ("entropy", "kl")):
        what = "a foil" if foil is not None else f"score={score!r}"
        raise ValueError(
            f"other is given with {what}, expected one of them: other= compares whole answers, "
            "foil= each token"
        )
    if batch is not None and not is_count(batch):
        raise ValueError(f"batch is {say(batch)}, expected None or a number of at least 1")


def _with_answer(spans: Tensor | None, texts: tuple[str, ...], prompt: str) -> Tensor | None:
    """The characters of the parts and of the answer's tokens, in the prompt with the answer."""
    if spans is None:
        return None
    ends = list(itertools.accumulate(map(len, texts), initial=len(prompt)))
    return torch.cat([spans, spans.new_tensor(list(itertools.pairwise(ends)))])


def prompt_of(prompt: Any, tokenizer: Any, by: By) -> Parts:
    """The parts of a prompt: a text, the messages of a chat, or parts."""
    if isinstance(prompt, Parts):
        found = prompt
    elif isinstance(prompt, str) or (isinstance(prompt, tuple) and _is_pair(prompt)):
        found = parts(prompt, tokenizer, by=by)
    elif isinstance(prompt, (list, tuple)) and prompt and hasattr(prompt[0], "keys"):
        found = chat_parts(prompt, tokenizer, by=by)
    else:
        raise TypeError(
            f"prompt is {say(prompt)}, expected a text, the messages of a chat, or what text.parts "
            "returns"
        )
    if found.ids.numel() == 0 or found.n == 0:
        raise ValueError("prompt has no part, expected at least one to explain: give some text")
    if len(found.labels) == found.n:
        return found
    ids = [found.ids[0, found.mask == k].tolist() for k in range(found.n)]
    return found._replace(labels=tuple([decoded(tokenizer, i) if i else "" for i in ids]))


def _is_pair(prompt: tuple[Any, ...]) -> bool:
    return [type(t) for t in prompt] == [str, str]


def on_device(these: Parts, model: Adapter) -> Parts:
    """Parts on the device where the model runs."""
    device = runs_on(model)
    if device is None:
        return these
    return these._replace(ids=these.ids.to(device), mask=these.mask.to(device))


def _foil(model: Adapter, tokenizer: Any, these: Parts, foil: Any, answer: Answer) -> Any:
    if foil is None:
        return None
    if isinstance(foil, str) and foil == "next":
        return runner_up(model, these.ids, answer.ids)
    found = answer_of(model, tokenizer, these, foil, 1, "foil")
    if found.ids.shape != answer.ids.shape:
        raise ValueError(
            f"foil has {found.ids.shape[1]} tokens {say(list(found.texts))} and the answer "
            f"{answer.ids.shape[1]}, expected as many: give other= for an answer of another length"
        )
    return found.ids


def _default_removal(these: Parts, tokenizer: Any) -> Removal:
    """Replacement for words and tokens, deletion for larger parts.

    Raises:
        ValueError: There is no neutral token.
    """
    if these.by not in ("word", "token"):
        return delete()
    pad, end, mask = (id_of(tokenizer, name) for name in ("pad", "eos", "mask"))
    if mask is not None:
        return replace(mask)
    if pad is None or pad == end:
        what = "no padding token" if pad is None else f"{pad} as padding and as end of text"
        raise ValueError(
            f"remove is None, and the tokenizer has {what}, which is not a neutral replacement of "
            f"a {these.by}: give remove=text.replace(id), such as that of a space, or text.delete()"
        )
    return replace(pad)


def _warn_of_end(model: Adapter, tokenizer: Any, these: Parts) -> None:
    """Warn of an end mark after the prompt, which a tokenizer for encoders adds."""
    end, last = id_of(tokenizer, "eos"), int(these.ids[0, -1])
    written = these.text.endswith(str(getattr(tokenizer, "eos_token", "\0")))
    if follows(model, these) and these.mask[-1] < 0 and last == end and not written:
        warn(
            "prompt ends with the end-of-text token that the tokenizer adds, so that the answer "
            "begins a new text: give text.parts(..., encoding=...) of a call of the tokenizer with "
            "add_special_tokens=False"
        )
