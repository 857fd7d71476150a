"""What torch.compile has to know, without importing its compiler before it is used."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

F = TypeVar("F", bound=Callable[..., Any])
_COMPILES = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 12)

if hasattr(torch.compiler, "is_compiling"):  # torch >= 2.3

    def is_compiling() -> bool:
        """Whether torch.compile (or torch.export) traces this call."""
        return torch.compiler.is_compiling()

else:

    def is_compiling() -> bool:
        """Whether torch.compile traces this call."""
        return bool(torch._dynamo.is_compiling())


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


def unreadable() -> bool:
    """Whether values cannot be read: torch.compile, torch.export or make_fx traces this call."""
    if is_compiling():
        return True
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    if tracer is None:
        return False
    mode = getattr(tracer, "get_proxy_mode", None) or tracer.get_innermost_proxy_mode  # torch < 2.5
    return mode() is not None


def untraced() -> contextlib.AbstractContextManager[object]:
    """Real tensors inside, also where fake ones are made or a tracer writes down what happens."""
    return _disable_current_modes()


def constant(function: F) -> F:
    """``torch.compiler.assume_constant_result``: compiled code keeps its first value."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def whole_in_graph(function: F) -> F:
    """``torch.compiler.allow_in_graph``, said to the compiler once it is imported."""
    if _COMPILER in sys.modules:
        torch.compiler.allow_in_graph(function)  # type: ignore[no-untyped-call]
    else:
        _Waiting.functions.append(function)
        if not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Waiting())
    return function


_COMPILER = "torch._dynamo"


class _Waiting(importlib.abc.MetaPathFinder):
    """Waits for the import of the compiler, tells it what it has to know, and is gone."""

    functions: ClassVar[list[Callable[..., Any]]] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The compiler's own spec, with something to do after its import."""
        if fullname != _COMPILER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                for function in self.functions:
                    torch.compiler.allow_in_graph(function)  # type: ignore[no-untyped-call]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
