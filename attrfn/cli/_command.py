"""What all commands share: errors, exit codes, warnings, and where their output goes."""

import contextlib
import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

import typer

from attrfn.cli._say import as_json, note

FINE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

F = TypeVar("F", bound=Callable[..., Any])


class UsageError(Exception):
    """The command line itself is wrong: found before a model or data are read."""


class Answer(NamedTuple):
    """What a command found.

    Attributes:
        data: What ``--json`` prints.
        show: Prints the same for people.
        code: The exit code.
    """

    data: dict[str, Any]
    show: Callable[[], None]
    code: int = FINE


def command(function: F) -> F:
    """Make a program of a function that returns an :class:`Answer`.

    Its parameters ``json`` and ``debug`` say where output goes and whether an error shows its
    traceback. With ``--json`` all that the model or the data print goes to stderr.
    """

    @functools.wraps(function)
    def run(**given: Any) -> None:
        answer = _answer(function, given)
        if not is_first(given.get("engine")):
            raise typer.Exit(answer.code)
        if given["json"]:
            typer.echo(as_json(answer.data))
        else:
            answer.show()
        raise typer.Exit(answer.code)

    return run  # type: ignore[return-value]


def is_first(engine: Any) -> bool:
    """Whether this process speaks: of those that torchrun started, the first one."""
    return getattr(engine, "value", engine) != "torchrun" or os.environ.get("RANK", "0") == "0"


def _answer(function: Callable[..., Answer], given: dict[str, Any]) -> Answer:
    json, debug = given["json"], given["debug"]
    aside = contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext()
    try:
        with aside, _warnings_in_a_line():
            return function(**given)
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as stop:
        said, code = str(stop) or "nothing has been written", INTERRUPTED
    except UsageError as error:
        note(f"{error} (attrfn {function.__name__} --help)", "Error")
        raise typer.Exit(USAGE) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        said, code = said_of(error), FAILED
    _end(said, code, json)


def _end(said: str, code: int, json: bool) -> NoReturn:
    note(said, "Interrupted" if code == INTERRUPTED else "Error")
    if json:
        typer.echo(as_json({"error": said, "exit_code": code}))
    raise typer.Exit(code)


def said_of(error: BaseException) -> str:
    """An error in one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    text = " ".join(text.split())
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Show warnings as a line on stderr, without the place in a library."""

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        note(" ".join(str(message).split()), "Warning")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
