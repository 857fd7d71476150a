"""What the views of language models read of a result, and how they write its texts."""

from __future__ import annotations

import html
import math
import re
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from attrfn._explain.flags import say
from attrfn.viz._scale import limit, numbers, signed

if TYPE_CHECKING:
    from attrfn.text import TextAttribution

MARKS = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


class Result(NamedTuple):
    """A result whose numbers were checked: float64 copies on the CPU."""

    values: Tensor  # (N, n)
    total: Tensor | None  # (n,), None where it is not known
    scores: Tensor | None  # (N,), as the next one
    empty: Tensor | None
    stderr: Tensor | None  # (N, n)
    parts: list[str]
    answer: list[str]  # one text per row of `values`
    spans: list[tuple[int, int]] | None
    score: str
    method: str

    def lines(self) -> list[int]:
        """The rows that can be seen: -1 is the whole answer, unless it equals the one row."""
        rows = list(range(len(self.answer)))
        known = self.total is not None and not (len(rows) == 1 and self.values[0].equal(self.total))
        return [-1] * known + rows

    def line(self, row: int) -> tuple[list[float], float]:
        """The numbers of a row, and where their scale ends; -1 is the whole answer."""
        if row < 0 and self.total is not None:
            return self.total.tolist(), limit(self.total)
        return self.values[row].tolist(), limit(self.values)


def read(result: TextAttribution) -> Result:
    """The checked result.

    Raises:
        TypeError: It is not a result, or its texts or numbers are of the wrong kind.
        ValueError: The numbers of rows, parts or texts differ, or a number is not finite.
    """
    missing = [name for name in ("values", "total", "parts", "answer") if not hasattr(result, name)]
    if missing:
        raise TypeError(
            f"result is {say(result)}, expected the TextAttribution that attrfn.text.attribute "
            "returns: draw other attributions of words with viz.text"
        )
    values = numbers(result.values, "result.values", {2: "(N, n)"})
    parts, answer = (_texts(getattr(result, name), name) for name in ("parts", "answer"))
    rows, n = values.shape
    if rows == 1 and len(answer) != 1:
        answer = ["".join(answer)]  # one number for the whole answer
    for name, found, wanted in (("parts", len(parts), n), ("answer", len(answer), rows)):
        if found != wanted:
            raise ValueError(
                f"result.{name} has {found} texts, expected one for each of {wanted} "
                f"{'columns' if name == 'parts' else 'rows'} of result.values: give a result as "
                "attrfn.text returns it"
            )
    return Result(
        values,
        _total(result.total, n),
        _optional(result, "scores", (rows,)),
        _optional(result, "empty", (rows,)),
        _optional(result, "stderr", (rows, n)),
        parts,
        answer,
        _spans(getattr(result, "spans", None), n),
        str(getattr(result, "score", "")),
        str(getattr(result, "method", "")),
    )


def _texts(texts: object, name: str) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, (tuple, list)):
        raise TypeError(f"result.{name} is {say(texts)}, expected a tuple of texts: do not join it")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(
            f"result.{name} holds {say(next(t for t in texts if not isinstance(t, str)))}, "
            "expected texts alone: decode token ids"
        )
    return list(texts)


def _total(total: Tensor, n: int) -> Tensor | None:
    """The total; None for nan, which part of an answer has if its total is not a sum of rows."""
    if bool(_shaped(total, "total", (n,), finite=False).isnan().all()):
        return None
    return _shaped(total, "total", (n,))


def _shaped(value: Tensor, name: str, shape: tuple[int, ...], *, finite: bool = True) -> Tensor:
    data = numbers(value, f"result.{name}", {len(shape): str(shape)}, finite=finite)
    if data.shape != shape:
        raise ValueError(
            f"result.{name} has shape {tuple(data.shape)}, expected {shape}, which fits "
            "result.values: give a result as attrfn.text returns it"
        )
    return data


def _optional(result: TextAttribution, name: str, shape: tuple[int, ...]) -> Tensor | None:
    value = getattr(result, name, None)
    return None if value is None else _shaped(value, name, shape)


def _spans(spans: Tensor | None, n: int) -> list[tuple[int, int]] | None:
    if spans is None:
        return None
    data = _shaped(spans, "spans", (n, 2))
    return [(int(start), int(end)) for start, end in data.tolist()]


def pieces(result: Result, prompt: str | None) -> list[tuple[str, int]]:
    """The prompt in its order: texts, each with its part, or -1 where it is fixed.

    Without the prompt itself, parts that do not touch have a space or an ellipsis between them.

    Raises:
        ValueError: A part is outside the prompt, or the spans are missing or out of order.
    """
    spans = result.spans
    ends = [0, *[end for _, end in spans]] if spans else []
    ordered = spans is not None and all(
        before <= start <= end for before, (start, end) in zip(ends, spans, strict=False)
    )
    if prompt is not None and (spans is None or not ordered or ends[-1] > len(prompt)):
        raise ValueError(
            f"prompt has {len(prompt)} characters, and result.spans is {say(result.spans)}, "
            "expected spans inside it, in the order of the text: give the text that was "
            "explained, or leave prompt out"
        )
    found: list[tuple[str, int]] = []
    for k, part in enumerate(result.parts):
        if spans is None or not ordered:
            found += [(" ", -1)] * bool(k)
        else:
            gap = (ends[k], spans[k][0])
            found.append((_between(gap, k == 0) if prompt is None else prompt[slice(*gap)], -1))
            part = part if prompt is None else prompt[slice(*spans[k])]
        found.append((part, k))
    if prompt is not None:
        found.append((prompt[ends[-1] :], -1))
    return [(text, k) for text, k in found if text]


def _between(gap: tuple[int, int], first: bool) -> str:
    """What stands for text that is not known."""
    length = gap[1] - gap[0]
    if length > 2:
        return "\N{HORIZONTAL ELLIPSIS} " if first else " \N{HORIZONTAL ELLIPSIS} "
    return "" if first else " " * bool(length)


def shown(text: str, most: int | None = None) -> str:
    """A text in one line, escaped: breaks, blanks alone and no text get marks; cut to ``most``."""
    # A token may add no text: the first bytes of a character that has several.
    text = text if text.strip(" ") else "\N{OPEN BOX}" * len(text) or "\N{EMPTY SET}"
    text = re.sub(r"[\n\t]", lambda found: MARKS[found[0]], text).strip(" ")
    if most is not None and len(text) > most:
        text = text[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return html.escape(text)


def about(result: Result) -> str:
    """The method and the score by their names, escaped."""
    score = f"score {result.score}" if result.score else ""
    return html.escape(", ".join(text for text in (result.method, score) if text))


def from_to(result: Result, row: int) -> str:
    """The score of a row with and without the parts, "" where it is not known."""
    if result.scores is None:
        return ""
    # Not "log-probability": with a foil the score is a difference of two, which no name tells.
    said = f"score {plain_number(result.scores[row])}"
    if result.empty is None:
        return said
    return f"{said}; {plain_number(result.empty[row])} without the parts"


def plain_number(value: Tensor) -> str:
    """Three digits, a plus left out."""
    return signed(float(value), 3).removeprefix("+")


def aligned(values: list[float], end: float) -> list[str]:
    """Numbers of one table: as many decimals as two or three digits of the scale's end have."""
    places = math.floor(math.log10(end)) if end else 0
    # Beyond these a column of decimals is harder to read than powers of ten.
    if not -4 <= places <= 4:
        return [signed(value) for value in values]
    decimals = max(0, 2 - places if places >= 0 else 1 - places)
    texts = [f"{value:+.{decimals}f}" for value in values]
    # Without a sign where it rounds to zero.
    return [
        (text[1:] if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}") for text in texts
    ]
