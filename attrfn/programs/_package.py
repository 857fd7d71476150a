"""Packages of AOTInductor, whose inputs its own checks compare with those of the compilation."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attrfn._torch import pytree
from attrfn._torch.guard import first_line
from attrfn._torch.say import say
from attrfn.programs._files import hash_of, package
from attrfn.programs._forward import ForwardOnly
from attrfn.programs._groups import Rows, State, in_groups
from attrfn.programs._outputs import Outputs, chosen

# A package reads this variable in its first run, and remembers it. Without the checks it takes any
# input for one of the sizes that it was compiled for, and reads what lies behind it in memory.
_CHECKS = "AOTI_RUNTIME_CHECK_INPUTS"
_FIRST_RUN = threading.Lock()
_FIXED = re.compile(r"unmatched dim value at 0, expected: (\d+),")
_REMEDY = "export the model with a dynamic batch before you compile it"


class Package(ForwardOnly):
    """A package of AOTInductor as a model function.

    Args:
        source: What ``aoti_load_package`` returns, or the path of a package.
        outputs: Which outputs it returns.

    Raises:
        ValueError: torch cannot load it.
    """

    attrfn_without_layers = "an AOTInductor package"

    def __init__(self, source: Any, outputs: Outputs) -> None:
        of_file = isinstance(source, Path)
        model = package(source) if of_file else source
        shown = hash_of(source) if of_file else repr(model.get_metadata())
        super().__init__(outputs, State(model, source if of_file else None), shown)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs for some arguments."""
        flat, spec = pytree.tree_flatten((args, kwargs))
        flat = [v.detach().contiguous() if isinstance(v, Tensor) else v for v in flat]

        def once(leaves: list[Any]) -> Any:
            given, named = pytree.tree_unflatten(list(leaves), spec)
            return self.state.model(*given, **named)

        if not self.state.checks:
            self._demand_checks(once, flat)
        given = next((v.shape[0] for v in flat if isinstance(v, Tensor) and v.ndim), 0)
        split = [isinstance(v, Tensor) and v.ndim > 0 and v.shape[0] == given for v in flat]
        with torch.no_grad():
            return chosen(self._of_rows(once, flat, Rows(0, given, split, _REMEDY)), self.outputs)

    def _of_rows(self, once: Any, flat: list[Any], rows: Rows) -> Any:
        state = self.state
        if state.fixed in (None, rows.given):
            try:
                return once(flat)
            except RuntimeError as error:
                wrong = _FIXED.search(str(error))
                if wrong is None or int(wrong[1]) in (0, rows.given):
                    raise _refused(flat, error) from error
                state.fixed = int(wrong[1])
        try:
            return in_groups(once, flat, rows._replace(fixed=state.fixed or 1), state)
        except RuntimeError as error:
            raise _refused(flat, error) from error

    def _demand_checks(self, once: Any, flat: list[Any]) -> None:
        """Have the package compare its inputs, from its first run on.

        Raises:
            ValueError: It ran before, and without checks.
        """
        with _FIRST_RUN, _environment(_CHECKS, "1"), torch.no_grad():
            try:
                once([_spread(v) for v in flat])
            except RuntimeError:  # strides that it was not compiled for
                self.state.checks = True
                return
        raise ValueError(
            "an AOTInductor package ran before attrfn got it, and without checks of its inputs, so "
            f"that other sizes would read foreign memory: set {_CHECKS}=1 before its first run, or "
            "call attrfn.programs.load first"
        )


def _refused(flat: list[Any], error: RuntimeError) -> ValueError:
    shown = ", ".join([say(v) for v in flat])[:80]
    return ValueError(
        f"an AOTInductor package does not take {shown} ({first_line(error)[:90]}): give the sizes "
        f"and types for which it was compiled, or {_REMEDY}"
    )


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _spread(value: Any) -> Any:
    """The same tensor with other strides, in more memory than that of the tensor itself."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    memory = value.new_zeros(2 * value.numel() + 2)
    view = memory.as_strided(value.shape, [2 * s for s in value.contiguous().stride()])
    return view.copy_(value)
