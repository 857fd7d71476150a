"""What engines with several workers share: the call, its parts, and what a worker does with one.

Work is divided between batches: a worker explains the same batches as the local engine would, so
that an example gets the same bits. A part is some batches, at most a shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)

from attrfn._torch.say import say
from attrfn._torch.typing import Key, Method, ModelFn
from attrfn.data._columns import Columns
from attrfn.data._digest import dtype_of
from attrfn.data._folder import COMPARED, Folder, put_first
from attrfn.data._indexed import Indexed
from attrfn.data._kinds import source
from attrfn.data._log import MANIFEST, read_json
from attrfn.data._options import Options, parameters_of
from attrfn.data._run import Plan, Run, gaps_of
from attrfn.data._runner import Found
from attrfn.data._sources import Batch, Source
from attrfn.data._streams import Stream

# Parts for each worker at least, where there are so many batches: the last one to finish then keeps
# the others waiting for a quarter of its work at most.
_PARTS = 4
_FORM = ("form", "dtypes", "shapes")


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of ``explain``, of which each worker makes a run of its own."""

    method: Method
    model_fn: ModelFn
    data: Any
    given: Mapping[str, Any]
    columns: Any
    key: Key
    skip: bool
    progress: bool

    def run(self, *, divided: bool = False) -> Run:
        """A run over all of the data.

        Args:
            divided: Whether several workers share the data.
        """
        columns = Columns(self.columns, parameters_of(self.method))
        columns.dtype = dtype_of(self.model_fn)
        found = (divisible if divided else source)(self.data, columns)
        options = Options(self.method, self.given, columns, self.key, found.length)
        return Run(self.model_fn, found, options, self.skip, self.progress)


def divisible(data: Any, columns: Columns) -> Source:
    """The source of a data set, by number where its rows have numbers.

    Raises:
        ValueError: The data are a part already.
    """
    if not isinstance(data, DataLoader):
        return source(data, columns)
    found = source(data, columns)
    sampler = getattr(data.batch_sampler, "sampler", data.sampler)
    if isinstance(sampler, DistributedSampler):
        raise ValueError(
            "data is a DataLoader with a DistributedSampler, which gives each rank a part of the "
            "data and some rows twice: make it without one, because the engine divides the data"
        )
    by_number = type(data.batch_sampler) is BatchSampler and type(sampler) is SequentialSampler
    if not by_number or isinstance(data.dataset, IterableDataset) or found.length is None:
        return found

    return Indexed(
        lambda start, stop: _collated(data, start, stop),
        columns,
        length=found.length,
        batch=found.batch,
    )


def _collated(loader: DataLoader[Any], start: int, stop: int) -> Any:
    """What a DataLoader makes of some examples."""
    several = getattr(loader.dataset, "__getitems__", None)
    if several:
        return loader.collate_fn(several(list(range(start, stop))))
    return loader.collate_fn([loader.dataset[i] for i in range(start, stop)])


def part_rows(plan: Plan, workers: int) -> int:
    """The rows of a part: whole batches, a shard at most, and several parts for each worker."""
    most = max(1, plan.rows // max(1, plan.size))
    if plan.gaps and plan.gaps[-1][1] is not None:
        missing = sum((stop or 0) - start for start, stop in plan.gaps)
        most = min(most, max(1, missing // plan.size // (_PARTS * workers)))
    return plan.size * most


def parts(plan: Plan, rows: int) -> Iterator[tuple[int, int]]:
    """The parts of what is missing, without end where the number of rows is unknown."""
    for start, stop in plan.gaps:
        while stop is None or start < stop:
            end = min((start // rows + 1) * rows, (start // plan.rows + 1) * plan.rows)
            end = end if stop is None else min(end, stop)
            yield start, end
            start = end


class Work:
    """What a worker does.

    Args:
        run: The call.
        plan: How it is divided.
        start: The first row that the worker gets.
    """

    def __init__(self, run: Run, plan: Plan, start: int) -> None:
        self.run = run
        self.plan = plan
        self.runner = run.runner(plan.now)
        # Rows that failed are filled in the form of those that did not, which a worker may not have
        # seen: as the local engine, it takes the first batch, and raises if all of that fails.
        batch = self._first_batch() if run.skip and start > 0 else None
        if batch is not None:
            self.runner.explain(batch)

    def _first_batch(self) -> Batch | None:
        data, size = self.run.data, self.plan.size
        if not is_stream(self.run):
            return data.read(0, size, skip=True)
        first = data.first()
        if first is None:
            return None
        rows = first.pick(slice(0, size))  # not read, because a stream does not come again
        return Batch(0, len(rows), rows, torch.arange(len(rows)), {})

    def found(self, start: int, stop: int) -> Iterator[Found]:
        """The attributions of some rows, batch by batch."""
        batches = self.run.batches([(start, stop)], self.plan.size, self.plan.rows)
        with contextlib.closing(batches):
            for batch in batches:
                yield self.runner.explain(batch)


class Part(Folder):
    """A folder as one of several workers sees it, with a log of its own.

    The first one that has attributions writes the manifest, because it says their form.
    """

    def __init__(self, path: str | os.PathLike[str], writer: str) -> None:
        super().__init__(path, writer)
        if (self.path / MANIFEST).exists():
            self.manifest = read_json(self.path / MANIFEST)

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, or take that of a worker that was faster.

        Raises:
            ValueError: Its attributions have another form.
        """
        put_first(self.path / MANIFEST, manifest, str(self.writer))
        self.manifest = read_json(self.path / MANIFEST)
        for name in _FORM:
            if self.manifest[name] != manifest[name]:
                raise ValueError(
                    f"the attributions of a worker have the {name} {say(manifest[name])}, and "
                    f"those of another {say(self.manifest[name])}: bring all rows into one form"
                )


def differences(manifests: list[dict[str, Any]]) -> str | None:
    """In what the runs of workers differ, in words; None: in nothing."""
    for i, manifest in enumerate(manifests):
        for name in COMPARED:
            if manifest[name] != manifests[0][name]:
                return (
                    f"rank {i} has another {name} than rank 0, {say(manifest[name])} and "
                    f"{say(manifests[0][name])}: give all ranks the same arguments, such as a model"
                    " with the same weights and the whole data set"
                )
    return None


def check_whole(folder: Folder, total: int) -> None:
    """Refuse a folder that lacks shards of workers.

    Raises:
        OSError: It does.
    """
    lacks = next(iter(gaps_of(folder.done(), total)), None)
    if lacks is not None:
        raise OSError(
            f"{folder.path} lacks the rows {lacks[0]} to {(lacks[1] or total) - 1}, which a worker "
            "has written: give a folder on a file system that all machines share, and call again"
        )


def portable(error: BaseException) -> BaseException:
    """An error that another process can read: itself, or what it says."""
    try:
        same = pickle.loads(pickle.dumps(error))
        if type(same) is type(error) and str(same) == str(error):
            return error
    except Exception:  # of a class with arguments of its own
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def is_stream(run: Run) -> bool:
    """Whether the rows have no numbers, so that they are read from the start."""
    return isinstance(run.data, Stream)


def absolute(path: Any) -> Any:
    """A path as another process finds it; anything else as it is."""
    return Path(path).absolute() if isinstance(path, (str, os.PathLike)) else path


def end_of(batch: Batch) -> int:
    """The row after the last of a batch."""
    return batch.start + batch.size
