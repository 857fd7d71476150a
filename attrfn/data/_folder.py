"""A folder of results: shards, a manifest, and a log of what is done.

``manifest.json`` says what was run, and never changes. ``done.jsonl`` gets a line for each shard. A
shard is written beside its place, given to the disk (fsync) and renamed; then its line is added and
given to the disk. So a line stands for a whole shard, whatever the moment at which a process ends,
and a shard without a line is written again. Where several processes write, each has a log of its
own, ``done-....jsonl``, until the first of them puts all lines into one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from attrfn._torch.say import say
from attrfn.data._log import (
    LOG,
    LOGS,
    MANIFEST,
    current,
    is_there,
    read_json,
    read_log,
    refuse_other_run,
    run_of,
)

Buffer: TypeAlias = bytes | memoryview
COMPARED = ("method", "model", "options", "columns", "key", "length")
_NAMES = {"length": "number of examples"}


class Folder:
    """A folder that results are written to.

    Args:
        path: Where.
        writer: Which of several processes that write this is; None: the only one.
    """

    def __init__(self, path: str | os.PathLike[str], writer: str | None = None) -> None:
        self.path = Path(path)
        self.writer = writer
        self.manifest: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []

    def open(self, wanted: Mapping[str, Any], resume: bool) -> None:
        """Begin, or find out what is done already.

        Raises:
            FileExistsError: There is something else.
            ValueError: The folder belongs to another run, or is damaged.
        """
        self._make()
        if not (self.path / MANIFEST).exists():
            others = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if others:
                raise FileExistsError(
                    f"out is {self.path}, which holds {say(others[0])} and no manifest, expected a "
                    "new folder or one of an earlier call"
                )
            return
        self.manifest = read_json(self.path / MANIFEST)
        if not resume:
            raise FileExistsError(
                f"out is {self.path}, which holds results already: pass resume=True to go on, or "
                "another folder"
            )
        self._compare(wanted)
        self.lines, whole = read_log(self.path / LOG)
        refuse_other_run(self.path, self.lines)
        if whole is not None:  # the line that a crash has cut goes away
            with open(self.path / LOG, "r+b") as file:
                file.truncate(whole)
        self.merge()

    def merge(self) -> None:
        """Put the lines of other logs into this one; the caller has the lock."""
        others = sorted(self.path.glob(LOGS))
        lines = [line for log in others for line in read_log(log)[0]]
        new = [line for line in lines if line not in self.lines]
        if new:
            self.log(*sorted(new, key=lambda line: int(line["start"])))
        for log in others:
            log.unlink()
        for part in self.path.glob(".*.part"):  # of processes that were killed
            part.unlink()

    def _compare(self, wanted: Mapping[str, Any]) -> None:
        for name in COMPARED:
            old, new = self.manifest.get(name), wanted[name]
            if old == new:
                continue
            if isinstance(old, dict) and isinstance(new, dict):
                keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
                name, old, new = f"{keys[0]} in {name}", old.get(keys[0]), new.get(keys[0])
            raise ValueError(
                f"out is {self.path}, whose {_NAMES.get(name, name)} was {say(old)} and is now "
                f"{say(new)}: give what it was begun with, or another folder"
            )

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, unless there is one."""
        if not self.manifest:
            self.manifest = dict(manifest)
            try:
                put(self.path / MANIFEST, manifest_bytes(manifest))
            except OSError as error:
                raise cannot_write(error, "the manifest", self.path / MANIFEST) from error

    def done(self) -> list[dict[str, Any]]:
        """The lines of shards that are there, in the order of their rows; the newest of each."""
        return [line for line in current(self.lines) if is_there(self.path, line)]

    def total(self) -> int | None:
        """How many examples there were, if all have been explained."""
        ends = [line["complete"] for line in self.lines if "complete" in line]
        return int(ends[-1]) if ends else None

    def add(self, name: str, content: Sequence[Buffer], line: Mapping[str, Any]) -> None:
        """Write a shard, and then its line."""
        put(self.path / name, *content, writer=self.writer)
        sha = hashlib.sha256()
        for part in content:
            sha.update(part)
        size = sum(len(part) for part in content)
        self.log({**line, "file": name, "bytes": size, "sha256": sha.hexdigest()})

    def log(self, *lines: Mapping[str, Any]) -> None:
        """Add lines to the log."""
        run = run_of(self.path)
        found = [{**line, "run": run} for line in lines]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
        name = LOG if self.writer is None else LOGS.replace("*", self.writer)
        with open(self.path / name, "ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.path)
        self.lines += found

    def finish(self, total: int) -> None:
        """Note that all examples have been explained."""
        try:
            self.log({"complete": total})
        except OSError as error:
            raise cannot_write(error, "the last line", self.path / LOG) from error

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise FileExistsError(
                f"out is {self.path}, where a file is, expected a folder: give another path"
            ) from error
        except OSError as error:
            raise cannot_write(error, "a folder", self.path) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder; a process that ends lets go by itself.

        Raises:
            BlockingIOError: Another one writes.
        """
        try:
            import fcntl
        except ImportError:  # not on this system
            yield
            return
        self._make()
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(open(self.path / ".lock", "w"))
            except OSError as error:
                raise cannot_write(error, "a lock", self.path / ".lock") from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"out is {self.path}, to which another process writes: wait for it, or give "
                    "another folder"
                ) from error
            except OSError:  # the file system has no locks
                pass
            yield


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The content of the file of a manifest."""
    return json.dumps(manifest, indent=1, ensure_ascii=False).encode()


def put(path: Path, *content: Buffer, writer: str | None = None) -> None:
    """Write a file that is there as a whole or not at all, also if the power goes."""
    beside = path.with_name(f".{path.name}{'' if writer is None else '.' + writer}.part")
    try:
        with open(beside, "wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _sync_folder(path.parent)


def put_first(path: Path, manifest: Mapping[str, Any], writer: str) -> None:
    """Write a manifest, unless another process has been faster."""
    if path.exists():
        return
    beside = path.with_name(f".{path.name}.{writer}.part")
    put(beside, manifest_bytes(manifest))
    try:
        os.link(beside, path)
        beside.unlink()
    except FileExistsError:
        beside.unlink()
    except OSError:  # a file system without links
        os.replace(beside, path)
    _sync_folder(path.parent)


def cannot_write(error: OSError, what: str, path: Path) -> OSError:
    """What to raise where something cannot be written."""
    why = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OSError(
        error.errno or errno.EIO,
        f"{what} cannot be written to {path} ({why}); all shards before are kept: "
        f"{'free space' if full else 'mend it'} and call again, which goes on there",
    )


def _sync_folder(path: Path) -> None:
    """Give the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        place = os.open(path, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
