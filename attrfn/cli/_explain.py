"""``attrfn explain``: a data set into a folder."""

import contextlib
import json as json_module
import os
import sys
import time
from pathlib import Path
from typing import Any

import attrfn
import attrfn.data
from attrfn._torch.files import write_whole
from attrfn.cli import _options as o
from attrfn.cli._columns import parse_columns, parse_target
from attrfn.cli._command import Answer, UsageError, command, is_first
from attrfn.cli._data import Ask, open_data
from attrfn.cli._images import look
from attrfn.cli._method import choose
from attrfn.cli._model import Loaded, load_model
from attrfn.cli._plan import Plan, check_words, planned, with_target
from attrfn.cli._say import line

COMMAND = "command.json"
_FAILURES = 5  # that are printed


@command
def explain(
    model: o.Model,
    data: o.Data,
    method: o.Method,
    out: o.Folder,
    target: o.Target = None,
    baselines: o.Baselines = None,
    columns: o.Columns = None,
    layer: o.Layer = None,
    option: o.Options = None,
    batch_size: o.BatchSize = "auto",
    key: o.Key = 0,
    device: o.Device = None,
    max_length: o.MaxLength = None,
    image_size: o.ImageSize = None,
    image_mean: o.ImageMean = None,
    image_std: o.ImageStd = None,
    engine: o.Engine = o.EngineName.local,
    resume: o.Resume = True,
    on_error: o.OnError = o.OnErrorName.stop,
    progress: o.Progress = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> Answer:
    """Explain every example of a data set, into a folder.

    A call that was interrupted or killed goes on where it stopped when it is made again.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    run = {"batch_size": _size(batch_size), "key": key, "engine": engine.value, "resume": resume}
    run |= {"on_error": on_error.value, "progress": shown}
    images = look(image_size, image_mean, image_std)
    aim, chosen = parse_target(target), choose(method, layer, option)
    ask = with_target(Ask(data, parse_columns(columns), baselines, max_length, images), aim)
    check_words(chosen, aim, ask)
    loaded = load_model(model, device)
    plan = planned(chosen, aim, ask, loaded, open_data(ask, loaded), shown)
    said = {**_said(plan, ask, loaded), "model": model, "method": method, "target": target}
    return _run(plan, loaded, out, run, said)


def _size(text: str) -> Any:
    if text == "auto":
        return text
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"--batch-size is {text!r}, expected auto or a number from 1 on")


def _run(
    plan: Plan, loaded: Loaded, out: Path, run: dict[str, Any], said: dict[str, Any]
) -> Answer:
    before, is_new = time.monotonic(), not (out / "manifest.json").exists()
    try:
        found: attrfn.data.Attributions = attrfn.data.explain(
            plan.chosen.method,
            loaded.model,
            plan.data.source,
            out=out,
            columns=plan.data.columns,
            **plan.given,
            **run,
            **plan.chosen.options,
        )
    except KeyboardInterrupt as stop:
        _note_down(out, said, run)
        if str(stop):
            raise
        # It was pressed twice, and the library had no time to say it.
        raise KeyboardInterrupt(f"what is written in {out} stays: call again to go on") from None
    except Exception:
        if is_new:  # else the folder may be that of another call
            _note_down(out, said, run)
        raise
    _note_down(out, said, run)
    return _answer(found, time.monotonic() - before)


def _said(plan: Plan, ask: Ask, loaded: Loaded) -> dict[str, Any]:
    """What a report wants to know of the call."""
    return {
        "attrfn": attrfn.__version__,
        "data": os.path.abspath(ask.spec) if os.path.exists(ask.spec) else ask.spec,
        "kind": plan.data.kind,
        "folder": None if loaded.folder is None else os.path.abspath(loaded.folder),
        "columns": ask.columns,
        "max_length": ask.max_length,
        "look": ask.look,
    }


def _note_down(out: Path, said: dict[str, Any], run: dict[str, Any]) -> None:
    """Next to the results; no later call compares it, so that a full disk does not matter."""
    if (out / "manifest.json").is_file() and is_first(run["engine"]):
        text = json_module.dumps(said, indent=1, ensure_ascii=False) + "\n"
        with contextlib.suppress(OSError):
            write_whole(out / COMMAND, text, "the command line")


def _answer(found: attrfn.data.Attributions, seconds: float) -> Answer:
    data = {
        "out": found.path,
        "examples": len(found),
        "complete": found.complete,
        "failed": found.failed,
        "shapes": dict(zip(found.names(), found.manifest["shapes"], strict=True)),
        "method": found.manifest["method"],
        "seconds": seconds,
    }

    def show() -> None:
        line(f"{len(found):,} examples are in {found.path} ({seconds:.1f} s)")
        for i, why in list(found.failed.items())[:_FAILURES]:
            line(f"example {i} failed: {why}")
        if len(found.failed) > _FAILURES:
            line(f"{len(found.failed):,} examples failed in all")
        line(f"attrfn report {found.path} makes a page of them")

    return Answer(data, show)
