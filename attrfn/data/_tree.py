"""Pytrees of tensors as text, and their leaves by name."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from attrfn._torch.say import say
from attrfn._torch.typing import Tree

Form = Any
"""What JSON can hold: a number for a leaf, {"tuple": [...]}, {"dict": {...}} and so on."""


def form_and_leaves(tree: Tree) -> tuple[Form, list[Tensor]]:
    """A tree as text, and its leaves.

    Raises:
        TypeError: It is made of something that a file cannot name.
    """
    leaves: list[Tensor] = []

    def form(value: Any) -> Form:
        if value is None:
            return None
        if isinstance(value, Tensor):
            leaves.append(value)
            return len(leaves) - 1
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            parts = {name: form(v) for name, v in zip(value._fields, value, strict=True)}
            return {"namedtuple": [type(value).__name__, parts]}
        if isinstance(value, (tuple, list)):
            return {"tuple" if isinstance(value, tuple) else "list": list(map(form, value))}
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            return {"dict": {k: form(v) for k, v in value.items()}}
        raise TypeError(
            f"the attributions hold {say(value)}, expected tensors in tuples, lists, named tuples "
            "and dicts with names as keys, which can be written down"
        )

    return form(tree), leaves


def rebuilt(form: Form, leaves: list[Any]) -> Tree:
    """The tree of a form with other leaves."""
    if form is None:
        return None
    if isinstance(form, int):
        return leaves[form]
    ((kind, parts),) = form.items()
    if kind == "namedtuple":
        name, fields = parts
        made = collections.namedtuple(name, list(fields))  # type: ignore[misc]
        return made(**{k: rebuilt(v, leaves) for k, v in fields.items()})
    if kind == "dict":
        return {k: rebuilt(v, leaves) for k, v in parts.items()}
    found = [rebuilt(v, leaves) for v in parts]
    return tuple(found) if kind == "tuple" else found


def leaf_names(form: Form, before: str = "") -> Iterator[str]:
    """A name for each leaf, in their order: the path to it."""
    if form is None:
        return
    if isinstance(form, int):
        yield before or "attribution"
        return
    ((kind, parts),) = form.items()
    parts = parts[1] if kind == "namedtuple" else parts
    items = parts.items() if isinstance(parts, dict) else enumerate(parts)
    for key, part in items:
        yield from leaf_names(part, f"{before}.{key}" if before else str(key))
