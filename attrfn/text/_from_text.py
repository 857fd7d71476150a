"""Parts of a text: which characters belong together, and which tokens those are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch

from attrfn._explain.flags import checks_flags
from attrfn._torch.guard import called
from attrfn._torch.say import say
from attrfn.text._parts_type import Parts
from attrfn.text._segment import SEGMENTS, Span, strip
from attrfn.text._tokens import Tokens, tokens_of, tokens_of_pair

By: TypeAlias = "str | re.Pattern[str] | Sequence[Span] | Callable[[str], Iterable[Span]]"
Keep: TypeAlias = "str | Sequence[str | Span]"

UNITS = ("token", *SEGMENTS)


@checks_flags
def parts(
    text: str | tuple[str, str],
    tokenizer: Any,
    *,
    by: By = "word",
    keep: Keep = (),
    encoding: Any = None,
) -> Parts:
    """The parts of a text: token ids, and the part that each token belongs to.

    A token belongs to the part that has its first character after spaces, so that a space belongs
    to the part after it. Special tokens and tokens in no part are fixed.

    Args:
        text: A prompt; or two texts for a classifier of pairs, which are cut up one by one.
        tokenizer: One with offsets: any fast one of transformers or tokenizers, or a callable
            ``(text, return_offsets_mapping=True, add_special_tokens=True)`` that returns
            ``input_ids`` and ``offset_mapping``.
        by: "word", "token", "sentence" or "paragraph"; a regular expression, whose matches are the
            parts; spans ``(start, end)`` of characters; or a function from the text to spans.
        keep: What stays fixed: spans, or texts, wherever they occur.
        encoding: What the tokenizer returned for this text; the tokenizer is not called then.

    Returns:
        The parts, in the order of the text, or in that of the spans. Words that share a token are
        one part; a span without a token is a part without tokens, whose attribution is 0. Of two
        texts ``text``, and with it the spans, is both with a new line between them.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The text is empty or has no such part, spans overlap or leave the text,
            or the tokenizer gives no offsets.

    Example:
        >>> import attrfn.text as text
        >>> def tokenizer(text, **options):  # a token for each character
        ...     spans = [(i, i + 1) for i in range(len(text))]
        ...     return {"input_ids": [ord(c) for c in text], "offset_mapping": spans}
        >>> found = text.parts("To be, or", tokenizer)
        >>> found.labels, found.mask.tolist()
        (('To', 'be', ',', 'or'), [0, 0, 1, 1, 1, 2, 3, 3, 3])
    """
    if isinstance(text, tuple) and [type(t) for t in text] == [str, str]:
        first, second = text
        start = len(first) + 1
        inside = [(0, len(first)), (start, start + len(second))]
        tokens = tokens_of_pair(first, second, tokenizer, encoding)
        return of_tokens(f"{first}\n{second}", tokens, by, keep, inside)
    if not isinstance(text, str):
        raise TypeError(f"text is {say(text)}, expected a text, or a tuple of two")
    if not text.strip():
        raise ValueError(f"text is {text!r}, which has no part to explain: give a prompt of words")
    return of_tokens(text, tokens_of(text, tokenizer, encoding), by, keep)


def of_tokens(
    text: str, tokens: Tokens, by: By, keep: Keep = (), inside: Sequence[Span] | None = None
) -> Parts:
    """The parts of a text whose tokens are known.

    Args:
        text: The text.
        tokens: Its tokens.
        by: As of :func:`parts`.
        keep: As of :func:`parts`.
        inside: Where parts may be; None means everywhere.
    """
    if not tokens.ids:
        raise ValueError(f"text is {say(text)}, from which the tokenizer makes no token")
    kept = _kept(text, keep)
    if inside is not None:
        ends = [0, *(x for span in sorted(inside) for x in span), len(text)]
        kept += zip(ends[::2], ends[1::2], strict=True)
    unit = by if isinstance(by, str) and by in UNITS else "span"
    if unit == "token":
        spans, owner = _each_token(text, tokens, kept)
    else:
        spans = [s for s in _spans(text, by, inside) if s[0] == s[1] or not _covers(kept, text, s)]
        owner = _owners(text, tokens, spans, kept)
    if unit in SEGMENTS:
        spans, owner = _merged(tokens, spans, owner)
    if not spans or (unit != "span" and max(owner) < 0):
        raise ValueError(
            f"by is {say(by)}, which finds no part in text {say(text)} that is not kept, expected "
            f"one of {', '.join(UNITS)}, a regular expression that matches, or spans"
        )
    labels = tuple([text[a:b] for a, b in spans])
    mask, ids = torch.tensor(owner), torch.tensor([tokens.ids])
    return Parts(ids, mask, len(spans), labels, torch.tensor(spans).reshape(-1, 2), text, unit)


# --- spans ---------------------------------------------------------------------------------------


def _spans(text: str, by: By, inside: Sequence[Span] | None) -> list[Span]:
    whole = [(0, len(text))] if inside is None or not cuts(by) else inside
    cut = _cutter(by)
    spans = [(a + start, b + start) for start, end in whole for a, b in cut(text[start:end])]
    return _checked(spans, text)


def cuts(by: By) -> bool:
    """Whether a text inside another may be cut alone: given spans are those of the whole."""
    return isinstance(by, (str, re.Pattern)) or callable(by)


def _cutter(by: By) -> Callable[[str], list[Span]]:
    if isinstance(by, str) and by in SEGMENTS:
        return SEGMENTS[by]
    if isinstance(by, str):
        if by.lower().rstrip("s") in UNITS:
            raise ValueError(f"by is {by!r}, expected {by.lower().rstrip('s')!r}")
        by = _pattern(by)
    if isinstance(by, re.Pattern):
        pattern = by
        return lambda text: [m.span() for m in pattern.finditer(text) if m.end() > m.start()]
    if callable(by):
        function = by
        return lambda text: pairs(called("by", function, text))
    return lambda text: pairs(by)


def _pattern(by: str) -> re.Pattern[str]:
    try:
        return re.compile(by)
    except re.error as error:
        raise ValueError(
            f"by is {by!r}, which is not a regular expression ({error}): expected one of "
            f"{', '.join(UNITS)}, or a pattern that re.compile takes"
        ) from None


def pairs(spans: Any) -> list[Span]:
    """Spans as pairs of ints.

    Raises:
        TypeError: They are not pairs of numbers.
    """
    spans = spans.tolist() if isinstance(spans, torch.Tensor) else spans
    try:
        return [(int(a), int(b)) for a, b in spans]
    except (TypeError, ValueError):
        raise TypeError(
            f"by gives {say(spans)}, expected spans (start, end) of characters, or one of "
            f"{', '.join(UNITS)}, a regular expression, or a function from the text to spans"
        ) from None


def _checked(spans: list[Span], text: str, name: str = "by") -> list[Span]:
    for a, b in spans:
        if not 0 <= a <= b <= len(text):
            raise ValueError(
                f"{name} has the span ({a}, {b}) for a text of {len(text)} characters, expected "
                "0 <= start <= end <= its length"
            )
    filled = sorted(s for s in spans if s[0] < s[1])
    for first, second in itertools.pairwise(filled):
        if second[0] < first[1]:
            raise ValueError(
                f"{name} has the spans {first} and {second}, which overlap: expected parts that "
                "share no character"
            )
    return spans


def _kept(text: str, keep: Keep) -> list[Span]:
    found: list[Span] = []
    for k in [keep] if isinstance(keep, str) else keep:
        if isinstance(k, str):
            places = [m.span() for m in re.finditer(re.escape(k), text)] if k else []
            if not places:
                raise ValueError(
                    f"keep has {k!r}, which does not occur in text: give what it has, or a span"
                )
            found += places
            continue
        try:
            a, b = k
            span = int(a), int(b)
        except (TypeError, ValueError):
            raise TypeError(
                f"keep has {say(k)}, expected texts or spans (start, end) of characters"
            ) from None
        found += _checked([span], text, "keep")
    return found


def _covers(kept: list[Span], text: str, span: Span) -> bool:
    """Whether all characters of a span but spaces are kept."""
    signs = [i for i in range(*span) if not text[i].isspace()]
    # A token without characters comes after its own.
    signs = signs or list(range(*span)) or [max(span[0] - 1, 0)]
    return all(any(a <= i < b for a, b in kept) for i in signs)


# --- tokens --------------------------------------------------------------------------------------


def _each_token(text: str, tokens: Tokens, kept: list[Span]) -> tuple[list[Span], list[int]]:
    """The span of each free token, and the number of each token, -1 for a fixed one."""
    spans, owner = list[Span](), list[int]()
    for span, special in zip(tokens.offsets, tokens.special, strict=True):
        free = not special and not _covers(kept, text, span)
        owner.append(len(spans) if free else -1)
        if free:
            a, b = strip(text, *span)
            spans.append((a, b) if a < b else span)
    return spans, owner


def _owners(text: str, tokens: Tokens, spans: list[Span], kept: list[Span]) -> list[int]:
    """The part of each token, -1 for none."""
    part = [-1] * (len(text) + 1)  # of each character
    for k, (a, b) in enumerate(spans):
        part[a:b] = [k] * (b - a)
    for a, b in kept:
        part[a:b] = [-1] * (b - a)
    owner: list[int] = []
    for t, (span, special) in enumerate(zip(tokens.offsets, tokens.special, strict=True)):
        if not special and _continues(text, tokens, t):
            owner.append(owner[-1])
        else:
            owner.append(-1 if special else part[_first(text, span, part)])
    return owner


def _first(text: str, span: Span, part: list[int]) -> int:
    """The character that says which part a token belongs to."""
    a, b = strip(text, *span)
    if a < b or part[span[0]] >= 0:
        return a if a < b else span[0]
    while b < len(text) and text[b].isspace():
        b += 1
    return b


def _continues(text: str, tokens: Tokens, t: int) -> bool:
    """Whether a token without characters is a further byte of the character before it."""
    a, b = tokens.offsets[t]
    if a < b or a == 0 or t == 0 or tokens.special[t - 1] or text[a - 1].isspace():
        return False
    return tokens.offsets[t - 1][1] == a


def _merged(tokens: Tokens, spans: list[Span], owner: list[int]) -> tuple[list[Span], list[int]]:
    """Parts that were found, where one whose only token belongs to the one before joins it.

    Parts without any token, because the text was cut off, stay.
    """
    host = {}  # of each character that a token has
    for (a, b), k in zip(tokens.offsets, owner, strict=True):
        host.update(dict.fromkeys(range(a, b), k))
    used, number = set(owner), dict[int, int]()
    found: list[Span] = []
    for k, (a, b) in enumerate(spans):
        if k in used or host.get(a, -1) < 0 or not found:
            number[k] = len(found)
            found.append((a, b))
        else:
            found[-1] = found[-1][0], b
    return found, [number.get(k, -1) for k in owner]
