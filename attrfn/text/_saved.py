"""Results as JSON, and back to the last bit."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attrfn._explain.flags import checks_flags
from attrfn._torch.files import write_whole
from attrfn._torch.say import say
from attrfn.text._parts_type import TextAttribution

FORMAT = "attrfn.text.TextAttribution"
TEXTS = ("parts", "answer")


@checks_flags
def to_json(result: TextAttribution) -> str:
    """A result as JSON: strict, in ASCII, and exact.

    Args:
        result: What :func:`attribute` returned.

    Returns:
        An object with a key for each field; a tensor is an object of ``dtype``, ``shape`` and
        ``data``, in which infinities and nan are strings.

    Raises:
        TypeError: It is not such a result.
    """
    if not isinstance(result, TextAttribution):
        raise TypeError(f"result is {say(result)}, expected what text.attribute returns")
    fields = {name: _written(value) for name, value in result._asdict().items()}
    return json.dumps({"format": FORMAT, **fields}, allow_nan=False)


def _written(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    t = value.detach().cpu()
    # Any number of at most 64 bits, but for long integers, is a double; Python writes doubles with
    # as many digits as tell them apart.
    flat = (t.double() if t.is_floating_point() else t).flatten().tolist()
    data = [x if not isinstance(x, float) or math.isfinite(x) else str(x) for x in flat]
    return {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "data": data}


@checks_flags
def from_json(text: str) -> TextAttribution:
    """The result that :func:`to_json` has written, on the CPU.

    Args:
        text: JSON.

    Returns:
        The result, equal to the last bit.

    Raises:
        ValueError: It is not the JSON of a result.

    Example:
        >>> import torch, attrfn.text as text
        >>> values, scores = torch.tensor([[0.1, -torch.inf]]), torch.tensor([0.1])
        >>> a = text.TextAttribution(values, values[0], scores, None, ("a", "b"), ("x",))
        >>> text.from_json(text.to_json(a)).values
        tensor([[0.1000,   -inf]])
    """
    try:
        found = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"text is not JSON ({error}): give what text.to_json returns") from None
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise ValueError("text is JSON of something else: expected what text.to_json returns")
    try:
        fields = {name: _read(value) for name, value in found.items()}
        fields |= {name: tuple(fields[name]) for name in TEXTS}
        return TextAttribution(**fields)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"text lacks a part of a result ({error}): expected what text.to_json returns"
        ) from None


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    dtype: torch.dtype = getattr(torch, value["dtype"])
    data = [float(x) if isinstance(x, str) else x for x in value["data"]]
    wide = torch.tensor(data, dtype=torch.float64 if dtype.is_floating_point else dtype)
    return wide.to(dtype).reshape(value["shape"])


@checks_flags
def save(result: TextAttribution, path: str | os.PathLike[str]) -> Path:
    """Write a result as a file of JSON: whole, or not at all.

    An existing file is replaced at once; after an exception it is as it was.

    Args:
        result: What :func:`attribute` returned.
        path: The file, in a folder that exists.

    Returns:
        The path.

    Example:
        >>> import tempfile, torch, attrfn.text as text
        >>> values, scores = torch.tensor([[0.1, 0.2]]), torch.tensor([0.3])
        >>> a = text.TextAttribution(values, values[0], scores, None, ("a", "b"), ("x",))
        >>> file = text.save(a, tempfile.mkdtemp() + "/a.json")
        >>> torch.equal(text.load(file).values, values)
        True
    """
    file = Path(path)
    write_whole(file, to_json(result) + "\n", "result")
    return file


@checks_flags
def load(path: str | os.PathLike[str]) -> TextAttribution:
    """The result that :func:`save` has written.

    Args:
        path: The file.

    Returns:
        The result.

    Raises:
        ValueError: The file holds no result.
    """
    return from_json(Path(path).read_text(encoding="utf-8"))
