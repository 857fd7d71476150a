"""The engine ``"ray"``: actors of Ray Data that hold the model, and parts of the rows as blocks.

A part is a block of one row, from where to where; ``map_batches`` gives it to an actor, which
reads, explains and writes the rows. If an actor dies, Ray starts another one and gives it the parts
that were not done. Only this process writes the log of a folder, when an actor says that shards are
there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from attrfn._torch.extras import need
from attrfn._torch.say import say
from attrfn._torch.warn import each_once, warn
from attrfn.data._actor import Actor, Done
from attrfn.data._ahead import delayed_interrupt
from attrfn.data._digest import device_of
from attrfn.data._engines import Ray
from attrfn.data._folder import Folder
from attrfn.data._log import is_there
from attrfn.data._ray_data import Blocks, is_ray_data
from attrfn.data._read import Attributions, read
from attrfn.data._reduce import Reduce
from attrfn.data._run import Plan, Run
from attrfn.data._sinks import Memory
from attrfn.data._sources import first_line
from attrfn.data._work import Call, absolute, check_whole, is_stream, part_rows, parts

_RETRIES = 3  # of a part whose actor dies; without this, Ray tries it for ever
_NAMES = {"given": "one of the options"}  # of the fields of a call that are no arguments


def over_actors(
    call: Call, engine: Ray, out: Any, batch_size: int | str, statistic: Reduce | None, resume: bool
) -> Any:
    """One call of ``explain`` by actors of Ray.

    Raises:
        TypeError: An argument cannot be sent to another process.
        ValueError: The data have no rows by number, or the cluster has no room.
    """
    need("ray.data", "engine='ray'", "ray")
    device = device_of(call.model_fn)
    if device is not None and device.type != "cpu":
        raise ValueError(
            f"model_fn has parameters on {device}, expected the CPU: engine='ray' sends it to "
            "workers, which move it to GPUs of their own"
        )
    data = Blocks(call.data) if is_ray_data(call.data) else absolute(call.data)
    call = dataclasses.replace(call, data=data)
    run = call.run(divided=True)
    if is_stream(run):
        raise TypeError(
            "data has no rows by number, so that engine='ray' cannot divide it: give a Dataset, "
            "tensors, a file or a ray.data.Dataset, or use engine='torchrun', whose ranks read all"
        )
    if out is None:
        return _into_memory(_Cluster(call, engine, None), run, batch_size, Memory(statistic))
    folder = Folder(absolute(out))
    with folder.locked():
        return _into_folder(_Cluster(call, engine, folder.path), run, folder, batch_size, resume)


class _Cluster:
    """Who does the parts of a call.

    Args:
        call: The call.
        engine: What each worker gets.
        out: The folder, if there is one.
    """

    def __init__(self, call: Call, engine: Ray, out: Path | None) -> None:
        self._ray = need("ray", "engine='ray'", "ray")
        self._call, self._out = call, out
        if not self._ray.is_initialized():
            self._ray.init()
        there = self._ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
        self._gpus = engine.gpus if engine.gpus is not None else float(gpus > 0)
        self._cpus = engine.cpus
        if self._cpus > cpus or self._gpus > gpus:
            raise ValueError(
                f"engine asks for {say(self._cpus)} CPUs and {say(self._gpus)} GPUs for each "
                f"worker, and the Ray cluster has {say(cpus)} and {say(gpus)}: ask for less, or "
                "connect to a larger one by ray.init"
            )
        room = gpus / self._gpus if self._gpus else cpus / self._cpus
        self.workers = engine.workers or max(1, int(min(room, cpus / self._cpus)))

    def results(self, plan: Plan) -> Generator[Done, None, None]:
        """What the workers say, part by part: in order without a folder, else as they end.

        Raises:
            Exception: What one of them raised.
        """
        todo = list(parts(plan, part_rows(plan, self.workers)))
        if not todo:
            return
        with self._settings():
            blocks = self._ray.data.from_items(
                [{"start": a, "stop": b} for a, b in todo], override_num_blocks=len(todo)
            )
            done = blocks.map_batches(
                Actor,
                batch_size=1,
                compute=self._ray.data.ActorPoolStrategy(size=min(self.workers, len(todo))),
                fn_constructor_args=(self._sent(), plan, self._out, self._gpus > 0),
                num_cpus=self._cpus,
                num_gpus=self._gpus or None,
                ray_remote_args_fn=lambda: {"max_task_retries": _RETRIES},
            )
        try:
            for row in done.iter_rows():
                yield _read(pickle.loads(row["done"]))
        except self._ray.exceptions.RayError as error:
            raise RuntimeError(
                f"a worker of Ray has died at the same rows {_RETRIES + 1} times "
                f"({type(error).__name__}), as it does where its machine runs out of memory: give "
                "a smaller batch_size or fewer workers and call again; what is in a folder is kept"
            ) from error

    def _sent(self) -> dict[str, Any]:
        """References of the arguments, each of which is sent once."""
        found = {}
        for field in dataclasses.fields(self._call):
            value = getattr(self._call, field.name)
            try:
                found[field.name] = self._ray.put(value)
            except Exception as error:
                raise TypeError(
                    f"{_NAMES.get(field.name, field.name)} is {say(value)}, which cannot be sent "
                    f"to the workers of Ray: {first_line(error)}"
                ) from error
        return found

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        """What Ray Data shows and how it orders, for the data sets that are made inside."""
        context = self._ray.data.DataContext.get_current()
        options = context.execution_options
        before = options.preserve_order, context.enable_progress_bars
        options.preserve_order = self._out is None
        context.enable_progress_bars = False
        try:
            yield
        finally:
            options.preserve_order, context.enable_progress_bars = before


def _read(done: Done) -> Done:
    """The same, its warnings said here."""
    for message in done.warnings:
        warn(message)
    return done


def _raise(done: Done) -> None:
    """Raise what was raised in a worker.

    Raises:
        Exception: That.
    """
    if done.error is not None:
        raise done.error from RuntimeError(f"in a worker of Ray:\n{done.trace}")


def _into_memory(cluster: _Cluster, run: Run, batch_size: int | str, sink: Memory) -> Any:
    """All attributions, or a statistic of them that takes them in their order."""
    plan = run.plan(batch_size)
    results = cluster.results(plan)
    with run.bar(0) as advance, each_once(), contextlib.closing(results):
        for done in results:
            _raise(done)
            for found in done.found:
                sink.put(found)
            advance(done.stop - done.start)
    run.check_end(run.data.length or 0)
    return sink.finish()


def _into_folder(
    cluster: _Cluster, run: Run, folder: Folder, batch_size: int | str, resume: bool
) -> Attributions:
    """What is missing, into a folder."""
    plan = run.plan_into(folder, batch_size, resume)
    if not plan.gaps:
        return run.finished(folder, plan.done)
    results = cluster.results(plan._replace(done=[]))
    there = sum(line["stop"] - line["start"] for line in plan.done)
    with (
        delayed_interrupt() as interrupt,
        each_once(),
        contextlib.closing(results),
        run.bar(there) as advance,
    ):
        for done in results:
            _log(folder, done)
            _raise(done)
            advance(done.stop - done.start)
            if interrupt.is_pressed():
                break
    if interrupt.is_pressed():
        raise KeyboardInterrupt(f"what is done is in {folder.path}: call again to go on")
    total = run.data.length or 0
    run.check_end(total)
    folder.merge()  # which removes what a killed worker has not finished
    check_whole(folder, total)
    folder.finish(total)
    return read(folder.path)


def _log(folder: Folder, done: Done) -> None:
    """Write the lines of a part, if its shards are there.

    Raises:
        OSError: This process does not see them.
    """
    for line in done.lines:
        if not is_there(folder.path, line):
            raise OSError(
                f"{folder.path / line['file']} has been written by a worker of Ray and is not "
                "here: give a folder on a file system that all machines share"
            )
    if done.lines:
        folder.log(*done.lines)
