"""Parts of a model: operations and their rules, modules that are hidden, and layers."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterator
from typing import Any

import optree
import torch
from torch import Tensor, nn

import attrfn
from attrfn._explain.tree import as_dicts
from attrfn.testing._model_case import Case, root_of, said
from attrfn.testing._model_report import Finding

_MOST = 12  # operations without a rule that are listed


def rules_of(c: Case) -> Iterator[Finding]:
    """The operations of a model that have no rule of DeepLIFT or LRP."""
    tables = {"DeepLIFT": attrfn.rules.rescale, "LRP": attrfn.rules.epsilon_plus}
    for name, table in tables.items():
        if not all(t.is_floating_point() for t in c.x):
            yield Finding(name, None, "not checked: inputs are integers")
            continue
        yield _uncovered(c, f"rules of {name}", table())


def _uncovered(c: Case, name: str, table: Any) -> Finding:
    """The operations without a rule, each allowed in turn so that the next one shows."""
    missing: list[str] = []
    while len(missing) < _MOST:
        try:
            attrfn.gradient(attrfn.with_rules(c.model_fn, table), c.inputs, target=c.target)
        except attrfn.UnsupportedOpError as error:
            op = re.search(r"has no rule for ([\w.]+)", str(error))
            func = None if op is None else _named(op[1])
            if op is None or func is None or op[1] in missing:
                return Finding(name, False, _listed(missing, op and op[1], error))
            missing.append(op[1])
            table = table.allow(func)
        except Exception as error:
            return Finding(name, False, said(error))
        else:
            break
    if missing:
        return Finding(name, False, f"no rule for {', '.join(missing)}")
    return Finding(name, True, "all operations have rules")


def _listed(missing: list[str], op: str | None, error: Exception) -> str:
    """What a message without an operation that could be allowed adds to those before."""
    before = f"no rule for {', '.join(missing)}; then: " if missing else ""
    return before + (f"no rule for {op}" if op else said(error).split(": ", 1)[1])


def _named(path: str) -> Any:
    found: Any = {"torch": torch, "F": torch.nn.functional}.get(path.split(".")[0])
    for part in path.split(".")[1:]:
        found = getattr(found, part, None)
    return found


def hidden(c: Case) -> Finding:
    """The modules that a model function calls without showing them."""
    root = root_of(c.model_fn)
    if root is None:
        hidden = [type(m).__name__ for m in _reached(c.model_fn)]
        if hidden:
            text = f"{', '.join(hidden[:4])} in a function: give the module, or a partial of it"
            return Finding("modules", False, text)
        return Finding("modules", None, "a function that shows no module: layers have no names")
    known = {id(m) for m in root.modules()}
    for name, module in root.named_modules():
        for key, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else value
            if key.startswith("_") or not isinstance(value, (list, tuple, dict)):
                continue
            if any(isinstance(m, nn.Module) and id(m) not in known for m in items):
                where = f"{name}.{key}".lstrip(".")
                text = f"{where} holds modules that are not registered: use nn.ModuleList"
                return Finding("modules", False, text)
    return Finding("modules", True, "all modules are registered")


def _reached(function: Any) -> list[nn.Module]:
    """The modules in the closure, the globals and the defaults of a function."""
    inner = function.func if isinstance(function, functools.partial) else function
    inner = inner.__self__ if isinstance(inner, types.MethodType) else inner
    if not isinstance(inner, types.FunctionType):
        return [v for v in getattr(inner, "__dict__", {}).values() if isinstance(v, nn.Module)]
    cells = [cell.cell_contents for cell in inner.__closure__ or () if _filled(cell)]
    named = [inner.__globals__.get(name) for name in inner.__code__.co_names]
    return [v for v in (*cells, *named, *(inner.__defaults__ or ())) if isinstance(v, nn.Module)]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def names_of(c: Case) -> dict[str, nn.Module]:
    """The layers of a model by their names."""
    root = root_of(c.model_fn)
    return {} if root is None else {name: m for name, m in root.named_modules() if name}


def layers_of(c: Case) -> Iterator[Finding]:
    """Which layers of a model can be explained, and why the others cannot."""
    for name, module in names_of(c).items():
        kind = type(module).__name__
        try:
            value = attrfn.split(c.model_fn, name).head(c.inputs)
        except Exception as error:
            yield Finding(name, False, f"{kind}: {said(error).split(': ', 1)[-1].split(':')[0]}")
            continue
        leaves = [t for t in optree.tree_leaves(as_dicts(value)) if isinstance(t, Tensor)]
        shapes = ", ".join([str(tuple(t.shape)) for t in leaves])
        rows = any(t.ndim and t.shape[0] == c.x[0].shape[0] for t in leaves)
        text = f"{kind}: {shapes}" + ("" if rows else ", with no row for each example")
        yield Finding(name, rows, text)
