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
from attrfn._torch.private_compiler import makes_fakes as makes_fakes
from attrfn._torch.private_compiler import unreadable as unreadable

F = TypeVar("F", bound=Callable[..., Any])

# Each version from 2.6 on was tried. The compiler of 2.9 and older cannot enter optree; that of
# 2.10 and 2.11 takes no constant function of a module, which the clone of _model/clone.py needs.
_COMPILES = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 12)


def require_compiler() -> None:
    """Refuse a torch whose compiler cannot trace the library.

    Raises:
        RuntimeError: torch is older than 2.12.
    """
    if not _COMPILES:
        raise RuntimeError(
            f"torch {torch.__version__} cannot compile attributions: use torch >= 2.12 "
            "with torch.compile, or call the method without it"
        )


def untraced() -> contextlib.AbstractContextManager[object]:
    """Real tensors inside, even where fake ones are made or a tracer records operations."""
    return without_modes()


def constant_result(function: F) -> F:
    """``torch.compiler.assume_constant_result``: compiled code keeps the function's first value."""
    # The mark is set by hand, because torch's own function imports the compiler.
    setattr(function, MARK_OF_CONSTANT, True)
    return function


def opaque_to_compiler(function: F) -> F:
    """``torch.compiler.allow_in_graph``, without an import of the compiler.

    Compiled code drops the backward of an ``autograd.Function`` under some transforms unless its
    call is allowed in the graph.
    """
    # The compiler takes seconds to import, and most processes never need it. So the call waits
    # until something else imports the compiler.
    if COMPILER in sys.modules:
        allow_in_graph(function)
    else:
        _Waiting.functions.append(function)
        if not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Waiting())
    return function


class _Waiting(importlib.abc.MetaPathFinder):
    """Tells the compiler once, when it is imported, which functions are opaque to it."""

    functions: ClassVar[list[Callable[..., Any]]] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The compiler's spec, whose loader also calls ``allow_in_graph``."""
        if fullname != COMPILER:
            return None
        sys.meta_path.remove(self)  # else find_spec below would come back here
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                for function in self.functions:
                    allow_in_graph(function)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
