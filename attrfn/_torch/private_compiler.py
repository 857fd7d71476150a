"""Private and undocumented names of torch's compiler; see :mod:`attrfn._torch.private`.

``import attrfn`` must not import the compiler, which takes seconds. So functions look up the names
of ``torch._dynamo`` and ``torch._inductor`` when they are called.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _python_dispatch

F = TypeVar("F", bound=Callable[..., Any])

# --- Tracing ------------------------------------------------------------------------------------

# torch.compile answers these with True, without a call.
if hasattr(torch, "compiler") and hasattr(torch.compiler, "is_compiling"):  # torch >= 2.3

    def is_compiling() -> bool:
        """Whether torch.compile (or torch.export) traces this call."""
        return torch.compiler.is_compiling()

elif hasattr(torch, "compiler"):  # torch 2.1 and 2.2

    def is_compiling() -> bool:
        """Whether torch.compile traces this call."""
        return bool(torch._dynamo.is_compiling())

else:

    def is_compiling() -> bool:
        """Whether torch.compile traces this call."""
        return bool(torch._utils.is_compiling())


def makes_fakes() -> bool:
    """Whether operations make fake tensors, which know no subclasses of Tensor."""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    mode = _python_dispatch._get_current_dispatch_mode()
    return fakes is not None and isinstance(mode, fakes.FakeTensorMode)


def unreadable() -> bool:
    """Whether values cannot be read: torch.compile, torch.export or make_fx traces this call."""
    if is_compiling():
        return True
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    if tracer is None:
        return False
    mode = getattr(tracer, "get_proxy_mode", None) or tracer.get_innermost_proxy_mode  # torch < 2.5
    return mode() is not None


without_modes = _python_dispatch._disable_current_modes
"""A context without the modes of fake tensors and of tracers, whose values cannot be read."""

# --- What torch.compile is told -----------------------------------------------------------------

COMPILER = "torch._dynamo"
"""The module whose import loads the compiler."""

MARK_OF_CONSTANT = "_dynamo_marked_constant"
"""What ``torch.compiler.assume_constant_result`` sets, which imports the compiler first."""


def allow_in_graph(function: F) -> F:
    """``torch.compiler.allow_in_graph``, which torch 2.0 has in its compiler alone."""
    where: Any = torch.compiler if hasattr(torch, "compiler") else sys.modules[COMPILER]
    where.allow_in_graph(function)
    return function


_numbers = itertools.count()


def own_code(function: F) -> F:
    """A copy of the function with a new code object."""
    # The compiler keeps and counts its graphs by code object: two functions from one ``def`` would
    # share them, and soon reach the limit on recompilations.
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    new = types.FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    return new  # type: ignore[return-value]


def changing_size(t: Tensor, dim: int) -> None:
    """Tell the compiler that a tensor's size will change, so that the first graph serves for all.

    If the traced code needs the size, the mark has no effect.
    """
    torch._dynamo.maybe_mark_dynamic(t, dim)


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of ``torch.compile(function)``; any other is returned as it is."""
    original: Callable[..., Any] = getattr(function, "_torchdynamo_orig_callable", function)
    return original


def mode_options(mode: str, dynamic: bool | None) -> dict[str, Any]:
    """The options that a mode of ``torch.compile`` stands for, to combine with other options.

    Raises:
        RuntimeError: The mode is unknown.
    """
    import torch._inductor as inductor

    options: dict[str, Any] = inductor.list_mode_options(mode, dynamic)
    return options


# --- Guards -------------------------------------------------------------------------------------

GUARDS_OF_IDENTITY = frozenset(
    {"BUILTIN_MATCH", "CLASS_MATCH", "CLOSURE_MATCH", "ID_MATCH", "MODULE_MATCH"}
)
"""The kinds of guards that ask whether a function, class or module is the same object."""

GUARDED_BUILTINS = "G['__builtins_dict__"
"""The start of the names of guards on functions of Python itself."""


def guarded_package(name: str) -> str:
    """The start of the names of guards on the contents of a package."""
    return f"G['__import_{name}_dot_"


# --- Compilations -------------------------------------------------------------------------------


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of each compilation inside, also of those in other threads."""
    handler: Any = torch._dynamo.callback.callback_handler
    seconds: list[float] = []
    starts: list[float] = []

    def _start(args: Any) -> None:
        starts.append(time.perf_counter())

    def _end(args: Any) -> None:
        if starts:
            seconds.append(time.perf_counter() - starts.pop())

    handler.register_start_callback(_start)
    handler.register_end_callback(_end)
    try:
        yield seconds
    finally:
        handler.remove_start_callback(_start)
        handler.remove_end_callback(_end)


# --- Packages of AOTInductor --------------------------------------------------------------------


def is_package(value: object) -> bool:
    """Whether this is what ``aoti_load_package`` returns."""
    return type(value).__name__ == "AOTICompiledModel" and hasattr(value, "loader")


def load_package(path: Path) -> Callable[..., Any]:
    """The model of a package, as a function that runs forward."""
    import torch._inductor as inductor

    found: Callable[..., Any] = inductor.aoti_load_package(str(path))
    return found


# --- Errors -------------------------------------------------------------------------------------

RAISED = "debug context: raised exception "
"""The text before the message of an exception that the user's code raised during tracing."""


def compiler_error() -> type[Exception]:
    """The base class of the compiler's errors."""
    found: type[Exception] = torch._dynamo.exc.TorchDynamoException
    return found


def limit_errors() -> tuple[type[Exception], ...]:
    """The errors for a function that was compiled too often; torch 2.7 renamed the class."""
    exc: Any = torch._dynamo.exc
    names = ("FailOnRecompileLimitHit", "FailOnCacheLimitHit")
    return tuple([getattr(exc, name) for name in names if hasattr(exc, name)])


def recompile_limit() -> tuple[str, int]:
    """The name of the option that limits how often a function is compiled, and its value."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return f"torch._dynamo.config.{name}", getattr(config, name)  # torch 2.7 renamed it


def guard_failures(code: types.CodeType) -> list[str]:
    """Why the graphs of a code object did not fit later calls; the latest reason is the last."""
    return [str(reason) for reason in torch._dynamo.utils.guard_failures.get(code, [])]
