"""Checks of what a method leaves behind: after a call, after an exception, and in threads."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optree
import torch
from torch import Tensor, nn

from attrfn._torch.private import modes, version
from attrfn.testing._trial import Failed, Trial

THREADS = 8
ROUNDS = 3
PLACES = 16  # calls of a model at which it raises


@contextlib.contextmanager
def untouched(model: nn.Module, *trees: Any) -> Iterator[None]:
    """The model, tensors in the trees, random numbers and modes are as before."""
    before = state(model), [_tensor(t) for t in _tensors(trees)], _globals()
    yield
    if changed := changes(before[0], state(model)):
        raise Failed(f"the model{changed}")
    after = [_tensor(t) for t in _tensors(trees)], _globals()
    for one, other in zip(before[1], after[0], strict=True):
        for what in one:
            if not _same(one[what], other[what]):
                raise Failed(f"{what} of an input or option changed")
    for what in before[2]:
        if not _same(before[2][what], after[1][what]):
            raise Failed(f"{what} changed")


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in optree.tree_leaves(tree) if isinstance(t, Tensor)]


def state(model: nn.Module) -> dict[str, Any]:
    """All of a model that a run could change, by name: tensors, flags, hooks and attributes."""
    found: dict[str, Any] = {}
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        found |= {f"{name} ({what})": value for what, value in _tensor(p).items()}
    for name, module in model.named_modules():
        where = name or "the whole"
        found[f"class of {where}"] = type(module)
        found[f"identity of {where}"] = id(module)
        for key, value in vars(module).items():
            said = f"attribute {name}.{key}".replace(" .", " ")
            inside = key == "training" or key.startswith("_")
            found[f"{key.strip('_')} of {where}" if inside else said] = _held(value)
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What has changed, to follow "the model" in a sentence; empty if nothing has."""
    for what in before:
        if what not in after:
            return f" has lost its {what}"
        if not _same(before[what], after[what]):
            return f"'s {what} changed"
    return next((f" has a new {what}" for what in sorted(after.keys() - before.keys())), "")


def _held(value: Any) -> Any:
    """A container with its entries of now; everything else as it is."""
    if isinstance(value, dict):
        return {k: _held(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_held(v) for v in value]
    return copy.copy(value) if isinstance(value, (set, deque)) else value


def _tensor(t: Tensor) -> dict[str, Any]:
    return {
        "value": t.detach().clone(),
        "requires_grad": t.requires_grad,
        "gradient": None if t.grad is None else t.grad.clone(),
        "value, though it is the same again,": None if t.is_inference() else version(t),
    }


def _globals() -> dict[str, Any]:
    return {
        "the state of torch's random numbers": torch.get_rng_state(),
        "the state of Python's random numbers": random.getstate(),
        "the grad mode": torch.is_grad_enabled(),
        "the inference mode": torch.is_inference_mode_enabled(),
        "the modes of torch's functions": modes(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or (type(a) is type(b) and bool(a == b))


def purity(t: Trial) -> None:
    """Model, inputs, options and random numbers are as before, also where they need gradients."""
    model, x = t.build(), t.inputs()
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
        p.grad = torch.ones_like(p) if i % 4 == 0 else None
    given = t.options(x)
    for flag in (False, True):
        x = t.inputs().requires_grad_(flag)
        options = {**given, **t.graph} if flag and t.graph else given
        with untouched(model, x, given):
            found = t.method(model, x, **options)
        with untouched(model, x, given), torch.no_grad():
            for a in _tensors(found):
                a.detach().add_(1)  # memory of the user's is not handed out


class Blown(Exception):
    """What a model raises in the check of exceptions."""


class Fuse:
    """A hook that counts its calls and raises in the one with the number ``at``, from 1."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.calls = at, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Blown


def exceptions(t: Trial) -> None:
    """An exception of the model arrives, and leaves everything as it was."""
    model, x, fuse = t.build(), t.inputs(), Fuse()
    given = t.options(x)
    model.mid.register_forward_pre_hook(fuse)  # type: ignore[union-attr]
    t.method(model, x, **given)  # the first call for a model can run it once more
    fuse.calls = 0
    right = t.method(model, x, **given)
    calls = fuse.calls
    with untouched(model, x, given):
        for fuse.at in range(1, calls + 1, -(-calls // PLACES)) if calls else ():
            fuse.calls = 0
            try:
                t.method(model, x, **given)
            except Blown:
                continue
            raise Failed("an exception of the model does not arrive")
    fuse.at = 0
    t.close(t.method(model, x, **given), right, "after an exception of the model", t.again)


def threads(t: Trial) -> None:
    """Eight threads explain one model at once."""
    model, inputs = t.build(), [t.inputs(shift=50 * i) for i in range(THREADS)]
    given = t.options(inputs[0])
    right = [t.method(model, x, **given) for x in inputs]
    together = threading.Barrier(THREADS)

    def work(x: Tensor) -> list[Any]:
        together.wait()
        return [t.method(model, x, **given) for _ in range(ROUNDS)]

    with untouched(model, given), ThreadPoolExecutor(THREADS) as pool:
        for found, one in zip(pool.map(work, inputs), right, strict=True):
            for again in found:
                t.close(again, one, f"{THREADS} threads at once")
