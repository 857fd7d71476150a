"""``attrfn methods``: the methods and metrics of the library, and the options of a method."""

from attrfn.cli import _options as o
from attrfn.cli._command import Answer, command
from attrfn.cli._names import methods as all_methods
from attrfn.cli._names import metrics, options_of, pick, summary
from attrfn.cli._say import line, table


@command
def methods(name: o.Name = None, json: o.Json = False, debug: o.Debug = False) -> Answer:
    """List the methods and the metrics, or the options of a method."""
    if name is None:
        return _all()
    method = all_methods()[pick("NAME", name, all_methods(), "attrfn methods")]
    options = options_of(method)

    def show() -> None:
        line(f"{name}: {summary(method)}")
        rows = [
            (p["name"], "required" if p["required"] else p["default"], p["text"]) for p in options
        ]
        table("", ["--option", "default", "what it says"], rows)

    return Answer({"name": name, "summary": summary(method), "options": options}, show)


def _all() -> Answer:
    found = [{"name": n, "summary": summary(f)} for n, f in all_methods().items()]
    measures = [
        {"name": n, "summary": summary(f), "better": f.better}  # type: ignore[attr-defined]
        for n, f in metrics().items()
    ]

    def show() -> None:
        table("", ["--method", "what it does"], [(m["name"], m["summary"]) for m in found])
        rows = [(m["name"], m["better"], m["summary"]) for m in measures]
        table("", ["--metric", "better", "what it measures"], rows)
        line("attrfn methods NAME shows the options of a method")

    return Answer({"methods": found, "metrics": measures}, show)
