"""Answers: the token ids that follow a prompt, given or generated, and their texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from attrfn._copies.batch import is_count
from attrfn._torch.say import say
from attrfn._torch.warn import warn
from attrfn.text._adapter import Adapter, bare
from attrfn.text._calls import of_config
from attrfn.text._kinds import Causal
from attrfn.text._parts_type import Parts
from attrfn.text._plan import outputs
from attrfn.text._tokens import Tokens, id_list, id_of, pieces, tokens_of


class Answer(NamedTuple):
    """An answer.

    Attributes:
        ids: (1, N).
        texts: What each token adds to the text.
    """

    ids: Tensor
    texts: tuple[str, ...]


def answer_of(
    model: Adapter, tokenizer: Any, parts: Parts, answer: Any, most: int, name: str = "answer"
) -> Answer:
    """The answer to a prompt: given as a text, as ids or as a class, or generated greedily.

    Raises:
        TypeError: It is neither.
        ValueError: It has no token.
    """
    if isinstance(answer, Answer):
        return answer
    if answer is None:
        ids = generated(model, parts.ids, most, ends_of(model.model, tokenizer))
    elif isinstance(answer, str):
        ids = _encoded(model, tokenizer, parts, answer, name)
    elif not model.predicts and isinstance(answer, int):  # a class
        ids = [answer]
    else:
        ids = id_list(answer, name)
        _check_again(model, tokenizer, parts, ids, name)
    if not ids:
        raise ValueError(f"{name} is {say(answer)}, expected at least one token")
    return Answer(parts.ids.new_tensor([ids]), texts_of(model, tokenizer, parts, ids))


def texts_of(model: Adapter, tokenizer: Any, parts: Parts, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token of an answer, or the name of a class."""
    if not model.predicts and model.dims == 2:
        names = of_config(model.model, "id2label") or {}
        return tuple([str(names.get(i, i)) for i in ids])
    before = [] if model.sources(parts.ids.shape[1]) else parts.ids[0].tolist()
    return pieces(tokenizer, before, ids)


# --- given ---------------------------------------------------------------------------------------


def _encoded(model: Adapter, tokenizer: Any, parts: Parts, answer: str, name: str) -> list[int]:
    if not model.predicts and model.dims == 2:
        names = of_config(model.model, "id2label") or {}
        found = [int(i) for i, label in names.items() if label == answer]
        if not found:
            raise ValueError(
                f"{name} is {answer!r}, expected the number of a class, or one of its names, "
                f"{say(list(names.values()))}"
            )
        return found[:1]
    alone = tokens_of(answer, tokenizer, special=False).ids if answer else []
    if not follows(model, parts) or not answer:
        return alone
    after = together(parts, tokenizer, answer)
    if after is None:
        warn(
            f"{name} {say(answer)} and the end of the prompt become other tokens when they are "
            "tokenised together, so that the answer is tokenised alone: put the space between "
            "them at the start of the answer"
        )
    return alone if after is None else after


def follows(model: Adapter, parts: Parts) -> bool:
    """Whether an answer follows the prompt in one text."""
    return model.predicts and not model.sources(parts.ids.shape[1]) and bool(parts.text)


def together(parts: Parts, tokenizer: Any, answer: str) -> list[int] | None:
    """The ids of an answer after the prompt's; None if they change the prompt's ids."""
    prompt, size = parts.ids[0].tolist(), len(parts.text)
    for special in (True, False):
        tokens = tokens_of(parts.text + answer, tokenizer, special=special)
        ids = tokens.ids
        while ids and tokens.special[len(ids) - 1] and _is_empty(tokens, len(ids) - 1):
            ids = ids[:-1]  # marks of the end of a text
        if len(ids) > len(prompt) and ids[: len(prompt)] == prompt:
            return ids[len(prompt) :]
    # Ids that the tokenizer does not give for this prompt: what it makes of the text says where the
    # answer begins.
    alone = tokens_of(parts.text, tokenizer, special=False).ids
    clean = len(ids) > len(alone) and tokens.offsets[len(alone)][0] >= size
    other = alone not in (prompt, prompt[1:])
    return ids[len(alone) :] if other and clean and ids[: len(alone)] == alone else None


def _is_empty(tokens: Tokens, k: int) -> bool:
    a, b = tokens.offsets[k]
    return a == b


def _check_again(model: Adapter, tokenizer: Any, parts: Parts, ids: list[int], name: str) -> None:
    """Warn of ids that the tokenizer would not give for their text."""
    if not ids or not follows(model, parts):
        return
    text = "".join(pieces(tokenizer, parts.ids[0].tolist(), ids))
    again = together(parts, tokenizer, text)
    if again != ids:
        came = "other tokens with the prompt" if again is None else f"the ids {say(again)}"
        warn(
            f"{name} has the ids {say(ids)}, whose text {say(text)} becomes {came} when it is "
            "tokenised again: the ids given are explained"
        )


# --- generated -----------------------------------------------------------------------------------


def ends_of(model: Any, tokenizer: Any) -> set[int]:
    """The ids that end an answer: those of the model's configurations and of the tokenizer."""
    generation = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found: set[int] = set()
    for ids in (generation, of_config(model, "eos_token_id"), id_of(tokenizer, "eos")):
        many = ids.tolist() if isinstance(ids, Tensor) else ids
        many = many if isinstance(many, (list, tuple)) else [many]
        found |= {int(i) for i in many if i is not None}
    return found


def generated(model: Adapter, prompt: Tensor, most: int, ends: set[int]) -> list[int]:
    """The most likely tokens one by one, up to and with one that ends an answer.

    Raises:
        ValueError: ``most`` is not a number of tokens, or the model predicts no next token.
    """
    if not is_count(most):
        raise ValueError(f"max_new_tokens is {say(most)}, expected a number of tokens, at least 1")
    if not model.predicts:
        raise ValueError(
            "answer is None for a model that predicts no next token, expected the number or the "
            "name of a class, or the ids of masked tokens"
        )
    found: list[int] = outputs(Greedy(model, most, ends), prompt)[0].tolist()
    return found


class Greedy(nn.Module):
    """A model that returns its most likely answer, (1, N), to a prompt (1, P)."""

    def __init__(self, model: Adapter, most: int, ends: set[int]) -> None:
        super().__init__()
        self.adapter, self.training = bare(model), model.training
        self.bound, self.most, self.ends = model.bound, most, ends

    def forward(self, prompt: Tensor) -> Tensor:
        """The answer."""
        found = self._by_cache(prompt)
        if found is None:
            found = []
            while not self._is_done(found):
                found.append(int(self._logits(prompt, [*found, 0])[-1].argmax()))
        return prompt.new_tensor([found])

    def _is_done(self, found: list[int]) -> bool:
        return len(found) == self.most or (bool(found) and found[-1] in self.ends)

    def _logits(self, prompt: Tensor, answer: list[int]) -> Tensor:
        """(N, V); the last id of an answer is not read, because the last logits predict it."""
        return self.adapter.of_prompt(prompt, prompt.new_tensor([answer]), False, self.bound)[0]

    def _by_cache(self, prompt: Tensor) -> list[int] | None:
        """The answer by the model's cache; None without one, or if it differs from that without."""
        to = self.adapter
        if not isinstance(to, Causal) or not {"past_key_values", "use_cache"} <= to.names:
            return None
        if self.bound or self.most == 1:
            return None
        found: list[int] = []
        new, more = prompt, {"use_cache": True, **({"logits_to_keep": 1} if to.keeps else {})}
        try:
            while not self._is_done(found):
                out = to.call({"input_ids": new}, more)
                found.append(int(to.found(out)[0, -1].argmax()))
                new, more = (
                    prompt.new_tensor([found[-1:]]),
                    {**more, "past_key_values": out.past_key_values},
                )
        except Exception:  # whatever a cache of another version does
            return None
        same = self._logits(prompt, found).argmax(-1).tolist() == found
        return found if same else None
