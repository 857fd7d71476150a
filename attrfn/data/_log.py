"""The manifest and the logs of a folder of results, as they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrfn.data._sources import first_line

MANIFEST, LOG, LOGS = "manifest.json", "done.jsonl", "done-*.jsonl"


def current(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of shards that hold, in the order of their rows: newer ones replace older ones."""
    found: list[dict[str, Any]] = []
    for line in lines:
        if "file" not in line:
            continue
        if not found or found[-1]["stop"] <= line["start"]:
            found.append(line)
        else:
            apart = [f for f in found if f["stop"] <= line["start"] or line["stop"] <= f["start"]]
            found = sorted([*apart, line], key=lambda line: int(line["start"]))
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A manifest.

    Raises:
        ValueError: It is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read: {first_line(error)}: restore it, or explain into a new folder"
        ) from error
    if not isinstance(found, dict) or found.get("format") != 1:
        raise ValueError(
            f"{path} is no manifest that this version reads: give a folder that "
            "attrfn.data.explain has written"
        )
    return found


def read_log(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The lines of a log, and where a line that was cut begins, if there is one.

    Raises:
        ValueError: A line in the middle is damaged.
    """
    if not path.exists():
        return [], None
    lines, at = [], 0
    parts = path.read_bytes().split(b"\n")
    for number, text in enumerate(parts[:-1], 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is damaged: delete this line and those after it, and call "
                "explain again, which writes their rows again"
            ) from error
        at += len(text) + 1
    return lines, at if parts[-1] else None


def all_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of all logs of a folder.

    Raises:
        ValueError: They are of another run than the manifest.
    """
    logs = [folder / LOG, *sorted(folder.glob(LOGS))]
    lines = [line for log in logs for line in read_log(log)[0]]
    refuse_other_run(folder, lines)
    return lines


def run_of(folder: Path) -> str:
    """What tells the manifest of a folder from those of other runs."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]


def refuse_other_run(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Refuse a manifest that is not the one under which shards were written.

    Raises:
        ValueError: It is of another run.
    """
    run = run_of(folder)
    if any(line.get("run", run) != run for line in lines):
        raise ValueError(
            f"{folder / MANIFEST} is of another run than the shards beside it: restore the "
            "manifest that was written with them, or explain into a new folder"
        )


def is_there(folder: Path, line: Mapping[str, Any]) -> bool:
    """Whether a shard has the length that it was written with."""
    try:
        size = (folder / str(line["file"])).stat().st_size
        return size == int(line["bytes"])
    except OSError:
        return False
