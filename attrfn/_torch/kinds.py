"""What a signature says of an argument, asked of a value: for messages after an error."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

Kind = tuple[Callable[[Any], bool], str]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_device(value: Any) -> bool:
    try:
        torch.empty(0, device=value)
    except Exception:
        return False
    return True


def _is_sequence(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def test(value: Any) -> bool:
        return isinstance(value, Sequence) and not _is_text(value) and all(map(of, value))

    return test


_DEVICE = (_is_device, "a device that torch has here, such as 'cpu'")
_CALLABLE = (callable, "something to call")
_KINDS: dict[str, Kind] = {
    "None": (lambda value: value is None, "None"),
    "bool": (lambda value: type(value) is bool, "True or False"),
    "int": (_is_int, "an int"),
    "float": (_is_number, "a number"),
    "str": (_is_text, "a string"),
    "Tensor": (lambda value: isinstance(value, Tensor), "a tensor"),
    "torch.dtype": (lambda value: isinstance(value, torch.dtype), "a dtype of torch"),
    "Device": _DEVICE,
    "nn.Module": (lambda value: isinstance(value, nn.Module), "a torch.nn.Module"),
    "os.PathLike[str]": (lambda value: isinstance(value, os.PathLike), "a path"),
    "Sign": (_is_text, "'all', 'positive', 'negative' or 'absolute'"),
    "Sequence[Sequence[str]]": (_is_sequence(_is_sequence(_is_text)), "a list of such lists"),
    "Sequence[int]": (_is_sequence(_is_int), "a tuple of ints"),
    "Sequence[str]": (_is_sequence(_is_text), "a list of strings"),
    "At": (lambda value: value in ("input", "output"), "'input' or 'output'"),
    "Key": (lambda value: _is_int(value) or isinstance(value, Tensor), "an int or a key tensor"),
    "Reshape": _CALLABLE,
    "Permute": _CALLABLE,
    "Perturb": _CALLABLE,
    "Transform": _CALLABLE,
    "Rule": _CALLABLE,
    "ModelFn": _CALLABLE,
    "Method": _CALLABLE,
    "Surrogate": _CALLABLE,
    "Similarity": _CALLABLE,
}
_STARTS: dict[str, Kind] = {
    "Callable": _CALLABLE,
    "collections.abc.Callable": _CALLABLE,
    "Mapping": (lambda value: isinstance(value, Mapping), "a dict"),
}
_PARTS = re.compile(r" \| (?![^\[]*\])")  # a bar outside of brackets


def expected(annotation: Any, value: Any) -> str | None:
    """What an annotation asks for, if a value is not of that kind; None if it is, or may be."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    kinds = [_kind(part) for part in _PARTS.split(text)]
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds) or any(is_one(value) for is_one, _ in known):
        return None
    return " or ".join(dict.fromkeys([words for _, words in known]))


def _kind(part: str) -> Kind | None:
    by_start = (kind for start, kind in _STARTS.items() if part.startswith(start))
    return _KINDS.get(part) or next(by_start, None)
