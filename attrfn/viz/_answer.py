"""The prompt, coloured for the answer token that a reader chooses."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from attrfn._explain.flags import checks_flags
from attrfn.viz._language import Result, about, from_to, pieces, read, shown
from attrfn.viz._language_style import ANSWER, MATRIX
from attrfn.viz._scale import limit, signed
from attrfn.viz._text import Html, colour, scale_line
from attrfn.viz._text_matrix import table

if TYPE_CHECKING:
    from attrfn.text import TextAttribution

NAMED = 5  # how many parts the line of a token names
LEAST = 0.01  # of the largest size: what is smaller is not named
HINT = 40  # letters of their names


@checks_flags
def answer(result: TextAttribution, *, prompt: str | None = None, title: str = "") -> Html:
    """The prompt, coloured by the row of the answer token that the pointer is on or that is chosen.

    Red raises the score of that token, blue lowers it; a line below names the parts that do most.
    At first the whole answer is chosen. A click or a tap chooses a token; after the tab key
    reaches the answer, the arrow keys go from token to token. All tokens share one scale, the whole
    answer has its own. The line under a token is as dark as the sum of its sizes is large.

    Style sheets alone do this: no script runs. A browser that knows no ``:has`` shows the whole
    answer, and the table of all numbers, which is there in any case.

    Args:
        result: What :func:`attrfn.text.attribute` returns, with values (N, n).
        prompt: The text that was explained, where it has more than the parts: what is fixed is then
            shown without a colour. ``result.spans`` says where the parts are in it.
        title: Written above.

    Returns:
        HTML without scripts or links: a notebook shows it, :func:`attrfn.viz.report` takes it as a
        figure, and ``.save(path)`` writes a page.

    Raises:
        TypeError: ``result`` is not such a result.
        ValueError: Its texts and numbers do not fit together, a number is not finite, or the spans
            do not lie in the prompt.

    Example:
        >>> import torch
        >>> from attrfn.text import TextAttribution
        >>> values = torch.tensor([[0.5, -0.1], [0.0, 2.0]])
        >>> scores = {"scores": torch.tensor([-1.0, -0.5]), "empty": None}
        >>> texts = {"parts": ("not", "bad"), "answer": (" good", ".")}
        >>> result = TextAttribution(values=values, total=values.sum(0), **scores, **texts)
        >>> answer(result).count('type="radio"')  # the whole answer and its two tokens
        3
    """
    data = read(result)
    rows = data.lines()
    lines = [data.line(row) for row in rows]
    words = "".join(
        _piece(text, [(row[k], end) for row, end in lines] if k >= 0 else [])
        for text, k in pieces(data, prompt)
    )
    head = f'<div class="attrfn-title">{html.escape(title)}</div>\n' if title else ""
    return Html(
        f"<style>\n{MATRIX}{ANSWER}{_rules(len(rows))}</style>\n"
        f'<form class="attrfn-answer">\n{head}'
        f'<div class="attrfn-head">Prompt</div>\n<p class="attrfn-text" dir="auto">{words}</p>\n'
        f"{_choices(data, rows)}\n"
        f'<div class="attrfn-says" aria-live="polite">\n{_says(data, rows)}\n</div>\n'
        f"<details><summary>All numbers{', ' * bool(about(data))}{about(data)}</summary>\n"
        f"{table(data)}\n</details>\n</form>"
    )


def _rules(rows: int) -> str:
    """Which row colours the prompt: the chosen one's, and over it the one under the pointer."""
    lines = []
    for state, where in ((":checked", ""), (":hover", ".attrfn-says ")):
        if where:
            others = ".attrfn-answer:has(input:hover) .attrfn-says div[class]"
            lines.append(f"{others} {{ visibility: hidden; }}")
        for i in range(rows):
            chosen = f".attrfn-answer:has(.attrfn-a{i}{state})"
            lines.append(f"{chosen} .attrfn-p {{ --v: var(--r{i}); }}")
            lines.append(f"{chosen} {where}.attrfn-d{i} {{ visibility: visible; }}")
    return "\n".join(lines) + "\n"


def _piece(text: str, shares: list[tuple[float, float]]) -> str:
    """A piece of the prompt with its share of each scale, in percent; its outer spaces are bare."""
    bare = text.strip()
    if not shares or not bare:
        return html.escape(text)
    before, after = text.split(bare, 1)
    percents = [round(100 * value / end) if end else 0 for value, end in shares]
    # No colour needs no word: most shares of a long prompt are that small.
    told = "".join(f";--r{i}:{percent}" for i, percent in enumerate(percents) if percent)
    style = f"background-color:{colour(*shares[0])}{told}"
    return (
        f'{html.escape(before)}<span class="attrfn-p" style="{style}">{html.escape(bare)}</span>'
        f"{html.escape(after)}"
    )


def _choices(data: Result, rows: list[int]) -> str:
    """The answer: one radio button per token, which its text covers; the first is checked."""
    sizes = data.values.abs().sum(1)
    most = limit(sizes)
    labels = []
    for i, row in enumerate(rows):
        if row < 0:
            labels.append(_choice(i, "<span>whole answer</span>"))
            continue
        token = data.answer[row]
        share = float(sizes[row]) / most if most and len(rows) > 1 else 0.0
        text = f'<bdi style="border-color:rgba(128, 128, 128, {share:.2f})">{shown(token)}</bdi>'
        blank = " " if row and token[:1] == " " and token.strip(" ") else ""
        labels.append(f"{blank}{_choice(i, text)}{'<br>' * token.count(chr(10))}")
    told = "Answer"
    if len(rows) > 1:
        told += ": choose a token (under the darker line: the prompt did more for it)"
    if rows[0] < 0:
        told += f" or the {labels.pop(0)}"
    return (
        f'<fieldset><legend class="attrfn-head">{told}</legend>\n'
        f'<p class="attrfn-text" dir="auto">{"".join(labels)}</p></fieldset>'
    )


def _choice(i: int, text: str) -> str:
    checked = " checked" * (i == 0)
    return f'<label><input class="attrfn-a{i}" type="radio" name="row"{checked}>{text}</label>'


def _says(data: Result, rows: list[int]) -> str:
    lines = []
    for i, row in enumerate(rows):
        name = "Whole answer" if row < 0 else shown(data.answer[row])
        told = "" if row < 0 else from_to(data, row)
        told = f": <span>{told}</span>" if told else ""
        numbers, end = data.line(row)
        lines.append(
            f'<div class="attrfn-d{i}"><b><bdi>{name}</bdi></b>{told}<br>'
            f"{_strongest(data, numbers)}\n{scale_line(end)}</div>"
        )
    return "\n".join(lines)


def _strongest(data: Result, row: list[float]) -> str:
    """The parts that move a score most."""
    order = sorted(range(len(row)), key=lambda k: -abs(row[k]))[:NAMED]
    named = [
        f"<bdi>{shown(data.parts[k], HINT)}</bdi> <span>{signed(row[k])}</span>"
        for k in order
        if abs(row[k]) > LEAST * abs(row[order[0]])
    ]
    return "Most: " + ", ".join(named) if named else "No part does anything."
