"""The value of a layer as a tree: its tensors, and the same value with others in their places."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optree
from torch import Tensor, nn

from attrfn._torch.say import say
from attrfn._torch.typing import Tree

_ATOMS = (bool, int, float, complex, str, bytes, type(None))


def clone_value(value: Tree) -> Tree:
    """The value with a clone of every tensor."""
    if isinstance(value, Tensor):
        return value.clone()
    return mapped(Tensor.clone, value)


def mapped(f: Callable[[Tensor], Any], value: Tree) -> Tree:
    """The value with ``f`` of every tensor."""
    tensors, rebuild = opened(value)
    return rebuild([f(t) for t in tensors])


def opened(value: Tree) -> tuple[list[Tensor], Callable[[list[Any]], Tree]]:
    """The tensors of a value in order, and what makes the value of others in their places."""
    found: list[Tensor] = []
    _collect(value, found)

    def rebuild(new: list[Any]) -> Tree:
        return _filled(value, iter(new))

    return found, rebuild


def changes(new: Tree, natural: Tree) -> list[Tensor | None]:
    """The tensors of ``new`` in the places of those of a value; None where it has None.

    Raises:
        ValueError: It is not of the form of the value.
    """
    found: list[Tensor | None] = []
    _compare(new, natural, found)
    return found


def _collect(value: Tree, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
        return
    for _, part in _parts(value):
        _collect(part, found)


def _filled(value: Tree, new: Iterator[Any]) -> Tree:
    if isinstance(value, Tensor):
        return next(new)
    parts = _parts(value)
    if not parts:
        return value
    return _with_parts(value, {k: _filled(v, new) for k, v in parts})


def _compare(new: Tree, natural: Tree, found: list[Tensor | None]) -> None:
    if isinstance(natural, Tensor):
        if new is not None:
            _same_kind(new, natural)
        found.append(new)
        return
    parts = _parts(natural)
    if new is None:
        inside: list[Tensor] = []
        _collect(natural, inside)
        found.extend([None] * len(inside))
        return
    if not parts:
        atoms = isinstance(natural, _ATOMS) and isinstance(new, _ATOMS)
        if new is not natural and not (atoms and new == natural) and _is_value(new, natural):
            raise ValueError(f"{_shown(new)} where the layer gives {_shown(natural)}")
        return
    given = dict(_parts(new))
    same = isinstance(new, Mapping) == isinstance(natural, Mapping)
    if isinstance(new, Tensor) or not same or given.keys() != dict(parts).keys():
        raise ValueError(f"{_shown(new)} where the layer gives {_shown(natural)}")
    for key, part in parts:
        _compare(given[key], part, found)


def _is_value(new: Any, natural: Any) -> bool:
    """Whether something else was given, and not an empty container of the same kind."""
    return bool(_parts(new)) or type(new) is not type(natural) or isinstance(new, _ATOMS)


def _same_kind(new: Any, natural: Tensor) -> None:
    if not isinstance(new, Tensor):
        raise ValueError(f"{_shown(new)} where the layer gives {_shown(natural)}")
    if new.shape != natural.shape:
        raise ValueError(
            f"shape {tuple(new.shape)} where the layer gives {tuple(natural.shape)}, and a shape "
            "that broadcasts would go unnoticed"
        )
    for what in ("dtype", "device"):
        came, expected = getattr(new, what), getattr(natural, what)
        if came != expected:
            raise ValueError(f"{what} {came} where the layer gives {expected}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, _ATOMS):
        return say(value)
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} of {', '.join([repr(k) for k in value][:6])}"
    return f"a {kind} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {kind}"


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """The parts of a container with their keys; empty for everything else."""
    if isinstance(value, (Tensor, nn.Module, *_ATOMS)):
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    if optree.all_leaves([value]):
        return []
    return list(enumerate(optree.tree_leaves(value, none_is_leaf=True)))


def _with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    """A container of the same kind with other parts."""
    if isinstance(value, Mapping):
        if type(value) is dict:
            return parts
        if hasattr(value, "__dataclass_fields__"):  # such as the outputs of transformers
            return type(value)(**parts)
        # A subclass such as defaultdict may need other arguments to be made than its items.
        filled: Any = copy.copy(value)
        filled.update(parts)
        return filled
    if isinstance(value, (tuple, list)):
        items = list(parts.values())
        if type(value) in (tuple, list):
            return type(value)(items)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value):
        made = copy.copy(value)
        for name, part in parts.items():
            object.__setattr__(made, name, part)  # also of a frozen one
        return made
    spec = optree.tree_structure(value, none_is_leaf=True)
    return optree.tree_unflatten(spec, list(parts.values()))
