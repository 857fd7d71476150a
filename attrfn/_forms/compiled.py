"""A whole attribution as one compiled graph."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch

from attrfn._core.compiling import require_compiler
from attrfn._core.typing import ModelFn, Tree

F = TypeVar("F", bound=Callable[..., Any])

_RAISED = "debug context: raised exception "
_FRAME = re.compile(r'File "(.+)", line (\d+)')
_INNER = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_numbers = count()


class CompileError(RuntimeError):
    """An attribution cannot be captured in one graph."""


def compile(
    method: Callable[..., Any],
    model_fn: ModelFn,
    *,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    dynamic: bool | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """A method and a model as one compiled function ``(inputs, **changing) -> attributions``.

    All steps, samples, masks and their sum are one graph. Parameters are inputs of the graph, so
    that training the model compiles nothing anew; and after a second batch size nor does a third.
    The first call compiles, in seconds to minutes.

    Args:
        method: A method of attrfn, or a function with the same arguments.
        model_fn: See :func:`gradient`.
        backend: What ``torch.compile`` takes.
        mode: What ``torch.compile`` takes, such as ``"max-autotune"`` or ``"reduce-overhead"``
            (CUDA graphs).
        dynamic: What ``torch.compile`` takes: None compiles for one batch size first and for all
            when a second one comes, True for all at once, False for each.
        **options: Options of the method that do not change, such as ``n_steps``.

    Returns:
        A function of the inputs. Its keyword arguments are further options of the method, tensors
        above all: targets, baselines, keys. A target that is an int does not compile anew.

    Raises:
        TypeError: ``method`` or ``model_fn`` cannot be called.
        RuntimeError: This torch is older than 2.6.
        CompileError: (When called) torch cannot capture the method on this model in one graph.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Linear(3, 2)
        >>> explain = attrfn.compile(attrfn.integrated_gradients, model, n_steps=8, backend="eager")
        >>> explain(torch.ones(4, 3), target=1).shape
        torch.Size([4, 3])
    """
    require_compiler()
    for name, value in (("method", method), ("model_fn", model_fn)):
        if not callable(value):
            raise TypeError(
                f"{name} is a {type(value).__name__}, expected something to call: "
                "attrfn.compile(attrfn.integrated_gradients, model)"
            )

    def attribute(inputs: Tree, changing: Mapping[str, Any]) -> Any:
        return method(model_fn, inputs, **{**options, **changing})

    attribute = own_code(attribute)
    graph = torch.compile(attribute, fullgraph=True, dynamic=dynamic, backend=backend, mode=mode)

    def compiled(inputs: Tree, **changing: Any) -> Any:
        target = changing.get("target")
        if isinstance(target, int) and not isinstance(target, bool):
            changing["target"] = torch.tensor(target)
        try:
            return graph(inputs, changing)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise CompileError(_too_often(method, attribute.__code__)) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            raise CompileError(_message(method, error)) from error

    return compiled


def own_code(function: F) -> F:
    """The same function with a code object of its own, because torch.compile counts by those."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    new = types.FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    return new  # type: ignore[return-value]


def _too_often(method: Callable[..., Any], code: types.CodeType) -> str:
    """One sentence: what was another at each call."""
    reasons = torch._dynamo.utils.guard_failures.get(code) or ["unknown"]
    changed = str(reasons[-1]).strip().splitlines()[0]
    return (
        f"{_name(method)} of this model was compiled {torch._dynamo.config.recompile_limit} times, "
        f"because something changes from call to call (last: {changed}): keep it the same, give it "
        "as a tensor, or raise torch._dynamo.config.recompile_limit"
    )


def _name(method: Callable[..., Any]) -> str:
    return getattr(method, "__name__", type(method).__name__)


def _message(method: Callable[..., Any], error: Exception) -> str:
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
        f"{name} itself to see whether it runs, or set TORCH_LOGS=graph_breaks to see more"
    )
