"""Words coloured by their attributions, as HTML."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

from attrfn._explain.flags import checks_flags, say
from attrfn._torch.files import write_whole
from attrfn.viz._scale import Array, limit, numbers, signed
from attrfn.viz._style import page

RED, BLUE = "214, 60, 60", "52, 120, 200"
STRONGEST = 0.65  # the opacity at which both black and white letters can still be read
# Styles are inside the elements: notebooks and mail programs drop style sheets and scripts.
_WORD = "padding:.15em .1em;border-radius:.2em;white-space:pre-wrap"
_SOFT = "font-size:.85em;opacity:.75"


class Html(str):
    """A piece of HTML that notebooks show; a plain string elsewhere."""

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | os.PathLike[str], *, title: str = "Attributions") -> Path:
        """Write one HTML file that needs no other: no scripts, no links; light and dark.

        Missing folders on the way to ``path`` are made. An existing file is replaced by the
        whole page at once; after an exception it is as it was.

        Args:
            path: The file to write.
            title: The title of the page, which the tab of a browser shows.

        Returns:
            The path of the file.

        Raises:
            ValueError: UTF-8 cannot encode a text.

        Example:
            >>> import tempfile, torch
            >>> text(["not", "bad"], torch.ones(2)).save(tempfile.mkdtemp() + "/words.html").name
            'words.html'
        """
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, page(title, str(self)), "the page")
        return file


@checks_flags
def text(
    words: Sequence[str] | Sequence[Sequence[str]],
    attributions: Array | Sequence[Array],
    *,
    labels: Sequence[str] | None = None,
    separator: str = " ",
    title: str = "",
) -> Html:
    """Words (or tokens) over a colour for each: red raises the output, blue lowers it.

    All rows share one scale, which ends at the largest |attribution| and is drawn below them. The
    number of a word shows when the pointer rests on it. All texts are escaped.

    Args:
        words: The words of one text, or of several.
        attributions: One number per word, (T,); for several texts one such tensor for each.
        labels: A label before each row; for one text a list of one.
        separator: The text between two words; "" if the words have their own spaces.
        title: Written above the rows.

    Returns:
        HTML without scripts, links or style sheets: a notebook shows it,
        :func:`attrfn.viz.report` takes it as a figure, and ``.save(path)`` writes a page.

    Raises:
        TypeError: The words are not texts, or the attributions are not real numbers.
        ValueError: The numbers of rows, words, attributions or labels differ.

    Example:
        >>> import torch
        >>> words = text(["not", "bad"], torch.tensor([-0.5, 0.25]))
        >>> words.count("<span"), "+0.25" in words  # two words and the scale
        (3, True)
    """
    rows, values = _rows(words, attributions)
    data = [
        numbers(v, f"attributions[{i}]" if len(values) > 1 else "attributions", {1: "(T,)"})
        for i, v in enumerate(values)
    ]
    for i, (row, v) in enumerate(zip(rows, data, strict=True)):
        if len(row) != len(v):
            raise ValueError(
                f"row {i} has {len(row)} words and {len(v)} attributions, expected one attribution "
                "per word: attrfn.feature_scores makes one of each embedding; cut padding off"
            )
    names = [""] * len(rows) if labels is None else list(labels)
    if len(names) != len(rows):
        raise ValueError(
            f"labels has {len(names)} texts, expected one for each of {len(rows)} rows"
        )
    # One scale for all rows, so that equal colours are equal numbers.
    end = max(limit(v) for v in data)
    lines = [
        _line(row, v.tolist(), name, end, separator)
        for row, v, name in zip(rows, data, names, strict=True)
    ]
    head = f'<div style="font-weight:600">{html.escape(title)}</div>\n' if title else ""
    body = "\n".join(lines)
    return Html(f'<div style="line-height:1.9">\n{head}{body}\n{scale_line(end)}\n</div>')


def _rows(words: object, attributions: object) -> tuple[list[list[str]], list[Array]]:
    """Both as lists of rows."""
    if isinstance(words, str) or not isinstance(words, Sequence) or not words:
        raise TypeError(
            f"words is {say(words)}, expected a list of words, or one such list per text: split it"
        )
    if all(isinstance(word, str) for word in words):
        return [list(words)], [attributions]  # type: ignore[list-item]
    for row in words:
        if isinstance(row, str) or not all(isinstance(word, str) for word in row):
            raise TypeError(f"words holds {say(row)}, expected a list of words for each text")
    values = list(attributions)  # type: ignore[call-overload]
    if len(values) != len(words):
        raise ValueError(
            f"attributions has {len(values)} rows, expected one for each of {len(words)} texts"
        )
    return [list(row) for row in words], values


def _line(row: list[str], values: list[float], name: str, end: float, separator: str) -> str:
    cells = html.escape(separator).join(
        [
            word_span(
                word, f'title="{signed(value)}" style="background:{colour(value, end)};{_WORD}"'
            )
            for word, value in zip(row, values, strict=True)
        ]
    )
    label = f'<span style="{_SOFT};margin-right:.8em">{html.escape(name)}</span>' if name else ""
    return f"<div>{label}{cells}</div>"


def word_span(word: str, attributes: str) -> str:
    """A coloured word; its spaces at both ends have no colour."""
    # Tokens of language models begin with a space, which would join their colours to one band.
    bare = word.strip(" ") or word
    before, after = word.split(bare, 1) if bare else ("", "")
    return f"{before}<span {attributes}>{html.escape(bare)}</span>{after}"


def colour(value: float, end: float) -> str:
    """The colour of a number on the scale from -end to end."""
    strength = STRONGEST * abs(value) / end if end else 0.0
    return f"rgba({RED if value > 0 else BLUE}, {strength:.3f})"


def scale_line(end: float) -> str:
    """The scale from -end to end, to be written below what it explains."""
    ends = f"rgba({BLUE}, {STRONGEST}), transparent, rgba({RED}, {STRONGEST})"
    bar = (
        '<span style="display:inline-block;width:8em;height:.7em;margin:0 .5em;'
        f'border-radius:.2em;background:linear-gradient(to right, {ends})"></span>'
    )
    return f'<div style="{_SOFT}">{signed(-end)}{bar}{signed(end)}</div>'
