"""Passages in the order of what they did, with bars."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._bars import measured
from attrfn.viz._language import Result, about, aligned, read
from attrfn.viz._language_style import PASSAGES
from attrfn.viz._text import BLUE, RED, Html

if TYPE_CHECKING:
    from attrfn.text import TextAttribution

SHORT = 280  # letters of a passage that are shown; the others unfold


@checks_flags
def passages(
    result: TextAttribution,
    *,
    order: Literal["rank", "text"] = "rank",
    top: int | None = None,
    title: str = "",
) -> Html:
    """Passages of the prompt with a bar each: what they contributed to the whole answer.

    Red raises the score of the answer, blue lowers it. A line over a bar is its standard error,
    where the method has one; the errors of several answer tokens are added, which is the most that
    the error of their sum can be.

    Args:
        result: What :func:`attrfn.text.attribute` returns, for parts such as paragraphs or
            documents. ``attrfn.text.select`` takes a slice of the answer first.
        order: "rank" begins with the passage that raises the score most and ends with the one that
            lowers it most; "text" has the order of the prompt.
        top: How many passages are shown, those of the largest sizes; None shows all.
        title: Written above.

    Returns:
        HTML without scripts or links: a notebook shows it, :func:`attrfn.viz.report` takes it as a
        figure, and ``.save(path)`` writes a page.

    Raises:
        TypeError: ``result`` is not such a result.
        ValueError: Its texts and numbers do not fit together, a number is not finite, or an option
            is wrong.

    Example:
        >>> import torch
        >>> from attrfn.text import TextAttribution
        >>> values = torch.tensor([[0.5, 2.0]])
        >>> scores = {"scores": torch.tensor([-1.0]), "empty": None}
        >>> texts = {"parts": ("Dogs bark.", "Cats purr."), "answer": (" purr",)}
        >>> result = TextAttribution(values=values, total=values.sum(0), **scores, **texts)
        >>> page = passages(result)
        >>> page.index("Cats") < page.index("Dogs")
        True
    """
    _check(order, top)
    data = read(result)
    if data.total is None:
        raise ValueError(
            "result.total is nan, which has no order: explain that part of the answer by itself, "
            "because the score of the whole is not a sum over its tokens"
        )
    values, errors = data.total.tolist(), _errors(data)
    by_rank = sorted(range(len(values)), key=lambda k: -values[k])
    kept = set(sorted(range(len(values)), key=lambda k: -abs(values[k]))[:top])
    low, high = _range(values, errors)
    texts = measured(values, errors) if errors else aligned(values, high - low)
    items = [
        _item(
            data.parts[k],
            by_rank.index(k) + 1,
            texts[k],
            _bar(values[k], None if errors is None else errors[k], low, high),
        )
        for k in (by_rank if order == "rank" else range(len(values)))
        if k in kept
    ]
    head = f'<div style="font-weight:600">{html.escape(title)}</div>\n' if title else ""
    said = f'<div class="attrfn-soft">{_said(data, errors, len(items))}</div>\n'
    return Html(
        f'<style>\n{PASSAGES}</style>\n<div class="attrfn-passages" '
        f'style="--width:{0.9 * max(map(len, texts)) + 0.5:.1f}ch">\n{head}{said}'
        "<ul>\n" + "\n".join(items) + "\n</ul>\n</div>"
    )


def _check(order: object, top: object) -> None:
    if order not in ("rank", "text"):
        raise ValueError(
            f"order is {say(order)}, expected 'rank' or 'text': the first sorts the passages by "
            "their numbers"
        )
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise ValueError(f"top is {say(top)}, expected a number of passages above 0, or None: all")


def _errors(data: Result) -> list[float] | None:
    """Standard errors of the totals, or their upper bound; None where nothing is known."""
    if data.stderr is None or data.total is None:
        return None
    summed: Tensor = data.values.sum(0)
    # If the total is not a sum over the tokens (odds, probabilities), theirs say nothing of it.
    if not summed.allclose(data.total, rtol=1e-3, atol=1e-6 + 1e-4 * float(summed.abs().max())):
        return None
    return data.stderr.abs().sum(0).tolist()


def _range(values: list[float], errors: list[float] | None) -> tuple[float, float]:
    """What the bars cover: zero, all values and all errors."""
    wide = errors or [0.0] * len(values)
    low = min(0.0, *(v - e for v, e in zip(values, wide, strict=True)))
    high = max(0.0, *(v + e for v, e in zip(values, wide, strict=True)))
    return (low, high) if high > low else (0.0, 1.0)


def _bar(value: float, error: float | None, low: float, high: float) -> str:
    """The bar, the line of zero and that of the error, in percent of the track."""

    def box(kind: str, start: float, end: float, style: str = "") -> str:
        left, right = (100 * (place - low) / (high - low) for place in (start, end))
        place = f"left:{left:.2f}%;width:{right - left:.2f}%{style}"
        return f'<span class="attrfn-{kind}" style="{place}"></span>'

    colour = f";background:rgb({RED if value > 0 else BLUE})"
    bar = box("bar", min(0.0, value), max(0.0, value), colour) + box("zero", 0.0, 0.0)
    return bar if error is None else bar + box("error", value - error, value + error)


def _item(passage: str, rank: int, number: str, bar: str) -> str:
    return (
        f'<li><div class="attrfn-row"><span class="attrfn-rank">{rank}.</span>'
        f'<span class="attrfn-track" aria-hidden="true">{bar}</span>'
        f'<span class="attrfn-number">{number}</span></div>{_text(passage)}</li>'
    )


def _text(text: str) -> str:
    """A passage; a long one unfolds."""
    text = text.strip() or "(blank)"
    if len(text) <= SHORT:
        return f'<p dir="auto">{html.escape(text)}</p>'
    return (
        f'<details dir="auto"><summary>{html.escape(text[:SHORT].rstrip())}\N{HORIZONTAL ELLIPSIS}'
        f"</summary><p>{html.escape(text)}</p></details>"
    )


def _said(data: Result, errors: list[float] | None, shown: int) -> str:
    said = [about(data)] if about(data) else []
    if shown < len(data.parts):
        said.append(f"{shown} of {len(data.parts)} passages")
    if errors:
        bound = " (summed over the answer tokens: at most this large)"
        said.append("lines are standard errors" + bound * (len(data.answer) > 1))
    return "; ".join(said)
