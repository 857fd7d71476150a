"""``attrfn methods``: the methods of the library, and their options."""

from attrfn.cli import _options as o
from attrfn.cli._command import Answer, command
from attrfn.cli._names import methods as all_methods
from attrfn.cli._names import options_of, pick, summary
from attrfn.cli._say import line, table


@command
def methods(name: o.Name = None, json: o.Json = False, debug: o.Debug = False) -> Answer:
    """List the methods, or the options of one."""
    if name is None:
        return _all()
    method = all_methods()[pick("NAME", name, all_methods(), "attrfn methods")]
    options = options_of(method)

    def show() -> None:
        line(f"{name}: {summary(method)}")
        shown = [(p["name"], "required" if p["required"] else p["default"], p["text"]) for p in options]
        table("", ["--option", "default", "what it says"], shown)

    return Answer({"name": name, "summary": summary(method), "options": options}, show)


def _all() -> Answer:
    found = [{"name": n, "summary": summary(f)} for n, f in all_methods().items()]

    def show() -> None:
        table("", ["--method", "what it does"], [(m["name"], m["summary"]) for m in found])
        line("attrfn methods NAME shows the options of one")

    return Answer({"methods": found}, show)
