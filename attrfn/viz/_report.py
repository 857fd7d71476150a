"""One self-contained HTML file of texts, figures and tables."""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from attrfn._explain.flags import checks_flags
from attrfn.viz._file import write_whole
from attrfn.viz._style import page
from attrfn.viz._text import Html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More than the 96 pixels per inch at which the page shows figures, for dense screens; the size of
# the file grows with the square.
DPI = 160
SIGN = r"[-+\u2212]?"
# A number, perhaps with a short unit, or a dash for a missing one.
NUMBER = re.compile(
    rf"{SIGN}\d[\d.,]*(e{SIGN}\d+)?(\s?[^\s\d]{{1,3}})?|{SIGN}(nan|inf)|[-\u2013\u2014]?"
)


@checks_flags
def report(
    path: str | os.PathLike[str],
    *,
    title: str,
    figures: Mapping[str, Figure | Html] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    text: str = "",
) -> Path:
    """Write one HTML file that holds everything it shows: no scripts, no links, no other files.

    It reads well on narrow and wide screens, in light and dark mode, and on paper. All texts are
    escaped. Missing folders on the way to ``path`` are made. An existing file is replaced by
    the whole page at once; after an exception it is as it was.

    Args:
        path: The file to write.
        title: The page's title.
        figures: Caption -> figure, embedded as PNG, or the HTML of :func:`attrfn.viz.text`. A
            figure's label (``figure.get_label()``, which the functions of this package set) is its
            text for screen readers.
        tables: Caption -> rows, each a mapping from column names to values. Columns come in the
            order in which the rows first name them. Columns of numbers, also with a short unit
            such as "3.1 ms", are set to the right; floats get four digits, None a dash.
        text: Paragraphs, separated by empty lines, between title and figures.

    Returns:
        The path of the file.

    Raises:
        TypeError: A figure cannot be saved, or a table is not a sequence of mappings.
        ValueError: UTF-8 cannot encode a text.

    Example:
        >>> import tempfile
        >>> file = tempfile.mkdtemp() + "/report.html"
        >>> report(file, title="Digits", tables={"Costs": [{"method": "gradient", "ms": 3.1}]}).name
        'report.html'
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph:
            parts.append(f'<p class="text">{html.escape(paragraph)}</p>')
    for caption, figure in (figures or {}).items():
        parts.append(_figure(caption, figure))
    for caption, rows in (tables or {}).items():
        parts.append(_table(caption, rows))
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, page(title, "\n".join(parts)), "the report")
    return file


def _figure(caption: str, figure: Figure | Html) -> str:
    if isinstance(figure, Html):
        return f"<figure>\n{figure}\n<figcaption>{html.escape(caption)}</figcaption>\n</figure>"
    if not hasattr(figure, "savefig"):
        # Anything that can be saved is accepted, without an import of matplotlib for isinstance.
        raise TypeError(
            f"figures[{caption!r}] is a {type(figure).__name__}, expected a matplotlib figure or "
            "the HTML of viz.text: give what the functions of attrfn.viz return"
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    # CSS pixels, 96 per inch. On narrow screens a figure shrinks to 60 % at least, where its texts
    # can still be read, and scrolls beyond that. One of up to 320 px never shrinks: phones show it.
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    narrow = min(width, max(320, round(0.6 * width)))
    alt = html.escape(str(figure.get_label()) or caption)
    return (
        f'<figure>\n<div class="scroll paper" tabindex="0" role="group" '
        f'aria-label="{html.escape(caption)}">'
        f'<img src="data:image/png;base64,{data}" alt="{alt}" width="{width}" height="{height}" '
        f'style="min-width:{narrow}px"></div>\n'
        f"<figcaption>{html.escape(caption)}</figcaption>\n</figure>"
    )


def _table(caption: str, rows: Sequence[Mapping[str, object]]) -> str:
    if isinstance(rows, (str, Mapping)) or not all(isinstance(row, Mapping) for row in rows):
        raise TypeError(
            f"tables[{caption!r}] is a {type(rows).__name__}, expected a sequence of mappings: "
            "write one {column: value} per row"
        )
    # A dictionary keeps the order in which columns first appear; rows may lack some of them.
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = {column: [_cell(row.get(column)) for row in rows] for column in columns}
    right = {
        column: ' class="number"' * all(NUMBER.fullmatch(cell) for cell in cells[column])
        for column in columns
    }
    head = "".join(f'<th scope="col"{right[c]}>{html.escape(str(c))}</th>' for c in columns)
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{right[c]}>{html.escape(cells[c][i])}</td>" for c in columns)
        + "</tr>"
        for i in range(len(rows))
    )
    return (
        f"<h2>{html.escape(caption)}</h2>\n"
        f'<div class="scroll" tabindex="0" role="group" aria-label="{html.escape(caption)}">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        value = getattr(value, "tolist", lambda: value)()  # a Python number, if it is a scalar
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
