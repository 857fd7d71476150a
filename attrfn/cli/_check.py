"""``attrfn check``: whether a model is fit for attribution."""

import sys

import attrfn.testing
from attrfn.cli import _options as o
from attrfn.cli._columns import parse_columns, parse_target
from attrfn.cli._command import FAILED, FINE, Answer, command
from attrfn.cli._data import Ask, open_data
from attrfn.cli._images import look
from attrfn.cli._method import largest
from attrfn.cli._model import load_model
from attrfn.cli._plan import refuse_training
from attrfn.cli._rows import first_rows
from attrfn.cli._say import line, table


@command
def check(
    model: o.Model,
    data: o.Data,
    target: o.Target = None,
    columns: o.Columns = None,
    rows: o.Rows = 4,
    max_length: o.MaxLength = None,
    image_size: o.ImageSize = None,
    image_mean: o.ImageMean = None,
    image_std: o.ImageStd = None,
    device: o.Device = None,
    progress: o.Progress = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> Answer:
    """Look whether a model is fit for attribution; the exit code is 1 if it is not.

    Rows, random numbers, training mode, derivatives, rules of DeepLIFT and LRP, and layers.
    """
    aim = parse_target(target)
    names = parse_columns(columns) | ({"target": aim.column} if aim.column else {})
    ask = Ask(data, names, None, max_length, look(image_size, image_mean, image_std))
    loaded = load_model(model, device)
    if aim.predicted:
        refuse_training(loaded)
    found = open_data(ask, loaded)
    batch = first_rows(loaded.model, found, rows)
    shown = sys.stderr.isatty() if progress is None else progress
    chosen = (
        largest(batch.model_fn, batch.inputs)
        if aim.predicted
        else batch.options.get("target", aim.value)
    )
    report = attrfn.testing.check_model(batch.model_fn, batch.inputs, target=chosen, progress=shown)
    return _answer(report)


def _answer(report: attrfn.testing.ModelReport) -> Answer:
    def rows(findings: tuple[attrfn.testing.Finding, ...]) -> list[tuple[object, ...]]:
        return [(f.name, f.good, f.text) for f in findings]

    def show() -> None:
        table("", ["model", "ok", "what was found"], rows(report.findings))
        if report.layers:
            table("", ["layer", "ok", "what was found"], rows(report.layers))
        line("the model is fit for attribution" if report.ok else "the model is NOT fit as it is")

    data = {
        "ok": report.ok,
        "findings": [f._asdict() for f in report.findings],
        "layers": [f._asdict() for f in report.layers],
    }
    return Answer(data, show, FINE if report.ok else FAILED)
