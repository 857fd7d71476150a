"""Makes the API pages show functions as they are at run time, and docstrings as they are meant.

Options that several methods share are explained in one place, and ``**options`` of a form stands
for those of the method that it moves. Both are put together when attrfn is imported, for
``help()``; here the pages get the same signature and the same docstring. Roles become links, an
example becomes code.
"""

import importlib
import inspect
import re
from typing import Any

import griffe

ROLE = re.compile(r":(func|mod|class|data):`(?:attrfn\.)?([\w.]+)`")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Take the signature and the docstring of a public function from the running library."""
        if not func.parent or not func.parent.is_module or func.name.startswith("_"):
            return
        running = getattr(importlib.import_module(func.parent.path), func.name, None)
        if not inspect.isfunction(running) or not hasattr(running, "records"):
            return
        if func.docstring:
            func.docstring.value = _linked(inspect.getdoc(running) or "", func)
        func.parameters = griffe.Parameters(*map(_parameter, _parameters(running)))
        func.returns = str(inspect.signature(running).return_annotation)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _linked(obj.docstring.value, obj)


def _linked(text: str, obj: griffe.Object) -> str:
    def link(role: re.Match[str]) -> str:
        home = obj if obj.is_module else obj.module
        while "._" in home.path and home.parent:
            home = home.parent  # the package that has the names of its files
        here = role[2] in home.members
        return f"[`{role[2]}`][{home.path if here else 'attrfn'}.{role[2]}]"

    return EXAMPLE.sub("Examples:", ROLE.sub(link, text))


def _parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _parameter(p: inspect.Parameter) -> griffe.Parameter:
    kind = griffe.ParameterKind[p.kind.name.lower()]
    default = None if p.default is p.empty else repr(p.default)
    return griffe.Parameter(p.name, annotation=str(p.annotation), kind=kind, default=default)
