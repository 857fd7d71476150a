"""Values that no argument expects, or few: for the grid of ``test_odd_values.py``.

Each is made anew for each call, because generators run out and a call may write into a tensor.
"""

from __future__ import annotations

import collections
import decimal
import fractions
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

Point = collections.namedtuple("Point", "x y")

NUMBERS: dict[str, Callable[[], Any]] = {
    "true": lambda: True,
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "two": lambda: 2,
    "beyond int32": lambda: 2**31,
    "beyond int64": lambda: 2**63,
    "ten to the 30": lambda: 10**30,
    "half": lambda: 0.5,
    "minus half": lambda: -0.5,
    "tiny": lambda: 1e-310,
    "huge": lambda: 1e300,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "complex": lambda: 1j,
    "decimal": lambda: decimal.Decimal("0.5"),
    "fraction": lambda: fractions.Fraction(1, 2),
    "numpy int": lambda: np.int64(2),
    "numpy float": lambda: np.float64(0.5),
    "numpy bool": lambda: np.True_,
}
TEXTS: dict[str, Callable[[], Any]] = {
    "empty text": lambda: "",
    "text": lambda: "a",
    "auto": lambda: "auto",
    "number as text": lambda: "2",
    "long text": lambda: "ab" * 400,
    "lines": lambda: "a\nb\r\nc",
    "bytes": lambda: b"a",
    "numpy text": lambda: np.str_("a"),
}
CONTAINERS: dict[str, Callable[[], Any]] = {
    "empty tuple": tuple,
    "empty list": list,
    "empty dict": dict,
    "set": lambda: {1, 2},
    "tuple": lambda: (1, 2),
    "list": lambda: [1, 2, 3],
    "list of none": lambda: [None],
    "list of text": lambda: ["a", "b", "c"],
    "ragged": lambda: [[1], [2, 3]],
    "long list": lambda: list(range(500)),
    "dict": lambda: {"a": 1},
    "named tuple": lambda: Point(1, 2),
    "range": lambda: range(3),
    "generator": lambda: (i for i in range(3)),
    "dict of a tensor": lambda: {"a": torch.ones(3, 4)},
    "tuple of tensors": lambda: (torch.ones(3, 4), torch.ones(3, 4)),
    "size": lambda: torch.Size([3, 4]),
}
_D = torch.float64
TENSORS: dict[str, Callable[[], Any]] = {
    "0-d": lambda: torch.tensor(0.5),
    "0-d int": lambda: torch.tensor(1),
    "0-d bool": lambda: torch.tensor(True),
    "vector": lambda: torch.ones(3, dtype=_D),
    "wide": lambda: torch.ones(3, 7, dtype=_D),
    "short": lambda: torch.ones(2, 4, dtype=_D),
    "deep": lambda: torch.ones(3, 4, 1, 1, 1, 1, dtype=_D),
    "empty": lambda: torch.ones(0),
    "no rows": lambda: torch.ones(0, 4, dtype=_D),
    "no columns": lambda: torch.ones(3, 0, dtype=_D),
    "float32": lambda: torch.ones(3, 4),
    "float16": lambda: torch.ones(3, 4, dtype=torch.float16),
    "bfloat16": lambda: torch.ones(3, 4, dtype=torch.bfloat16),
    "int64": lambda: torch.ones(3, 4, dtype=torch.int64),
    "uint8": lambda: torch.ones(3, 4, dtype=torch.uint8),
    "bools": lambda: torch.ones(3, 4, dtype=torch.bool),
    "complex tensor": lambda: torch.ones(3, 4, dtype=torch.complex128),
    "large ints": lambda: torch.full((3,), 2**62),
    "negative ints": lambda: torch.tensor([-9, 0, 1]),
    "nans": lambda: torch.full((3, 4), float("nan"), dtype=_D),
    "infs": lambda: torch.full((3, 4), float("inf"), dtype=_D),
    "meta": lambda: torch.ones(3, 4, dtype=_D, device="meta"),
    "meta ints": lambda: torch.ones(3, dtype=torch.int64, device="meta"),
    "sparse": lambda: torch.ones(3, 4, dtype=_D).to_sparse(),
    "sparse rows": lambda: torch.ones(3, 4, dtype=_D).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "expanded": lambda: torch.ones(1, 1, dtype=_D).expand(3, 4),
    "parameter": lambda: nn.Parameter(torch.ones(3, 4, dtype=_D)),
    "list of tensors": lambda: [torch.ones(3, 4, dtype=_D)],
    "array": lambda: np.ones((3, 4)),
    "array of ints": lambda: np.arange(3),
    "array of objects": lambda: np.array([None, "a", 1.0], dtype=object),
    "array of text": lambda: np.array(["a", "b", "c"]),
    "0-d array": lambda: np.array(0.5),
}
OBJECTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "object": object,
    "class": lambda: int,
    "module": lambda: nn.Linear(2, 2),
    "class of modules": lambda: nn.Linear,
    "function of nothing": lambda: lambda: 0.0,
    "function to none": lambda: lambda *args, **kwargs: None,
    "function to text": lambda: lambda *args, **kwargs: "a",
    "function to its first": lambda: lambda *args, **kwargs: args[0],
    "partial": lambda: functools.partial(int, "2"),
    "dtype": lambda: torch.int64,
    "device": lambda: torch.device("meta"),
    "torch generator": torch.Generator,
    "slice": lambda: slice(0, 1),
    "ellipsis": lambda: ...,
    "exception": lambda: ValueError("a"),
    "path": lambda: pathlib.Path("a/b"),
}
ODD = {**NUMBERS, **TEXTS, **CONTAINERS, **TENSORS, **OBJECTS}
"""By name; each value is made by a call."""
