"""Every option of every public method refuses wrong values, in one sentence that names the option.

The methods are those of the registry and their options those of their signatures; the wrong values
are in ``wrong_options.py``. A run of the tests takes a sample of the grid, ``make fuzz`` all of it.
"""

from __future__ import annotations

import re

import pytest
import wrong_options
from test_registry import public
from wrong_options import BEGINS, WRONG, Cell, call, cells, options

METHODS = sorted(public())
LONGEST = 300
# How messages may name an argument: one of its entries, or the only one of a function.
NAMES = {
    "model_fn": "model(_fn)?",
    "sites": "sites?",
    "edits": "edits?|site",
    "value": r"attrfn\.\w+ got",
}

CELLS = list(cells(METHODS))


def complaint(cell: Cell) -> str:
    """What is wrong with the answer to a wrong value; empty if it is as it should be."""
    try:
        call(cell)
    except (TypeError, ValueError) as error:
        message = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "no exception"
    name = NAMES.get(cell.option, cell.option)
    if not re.search(rf"\b({name})\b", message):
        return f"no {cell.option} in: {message}"
    if "\n" in message or len(message) > LONGEST:
        return f"{len(message)} characters, {message.count(chr(10)) + 1} lines: {message}"
    begin = BEGINS.get(cell.option, "").format(repr(WRONG[cell.option][cell.what]))
    return "" if message.startswith(begin) else f"not {begin!r} first: {message}"


@pytest.mark.parametrize(
    "cell",
    [pytest.param(c, id=str(c), marks=[] if c.sample else [pytest.mark.fuzz]) for c in CELLS],
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_value(cell: Cell) -> None:
    assert not complaint(cell)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_wrong_values(name: str) -> None:
    missing = [option for option in options(name) if option not in WRONG]
    assert not missing, "give them a line in wrong_options.WRONG"


def test_tables_name_what_there_is() -> None:
    """No option, value or method that is not in the grid."""
    grid = {(c.option, c.what) for c in CELLS}
    assert grid == {(option, what) for option in WRONG for what in WRONG[option]}
    assert BEGINS.keys() <= WRONG.keys()


def test_the_sample_has_every_option_and_value() -> None:
    sample = [c for c in CELLS if c.sample]
    assert {(c.name, c.option) for c in sample} == {(c.name, c.option) for c in CELLS}
    assert {(c.option, c.what) for c in sample} == {(c.option, c.what) for c in CELLS}
    assert len(sample) < len(CELLS) / 3
    assert wrong_options.FIELDS.keys() <= set(METHODS)
