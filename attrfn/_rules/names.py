"""Torch functions by name: all spellings of an operation, and which of them write in place.

A mode sees functions: ``torch.relu``, ``F.relu``, ``Tensor.relu`` and ``Tensor.relu_`` are four.
The tables of rules have names. So the spellings of every name in :mod:`attrfn._rules.ops` are
looked up once, when this module is imported.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attrfn._rules import ops
from attrfn._torch.private import OpOverload, nn_functions, overload_name, variable_functions

_SPACES = {
    torch: "",
    F: "",
    Tensor: "",
    torch.special: "special_",
    torch.linalg: "linalg_",
    torch.fft: "fft_",
    torch.sparse: "sparse_",
    nn_functions: "",
    variable_functions: "",
}
# getattr for a missing name is slow on modules, and every import of attrfn runs this one.
_LISTED = {space: frozenset(dir(space)) for space in _SPACES}
_LISTED[variable_functions] -= frozenset(dir(object))


class Spelling(NamedTuple):
    """One torch function of an operation.

    Attributes:
        name: The operation, such as ``relu``.
        pure: The counterpart that writes nothing, of a function that always writes its first
            argument; else None.
        flag: The position of its argument ``inplace``, or None.
        writes: Whether it always writes its first argument; ``copy_`` has no pure counterpart.
    """

    name: str
    pure: Any
    flag: int | None
    writes: bool = False


def spellings(name: str) -> dict[Any, Spelling]:
    """The functions of torch for an operation, also those that write in place."""
    found = {}
    for space, prefix in _SPACES.items():
        if not name.startswith(prefix):
            continue
        short, listed = name.removeprefix(prefix), _LISTED[space]
        writing = (f"{short}_", f"__i{short}__")
        for spelled in (short, f"_{short}", f"{prefix}{short}", f"__{short}__", *writing):
            if spelled not in listed or spelled in ops.READS:
                continue
            func = getattr(space, spelled)
            if callable(func) and not isinstance(func, type):
                writes = spelled in writing or spelled == "__setitem__"
                # torch has no pure `zero`.
                pure = torch.zeros_like if short == "zero" else getattr(space, short, None)
                pure = pure if spelled in writing else None
                found[func] = Spelling(name, pure, _flag(func), writes)
    return found


def getter(name: str) -> Any:
    """The function that a mode sees when the attribute ``name`` of a tensor is read."""
    return getattr(Tensor, name).__get__


_OTHERWISE = {
    **dict.fromkeys(("numpy_T", "matrix_H", "mT", "mH"), "T"),
    "nll_loss_nd": "nll_loss",
    "cross_entropy_loss": "cross_entropy",
    "grid_sampler": "grid_sample",
    "col2im": "fold",
    "im2col": "unfold",
    "_grouped_mm": "grouped_mm",
}
"""Operations with other names in exported graphs than in torch.nn.functional and Tensor."""


def exported(func: Any) -> Spelling:
    """The operation of a function of an exported graph, such as ``aten.relu_.default``."""
    if not isinstance(func, OpOverload) or func.namespace != "aten":
        return Spelling("", None, None)
    name = str(func.overloadpacket.__name__)
    short = name.removesuffix("_")
    # There is an operation per interpolation mode, and one rule for them all: they are linear.
    pure = getattr(torch.ops.aten, short, None) if short != name else None
    resized = short.strip("_").startswith("upsample_")
    operation = "interpolate" if resized else _OTHERWISE.get(short, short)
    pure = getattr(pure, overload_name(func), None)
    return Spelling(operation, pure, None, pure is not None)


def public_name(func: Any) -> str:
    """The name under which a user knows a function that a mode has seen."""
    name = getattr(func, "__name__", None) or repr(func)
    if name == "__get__":
        return f"torch.Tensor.{getattr(func.__self__, '__name__', name)}"
    if isinstance(func, OpOverload):
        return f"torch.ops.{func}"
    for space, prefix in ((torch, "torch"), (F, "torch.nn.functional"), (Tensor, "torch.Tensor")):
        if getattr(space, name, None) is func:
            return f"{prefix}.{name}"
    name = name.removeprefix("_") if name.startswith("_sparse_") else name
    for prefix in ("special", "linalg", "fft", "sparse"):
        if name.startswith(f"{prefix}_"):
            return f"torch.{prefix}.{name.removeprefix(f'{prefix}_')}"
    module = getattr(func, "__module__", None)
    return f"{module}.{name}" if module else str(name)


def _all() -> dict[Any, Spelling]:
    found: dict[Any, Spelling] = {}
    # A name without a function is a spelling mistake, and would quietly have no rule.
    for text in (
        *(ops.STRUCTURE, ops.PRODUCTS, ops.ELEMENTWISE, ops.CONSTANT, ops.NORMS, ops.OTHERS),
        ops.SELECTIONS,
    ):
        for name in text.split():
            spelled = spellings(name)
            if not spelled and _should_have(name):
                raise ImportError(
                    f"{name!r} is not an operation of torch {torch.__version__}: correct the name "
                    "in attrfn._rules.ops, or say in SINCE which torch it came with"
                )
            found.update(spelled)
    for name in ops.ATTRIBUTES_OF_STRUCTURE:
        found[getter(name)] = Spelling("T", None, None)
    return found


def _should_have(name: str) -> bool:
    """Whether this torch should have a function for an operation."""
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    known = ops.SINCE.get(name, ()) <= version <= ops.NEWEST
    return known and name not in ops.IN_EXPORTED_GRAPHS


def _passive() -> frozenset[Any]:
    found = {func for name in ops.CONSTANT.split() for func in spellings(name)}
    return frozenset(found | {getter(name) for name in ops.ATTRIBUTES if hasattr(Tensor, name)})


def _flag(func: Any) -> int | None:
    """The position of ``inplace`` among the arguments of a Python function."""
    if not inspect.isfunction(func):
        return None
    code = func.__code__
    names = code.co_varnames[: code.co_argcount]
    return names.index("inplace") if "inplace" in names else None


FUNCTIONS = _all()
"""The torch functions that rules may know, each with its operation."""

_ELEMENTWISE = frozenset(ops.ELEMENTWISE.split())
OF_EACH_ELEMENT = frozenset(f for f, known in FUNCTIONS.items() if known.name in _ELEMENTWISE)
"""The functions that treat each element alone, so that they take a part of a tensor as well."""

METHODS = {
    spelled: FUNCTIONS[func]
    for name, func in vars(Tensor).items()
    if inspect.isfunction(func) and func in FUNCTIONS
    for spelled in (name, func.__name__)
}
"""Methods of tensors written in Python, by name: torch.compile shows other objects for them."""

PASSIVE = _passive()
"""The torch functions whose values do not depend on those of their arguments."""
