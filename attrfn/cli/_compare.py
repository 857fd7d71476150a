"""``attrfn compare``: several methods, measured by several metrics."""

import inspect
import sys
from collections.abc import Iterable
from typing import Any

import attrfn.metrics
from attrfn._explain.introspect import is_over_distribution
from attrfn.cli import _options as o
from attrfn.cli._columns import Target, parse_columns, parse_target
from attrfn.cli._command import Answer, UsageError, command
from attrfn.cli._data import Ask, open_data
from attrfn.cli._images import look
from attrfn.cli._method import Chosen, choose, largest, parse_options, partly
from attrfn.cli._model import load_model
from attrfn.cli._names import metrics, pick
from attrfn.cli._plan import Plan, check_words, planned, refuse_training, with_target
from attrfn.cli._rows import Batch, first_rows
from attrfn.cli._say import line, table

_USUAL = ("deletion", "insertion", "infidelity", "sparseness")


@command
def compare(
    model: o.Model,
    data: o.Data,
    method: o.Methods,
    metric: o.Metrics = None,
    target: o.Target = None,
    baselines: o.Baselines = None,
    columns: o.Columns = None,
    layer: o.Layer = None,
    option: o.Options = None,
    rows: o.Rows = 16,
    key: o.Key = 0,
    device: o.Device = None,
    max_length: o.MaxLength = None,
    image_size: o.ImageSize = None,
    image_mean: o.ImageMean = None,
    image_std: o.ImageStd = None,
    progress: o.Progress = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> Answer:
    """Measure methods by metrics, on the first examples of a data set.

    --layer is for the methods that need one, an --option for the methods that have it.
    """
    measures = {name: metrics()[name] for name in _metrics(metric)}
    shown = sys.stderr.isatty() if progress is None else progress
    images, aim = look(image_size, image_mean, image_std), parse_target(target)
    ask = with_target(Ask(data, parse_columns(columns), baselines, max_length, images), aim)
    found = _chosen(method, layer, option or [])
    asks = [ask if c.takes("baselines") else ask._replace(baselines=None) for c in found]
    for c, a in zip(found, asks, strict=True):
        check_words(c, aim, a)
    loaded = load_model(model, device)
    if aim.predicted:
        refuse_training(loaded)
    rows_of, known = open_data(ask, loaded), aim._replace(predicted=False)
    plans = [planned(c, known, a, loaded, rows_of, shown) for c, a in zip(found, asks, strict=True)]
    given: dict[str, Any] = {}
    for plan in plans:
        given.update(plan.given)
    batch = _aimed(first_rows(loaded.model, rows_of, rows, **given), aim)
    return _answer(_measured(plans, measures, batch, key, shown), rows)


def _aimed(batch: Batch, aim: Target) -> Batch:
    """The rows with their predictions as targets, where those are asked for."""
    if not aim.predicted:
        return batch
    target = largest(batch.model_fn, batch.inputs)
    return batch._replace(options={**batch.options, "target": target})


def _metrics(given: list[str] | None) -> list[str]:
    names = list(given or _USUAL)
    for name in names:
        if name not in metrics() and callable(getattr(attrfn.metrics, name, None)):
            raise UsageError(
                f"--metric is {name!r}, which needs arguments of its own or gives no single "
                f"number: call attrfn.metrics.{name}"
            )
        pick("--metric", name, metrics(), "attrfn methods")
    return list(dict.fromkeys(names))


def _chosen(names: list[str], layer: str | None, items: list[str]) -> list[Chosen]:
    """The methods, each with the layer and the options that it takes."""
    if len(set(names)) < len(names):
        raise UsageError("--method names a method twice, expected different ones")
    bare = [choose(name, None, None) for name in names]
    if layer is not None and not any(map(_needs_layer, bare)):
        raise UsageError("--layer is given, and none of the methods needs one: drop it")
    known = dict(zip(parse_options(items), items, strict=True))
    for option in known:
        if not any(c.takes(option) for c in bare):
            raise UsageError(f"--option gives {option}, which none of the methods takes")
    return [choose(c.name, layer if _needs_layer(c) else None, _of(c, known.items())) for c in bare]


def _of(chosen: Chosen, items: Iterable[tuple[str, str]]) -> list[str]:
    return [item for option, item in items if chosen.takes(option)]


def _needs_layer(chosen: Chosen) -> bool:
    found = inspect.signature(chosen.method).parameters.get("layer")
    return found is not None and found.default is found.empty


def _measured(
    plans: list[Plan], measures: dict[str, Any], batch: Batch, key: int, progress: bool
) -> attrfn.metrics.Comparison:
    """The metrics of all methods."""
    baselines = batch.options.get("baselines")
    methods = {}
    for plan in plans:
        options = dict(plan.chosen.options)
        # A sample of baselines holds for all examples, which metrics.compare leaves to the method.
        if is_over_distribution(plan.chosen.method) and baselines is not None:
            options["baselines"] = baselines
        if plan.chosen.takes("upsample"):  # a map of a layer, which metrics want like the inputs
            options.setdefault("upsample", "nearest")
        methods[plan.chosen.name] = partly(plan.chosen.method, options)
    return attrfn.metrics.compare(
        batch.model_fn,
        batch.inputs,
        methods,
        measures,
        target=batch.options.get("target"),
        baselines=baselines,
        key=key,
        progress=progress,
    )


def _answer(found: attrfn.metrics.Comparison, rows: int) -> Answer:
    means = found.mean().tolist()
    best = {metric: found.ranking(metric)[0] for metric in found.metrics}

    def show() -> None:
        columns = ["method", *[f"{m} ({end} is better)" for m, end in found.better.items()]]
        cells = [[name, *row] for name, row in zip(found.methods, means, strict=True)]
        table("", columns, cells)
        for metric, name in best.items():
            line(f"{metric}: {name} is best")
        line(f"means over the first {rows:,} examples, or over all where there are fewer")

    data = {
        "mean": _tabled(found, means),
        "undefined": _tabled(found, found.undefined().tolist()),
        "better": dict(found.better),
        "best": best,
        "values": found.values,
    }
    return Answer(data, show)


def _tabled(found: attrfn.metrics.Comparison, rows: list[list[Any]]) -> dict[str, Any]:
    return {
        name: dict(zip(found.metrics, row, strict=True))
        for name, row in zip(found.methods, rows, strict=True)
    }
