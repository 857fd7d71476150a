"""``attrfn report``: a folder of results as one page."""

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrfn.data
from attrfn import viz
from attrfn.cli import _options as o
from attrfn.cli._command import Answer, command
from attrfn.cli._explain import COMMAND
from attrfn.cli._need import need
from attrfn.cli._originals import originals
from attrfn.cli._pictures import IMPORTANT, pictures, statistics
from attrfn.cli._say import line, note

_FAILURES = 50  # that are listed; the folder has all


@command
def report(
    out: o.Results,
    html: o.Html = None,
    top: o.Top = 10,
    json: o.Json = False,
    debug: o.Debug = False,
) -> Answer:
    """Write one HTML file about a folder of results: no scripts, no links, no other files."""
    need("matplotlib", "a report")
    found = attrfn.data.read(out)
    said = _said(out)
    numbers = statistics(found, top)
    figures: dict[str, Any] = {}
    tables = {"The run": _run(found, said)}
    if numbers is not None:
        seen = originals(said, numbers.top.examples.tolist())
        figures = pictures(found, numbers, seen, top)
        tables = {**numbers.tables(found, seen), **tables}
    if found.failed:
        tables["Examples that failed"] = _failures(found)
    path = viz.report(
        html or out / "report.html",
        title=f"Attributions: {_name(found, said)}",
        text=_summary(found, figures),
        figures=figures,
        tables=tables,
    )
    what = {"report": path, "examples": len(found), "complete": found.complete}
    return Answer({**what, "failed": len(found.failed)}, lambda: line(f"the report is {path}"))


def _said(out: Path) -> dict[str, Any]:
    """What ``attrfn explain`` has noted beside the results; empty where another call wrote them."""
    file = out / COMMAND
    if not file.is_file():
        return {}
    try:
        found = json_module.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        note(f"{file} cannot be read: the report does without it", "Warning")
        return {}
    return found if isinstance(found, dict) else {}


def _name(found: attrfn.data.Attributions, said: dict[str, Any]) -> str:
    return str(said.get("method") or str(found.manifest["method"]).split(" #")[0])


def _summary(found: attrfn.data.Attributions, figures: Mapping[str, Any]) -> str:
    total = found.manifest.get("length")
    of = f" of {total:,}" if total and not found.complete else ""
    parts = [f"{len(found):,} examples{of}"]
    parts.append("all are explained" if found.complete else "the run is not complete")
    if found.failed:
        parts.append(f"{len(found.failed):,} failed and count nowhere")
    first = "; ".join(parts) + "."
    if len(found) == len(found.failed):
        return f"{first}\n\nThere is nothing to show: no example has attributions."
    size = "The size of an attribution is its absolute value."
    if all(caption.startswith(IMPORTANT) for caption in figures):
        return f"{first}\n\n{size}"
    return f"{first}\n\nRed raises the explained output, blue lowers it. {size}"


def _run(found: attrfn.data.Attributions, said: dict[str, Any]) -> list[dict[str, object]]:
    """The manifest and the command line, a row for each entry."""
    manifest = found.manifest
    named = ("model", "data", "method", "target")
    rows: dict[str, object] = {k: said[k] for k in named if k in said}
    rows |= {k: v for k, v in manifest["options"].items() if k not in rows}
    for name in ("columns", "key", "batch_size", "attrfn", "torch"):
        rows[name] = manifest.get(name)
    rows["digest of the model"] = manifest["model"][:16]
    rows["digest of the method"] = manifest["method"]
    return [{"": name, "value": None if v is None else str(v)} for name, v in rows.items()]


def _failures(found: attrfn.data.Attributions) -> list[dict[str, object]]:
    rows = [{"example": i, "why": why} for i, why in sorted(found.failed.items())]
    if len(rows) > _FAILURES:
        more = f"and {len(rows) - _FAILURES:,} more"
        return [*rows[:_FAILURES], {"example": None, "why": more}]
    return rows
