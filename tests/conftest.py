"""One thread, no network, the same random numbers in every test."""

from __future__ import annotations

import functools
import gc
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before the imports that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import capabilities
import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# Torch and its compiler make many objects that stay, which the default would visit again and again.
gc.set_threshold(20_000, 10, 20)

hypothesis.settings.register_profile(
    "attrfn",
    deadline=None,
    derandomize=True,
    max_examples=15,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("attrfn")


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """A test that draws from torch's global generator draws the same in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No graph or guard of another test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# --- the page of capabilities: what passed, here or in the worker processes ----------------------

_passed: dict[tuple[str, str], bool] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-capabilities", action="store_true", help="rewrite docs/capabilities.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    # torch 2.0 to 2.2 warn more, as torch.compiler shows, which has no is_compiling there
    if not hasattr(getattr(torch, "compiler", None), "is_compiling"):
        for message in (
            "There is a performance drop because we have",
            "Lazy modules are a new",
            "To copy construct from a tensor",
            "Converting mask without torch.bool dtype to bool",
        ):
            config.addinivalue_line("filterwarnings", f"ignore:{message}:UserWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not any(mark in config.option.markexpr for mark in ("fuzz", "capability")):
        fuzz = [item for item in items if item.get_closest_marker("fuzz")]
        config.hook.pytest_deselected(items=fuzz)
        items[:] = [item for item in items if not item.get_closest_marker("fuzz")]
    for item in items:
        item.user_properties.extend(capabilities.properties(item))
        if isinstance(item, pytest.Function) and _compiles(item.nodeid, item.function):
            item.add_marker("compiles")


@functools.cache
def _text(function: Callable[..., Any]) -> str:
    return inspect.getsource(function)


def _compiles(nodeid: str, function: Callable[..., Any]) -> bool:
    """Whether a test uses torch.compile or torch.export, which old versions of torch cannot."""
    if "compile" in nodeid or "test_export" in nodeid:
        return True
    return any(
        name in _text(function) for name in ("torch.compile(", "attrfn.compile(", "torch.export.")
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for kind, value in report.user_properties:
        if kind == "capability" and (report.when == "call" or not report.passed):
            name, column = str(value).split("|")
            _passed[name, column] = _passed.get((name, column), True) and report.passed


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or not _passed:
        return
    if session.config.getoption("--write-capabilities"):
        from test_registry import public

        page = capabilities.page(_passed, public())
        capabilities.PAGE.write_text(page, encoding="utf-8")
        return
    ticked = capabilities.found(capabilities.PAGE.read_text(encoding="utf-8"))
    wrong = sorted(cell for cell, good in _passed.items() if good and not ticked.get(cell))
    gone = capabilities.unshown(_passed, ticked) if _whole(session) else []
    if not session.config.option.markexpr:
        gone = [cell for cell in gone if cell[1] not in capabilities.SAMPLED]
    for what, cells in (("does not tick", wrong), ("ticks, and no test shows,", gone)):
        if cells:
            print(f"\ndocs/capabilities.md {what} {cells}: run make capabilities")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _whole(session: pytest.Session) -> bool:
    """Whether no test that shows a capability was left out."""
    config, option = session.config, session.config.option
    if session.shouldstop or session.shouldfail or option.collectonly:
        return False
    if option.keyword or option.markexpr not in ("", "capability"):
        return False
    if any(getattr(option, name, None) for name in ("deselect", "ignore", "lf", "stepwise")):
        return False
    tests = Path(__file__).parent
    return any((config.invocation_params.dir / arg).resolve() == tests for arg in config.args)


@pytest.fixture
def independent_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call runs the model as often as the second one, when its rows have been checked."""
    monkeypatch.setattr("attrfn._copies.chunks.check_rows", lambda *_: None)
