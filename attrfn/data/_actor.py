"""A worker of the engine ``"ray"``, as Ray Data makes it in a process of its own."""

from __future__ import annotations

import dataclasses
import functools
import traceback
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attrfn._torch.extras import need
from attrfn._torch.typing import ModelFn
from attrfn._torch.warn import each_once
from attrfn.data._digest import modules_of
from attrfn.data._options import on
from attrfn.data._run import Plan
from attrfn.data._runner import Found
from attrfn.data._sinks import Shards
from attrfn.data._work import Call, Part, Work, portable


@dataclasses.dataclass
class Done:
    """What an actor says of a part.

    Attributes:
        start: The first row.
        stop: The row after the last.
        found: The attributions, if there is no folder.
        lines: The lines for the log of the folder.
        warnings: What was warned of.
        error: What was raised.
        trace: Where.
    """

    start: int
    stop: int
    found: list[Found] = dataclasses.field(default_factory=list)
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    error: BaseException | None = None
    trace: str = ""


class Sent(Part):
    """A folder of which another process has the log."""

    def log(self, *lines: Mapping[str, Any]) -> None:
        """Keep lines for it."""
        self.lines += [dict(line) for line in lines]


class Actor:
    """A worker of Ray Data.

    Args:
        given: References of the arguments of the call.
        plan: How it is divided.
        out: The folder, if there is one.
        gpu: Whether the model is moved to the GPU.
    """

    def __init__(self, given: dict[str, Any], plan: Plan, out: Path | None, gpu: bool) -> None:
        self._given, self._plan, self._out, self._gpu = given, plan, out, gpu
        self._work: Work | None = None
        self._writer = uuid.uuid4().hex[:8]

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Do the part that a block names."""
        done = Done(int(block["start"][0]), int(block["stop"][0]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with each_once():
                    self._do(done)
            except Exception as error:  # raised where the call was made
                done.error, done.trace = portable(error), traceback.format_exc()
        done.warnings = [str(w.message) for w in caught if w.category is UserWarning]
        # By value: a class of the user's script, which no module here has, comes back as itself.
        return {"done": [need("ray.cloudpickle", "engine='ray'", "ray").dumps(done)]}

    def _do(self, done: Done) -> None:
        work = self._ready(done.start)
        if self._out is None:
            done.found = list(work.found(done.start, done.stop))
            return
        folder = Sent(self._out, self._writer)
        sink = Shards(folder, self._plan.manifest, self._plan.rows)
        try:
            for found in work.found(done.start, done.stop):
                sink.put(found, work.runner.size)
            sink.finish(None)
        except BaseException:
            sink.stop()
            raise
        finally:
            done.lines = folder.lines

    def _ready(self, start: int) -> Work:
        """The call as this process sees it, made once."""
        if self._work is None:
            ray = need("ray", "engine='ray'", "ray")
            given = {name: ray.get(reference) for name, reference in self._given.items()}
            if self._gpu:
                given["model_fn"] = to_gpu(given["model_fn"])
            self._work = Work(Call(**given).run(divided=True), self._plan, start)
        return self._work


def to_gpu(model_fn: ModelFn) -> ModelFn:
    """A model function with its modules, and the tensors that it binds, on the GPU."""
    device = torch.device("cuda")
    for module in modules_of(model_fn):
        module.to(device)
    if not isinstance(model_fn, functools.partial):
        return model_fn
    keywords = {name: on(value, device) for name, value in model_fn.keywords.items()}
    args = [on(value, device) for value in model_fn.args]
    return functools.partial(to_gpu(model_fn.func), *args, **keywords)
