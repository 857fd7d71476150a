"""Odd values in every argument of every public function: one sentence that names the argument.

A call either works, or raises a TypeError or ValueError (or an error that the library documents)
whose message names the argument, in one line of at most 300 characters. The values are in
``odd_values.py`` and the calls in ``odd_calls.py``. A run of the tests takes a sample of the grid,
``make fuzz`` all of it.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter

import odd_calls
import pytest
import torch
from odd_values import ODD

import attrfn

NAMES = sorted(odd_calls.CALLEES)
LONGEST = 300
ONE_IN = 40  # cells in the sample
# A path that the system refuses is an OSError of the system, which names it.
DOCUMENTED = (TypeError, ValueError, OSError, attrfn.UnsupportedOpError, attrfn.CompileError)

# Calls of the whole grid whose error does not name the argument: it names another one, which does
# not go with it, such as a layer that the odd model lacks. The number may only fall.
MOST_UNNAMED = 305

# Draws of this size are right, and take more memory than there is.
TOO_LARGE = {(f"random.{name}", "n", "beyond int32") for name in ("split", "permutation")}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Some of the values are paths, and some of the callables write."""
    monkeypatch.chdir(tmp_path)


def outcome(name: str, argument: str, what: str) -> str:
    """What is wrong with the answer to a value: ``"unnamed"``, a longer text, or nothing."""
    value = ODD[what]()
    try:
        odd_calls.call(name, argument, value)
    except DOCUMENTED as error:
        message = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return ""
    if "\n" in message or len(message) > LONGEST:
        return f"{len(message)} characters, {message.count(chr(10)) + 1} lines: {message}"
    word = "model(_fn)?" if argument in ("model_fn", "model") else argument
    return "" if re.search(rf"\b{word}\b", message) else "unnamed"


def swept(name: str, one_in: int) -> Counter[str]:
    """The outcomes of a callable's cells, all or a sample; fails at the first that is not clean."""
    found: Counter[str] = Counter()
    for argument in odd_calls.arguments(name):
        for what in ODD:
            if (name, argument, what) in TOO_LARGE or zlib.crc32(
                f"{name} {argument} {what}".encode()
            ) % one_in:
                continue
            flaw = outcome(name, argument, what)
            assert flaw in ("", "unnamed"), f"{name}({argument}=<{what}>): {flaw}"
            found[flaw] += 1
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_sample(name: str) -> None:
    swept(name, ONE_IN)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
def test_whole_grid() -> None:
    found: Counter[str] = Counter()
    for name in NAMES:
        found += swept(name, 1)
    assert found["unnamed"] <= MOST_UNNAMED
    assert found["unnamed"] < 0.01 * found.total()


def test_every_public_function_is_called() -> None:
    called = {name.rpartition(".")[2] for name in NAMES if "." not in name}
    assert called == {
        name
        for name, value in vars(attrfn).items()
        if callable(value) and not name.startswith("_") and not isinstance(value, type)
    } | {"Site"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_right_arguments_are_right(name: str) -> None:
    """So that an odd value is the only thing that can be wrong."""
    callee = odd_calls.CALLEES[name]
    callee.call(callee.given())


def test_nothing_of_the_sweep_stays() -> None:
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
