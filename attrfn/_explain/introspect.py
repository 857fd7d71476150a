"""Methods as values: wrapping them and asking what they take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from attrfn._torch.typing import Method

F = TypeVar("F", bound=Callable[..., Any])


def takes_distribution(method: F) -> F:
    """Mark a method whose ``baselines`` are K draws of a distribution and not one per example."""
    method.baselines_are_distribution = True  # type: ignore[attr-defined]
    return method


def is_over_distribution(method: Method) -> bool:
    """Whether a method, or the one that it wraps or binds, is marked so."""
    return _is_marked(method, "baselines_are_distribution")


def of_examples(method: F) -> F:
    """Mark a method that covers regions of an example, or exchanges parts of examples."""
    method.needs_examples = True  # type: ignore[attr-defined]
    return method


def needs_examples(method: Method) -> bool:
    """Whether a method, or the one that it wraps or binds, is marked so."""
    return _is_marked(method, "needs_examples")


def is_ours(method: Method) -> bool:
    """Whether a method, or the one that it wraps or binds, is one of this library."""
    inner = _inner(method)
    if inner is not None:
        return is_ours(inner)
    return str(getattr(method, "__module__", "")).startswith("attrfn.")


def takes_baselines(method: Method) -> bool:
    """Whether a method has the option ``baselines``."""
    return "baselines" in inspect.signature(method).parameters


def takes_target(method: Method) -> bool:
    """Whether a method has the option ``target``, or takes any options."""
    parameters = inspect.signature(method).parameters
    return "target" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def explains_all_outputs(method: Method) -> bool:
    """Whether a method, or the one that it wraps or binds, explains all outputs with no target."""
    if isinstance(method, functools.partial):
        return explains_all_outputs(method.func)
    names = {record.__name__ for record in getattr(method, "records", ())}
    return "BlackBox" in names and "CamOptions" not in names


def wraps(method: Method) -> Callable[[F], F]:
    """``functools.wraps`` that also takes a ``functools.partial``, inside compiled code too."""

    def mark(wrapper: F) -> F:
        # A partial has no name to copy, and its docstring is that of functools.partial.
        if not isinstance(method, functools.partial):
            functools.update_wrapper(wrapper, method)
        wrapper.__wrapped__ = method  # type: ignore[attr-defined]
        return wrapper

    return mark


def _is_marked(method: Method, mark: str) -> bool:
    if getattr(method, mark, False):
        return True
    inner = _inner(method)
    return inner is not None and _is_marked(inner, mark)


def _inner(method: Method) -> Method | None:
    """The method that another one binds or wraps."""
    if isinstance(method, functools.partial):
        return method.func
    inner: Method | None = getattr(method, "__wrapped__", None)
    return inner
