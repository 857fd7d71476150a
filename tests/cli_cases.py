"""What the tests of the command line share: a folder with a module of toys, and ways to call it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("typer")

from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
NAMES = ["a", "b", "c", "d", "e", "f"]

TOYS = '''
import time

import torch
from torch import nn


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


NET = net()


class Held:
    inner = net()


class Two(nn.Module):
    def forward(self, x, y):
        return (x * y).sum(1)


class Masked(nn.Module):
    def forward(self, x, mask):
        return (x**2 * mask).sum(1)


class Noisy(nn.Module):
    def forward(self, x):
        print("the model talks")
        return (x**2).sum(1)


class Spare(nn.Module):
    """Has a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.used(x)


def conv():
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()


def square(x):
    return (x**2).sum(1)


def scaled(x, scale=2.0):
    return scale * (x**2).sum(1)


def any_number(*x):
    return x[0].sum(1)


def slow(x):
    time.sleep(0.004)
    return (x**2).sum(1)


def picky(x):
    if (x > 900).any():
        raise ValueError("a value above 900")
    return (x**2).sum(1)


def five():
    return 5


def broken():
    raise RuntimeError("the weights are gone")


def drops():
    return nn.Sequential(nn.Linear(6, 3), nn.Dropout())


def data():
    torch.manual_seed(4)
    return torch.randn(20, 6, dtype=torch.float64)


def many():
    torch.manual_seed(4)
    return torch.randn(1200, 3)


def pairs():
    return data(), torch.arange(20) % 3


def first(outputs):
    return outputs[:, 0] - outputs[:, 1]


def none():
    return torch.zeros(0, 6)
'''


@contextlib.contextmanager
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder with the module ``toys``; its modules are forgotten afterwards."""
    (tmp_path / "toys.py").write_text(TOYS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("RANK", raising=False)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def run(*words: Any, code: int = 0) -> Any:
    """What a command printed, which must end with an exit code."""
    from attrfn.cli._app import app

    importlib.invalidate_caches()
    done = CliRunner().invoke(app, [str(w) for w in words], prog_name="attrfn")
    shown = f"{done.exit_code}: {done.stdout}\n{done.stderr}\n{done.exception!r}"
    assert done.exit_code == code, shown
    return done


def json_of(*words: Any, code: int = 0) -> dict[str, Any]:
    """The one JSON object on stdout."""
    found: dict[str, Any] = json.loads(run(*words, "--json", code=code).stdout)
    return found


def refused(*words: Any, code: int = 1) -> str:
    """The one line of an error; stdout stays empty."""
    done = run(*words, code=code)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert len(line) <= 340, line
    return line.removeprefix("Error: ")


def inputs() -> Tensor:
    """Those of the toys."""
    torch.manual_seed(4)
    return torch.randn(20, 6, dtype=torch.float64)


def environment() -> dict[str, str]:
    """For a process of its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
