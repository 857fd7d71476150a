"""``python -m attrfn`` says what is here, and what the package says of itself agrees."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attrfn
from attrfn import __main__ as main

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def lines(text: str) -> dict[str, str]:
    """First word -> the rest of its line."""
    return dict(line.split(None, 1) for line in text.splitlines())


def extra(name: str) -> list[str]:
    """The requirements of an extra in pyproject.toml."""
    (found,) = re.findall(rf"^{name} = \[(.*?)\]$", PROJECT, flags=re.MULTILINE)
    return re.findall(r'"([^"]*)"', found)


def test_the_command_prints_what_is_here() -> None:
    """As a user runs it: in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "attrfn"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    said = lines(done.stdout)
    assert said["attrfn"] == attrfn.__version__
    assert said["torch"] == str(torch.__version__)
    assert said["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert {"optree", "devices", "compile", *main.EXTRAS} <= said.keys()
    assert said["devices"].startswith("cpu")


def test_no_line_imports_what_it_reports() -> None:
    """matplotlib and others are looked up, not loaded: a broken one must not stop the report."""
    code = (
        "import sys; from attrfn.__main__ import report; report();"
        "print(sorted({'matplotlib', 'sklearn', 'hypothesis'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_an_extra_that_is_missing_is_said_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr(main, "installed", lambda package: None)
    missing = lines("\n".join(main.extras()))
    for name, package in main.EXTRAS.items():
        assert missing[name] == f'{package} is missing: pip install "attrfn[{name}]"'


def test_the_compiler_is_the_one_of_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(main, "require_compiler", lambda: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main.compiling() == "no C++ compiler is found: install one, or set CXX"
    own = tmp_path / "own-compiler"
    own.write_text("#!/bin/sh\n", encoding="utf-8")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert main.compiling() == f"yes, with {own}"


def test_a_torch_that_cannot_compile_is_said(monkeypatch) -> None:
    def refuse() -> None:
        raise RuntimeError("torch 2.0.1 cannot compile attributions: use torch >= 2.12")

    monkeypatch.setattr(main, "require_compiler", refuse)
    assert main.compiling().startswith("no: torch 2.0.1 cannot compile")


@pytest.mark.parametrize("name", main.EXTRAS)
def test_extras_are_those_of_the_project(name: str) -> None:
    requirement, *_ = extra(name)
    assert re.split(r"[\[>]", requirement)[0] == main.EXTRAS[name]


def test_the_extra_all_has_every_extra_for_users() -> None:
    (requirement,) = extra("all")
    names = set(requirement.removeprefix("attrfn[").removesuffix("]").split(","))
    assert names == {"compile", *main.EXTRAS}


def test_the_version_is_one() -> None:
    """Of the package, of the citation and of the newest release in the changelog."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {attrfn.__version__}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d[^\]]*)\]", changelog, flags=re.MULTILINE)
    assert releases[0] == attrfn.__version__
