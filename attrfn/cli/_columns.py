"""``--columns`` and ``--target``: what the parts of an example are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from attrfn.cli._command import UsageError
from attrfn.cli._locate import is_reference, locate

PREDICTED = "predicted"


class Target(NamedTuple):
    """``--target``.

    Attributes:
        value: What the method takes; None where it is a column or the prediction.
        column: The column that holds it, if it is one.
        predicted: Whether it is the output that is largest for each example.
    """

    value: Any = None
    column: str | None = None
    predicted: bool = False


def parse_target(text: str | None) -> Target:
    """The argument of ``--target``.

    Raises:
        UsageError: It is of no known form.
    """
    if text is None:
        return Target()
    if text == PREDICTED:
        return Target(predicted=True)
    if text.startswith("label:") and len(text) > len("label:"):
        return Target(column=text.removeprefix("label:"))
    if re.fullmatch(r"-?\d+(,-?\d+)*", text):
        places = tuple(map(int, text.split(",")))
        return Target(places[0] if len(places) == 1 else places)
    if is_reference(text):
        return Target(locate(text, "--target"))
    raise UsageError(
        f"--target is {text!r}, expected a number such as 3, numbers such as 0,3, label:COLUMN, "
        "predicted or module:function"
    )


def parse_columns(items: Iterable[str] | None) -> dict[str, Any]:
    """The arguments of ``--columns`` as ``attrfn.data.explain`` takes them; empty without any.

    Raises:
        UsageError: One of them is of no known form, or a key is given twice.
    """
    found: dict[str, Any] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals:
            key, value = "inputs", item
        home, name = found, key.strip()
        if name.startswith("bind."):
            home, name = found.setdefault("bind", {}), name.removeprefix("bind.")
        if not name or not value.strip():
            raise UsageError(f"--columns is {item!r}, expected NAME,NAME or KEY=NAME")
        if name in home:
            raise UsageError(f"--columns gives {key!r} twice: separate names by commas")
        home[name] = _names(value.strip()) if key == "inputs" else value.strip()
    return found


def _names(text: str) -> Any:
    """One name; a list of names, the features of a table; or a tuple, several inputs."""
    if text[0] == "(" and text[-1] == ")":
        return tuple(_split(text[1:-1]))
    if text[0] == "[" and text[-1] == "]":
        return _split(text[1:-1])
    return _split(text) if "," in text else text


def _split(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--columns names no inputs, expected at least one")
    return names


def as_places(columns: Any) -> Any:
    """The same, where numbers are places in a tuple."""
    if isinstance(columns, dict):
        return {k: as_places(v) for k, v in columns.items()}
    if isinstance(columns, (list, tuple)):
        return type(columns)(map(as_places, columns))
    return int(columns) if isinstance(columns, str) and columns.isdigit() else columns


def with_inputs(columns: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """Columns whose inputs are known, unless they are given."""
    return {"inputs": inputs, **columns}
