"""A whole attribution as one compiled graph."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._compile.dynamo import (
    check_options,
    parameters,
    settings,
    too_often,
    why,
)
from attrfn._compile.static_chunks import shapes, static_size
from attrfn._explain.introspect import is_ours
from attrfn._explain.target import select
from attrfn._explain.tree import clone_tensors, flatten, output_width
from attrfn._model.bind import bind, uncompiled
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import require_compiler
from attrfn._torch.private_compiler import compiler_error, limit_errors, own_code
from attrfn._torch.typing import ChunkSize, ModelFn, Tree

Graph = Callable[[Tree, Mapping[str, Any]], Any]
_PLAIN = (bool, int, float, str, type(None))
_OVERWRITE = ("reduce-overhead", "max-autotune")  # CUDA graphs: outputs last until the next call


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

    The attributions have a graph where one of the tensors given to the call requires a gradient, or
    with ``create_graph=True``, and inside transforms; they are computed with less work where not.

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
            (CUDA graphs; the attributions are copied, so that the next call does not overwrite
            them).
        dynamic: What ``torch.compile`` takes: None compiles for one batch size first and for all
            when a second one comes, True for all at once, False for each.
        **options: Options of the method that do not change, such as ``n_steps``.

    Returns:
        A function of the inputs. Its keyword arguments are further options of the method, tensors
        above all: targets, baselines, keys. A target that is an int does not compile anew; its
        range is checked where the model returns (B, K), that of a tensor is not.

    Raises:
        TypeError: ``method`` or ``model_fn`` cannot be called, or the method has no such option.
        RuntimeError: This torch is older than 2.12.
        CompileError: (When called) torch cannot capture the method on this model in one graph.
            What the method itself raises is raised as it is.

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

    check_options(method, options)
    how = functools.partial(settings, backend, mode, dynamic)
    compiled = _Compiled(method, model_fn, options, how, overwrites=mode in _OVERWRITE)
    compiled.graph("given")  # refuses unknown settings
    return lambda inputs, **changing: compiled(inputs, changing)


class _Compiled:
    """A method and a model, with a graph for each size of chunks.

    Args:
        method: The method.
        model_fn: The model function.
        options: What does not change.
        how: Makes the arguments of torch.compile.
        overwrites: Whether the next call overwrites what this one returns.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        model_fn: ModelFn,
        options: dict[str, Any],
        how: Callable[[], dict[str, Any]],
        *,
        overwrites: bool,
    ) -> None:
        self.method = method
        self.model_fn = model_fn
        self.options = options
        self.holding = [v for v in options.values() if not isinstance(v, _PLAIN)]
        self.how = how
        self.overwrites = overwrites
        takes = parameters(method)
        self.known = frozenset(takes)
        self.chunk_size = takes["chunk_size"].default if "chunk_size" in takes else None
        self.promises = "create_graph" in takes and is_ours(method)
        self.sizes: dict[object, ChunkSize] = {}
        self.widths: dict[object, int | None] = {}
        self.graphs: dict[tuple[ChunkSize, bool], tuple[Graph, types.CodeType]] = {}

    def __call__(self, inputs: Tree, changing: dict[str, Any]) -> Any:
        """The attributions."""
        if not self.known.issuperset(changing):
            check_options(self.method, changing)
        size, given = self.size(inputs, changing), changing
        if size != "given":
            given = {k: v for k, v in given.items() if k != "chunk_size"}
        target = given.get("target")
        if isinstance(target, int) and not isinstance(target, bool):
            given = {**given, "target": self.index(inputs, target)}
        undifferentiated = self.undifferentiated(inputs, changing)
        graph, code = self.graph(size, undifferentiated)
        try:
            with torch.no_grad() if undifferentiated else contextlib.nullcontext():
                found = graph(inputs, given)
            return clone_tensors(found) if self.overwrites else found
        except limit_errors() as error:
            raise CompileError(too_often(self.method, code)) from error
        except compiler_error() as error:
            failure = error
        self.run(inputs, changing)  # its own error has numbers where the compiler has symbols
        raise CompileError(why(self.method, failure)) from failure

    def run(self, inputs: Tree, changing: Mapping[str, Any]) -> Any:
        """The method itself."""
        return self.method(self.model_fn, inputs, **{**self.options, **changing})

    def index(self, inputs: Tree, target: int) -> Tensor:
        """An int target as a tensor, after a look at the outputs, whose size no graph checks."""
        leaves = flatten(inputs)[0]
        place = tuple([t.shape[1:] for t in leaves])
        if place not in self.widths and not transforming() and all(t.numel() for t in leaves):
            self.widths[place] = output_width(bind(uncompiled(self.model_fn), frozen=True), inputs)
        width = self.widths.get(place)
        if width is not None and not -width <= target < width:
            select(torch.zeros(1, width), (target,), 1)  # raises
        return torch.full((), target, device=leaves[0].device)

    def size(self, inputs: Tree, changing: dict[str, Any]) -> Any:
        """The size of chunks in the graph, or "given" where the options say it."""
        every = {**self.options, **changing}
        size = every.get("chunk_size", self.chunk_size)
        if size != "auto":
            return changing.get("chunk_size", "given")
        if every.get("batching") == "loop" or transforming():
            return "given"
        others = {k: v for k, v in changing.items() if k not in ("target", "key")}
        place = shapes((inputs, others))
        if place not in self.sizes:
            self.sizes[place] = static_size(
                lambda ask: self.run(inputs, {**changing, "chunk_size": ask}),
                self.model_fn,
                inputs,
                {size for size, _ in self.graphs if isinstance(size, int)},
            )
        return self.sizes[place]

    def undifferentiated(self, inputs: Tree, changing: dict[str, Any]) -> bool:
        """Whether nobody can differentiate the attributions."""
        if not self.promises or "create_graph" in {**self.options, **changing} or transforming():
            return False
        if not torch.is_grad_enabled():
            return True
        given = _tensors(inputs) + _tensors(changing) + _tensors(self.holding)
        return not any(t.requires_grad for t in given)

    def graph(self, size: Any, undifferentiated: bool = False) -> tuple[Graph, types.CodeType]:
        """The compiled function for a size of chunks."""
        if (size, undifferentiated) not in self.graphs:
            fixed = {} if size == "given" else {"chunk_size": size}
            fixed |= {"create_graph": None} if undifferentiated else {}

            def attribute(inputs: Tree, changing: Mapping[str, Any]) -> Any:
                return self.run(inputs, {**changing, **fixed})

            attribute = own_code(attribute)
            graph = torch.compile(attribute, fullgraph=True, **self.how())
            self.graphs[size, undifferentiated] = graph, attribute.__code__
        return self.graphs[size, undifferentiated]


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree; optree is not asked where it is plain to see."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) in (dict, list) and not tree:
        return []
    leaves = optree.tree_leaves(tree, none_is_leaf=True)
    return [t for t in leaves if isinstance(t, Tensor)]
