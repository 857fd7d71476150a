"""What commands print: tables and lines for people, one JSON object for programs."""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

_WIDE = 10_000  # of a file or a pipe, where nothing should be cut or broken


def console(*, error: bool = False) -> Console:
    """The console of results, or that of everything else; colours as NO_COLOR says."""
    file = sys.stderr if error else sys.stdout
    width = None if file.isatty() else _WIDE
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def line(text: str | Text) -> None:
    """A line of the result."""
    console().print(text, soft_wrap=True)


def note(text: str, kind: str = "Note") -> None:
    """A line on stderr."""
    style = {"Error": "bold red", "Warning": "yellow"}.get(kind, "cyan")
    console(error=True).print(Text.assemble((f"{kind}: ", style), text), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; columns of numbers are set to the right."""
    listed = [list(row) for row in rows]
    made = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        right = bool(listed) and all(_is_number(row[i]) for row in listed)
        side: Literal["left", "right"] = "right" if right else "left"
        # Names, which come first, stay whole, to be copied.
        made.add_column(name, justify=side, overflow="fold", no_wrap=i == 0)
    for row in listed:
        made.add_row(*[Text(_cell(value)) for value in row])
    console().print(made)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def as_json(data: dict[str, Any]) -> str:
    """One JSON object; what JSON has no numbers for is null."""
    return json.dumps(plain(data), ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value in the types of JSON."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int, bool, type(None))):
        return value
    return str(value) if isinstance(value, Path) else repr(value)
