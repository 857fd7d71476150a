"""What torch.compile has to know, without importing its compiler before it is used."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch

from attrfn._torch.private_compiler import COMPILER, MARK_OF_CONSTANT, allow_in_graph, without_modes
from attrfn._torch.private_compiler import is_compiling as is_compiling
from attrfn._torch.private_compiler import unreadable as unreadable

F = TypeVar("F", bound=Callable[..., Any])
_COMPILES = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 12)


def require_compiler() -> None:
    """Refuse a torch whose compiler cannot enter what the library relies on (docs/design.md).

    Raises:
        RuntimeError: It is older than 2.12.
    """
    if not _COMPILES:
        raise RuntimeError(
            f"torch {torch.__version__} cannot compile attributions: use torch >= 2.12 "
            "with torch.compile, or call the method without it"
        )


def untraced() -> contextlib.AbstractContextManager[object]:
    """Real tensors inside, also where fake ones are made or a tracer writes down what happens."""
    return without_modes()


def constant(function: F) -> F:
    """``torch.compiler.assume_constant_result``: compiled code keeps its first value."""
    setattr(function, MARK_OF_CONSTANT, True)
    return function


def opaque_to_compiler(function: F) -> F:
    """``torch.compiler.allow_in_graph``, said to the compiler once it is imported."""
    if COMPILER in sys.modules:
        allow_in_graph(function)
    else:
        _Waiting.functions.append(function)
        if not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Waiting())
    return function


class _Waiting(importlib.abc.MetaPathFinder):
    """Waits for the import of the compiler, tells it what it has to know, and is gone."""

    functions: ClassVar[list[Callable[..., Any]]] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The compiler's own spec, with something to do after its import."""
        if fullname != COMPILER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                for function in self.functions:
                    allow_in_graph(function)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
