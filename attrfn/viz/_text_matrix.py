"""All numbers of a language model's explanation: answer tokens by parts of the prompt."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from attrfn._explain.flags import checks_flags
from attrfn.viz._language import Result, about, aligned, from_to, read, shown
from attrfn.viz._language_style import MATRIX
from attrfn.viz._scale import signed
from attrfn.viz._text import Html, colour, scale_line

if TYPE_CHECKING:
    from attrfn.text import TextAttribution

FEW = 12  # this many columns have room for numbers
LABEL, TITLE = 28, 60  # letters of a part's name above its column, and when the pointer rests


@checks_flags
def text_matrix(result: TextAttribution, *, title: str = "") -> Html:
    """Answer tokens in rows, parts of the prompt in columns, a colour for each number.

    Red raises the score of the answer token, blue lowers it. All tokens share one scale; the last
    row is the total of the answer, on its own scale. With up to 12 parts the numbers are in
    the cells; with more a number shows when the pointer rests on its cell, and screen readers read
    it. Without style sheets it is a plain table of numbers.

    Args:
        result: What :func:`attrfn.text.attribute` returns, with values (N, n).
        title: Written above the table.

    Returns:
        HTML without scripts or links: a notebook shows it, :func:`attrfn.viz.report` takes it as a
        figure, and ``.save(path)`` writes a page.

    Raises:
        TypeError: ``result`` is not such a result.
        ValueError: Its texts and numbers do not fit together, or a number is not finite.

    Example:
        >>> import torch
        >>> from attrfn.text import TextAttribution
        >>> values = torch.tensor([[0.5, -0.1], [0.0, 2.0]])
        >>> scores = {"scores": torch.tensor([-1.0, -0.5]), "empty": None}
        >>> texts = {"parts": ("not", "bad"), "answer": (" good", ".")}
        >>> result = TextAttribution(values=values, total=values.sum(0), **scores, **texts)
        >>> text_matrix(result).count("<td style")
        6
    """
    data = read(result)
    head = f'<div style="font-weight:600">{html.escape(title)}</div>\n' if title else ""
    said = f"<div>{about(data)}</div>\n" if about(data) else ""
    return Html(f"<style>\n{MATRIX}</style>\n<div>\n{head}{said}{table(data)}\n</div>")


def table(data: Result) -> str:
    """The table and its scales, without the style sheet."""
    names = [shown(part, LABEL) for part in data.parts]
    hints = [shown(part, TITLE) for part in data.parts]
    head = "".join(
        f'<th scope="col" title="{hint}"><div><bdi>{name}</bdi></div></th>'
        for name, hint in zip(names, hints, strict=True)
    )
    rows = sorted(data.lines(), key=lambda row: row < 0)  # the whole answer below the others
    ends = {row < 0: data.line(row)[1] for row in rows}
    lines = [_line(data, row, hints) for row in rows]
    scales = [
        f"<div>{'Whole answer' if whole else 'Answer tokens'}{scale_line(end)}</div>"
        for whole, end in ends.items()
    ]
    kind = "attrfn-few" if len(names) <= FEW else "attrfn-many"
    return (
        '<div class="attrfn-scroll" tabindex="0" role="group" aria-label="Answer by prompt">'
        f'<table class="attrfn-matrix {kind}">\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f'\n</tbody>\n</table></div>\n<div class="attrfn-ends">{"".join(scales)}</div>'
    )


def _line(data: Result, row: int, hints: list[str]) -> str:
    numbers, end = data.line(row)
    cells = "".join(
        f'<td style="background-color:{colour(value, end)}" title="{hint}: {signed(value)}">'
        f"<i>{text}</i></td>"
        for value, text, hint in zip(numbers, aligned(numbers, end), hints, strict=True)
    )
    name = "whole answer" if row < 0 else shown(data.answer[row])
    hint = "" if row < 0 else f' title="{name}: {from_to(data, row)}"'
    kind = ' class="attrfn-total"' if row < 0 else ""
    return f'<tr{kind}><th scope="row"{hint}><bdi>{name}</bdi></th>{cells}</tr>'
