"""Models with awkward parts and small helpers, for the tests of splits, targets and options."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import textwrap
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrfn.testing._state import changes, state

D = torch.float64


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    """Normal numbers that depend on the arguments alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(build: Any, *args: Any, seed: int = 0, dtype: torch.dtype = D, **kwargs: Any) -> Any:
    """Build a module with seeded parameters, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args, **kwargs).to(dtype).eval()


def cnn() -> nn.Sequential:
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3),
            nn.SiLU(inplace=True),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
    )


def mlp(n_in: int = 4, n_out: int = 3, act: Any = nn.Tanh) -> nn.Sequential:
    return make(lambda: nn.Sequential(nn.Linear(n_in, 6), act(), nn.Linear(6, n_out)))


class Block(nn.Module):
    """A residual block that uses one in-place ReLU twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Linear(width, width)
        self.two = nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.one(x))
        y = self.two(y)
        y += x
        return self.act(y)


class Residual(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.stem(x)))


class Tied(nn.Module):
    """Embedding and decoder share their weight; two embeddings feed the same sum."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.places = nn.Embedding(7, 6)
        self.mix = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh())
        self.decoder = nn.Linear(6, 11, bias=False)
        self.decoder.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        return self.decoder(self.mix(self.words(ids) + self.places(places)).mean(1))


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Parts(nn.Module):
    """Returns its two parts as a tuple, list, dict, namedtuple or nest."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        return {
            "tuple": (a, b),
            "list": [a, b],
            "dict": {"b": b, "a": a},
            "ordered": OrderedDict(b=b, a=a),
            "named": Pair(a, b),
            "nest": {"x": (a, [b])},
            "mixed": (a, None, b, 3),
        }[self.kind]


class Join(nn.Module):
    """Takes what ``Parts`` returns, in place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.out = nn.Linear(5, 3)

    def forward(self, v: Any) -> Tensor:
        if self.kind == "mixed":
            a, b = v[0], v[2] * v[3]
        elif self.kind == "nest":
            a, (b,) = v["x"]
        elif self.kind in ("dict", "ordered"):
            a, b = v["a"], v["b"]
        elif self.kind == "named":
            a, b = v.left, v.right
        else:
            a, b = v
        return self.out(a.tanh_() * b)


def structured(kind: str) -> nn.Sequential:
    return make(lambda: nn.Sequential(OrderedDict(parts=Parts(kind), join=Join(kind))))


class Keywords(nn.Module):
    """Layers called with keyword arguments only, and with both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 5)
        self.gate = Gate()
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: float = 0.0) -> Tensor:
        h = self.lin(input=x)
        h = self.gate(value=h, by=h.sigmoid())
        h = self.gate(h, by=torch.tanh(h))
        h = h if scale is None else h * scale
        return self.out(h) + shift


class Gate(nn.Module):
    def forward(self, value: Tensor, by: Tensor) -> Tensor:
        return value * by


class Hidden(nn.Module):
    """Modules where ``named_modules`` does not see them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = [nn.Linear(4, 5), (nn.Tanh(),)]
        self.table = {"mid": nn.Linear(5, 5), "deep": {"act": nn.ReLU(inplace=True)}}
        object.__setattr__(self, "secret", nn.Linear(5, 3))

    def _apply(self, fn: Any, *recurse: bool) -> Hidden:  # torch 2.0 has no recurse
        for m in (self.plain[0], self.table["mid"], self.secret):
            m._apply(fn)
        return super()._apply(fn, *recurse)

    def forward(self, x: Tensor) -> Tensor:
        h = self.plain[1][0](self.plain[0](x))
        h = self.table["deep"]["act"](self.table["mid"](h))
        return self.secret(h)


class Encoder(nn.Module):
    """Has methods besides forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(4, 5)
        self.out = nn.Linear(5, 3)

    def encode(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        return self.body(x) * scale

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encode(x))


class Writes(nn.Module):
    """Writes Python attributes, containers and buffers in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros(5))
        self.calls = 0
        self.last = None
        self.log: list[Any] = []
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        self.calls += 1
        self.last = h
        self.log.append(h)
        self.cache["h"] = h
        self.count += 1
        self.seen.copy_(h.detach()[0])
        self.seen = self.seen * 2
        return self.out(torch.tanh(self.cache["h"]))


def owner(model_fn: Any) -> nn.Module:
    """The module behind partials and bound methods."""
    while not isinstance(model_fn, nn.Module):
        if isinstance(model_fn, functools.partial):
            inside = model_fn.args and isinstance(model_fn.args[0], nn.Module)
            model_fn = model_fn.args[0] if inside else model_fn.func
        else:
            model_fn = model_fn.__self__
    return model_fn


def same_state(model: nn.Module, before: dict[str, Any]) -> bool:
    """Whether a model is as it was when ``state`` looked at it."""
    return not changes(before, state(model))


def in_processes(codes: dict[str, str], timeout: float = 300) -> dict[str, str]:
    """Run each piece of code in a process of its own; what it printed, errors included.

    A failing compile poisons nothing here, nor another piece. All are forks of one interpreter that
    has compiled something before, so that imports are paid for once.
    """
    codes = {name: textwrap.dedent(code) for name, code in codes.items()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS, json.dumps(codes)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


_FORKS = """
import io, contextlib, json, os, sys, traceback
import torch

torch.set_num_threads(1)
torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))
with contextlib.suppress(RuntimeError):  # torch 2.0 compiles nothing on Python 3.11
    torch.compile(lambda x: x + 1, backend="aot_eager", fullgraph=True)(torch.ones(1))
found = {}
for name, code in json.loads(sys.argv[1]).items():
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                exec(code, {"torch": torch})
            except BaseException:
                print("FAILED", traceback.format_exc())
        with open(write, "w") as pipe:
            pipe.write(out.getvalue())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        found[name] = pipe.read()
    os.wait()
print(json.dumps(found))
"""


class Recurrent(nn.Module):
    """A recurrent net; ``last`` decides whether it reads the final state or the sequence."""

    def __init__(self, cell: type[nn.Module], last: bool = False, layers: int = 1) -> None:
        super().__init__()
        self.rnn = cell(4, 5, num_layers=layers, batch_first=True)
        self.out = nn.Linear(5, 3)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        seq, end = self.rnn(x)
        if not self.last:
            return self.out(seq.tanh().mean(1))
        return self.out((end[0] if isinstance(end, tuple) else end)[-1])


class Attends(nn.Module):
    def __init__(self, need_weights: bool, use_weights: bool = False) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 6)
        self.attn = nn.MultiheadAttention(6, 2, batch_first=True)
        self.out = nn.Linear(6, 3)
        self.need_weights, self.use_weights = need_weights, use_weights

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        y, w = self.attn(h, h, h, need_weights=self.need_weights)
        if self.use_weights:
            y = y + w @ h
        return self.out(F.gelu(y).mean(1))


class Transformer(nn.Module):
    """A stack of encoder layers that can take the fused path."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            6, 2, 8, dropout=0.0, activation="gelu", batch_first=True
        )
        self.inp = nn.Linear(4, 6)
        self.enc = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.enc(self.inp(x), src_key_padding_mask=mask)
        if mask is not None:
            keep = ~mask[..., None]
            return self.out((h * keep).sum(1) / keep.sum(1))
        return self.out(h.mean(1))
