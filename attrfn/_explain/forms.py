"""Forms of methods: their signatures, docstrings and checks, made of what the method itself says.

A layer or neuron form is one line on top of ``at_layer`` or ``at_neuron``. Its options are those of
the method that it moves: :func:`form_of` puts them into its signature, refuses what the method does
not take, and :func:`documented` completes the docstring with the texts of
:mod:`attrfn._explain.options`.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from attrfn._explain.flags import check_flags, checks_flags, flags_of
from attrfn._explain.introspect import is_over_distribution, takes_distribution
from attrfn._explain.shared import Scores
from attrfn._torch.explanation import explained
from attrfn._torch.guard import guarded

F = TypeVar("F", bound=Callable[..., Any])
Record = Any
"""A TypedDict whose attributes have docstrings."""

# Python keeps no docstrings of attributes, so they are read from the source. A pattern takes a
# quarter of the time of a syntax tree (0.08 against 0.32 ms for the options), at every import.
_CLASS_OR_OPTION = re.compile(
    r"^class (?P<record>\w+)\((?P<base>\w+).*\):|"
    r'^    (?P<option>\w+): .*\n    """(?P<text>[\s\S]*?)"""',
    re.MULTILINE,
)
_SECTION = re.compile(r"^(Args|Returns|Raises|Example|Reference):$", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+): ", re.MULTILINE)
_texts: dict[str, dict[str, str]] = {}  # by record, then by option
_read: set[str] = set()


def documented(
    *records: Record, like: str | None = None, scores: Scores | None = "divided"
) -> Callable[[F], F]:
    """Complete the docstring of a function: arguments of records that it does not explain itself.

    The function also refuses flags that are neither True nor False.

    Args:
        records: Where texts are looked up; the first record that has one wins. The exceptions in
            their docstrings are added.
        like: A docstring whose references hold where the function names none.
        scores: What the method's attributions are (see :mod:`attrfn._explain.shared`); None for a
            function that is not a method.
    """

    def complete(function: F) -> F:
        if scores is not None:
            function.scores = scores  # type: ignore[attr-defined]
        return checks_flags(_document(function, records, like))

    return complete


def _document(function: F, records: tuple[Record, ...], like: str | None) -> F:
    function.__doc__ = _completed(function.__doc__, _parameters(function), records, like)
    function.records = records  # type: ignore[attr-defined]
    return function


def form_of(method: Callable[..., Any], *records: Record) -> Callable[[F], F]:
    """Make a function with ``**options: Unpack[...]`` a form of a method.

    The signature shows the options with the method's defaults; an unknown option is refused with
    the nearest name; the docstring is completed from the records and from those of the method.
    """

    def make(form: F) -> F:
        takes = _signature(form, method)
        known, flags = frozenset(takes.parameters), flags_of(takes.parameters.values())
        key = takes.parameters.get("key")
        one = explained(form, None if key is None else key.default)

        def check(options: Mapping[str, Any]) -> None:
            if not known.issuperset(options):
                refuse_unknown(form.__name__, options, takes.parameters)
            check_flags(flags, options)

        run = guarded(one, check)
        run.__signature__ = takes  # type: ignore[attr-defined]
        if is_over_distribution(method):
            takes_distribution(run)
        run.scores = getattr(method, "scores", "divided")  # type: ignore[attr-defined]
        return _document(run, (*records, *getattr(method, "records", ())), method.__doc__)

    return make


def refuse_unknown(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an option that a method does not have.

    Raises:
        TypeError: With the nearest name, or with all names where none is near.
    """
    options = [k for k in known if k not in ("model_fn", "inputs")]
    for option in given:
        if option not in options:
            near = difflib.get_close_matches(option, options, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(options)}"
            raise TypeError(f"{option} is not an option of {name}: {hint}")


def _signature(form: Callable[..., Any], method: Callable[..., Any]) -> inspect.Signature:
    """The form's parameters, with those that ``**options`` stands for in the method's order."""
    written = inspect.signature(form)
    (rest,) = [p for p in written.parameters.values() if p.kind is p.VAR_KEYWORD]
    # The modules of methods import annotations from the future, so that this one is a string.
    record = form.__globals__[str(rest.annotation).removeprefix("Unpack[").removesuffix("]")]
    fixed = [p for p in written.parameters.values() if p is not rest]
    options = [
        p
        for name, p in inspect.signature(method).parameters.items()
        if name in record.__annotations__ and name not in written.parameters
    ]
    return written.replace(parameters=[*fixed, *options])


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters."""
    if hasattr(function, "__signature__"):
        return list(function.__signature__.parameters)
    # inspect.signature builds an object for each parameter, of which only the names are needed.
    code = function.__code__
    return list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def _completed(
    doc: str | None, names: list[str], records: Iterable[Record], like: str | None
) -> str | None:
    """A docstring with the arguments and exceptions of the records."""
    if doc is None:  # python -OO
        return None
    head, sections = _sections(inspect.cleandoc(doc))
    written = _entries(sections.get("Args", ""))
    found = [written, *[_texts_of(record) for record in records]]
    entries = [next((t[name] for t in found if name in t), None) for name in names]
    sections["Args"] = "".join([f"    {entry}\n" for entry in entries if entry is not None])
    raised = [_sections(inspect.cleandoc(r.__doc__ or ""))[1].get("Raises", "") for r in records]
    sections["Raises"] = _merged([*dict.fromkeys(raised), sections.get("Raises", "")])
    sections.setdefault("Reference", _sections(like or "")[1].get("Reference", ""))
    order = ("Args", "Returns", "Raises", "Example", "Reference")
    filled = [f"{k}:\n{sections[k].rstrip()}\n" for k in order if sections.get(k, "").strip()]
    return "\n".join([head.rstrip() + "\n", *filled])


def _merged(bodies: Iterable[str]) -> str:
    """Sections of exceptions as one, with one entry for each exception."""
    found: dict[str, list[str]] = {}
    for body in bodies:
        for name, entry in _entries(body).items():
            found.setdefault(name, []).append(entry.split(": ", 1)[1])
    lines = ["\n        ".join(texts) for texts in found.values()]
    return "".join([f"    {name}: {text}\n" for name, text in zip(found, lines, strict=True)])


def _sections(doc: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and the body of each section."""
    head, *rest = _SECTION.split(doc)
    bodies = [body.lstrip("\n").rstrip() + "\n" for body in rest[1::2]]
    return head, dict(zip(rest[::2], bodies, strict=True))


def _entries(body: str) -> dict[str, str]:
    """The entries of a section by name, without the first line's indentation."""
    starts = [*(m.start() for m in _ENTRY.finditer(body)), len(body)]
    found = [body[a:b].strip("\n") for a, b in itertools.pairwise(starts)]
    return {entry.split(":", 1)[0].strip(): entry[4:] for entry in found}


def _texts_of(record: Record) -> Mapping[str, str]:
    """The entries of a record's options, from the source of its module."""
    module = record.__module__
    if module not in _read:
        _read.add(module)
        with contextlib.suppress(Exception):  # no source: the docstrings stay as they are
            _read_texts(sys.modules[module].__loader__.get_source(module))  # type: ignore[union-attr]
    return _texts.get(record.__name__, {})


def _read_texts(source: str) -> None:
    """Keep the docstrings of the attributes of all TypedDicts in a source."""
    texts: dict[str, str] = {}
    for found in _CLASS_OR_OPTION.finditer(source):
        if found["record"]:
            texts = _texts[found["record"]] = dict(_texts.get(found["base"], {}))
        else:
            texts[found["option"]] = f"{found['option']}: " + found["text"].replace(
                "\n    ", "\n        "
            )
