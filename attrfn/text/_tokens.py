"""Tokenizers as this package needs them: ids, the characters of each token, and texts of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._torch.guard import called
from attrfn._torch.say import say

BROKEN = "\ufffd"  # what decoding gives for a part of a character


class Tokens(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: Their ids.
        offsets: The first character of each and the one after its last.
        special: Whether a token is a mark and belongs to no word of the text.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    special: list[bool]


def tokens_of(text: str, tokenizer: Any, encoding: Any = None, *, special: bool = True) -> Tokens:
    """The tokens of a text, by a call of the tokenizer or from what it returned before.

    A tokenizer adds its special tokens if ``special``, but never a second mark of the beginning to
    a text that starts with one, as that of a chat template does.

    Raises:
        TypeError: There is no way to call the tokenizer.
        ValueError: It gave no offsets, or some that do not fit the text.
    """
    given = encoding is not None
    encoding = encoding if given else _encoded([text], tokenizer, special)
    ids, spans = _rows(encoding, tokenizer, given)
    found = _checked(text, ids, spans, encoding, tokenizer)
    return found if given else _without_second_start(found, tokenizer)


def tokens_of_pair(first: str, second: str, tokenizer: Any, encoding: Any = None) -> Tokens:
    """The tokens of two texts, as those of one text with a new line between them.

    Raises:
        ValueError: The encoding does not say which token is of which text.
    """
    given = encoding is not None
    encoding = encoding if given else _encoded([first, second], tokenizer, True)
    ids, spans = _rows(encoding, tokenizer, given)
    of = getattr(encoding, "sequence_ids", None)
    of = of(0) if callable(of) else of
    of = _row(encoding, "token_type_ids") if of is None else of
    if of is None:
        raise ValueError(
            "encoding of two texts has neither sequence_ids nor token_type_ids, expected one of "
            "them, which says which token is of which text: load a fast tokenizer"
        )
    start = len(first) + 1
    spans = [
        (a + start, b + start) if k == 1 and (a, b) != (0, 0) else (a, b)
        for (a, b), k in zip(spans, of, strict=True)
    ]
    return _checked(f"{first}\n{second}", ids, spans, encoding, tokenizer)


def _rows(encoding: Any, tokenizer: Any, given: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of an encoding."""
    ids, offsets = _row(encoding, "input_ids", "ids"), _row(encoding, "offset_mapping", "offsets")
    if ids is None or offsets is None:
        raise ValueError(_no_offsets("encoding" if given else "tokenizer", tokenizer))
    if any(not isinstance(i, int) for i in ids):
        raise ValueError("encoding holds several texts, expected that of one: give one text's row")
    return ids, [(int(a), int(b)) for a, b in offsets]


def _checked(
    text: str, ids: list[int], spans: list[tuple[int, int]], encoding: Any, tokenizer: Any
) -> Tokens:
    wrong = [p for p in spans if not 0 <= p[0] <= p[1] <= len(text)]
    if wrong or len(spans) != len(ids):
        raise ValueError(
            f"the tokenizer gave {len(ids)} ids and {len(spans)} offsets{_example(wrong)} for a "
            f"text of {len(text)} characters, expected one span of characters per id: give the "
            "encoding of this very text"
        )
    found = Tokens(ids, spans, [])
    return found._replace(special=_special(text, found, encoding, tokenizer))


def _example(wrong: list[tuple[int, int]]) -> str:
    return f", one of them {wrong[0]}," if wrong else ""


def _encoded(texts: list[str], tokenizer: Any, special: bool) -> Any:
    if not callable(tokenizer):
        encode = getattr(tokenizer, "encode", None)  # tokenizers.Tokenizer
        if encode is None:
            raise TypeError(
                f"tokenizer is {say(tokenizer)}, expected one of transformers or tokenizers, or a "
                "callable (text, return_offsets_mapping=, add_special_tokens=)"
            )
        return called("tokenizer", lambda t: encode(*t, add_special_tokens=special), texts)
    try:
        return tokenizer(*texts, return_offsets_mapping=True, add_special_tokens=special)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(_no_offsets("tokenizer", tokenizer)) from error


def _no_offsets(name: str, tokenizer: Any) -> str:
    return (
        f"{name} gives no offsets ({type(tokenizer).__name__}), expected input_ids and "
        "offset_mapping, the characters of each token: load a fast tokenizer, or give encoding="
    )


def _row(encoding: Any, *names: str) -> list[Any] | None:
    """A list of the encoding, by its name in a mapping or as an attribute; that of one text."""
    for name in names:
        found = None
        if hasattr(encoding, "keys"):
            found = encoding[name] if name in encoding.keys() else None  # noqa: SIM118
        elif not isinstance(encoding, (list, tuple)):
            found = getattr(encoding, name, None)
        if found is None:
            continue
        found = found.tolist() if hasattr(found, "tolist") else list(found)
        nested = name != "ids" and name != "offsets" and len(found) == 1 and _is_batch(name, found)
        return found[0] if nested else found
    return None


def _is_batch(name: str, found: list[Any]) -> bool:
    """Whether a list holds that of one text: a batch of one."""
    inner = found[0]
    if not isinstance(inner, Sequence):
        return False
    return name != "offset_mapping" or not inner or isinstance(inner[0], Sequence)


def _special(text: str, tokens: Tokens, encoding: Any, tokenizer: Any) -> list[bool]:
    """Which tokens are special: those that the tokenizer says are, but for the unknown word."""
    inner = getattr(encoding, "encodings", None)  # of a BatchEncoding of transformers
    mask = _row(inner[0] if inner else encoding, "special_tokens_mask")
    ids = special_ids(tokenizer)
    if mask is None and ids is None:
        return [span == (0, 0) for span in tokens.offsets]
    mask = [0] * len(tokens.ids) if mask is None else mask
    found = [bool(m) or t in (ids or ()) for m, t in zip(mask, tokens.ids, strict=True)]
    if not hasattr(tokenizer, "id_to_token"):
        return found
    for k, (a, b) in enumerate(tokens.offsets):
        # A tokenizers.Tokenizer does not say which token is that of unknown words; a mark stands in
        # the text as it is.
        if found[k] and not mask[k] and a < b:
            found[k] = text[a:b].strip() == tokenizer.id_to_token(tokens.ids[k])
    return found


def special_ids(tokenizer: Any) -> set[int] | None:
    """The ids of marks such as <s>, [SEP] and <|im_end|>; None if the tokenizer does not say."""
    # tokenizers.Tokenizer keeps them with the tokens that were added.
    added = getattr(tokenizer, "get_added_tokens_decoder", None)
    if added is not None:
        return {int(i) for i, t in added().items() if t.special}
    ids = getattr(tokenizer, "all_special_ids", None)
    return None if ids is None else {int(i) for i in ids} - {unknown_id(tokenizer)}


def unknown_id(tokenizer: Any) -> int | None:
    """The id of a word that the vocabulary lacks, which stands for a word of the text."""
    found = getattr(tokenizer, "unk_token_id", None)
    # GPT-2's unknown token is its end of text, a mark.
    return None if found is None or found == id_of(tokenizer, "eos") else int(found)


def id_of(tokenizer: Any, name: str) -> int | None:
    """The id of a special token, such as "pad" or "eos"; None if there is none."""
    found = getattr(tokenizer, f"{name}_token_id", None)
    padding = getattr(tokenizer, "padding", None)  # of tokenizers.Tokenizer
    if name == "pad" and found is None and isinstance(padding, dict):
        found = padding.get("pad_id")
    return int(found) if isinstance(found, int) else None


def _without_second_start(tokens: Tokens, tokenizer: Any) -> Tokens:
    ids, bos = tokens.ids, id_of(tokenizer, "bos")
    added = len(ids) > 1 and tokens.offsets[0] == (0, 0) and tokens.offsets[1] != (0, 0)
    if added and ids[0] == ids[1] and ids[0] == bos:
        return Tokens(ids[1:], tokens.offsets[1:], tokens.special[1:])
    return tokens


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, special tokens too."""
    if not hasattr(tokenizer, "decode"):
        raise TypeError(
            f"tokenizer is {say(tokenizer)}, expected one with decode, from ids to text"
        )
    return str(called("tokenizer", tokenizer.decode, list(ids)))


def pieces(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each id adds to that of the ids before it; together they are the text.

    Of the tokens of one character the last has it, and the others are empty.
    """
    # One token before the first keeps the space in front of it, which decoding strips at the start
    # of a text.
    lead = list(before)[-1:]
    texts = [
        decoded(tokenizer, [*lead, *ids[:i]]) if lead or i else "" for i in range(len(ids) + 1)
    ]
    found, done = [], len(texts[0])
    for i, text in enumerate(texts[1:]):
        if not texts[-1].startswith(text.rstrip(BROKEN)) or len(text) < done:
            return tuple([decoded(tokenizer, [t]) for t in ids])
        whole = text if i == len(ids) - 1 else text.rstrip(BROKEN)
        found.append(whole[done:])
        done = max(done, len(whole))
    return tuple(found)


def id_list(value: Any, name: str) -> list[int]:
    """Token ids of one text: a list of ints, or a tensor (N,) or (1, N).

    Raises:
        TypeError: They are not integers.
        ValueError: They are of several texts.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} is a tensor of {value.dtype}, expected token ids: integers")
        if value.ndim not in (1, 2) or (value.ndim == 2 and len(value) != 1):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, expected one text's ids, (N,) or (1, N)"
            )
        return [int(i) for i in value.reshape(-1).tolist()]
    ids = value if isinstance(value, (list, tuple)) else None
    if ids is None or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise TypeError(f"{name} is {say(value)}, expected a text or its token ids")
    return list(ids)
