"""The engine ``"torchrun"``: ranks that share the rows of a data set.

Every rank makes the same call and knows all parts; rank r of W explains the parts r, r + W, r + 2 W
and so on. Ranks talk over a process group of gloo of their own, about what is to be done and
whether all is; attributions go over it only where there is no folder.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from attrfn._torch.say import say
from attrfn._torch.warn import each_once
from attrfn.data._ahead import ahead, delayed_interrupt
from attrfn.data._digest import modules_of
from attrfn.data._folder import Folder
from attrfn.data._ranks import Ranks, ranks_of_process
from attrfn.data._read import Attributions, read
from attrfn.data._reduce import Reduce
from attrfn.data._run import Plan, Run
from attrfn.data._runner import Found
from attrfn.data._sinks import Memory, Shards
from attrfn.data._sources import Batch
from attrfn.data._work import (
    Call,
    Part,
    Work,
    absolute,
    check_whole,
    differences,
    end_of,
    is_stream,
    part_rows,
    parts,
)

_SHARDED = {"DTensor", "FlatParameter"}


def over_ranks(
    call: Call, out: Any, batch_size: int | str, statistic: Reduce | None, resume: bool
) -> Any:
    """One call of ``explain`` by all ranks.

    Raises:
        TypeError: The data can only be divided by another engine.
    """
    if type(call.data).__module__.partition(".")[0] == "ray":
        raise TypeError(
            "data is a ray.data.Dataset, expected data that every rank reads by itself: use "
            "engine='ray', or give the path of a Parquet file"
        )
    _check_model(call.model_fn)
    with ranks_of_process() as ranks:
        run = ranks.together(lambda: call.run(divided=True))
        differ = differences(ranks.agreed(run.manifest))
        if differ is not None:
            raise ValueError(differ)
        run.progress = call.progress and ranks.rank == 0
        if out is None:
            return _into_memory(ranks, run, batch_size, Memory(statistic))
        return _into_folder(ranks, run, absolute(out), batch_size, resume)


def _check_model(model_fn: Any) -> None:
    """Refuse a model whose ranks have to run it together.

    Raises:
        ValueError: It is one.
    """
    modules = [m for outer in modules_of(model_fn) for m in outer.modules()]
    if any(type(m).__name__ == "DistributedDataParallel" for m in modules):
        raise ValueError(
            "model_fn has a DistributedDataParallel, whose ranks wait for each other at every "
            "batch: give the model that it wraps, its attribute module"
        )
    kinds = {type(p).__name__ for m in modules for p in m.parameters(recurse=False)}
    if kinds & _SHARDED:
        raise ValueError(
            f"model_fn has parameters of the type {min(kinds & _SHARDED)}, which the ranks hold "
            "and use together, so that they cannot explain different rows: use engine='local' on "
            "every rank, with the same data and no folder, or one folder for each"
        )


class _Share:
    """The parts of a rank.

    Attributes:
        seen: The row after the last one that this rank has read.
    """

    def __init__(self, ranks: Ranks, run: Run, plan: Plan) -> None:
        self.seen = 0
        self.rows = part_rows(plan, ranks.size)
        self._ranks, self._run, self._plan = ranks, run, plan
        mine = itertools.islice(parts(plan, self.rows), ranks.rank, None)
        first = next(mine, None)
        self._work = None if first is None else Work(run, plan, first[0])

    @property
    def size(self) -> int:
        """How many rows are explained at once now."""
        return self._plan.now if self._work is None else self._work.runner.size

    def explain(self, batch: Batch) -> Found:
        """The attributions of a batch of this rank."""
        return cast(Work, self._work).runner.explain(batch)

    def batches(self) -> Generator[tuple[int, Batch], None, None]:
        """The batches of this rank, with the numbers of their parts."""
        self._run.data.begin()
        found = self._read()
        return ahead(found) if self._run.data.slow else found

    def _read(self) -> Generator[tuple[int, Batch], None, None]:
        stream, run, plan = is_stream(self._run), self._run, self._plan
        for i, (start, stop) in enumerate(parts(plan, self.rows)):
            own = i % self._ranks.size == self._ranks.rank
            if not own and not stream:  # a stream is read as a whole
                continue
            end = start
            for batch in run.read([(start, stop)], plan.size, plan.rows):
                end = end_of(batch)
                if own:
                    yield i, batch
            self.seen = max(self.seen, end)
            if end < stop:
                return

    def mine(self) -> int:
        """How many rows are this rank's, as far as that is known."""
        if self._run.data.length is None:
            return 0
        found = itertools.islice(parts(self._plan, self.rows), self._ranks.rank, None)
        return sum(b - a for a, b in itertools.islice(found, 0, None, self._ranks.size))

    def bar(self) -> Any:
        """A bar for the rows of this rank."""
        return self._run.bar((self._run.data.length or 0) - self.mine())


def _into_memory(ranks: Ranks, run: Run, batch_size: int | str, sink: Memory) -> Any:
    """All attributions or a statistic of them, on every rank, from rounds of a part for each."""
    plan = cast(Plan, ranks.agreed(lambda: None if ranks.rank else run.plan(batch_size))[0])
    share = ranks.together(lambda: _Share(ranks, run, plan))
    batches = share.batches()
    rounds = itertools.groupby(batches, lambda item: item[0])
    with share.bar() as advance, each_once(), contextlib.closing(batches):

        def next_part() -> list[Found]:
            found = []
            for _, batch in next(rounds, (0, ()))[1]:
                found.append(share.explain(batch))
                advance(batch.size)
            return found

        while any(found := ranks.agreed(next_part)):
            for one in itertools.chain.from_iterable(found):
                sink.put(one)
    _end(ranks, run, share, 0)
    return sink.finish()


def _into_folder(
    ranks: Ranks, run: Run, out: Path, batch_size: int | str, resume: bool
) -> Attributions:
    """What is missing, into a folder, which rank 0 opens and closes."""
    folder = Folder(out)
    with contextlib.ExitStack() as stack:

        def opened() -> Plan | None:
            if ranks.rank:
                return None
            stack.enter_context(folder.locked())
            plan = run.plan_into(folder, batch_size, resume)
            if not plan.gaps:
                run.finished(folder, plan.done)
            return plan._replace(done=plan.done[-1:])

        plan = cast(Plan, ranks.agreed(opened)[0])
        if plan.gaps:
            share = ranks.together(lambda: _Share(ranks, run, plan))
            _write(share, Part(out, str(ranks.rank)), plan)
            total = _end(ranks, run, share, plan.done[0]["stop"] if plan.done else 0)
            ranks.together(lambda: None if ranks.rank else _close(folder, total))
        return read(out)


def _write(share: _Share, part: Part, plan: Plan) -> None:
    """The parts of a rank, into the folder."""
    sink = Shards(part, plan.manifest, share.rows)
    batches = share.batches()
    with delayed_interrupt() as interrupt, each_once(), contextlib.closing(batches):
        try:
            with share.bar() as advance:
                for _, batch in batches:
                    sink.put(share.explain(batch), share.size)
                    advance(batch.size)
                    if interrupt.is_pressed():
                        break
        except BaseException:
            sink.stop()
            raise
        sink.finish(None)
    if interrupt.is_pressed():
        raise KeyboardInterrupt(f"what is done is in {part.path}: call again to go on")


def _end(ranks: Ranks, run: Run, share: _Share, done: int) -> int:
    """How many examples there are, when all ranks have done theirs.

    Raises:
        ValueError: Ranks have read different data, or not what they said.
    """
    seen = ranks.gathered(share.seen)
    if is_stream(run) and len(set(seen)) > 1:
        raise ValueError(
            f"the ranks have read {say(seen)} examples, expected as many on each: give every rank "
            "the whole data set, because the engine divides it"
        )
    total = max(done, *seen)
    ranks.together(lambda: run.check_end(total))
    return total


def _close(folder: Folder, total: int) -> None:
    """Put the logs of all ranks into one.

    Raises:
        OSError: Shards of other ranks are not there.
    """
    folder.merge()
    check_whole(folder, total)
    folder.finish(total)
