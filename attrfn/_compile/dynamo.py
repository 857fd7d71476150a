"""What torch.compile makes of a function, and its errors in the user's terms."""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_RAISED = "debug context: raised exception "
_FRAME = re.compile(r'File "(.+)", line (\d+)')
_INNER = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_numbers = count()
# Leaving these out wins 1.1 to 1.2: layer_activation of the MLP, batch 1, compiled, in
# benchmarks/special_cases_earn_their_place.py.
_LASTING = ("G['__import_attrfn_dot_", "G['__import_optree_dot_", "G['__builtins_dict__")
_CLONES = "._CLONES."  # private copies of modules, but what they hold may be the user's
_SAME = frozenset({"BUILTIN_MATCH", "CLASS_MATCH", "CLOSURE_MATCH", "ID_MATCH", "MODULE_MATCH"})


def needed(guards: Sequence[Any]) -> list[bool]:
    """Which of torch.compile's guards are looked at before each call.

    Not whether functions and classes of this library, of optree and of Python itself are the same
    still: these never fail, and are many.
    """
    return [
        _CLONES in guard.name
        or guard.guard_type not in _SAME
        or not guard.name.startswith(_LASTING)
        for guard in guards
    ]


def settings(
    backend: str | Callable[..., Any], mode: str | None, dynamic: bool | None
) -> dict[str, Any]:
    """New arguments for ``torch.compile``, which takes a mode or options and empties the options.

    Raises:
        RuntimeError: The mode is unknown.
    """
    how: dict[str, Any] = {"backend": backend, "dynamic": dynamic}
    if mode is not None and backend != "inductor":
        return how | {"mode": mode}
    options: dict[str, Any] = {"guard_filter_fn": needed}
    if mode is not None:
        import torch._inductor as inductor

        options |= inductor.list_mode_options(mode, dynamic)
    return how | {"options": options}


def own_code(function: F) -> F:
    """The same function with a code object of its own, because torch.compile counts by those."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    new = types.FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    return new  # type: ignore[return-value]


def parameters(method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a method; none where they cannot be known."""
    try:
        takes = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(takes.items())[2:])


def check_options(method: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse what the compiler would not name.

    Raises:
        TypeError: The method has no option of this name.
    """
    takes = parameters(method)
    if not takes or any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    for option in options:
        if option not in takes:
            near = difflib.get_close_matches(option, takes, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{option} is no option of {_name(method)}, expected some of "
                f"{', '.join(takes)}{hint}"
            )


def limit_errors() -> tuple[type[Exception], ...]:
    """What the compiler raises where it has compiled a function too often; torch 2.7 renamed it."""
    names = ("FailOnRecompileLimitHit", "FailOnCacheLimitHit")
    return tuple([getattr(torch._dynamo.exc, n) for n in names if hasattr(torch._dynamo.exc, n)])


def too_often(method: Callable[..., Any], code: types.CodeType) -> str:
    """One sentence: what was another at each call."""
    reasons = torch._dynamo.utils.guard_failures.get(code) or ["unknown"]
    changed = str(reasons[-1]).strip().splitlines()[0]
    config: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return (
        f"{_name(method)} of this model was compiled {getattr(config, limit)} times, because "
        f"something changes from call to call (last: {changed}): keep it the same, give it as a "
        f"tensor, or raise torch._dynamo.config.{limit}"
    )


def _name(method: Callable[..., Any]) -> str:
    return getattr(method, "__name__", type(method).__name__)


def why(method: Callable[..., Any], error: Exception) -> str:
    """One sentence: what could not be captured, and where in the user's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line.split(_RAISED, 1)[1] for line in lines if _RAISED in line]
    why = (raised or lines or [type(error).__name__])[0]
    places = [found for line in lines if (found := _FRAME.match(line))]
    users = [found for found in places if not found[1].startswith(_INNER)]
    place = f" ({Path(users[-1][1]).name}, line {users[-1][2]})" if users else ""
    name = _name(method)
    return (
        f"torch.compile cannot capture {name} of this model in one graph: {why}{place}; call "
        f"{name} itself, which runs, or set TORCH_LOGS=graph_breaks to see more"
    )
