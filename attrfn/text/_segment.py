"""Words, sentences and paragraphs of a text: spans of characters, found without a tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

Span = tuple[int, int]

# Scripts that are written without spaces between words: every sign is a word of its own.
ALONE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
JOINS = "'\u2019\u00b7\u05f3\u05f4"  # within a word: don't, l·l, and marks of Hebrew abbreviations
POINTS = ".,:\u066b\u066c"  # within a number: 3.14, 10:30

ENDS = ".!?\u2026\u203d\u061f\u06d4\u0964\u0965\u1362"  # a sentence ends there if a space follows
FULL = "\u3002\uff01\uff1f\uff0e\uff61"  # ... or without a space, in Chinese and Japanese
CLOSES = "\"'\u2019\u201d\u00bb\u203a)]}\u300d\u300f\uff09\u3011*_"
SENTENCE_END = re.compile(
    rf"([{re.escape(ENDS)}]+[{re.escape(CLOSES)}]*)\s|([{FULL}]+[{re.escape(CLOSES)}]*)"
)
# A full stop after these rarely ends a sentence: titles, and what comes before a name.
TITLES = re.compile(
    r"mr|mrs|ms|dr|prof|rev|hon|gen|col|capt|sgt|lt|vs|cf|e\.g|i\.e|al|approx|z\.b|d\.h",
    re.IGNORECASE,
)
# ... and after these none where a number follows.
COUNTED = re.compile(
    r"nos?|nr|figs?|eqs?|vol|pp?|sec|ch|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec",
    re.IGNORECASE,
)
# ... and after these none where a small letter follows.
WITHIN = re.compile(r"etc|inc|ltd|corp|co|dept|est", re.IGNORECASE)
MARKER = re.compile(r"\W*(\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})\.")  # of an entry of a list
LAST_WORD = re.compile(r"[\w.]*\w(?=\.+\W*$)")
BLANK = re.compile(r"\n[^\S\n]*\n\s*")


def words(text: str) -> list[Span]:
    """Words, numbers, and runs of other signs; in scripts without spaces every sign.

    Marks that combine with a letter, and apostrophes and points within a word or number, belong to
    it. An emoji of several code points is one run.
    """
    spans: list[Span] = []
    start, before = 0, " "
    kinds = [_kind(text, i) for i in range(len(text))]
    for i, kind in enumerate(kinds):
        kind = before if kind == "+" and before != " " else kind
        if kind != before or (kind == "alone" and kinds[i] != "+"):
            if before != " ":
                spans.append((start, i))
            start = i
        before = kind
    return spans if before == " " else [*spans, (start, len(text))]


def _kind(text: str, i: int) -> str:
    """What a sign is: space, of a word, alone, another one, or + for one that joins the former."""
    c = text[i]
    if c.isspace():
        return " "
    category = unicodedata.category(c)
    if category[0] == "M" or category == "Cf" or 0x1F3FB <= ord(c) <= 0x1F3FF:
        return "+"
    if ALONE.match(c):
        return "alone"
    if c == "_" or c.isalnum():
        return "word"
    if 0 < i < len(text) - 1 and _between(text[i - 1], c, text[i + 1]):
        return "word"
    return "sign"


def _between(before: str, c: str, after: str) -> bool:
    if c in JOINS:
        return before.isalpha() and after.isalpha() and not ALONE.match(before + after)
    return c in POINTS and before.isdigit() and after.isdigit()


def sentences(text: str) -> list[Span]:
    """Sentences, without the space around them.

    A new line starts one too, unless it goes on in lower case as lines of a fixed width do.
    """
    joined: list[Span] = []
    for start, end in lines(text):
        wrapped = joined and text[start].islower() and text[joined[-1][1] - 1] not in ENDS + ":"
        if wrapped and not BLANK.search(text, joined[-1][1], start):
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return [s for line in joined for s in _sentences_of(text, *line)]


def _sentences_of(text: str, start: int, end: int) -> Iterator[Span]:
    for found in SENTENCE_END.finditer(text, start, end):
        stop = found.end(1) if found[1] else found.end(2)
        if found[1] and not _ends(text[start:stop], found[1], text[found.end() : end].lstrip()):
            continue
        if stop < end:
            yield start, stop
            start = stop + len(text[stop:end]) - len(text[stop:end].lstrip())
    if start < end:
        yield start, end


def _ends(sentence: str, sign: str, rest: str) -> bool:
    """Whether a sign followed by a space ends a sentence."""
    lower = rest[:1].islower()
    if lower and (len(sign) > 1 or sign == "\u2026"):  # "Why?" he asked; wait... what
        return False
    if not sign.startswith(".") or sign.startswith(".."):
        return True
    if MARKER.fullmatch(sentence):
        return False
    word = LAST_WORD.search(sentence)
    last = word[0] if word else ""
    if len(last) == 1 and last.isupper() and last != "I":  # an initial
        return False
    if lower and ("." in last or WITHIN.fullmatch(last)):
        return False
    counted = rest[:1].isdigit() and COUNTED.fullmatch(last)
    return not (TITLES.fullmatch(last) or counted)


def lines(text: str) -> list[Span]:
    """Lines that hold something, without the space around them."""
    return _stripped(text, [m.span() for m in re.finditer(r"[^\r\n\u2028\u2029\v\f]+", text)])


def paragraphs(text: str) -> list[Span]:
    """What empty lines separate, without the space around it."""
    cuts = [m.span() for m in BLANK.finditer(text)]
    starts, ends = [0, *(b for _, b in cuts)], [*(a for a, _ in cuts), len(text)]
    return _stripped(text, zip(starts, ends, strict=True))


def _stripped(text: str, spans: Iterable[Span]) -> list[Span]:
    found = [strip(text, a, b) for a, b in spans]
    return [(a, b) for a, b in found if a < b]


def strip(text: str, start: int, end: int) -> Span:
    """A span without the space at its ends; an empty one at its end if nothing else is there."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


SEGMENTS = {"word": words, "sentence": sentences, "paragraph": paragraphs}
