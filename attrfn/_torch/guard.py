"""Errors in the user's terms: which argument was wrong is found out when something has failed.

A check of every argument before every call would take longer than a small model. So a public
function runs unchecked where torch checks as well, and an error that names none of its arguments is
looked at afterwards: arguments that are not of the kind that the signature says, tensors of unusual
kinds, integers beyond 64 bits, and the model itself.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from attrfn._torch.compiling import is_compiling
from attrfn._torch.dense import densified
from attrfn._torch.inference import as_no_grad, is_as_no_grad
from attrfn._torch.kinds import expected
from attrfn._torch.private import in_transform, says_inference
from attrfn._torch.say import say

F = TypeVar("F", bound=Callable[..., Any])
Given = Mapping[str, Any]

# Errors of these classes themselves; a subclass is someone's own, who may want to catch it.
_PLAIN: tuple[type[Exception], ...] = (RuntimeError, TypeError, ValueError, IndexError)
_PLAIN += (AttributeError, NotImplementedError, AssertionError, OverflowError, ZeroDivisionError)
_CALL_OF_MODEL = ("attrfn._explain.tree", "call_model")
_RUNS_MODEL = "attrfn._torch.explanation"
_LONGEST = 300
_MODELS = ("model_fn", "model")
_READS = 2  # of nested containers, in which a tensor is looked for


def guarded(function: F, check: Callable[[Mapping[str, Any]], None] | None = None) -> F:
    """The same function, whose errors name an argument.

    Args:
        function: A public function.
        check: Looks at the keyword arguments before each call.
    """

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if check is not None:
            check(options)
        if is_compiling():  # torch.compile would trace the handler, too
            return function(*args, **options)
        try:
            return function(*args, **options)
        except Exception as error:
            if not is_plain(error) or _called_from_inside():
                raise
            again = _another_way(function, args, options, error)
            if again is None:
                name_argument(function, args, options, error)
                raise
        with again[0]:
            return run(**again[1])

    return run  # type: ignore[return-value]


def _another_way(
    function: Callable[..., Any], args: tuple[Any, ...], options: Given, error: Exception
) -> tuple[contextlib.AbstractContextManager[None], Given] | None:
    """In which context a call may be repeated, and with which arguments; None if in no way."""
    given = _given(function, args, options)
    if says_inference(error) and not is_as_no_grad():
        return as_no_grad(), given
    if "model_fn" not in given or "inputs" not in given:
        return None
    dense = densified(given["model_fn"], given["inputs"])
    if dense is None:
        return None
    return contextlib.nullcontext(), {**given, "model_fn": dense[0], "inputs": dense[1]}


def _given(function: Callable[..., Any], args: tuple[Any, ...], options: Given) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {**dict(zip(parameters, args, strict=False)), **options}


def is_plain(error: Exception) -> bool:
    """Whether an error is of a class of Python's (or numpy's) that tells nothing but its text."""
    return type(error) in _PLAIN or type(error).__module__.startswith("numpy")


def called(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that the user gave as the argument ``name``."""
    if is_compiling():
        return function(*args)
    try:
        return function(*args)
    except Exception as error:
        if is_plain(error) and not re.search(rf"\b{name}\b", str(error)):
            fail(error, f"{name} failed: {first_line(error)}")
        raise


def name_argument(
    function: Callable[..., Any], args: tuple[Any, ...], options: Given, error: Exception
) -> None:
    """Raise an error that names the argument at fault, if one is found."""
    parameters = inspect.signature(function).parameters
    given = _given(function, args, options)
    ours = isinstance(error, (TypeError, ValueError))
    if ours and any(re.search(rf"\b{name}\b", str(error)) for name in parameters):
        return
    for name, value in given.items():
        words = expected(parameters[name].annotation, value) if name in parameters else None
        if words is not None:
            raise TypeError(f"{name} is {say(value)}, expected {words}") from error
    functions = list(_functions(error.__traceback__))
    # What the library itself raises while it runs the model is a sentence already.
    ours = ours and functions[-1][0].startswith("attrfn.") and functions[-1][0] != _RUNS_MODEL
    if _CALL_OF_MODEL in functions and not ours:
        fail(error, _of_model(given, error))
    for name, value in given.items():
        if name not in _MODELS and (flaw := _flaw(value)):
            fail(error, f"{name} {flaw}")


def fail(error: Exception, message: str) -> NoReturn:
    """Raise an error of the same class, and a ValueError, with another message."""
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST - 3]}..."
    raise _class_of(type(error))(message) from error


def _class_of(kind: type[Exception]) -> type[Exception]:
    """A class that both ``except ValueError`` and an ``except`` of the first class catch."""
    for base in (TypeError, ValueError):
        if issubclass(kind, base):
            return base
    body = {"__module__": kind.__module__, "__reduce__": lambda e: (kind, e.args)}
    return type(kind.__name__, (kind, ValueError), body)


def _of_model(given: Given, error: Exception) -> str:
    """The message for an error that the model raised."""
    name = next((n for n in _MODELS if n in given), "model_fn")
    tensors = list(_tensors(given.get("inputs")))
    shown = ", ".join([say(t) for t in tensors if not t.is_nested]) or say(given.get("inputs"))
    text = f"{name} failed on inputs, {shown}: {first_line(error)}"
    if first_line(error).startswith("Guard failed"):  # of ExportedProgram.module()
        return f"{text[:200]}: give attrfn.programs.load(exported_program), or export other sizes"
    if (in_transform() or given.get("batching") == "vmap") and (layer := _recurrent(given[name])):
        return (
            f"{name} holds a {layer}, which torch cannot run under vmap ({first_line(error)}): "
            "give all examples in one batch in place of torch.func.vmap or batching='vmap'"
        )
    p = _first_parameter(given.get(name))
    if p is None or not tensors:
        return text
    if p.is_meta:
        return f"{text} (the weights of {name} are on the device meta, where they have no values)"
    x = tensors[0]
    if p.device != x.device:
        return f"inputs are on {x.device} and {name} is on {p.device}: move one with .to(device)"
    floating = x.is_floating_point() and p.is_floating_point()
    if floating and p.dtype != x.dtype:
        text += f" (inputs are {x.dtype} and the parameters of {name} {p.dtype})"
    return text


def _module(model: Any) -> nn.Module | None:
    while isinstance(model, functools.partial):
        model = model.func
    model = getattr(model, "__self__", model)
    return model if isinstance(model, nn.Module) else None


def _first_parameter(model: Any) -> Tensor | None:
    module = _module(model)
    return None if module is None else next(module.parameters(), None)


def _recurrent(model: Any) -> str:
    """The class of a recurrent layer in a model; empty if none is found."""
    module = _module(model)
    kinds = (nn.RNNBase, nn.RNNCellBase)
    found = [] if module is None else [m for m in module.modules() if isinstance(m, kinds)]
    return type(found[0]).__name__ if found else ""


def _flaw(value: Any) -> str:
    """What is unusual about a value, as the rest of a sentence; empty if nothing is."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"is {say(value)}, which 64 bits cannot hold: expected a smaller number"
    for t in _tensors(value):
        if words := unusual(t):
            return f"holds a {words}: expected ordinary, dense tensors"
        if t.dtype == torch.bool:
            return "holds a tensor of torch.bool: expected numbers"
    return ""


def unusual(t: Tensor) -> str:
    """How a tensor is unusual; empty for an ordinary, dense one."""
    if t.is_meta:
        return "meta tensor, which has no values"
    if t.is_nested:
        return "nested tensor"
    if t.is_quantized:
        return "quantised tensor"
    return "" if t.layout == torch.strided else "sparse tensor"


def refuse_unusual(t: Tensor, name: str) -> None:
    """Refuse a tensor that is not an ordinary, dense one.

    Raises:
        TypeError: It is sparse, nested, quantised or on the device "meta".
    """
    if is_compiling():  # whose tensors stand for others
        return
    if words := unusual(t):
        raise TypeError(f"{name} holds a {words}: expected ordinary, dense tensors")


def _tensors(value: Any, depth: int = _READS) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _tensors(v, depth - 1)


def _called_from_inside() -> bool:
    """Whether a function of the library called the guarded one: the outermost one has the names."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        # A repeated call comes from this file; attrfn.compile and attrfn.data call a method of the
        # user's.
        outer = (__name__, "attrfn._compile", "attrfn.data.")
        if name.startswith("attrfn.") and not name.startswith(outer):
            return True
        frame = frame.f_back
    return False


def _functions(trace: TracebackType | None) -> Iterator[tuple[str, str]]:
    """The functions through which an error came, with their modules."""
    while trace is not None:
        frame = trace.tb_frame
        yield frame.f_globals.get("__name__", ""), frame.f_code.co_name
        trace = trace.tb_next


def first_line(error: Exception) -> str:
    """The text of an error up to its first break, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
