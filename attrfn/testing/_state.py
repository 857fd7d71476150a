"""Checks of what a method leaves behind: after a call, after an exception, and in threads."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optree
import torch
from torch import Tensor, nn

from attrfn._torch.private import version
from attrfn.testing._subject import Drawn, Failed, Subject

THREADS = 4


@contextlib.contextmanager
def untouched(model: nn.Module, *trees: Any) -> Iterator[None]:
    """The model, tensors in the trees, random numbers and modes are as before."""
    before = _state(model), [_tensor(t) for t in _tensors(trees)], _globals()
    yield
    after = _state(model), [_tensor(t) for t in _tensors(trees)], _globals()
    for what in before[0]:
        if not _same(before[0][what], after[0].get(what)):
            raise Failed(f"the model's {what} changed")
    if new := sorted(after[0].keys() - before[0].keys()):
        raise Failed(f"the model has a new {new[0]}")
    for one, other in zip(before[1], after[1], strict=True):
        for what in one:
            if not _same(one[what], other[what]):
                raise Failed(f"{what} of an input or option changed")
    for what in before[2]:
        if not _same(before[2][what], after[2][what]):
            raise Failed(f"{what} changed")


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in optree.tree_leaves(tree) if isinstance(t, Tensor)]


def _state(model: nn.Module) -> dict[str, Any]:
    """Values, flags, gradients and hooks of a model, by name."""
    found: dict[str, Any] = {}
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        found |= {f"{name} ({what})": value for what, value in _tensor(p).items()}
    for name, module in model.named_modules():
        found[f"training flag of {name or 'the whole'}"] = module.training
        for key, value in vars(module).items():
            if "hooks" in key and isinstance(value, dict):
                found[f"{key.strip('_')} of {name or 'the whole'}"] = len(value)
            elif not key.startswith("_"):
                found[f"attribute {name}.{key}".replace(" .", " ")] = id(value)
    return found


def _tensor(t: Tensor) -> dict[str, Any]:
    return {
        "value": t.detach().clone(),
        "requires_grad": t.requires_grad,
        "gradient": None if t.grad is None else t.grad.clone(),
        "value, though it is the same again,": version(t),
    }


def _globals() -> dict[str, Any]:
    return {
        "the state of torch's random numbers": torch.get_rng_state(),
        "the state of Python's random numbers": random.getstate(),
        "the grad mode": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def purity(s: Subject, d: Drawn) -> None:
    """Model, inputs, options and random numbers are as before, also where they need gradients."""
    model, x = s.model(d), d.inputs()
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
        p.grad = torch.ones_like(p) if i % 4 == 0 else None
    given = s.options(d, x)
    for flag in (False, True):
        x = d.inputs().requires_grad_(flag)
        with untouched(model, x, given):
            found = s.method(model, x, **given)
        with untouched(model, x, given), torch.no_grad():
            for t in _tensors(found):
                t.detach().add_(1)  # memory of the user's is not handed out


class _Blown(Exception):
    """What a model raises in the check of exceptions."""


class Fuse:
    """A hook that raises in the call with a number."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise _Blown


def exceptions(s: Subject, d: Drawn) -> None:
    """An exception of the model arrives, and leaves everything as it was."""
    counter = Fuse(0)
    model, x = s.model(d), d.inputs()
    given = s.options(d, x)
    handle = model.mid.register_forward_pre_hook(counter)  # type: ignore[union-attr]
    right = s.method(model, x, **given)
    handle.remove()
    for at in sorted({1, counter.calls}):
        fuse = Fuse(at)
        handle = model.mid.register_forward_pre_hook(fuse)  # type: ignore[union-attr]
        with untouched(model, x, given):
            try:
                s.method(model, x, **given)
            except _Blown:
                pass
            else:
                if fuse.calls >= at:
                    raise Failed("an exception of the model does not arrive")
        handle.remove()
    s.close(s.method(model, x, **given), right, "after an exception of the model")


def threads(s: Subject, d: Drawn) -> None:
    """Four threads explain one model at once."""
    model = s.model(d)
    shifts = [d._replace(seed=d.seed + 50 * i) for i in range(THREADS)]
    given = s.options(d, d.inputs())
    right = [s.method(model, e.inputs(), **given) for e in shifts]
    together = threading.Barrier(THREADS)

    def work(e: Drawn) -> list[Any]:
        together.wait()
        return [s.method(model, e.inputs(), **given) for _ in range(3)]

    with untouched(model, given), ThreadPoolExecutor(THREADS) as pool:
        for found, one in zip(pool.map(work, shifts), right, strict=True):
            for again in found:
                s.close(again, one, f"{THREADS} threads at once")
