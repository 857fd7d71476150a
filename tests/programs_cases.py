"""What the tests of attrfn.programs share: programs of files, and models to export."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from models import NETS, RECTIFIED, Net
from torch import Tensor, nn
from zoo import make, randn

import attrfn.programs

_FOLDER = tempfile.TemporaryDirectory()

DYNAMIC = {0: torch.export.Dim.DYNAMIC} if hasattr(torch, "export") else {}


def through_a_file(exported: Any) -> Any:
    """The program of a file, as a user has it."""
    path = Path(_FOLDER.name) / "model.pt2"
    torch.export.save(exported, path)
    return attrfn.programs.load(path)


def program_of(
    model: nn.Module,
    *args: Any,
    shapes: Any = "batch",
    decompose: bool = False,
    strict: bool = False,
    **kwargs: Any,
) -> Any:
    """A model through torch.export and a file; by default every input has a dynamic batch."""
    if shapes == "batch":
        shapes = torch.utils._pytree.tree_map(lambda t: DYNAMIC, (args, kwargs))
        shapes = (*shapes[0], *shapes[1].values())
    exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=strict)
    return through_a_file(exported.run_decompositions() if decompose else exported)


@functools.cache
def program_of_net(name: str, decompose: bool = False) -> tuple[nn.Module, Any, Net]:
    """A net of the registry, its program, and what it is explained with."""
    net = {**NETS, **RECTIFIED}[name]
    model = net.build()
    return model, program_of(model, net.inputs(), decompose=decompose), net


class Encoder(nn.Module):
    """A transformer encoder over tokens that are vectors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.inp = nn.Linear(4, 8)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.inp(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Blocks(nn.Module):
    """One block that runs twice, a function between, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 6)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.back = nn.Linear(4, 6, bias=False)
        self.back.weight = self.inp.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.block(self.inp(x)) + 0.5)
        return F.linear(torch.tanh(y), self.back.weight.t())


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "encoder": (functools.partial(make, Encoder), (5, 4)),
    "recurrent": (functools.partial(make, Recurrent), (5, 4)),
    "blocks": (functools.partial(make, Blocks), (4,)),
}


@functools.cache
def program_of_model(name: str, decompose: bool = False) -> tuple[nn.Module, Any, Tensor]:
    """One of the models, its program, and inputs of another batch than it was exported with."""
    build, shape = MODELS[name]
    model = build()
    return model, program_of(model, randn(2, *shape), decompose=decompose), randn(3, *shape, seed=1)
