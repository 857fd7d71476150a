"""The names of methods and metrics: those that the library has, not a list."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import attrfn
from attrfn._torch.typing import Method
from attrfn.cli._command import UsageError

_ENTRY = re.compile(r"^    (\w+): ", re.MULTILINE)
_SECTION = re.compile(r"^(\w+):\n((?:    .*\n|\n)*)", re.MULTILINE)


@functools.cache
def methods() -> dict[str, Method]:
    """The attribution methods of the library by name.

    A method says what its attributions are by an attribute, and takes a model and inputs first.
    """
    return {n: f for n, f in sorted(vars(attrfn).items()) if _is_method(f)}


def _is_method(value: Any) -> bool:
    if getattr(value, "scores", None) is None or not callable(value):
        return False
    return list(inspect.signature(value).parameters)[:2] == ["model_fn", "inputs"]


@functools.cache
def metrics() -> dict[str, Callable[..., Any]]:
    """The metrics of the library that give one number for each example."""
    from attrfn import metrics as home

    return {n: f for n, f in sorted(vars(home).items()) if _is_metric(f)}


def _is_metric(value: Any) -> bool:
    """Whether a function is a metric that needs nothing but a model, inputs and a method."""
    if not callable(value) or getattr(value, "better", None) is None:
        return False
    given = {"model_fn", "inputs", "attributions", "method"}
    needed = {n for n, p in inspect.signature(value).parameters.items() if p.default is p.empty}
    return needed <= given


def method_names(incomplete: str) -> list[str]:
    """For the completion of shells."""
    return [name for name in methods() if name.startswith(incomplete)]


def metric_names(incomplete: str) -> list[str]:
    """For the completion of shells."""
    return [name for name in metrics() if name.startswith(incomplete)]


def pick(what: str, name: str, known: Iterable[str], where: str) -> str:
    """The name, if it is known.

    Raises:
        UsageError: It is not.
    """
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"{where} lists them"
    raise UsageError(f"{what} is {name!r}, which is unknown: {hint}")


def summary(function: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(function) or "").split("\n")[0]


def options_of(function: Callable[..., Any]) -> list[dict[str, Any]]:
    """The options of a method: names, defaults, and what its docstring says of them."""
    texts = _arguments(inspect.getdoc(function) or "")
    return [
        {
            "name": name,
            "default": None if p.default is p.empty else repr(p.default),
            "required": p.default is p.empty,
            "text": texts.get(name, ""),
        }
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    ]


def _arguments(doc: str) -> dict[str, str]:
    """The entries of the section Args."""
    bodies = {m[1]: m[2] for m in _SECTION.finditer(doc + "\n")}
    _, *parts = _ENTRY.split(bodies.get("Args", ""))
    return {n: " ".join(text.split()) for n, text in zip(parts[::2], parts[1::2], strict=True)}
