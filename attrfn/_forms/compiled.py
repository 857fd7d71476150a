"""A whole attribution as one compiled graph."""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch

from attrfn._core.compiling import require_compiler
from attrfn._core.derive import transforming
from attrfn._core.static_chunks import shapes, static_size
from attrfn._core.typing import ChunkSize, ModelFn, Tree

Graph = Callable[[Tree, Mapping[str, Any]], Any]
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

    Where a method's ``chunk_size`` is "auto", its loop over chunks is written out in the graph. So
    the size is chosen before, once for each new shape of the inputs, by a plain call of the model:
    all copies where memory holds them, else a power of two, with at most 32 chunks. Another size
    is another graph, and a size that is up to four times too small is kept: few graphs arise while
    batches grow. Give ``chunk_size`` to have a certain one (a :func:`noise_tunnel` needs its own).

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

    _check_options(method, options)
    settings = {"dynamic": dynamic, "backend": backend, "mode": mode}
    compiled = _Compiled(method, model_fn, options, settings)
    return lambda inputs, **changing: compiled(inputs, changing)


class _Compiled:
    """A method and a model, with a graph for each size of chunks."""

    def __init__(
        self,
        method: Callable[..., Any],
        model_fn: ModelFn,
        options: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        self.method = method
        self.model_fn = model_fn
        self.options = options
        self.settings = settings
        takes = _parameters(method)
        self.chunk_size = takes["chunk_size"].default if "chunk_size" in takes else None
        self.counts = "chunk_size" in takes and "progress" in takes
        self.sizes: dict[object, ChunkSize] = {}
        self.graphs: dict[ChunkSize, tuple[Graph, types.CodeType]] = {}

    def __call__(self, inputs: Tree, changing: dict[str, Any]) -> Any:
        """The attributions."""
        _check_options(self.method, changing)
        size, given = self.size(inputs, changing), changing
        if size != "given":
            given = {k: v for k, v in given.items() if k != "chunk_size"}
        target = given.get("target")
        if isinstance(target, int) and not isinstance(target, bool):
            given = {**given, "target": torch.tensor(target)}
        graph, code = self.graph(size)
        try:
            return graph(inputs, given)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise CompileError(_too_often(self.method, code)) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            raise CompileError(_message(self.method, error)) from error

    def run(self, inputs: Tree, changing: Mapping[str, Any]) -> Any:
        """The method itself."""
        return self.method(self.model_fn, inputs, **{**self.options, **changing})

    def size(self, inputs: Tree, changing: dict[str, Any]) -> Any:
        """The size of chunks in the graph, or "given" where the options say it."""
        every = {**self.options, **changing}
        size = every.get("chunk_size", self.chunk_size)
        if size != "auto":
            return changing.get("chunk_size", "given")
        if not self.counts or every.get("batching") == "loop" or transforming():
            return "given"
        others = {k: v for k, v in changing.items() if k not in ("target", "key")}
        place = shapes((inputs, others))
        if place not in self.sizes:
            self.sizes[place] = static_size(
                lambda: self.run(inputs, {**changing, "progress": True}),
                self.model_fn,
                inputs,
                {size for size in self.graphs if isinstance(size, int)},
            )
        return self.sizes[place]

    def graph(self, size: Any) -> tuple[Graph, types.CodeType]:
        """The compiled function for a size of chunks."""
        if size not in self.graphs:
            chunks = {} if size == "given" else {"chunk_size": size}

            def attribute(inputs: Tree, changing: Mapping[str, Any]) -> Any:
                return self.run(inputs, {**changing, **chunks})

            attribute = own_code(attribute)
            graph = torch.compile(attribute, fullgraph=True, **self.settings)
            self.graphs[size] = graph, attribute.__code__
        return self.graphs[size]


def own_code(function: F) -> F:
    """The same function with a code object of its own, because torch.compile counts by those."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    new = types.FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    return new  # type: ignore[return-value]


def _parameters(method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a method; none where they cannot be known."""
    try:
        takes = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(takes.items())[2:])


def _check_options(method: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse what the compiler would not name.

    Raises:
        TypeError: The method has no option of this name.
    """
    takes = _parameters(method)
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
