"""A method and a model whose passes are compiled, with all that a call decides before them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._compile.dynamo import (
    check_options,
    not_captured,
    parameters,
    too_often,
)
from attrfn._compile.stale import Watch
from attrfn._compile.static_chunks import shapes, static_size, unit_size
from attrfn._compile.units import CompiledUnits, Graph
from attrfn._explain.flags import check_flags, flags_of
from attrfn._explain.introspect import is_ours
from attrfn._explain.method_unit import loops_over_chunks
from attrfn._explain.target import select
from attrfn._explain.tree import clone_tensors, flatten, output_width
from attrfn._model.bind import bind
from attrfn._model.uncompiled import one_of, uncompiled
from attrfn._torch.autodiff import transforming
from attrfn._torch.generators import unmoved
from attrfn._torch.private_compiler import compilations, compiler_error, limit_errors
from attrfn._torch.typing import ChunkSize, ModelFn, Tree
from attrfn._torch.units import using
from attrfn._torch.warn import warn

_WITHOUT_TENSORS = (bool, int, float, str, type(None))


class CompileError(RuntimeError):
    """An attribution cannot be captured in one graph."""


class Compiled:
    """A method and a model, with a graph for each size of chunks.

    Args:
        method: The method.
        model_fn: The model function.
        options: The options that do not change.
        how: Makes the arguments of torch.compile, which changes those that it is given, from what
            is dynamic.
        dynamic: As torch.compile takes it.
        overwrites: Whether the next call overwrites the attributions of this one.
    """

    # What torch.compile would decide in the graph, each call decides here before it, in plain
    # Python: the size of chunks (a graph cannot measure), whether the result may be differentiated,
    # and the check of an int target, which enters the graph as a tensor so that it is not a guard.

    def __init__(
        self,
        method: Callable[..., Any],
        model_fn: ModelFn,
        options: dict[str, Any],
        how: Callable[[bool | None], dict[str, Any]],
        dynamic: bool | None,
        *,
        overwrites: bool,
    ) -> None:
        self.method = method
        self.model_fn = model_fn
        self.options = options
        self.holding = [v for v in options.values() if not isinstance(v, _WITHOUT_TENSORS)]
        self.how = how
        self.dynamic = dynamic
        self.overwrites = overwrites
        self.watch = Watch(uncompiled(model_fn))
        self.draws: bool | None = None  # known after the first call
        takes = parameters(method)
        self.known = frozenset(takes)
        self.flags = flags_of(takes.values()) if is_ours(method) else ()
        check_flags(self.flags, options)
        self.chunk_size = takes["chunk_size"].default if "chunk_size" in takes else None
        # Another library's create_graph may mean something else than ours.
        self.promises = "create_graph" in takes and is_ours(method)
        self.sizes: dict[object, ChunkSize] = {}
        self.widths: dict[object, int | None] = {}
        self.training: bool | None = None
        self.units = None
        if loops_over_chunks(method):
            self.units = CompiledUnits(how, dynamic, overwrites=overwrites)
        self.graphs: dict[tuple[ChunkSize, bool], Graph] = {}

    def timed(self, inputs: Tree, changing: dict[str, Any]) -> Any:
        """The attributions, and a line that says how long compiling took, if anything did."""
        with compilations() as seconds:
            found = self(inputs, changing)
        if seconds:
            name, many = getattr(self.method, "__name__", "the method"), "s" * (len(seconds) > 1)
            text = f"{name}: compiled {len(seconds)} graph{many} in {sum(seconds):.1f} s"
            print(text, file=sys.stderr, flush=True)
        return found

    def __call__(self, inputs: Tree, changing: dict[str, Any]) -> Any:
        """The attributions."""
        if self.watch.changed():
            self.graphs.clear()
            if self.units is not None:
                self.units.graphs.clear()
        if not self.known.issuperset(changing):
            check_options(self.method, changing)
        check_flags(self.flags, changing)
        if self.units is not None and not transforming():
            return self.by_units(self.units, inputs, changing)
        size, given = self.size(inputs, changing), changing
        if size != "given":
            given = {k: v for k, v in given.items() if k != "chunk_size"}
        target = given.get("target")
        if isinstance(target, int) and not isinstance(target, bool):
            given = {**given, "target": self.index(inputs, target)}
        undifferentiated = self.undifferentiated(inputs, changing)
        graph = self.graph(size, undifferentiated)
        try:
            with (
                torch.no_grad() if undifferentiated else nullcontext(),
                nullcontext() if self.draws is False else unmoved() as moved,
            ):
                found = graph(inputs, given)
            if self.draws is None:
                self.draws = bool(moved)
                _warn_of_draws(self.draws)
            return clone_tensors(found) if self.overwrites else found
        except limit_errors() as error:
            raise CompileError(too_often(self.method, graph.code)) from error
        except compiler_error() as error:
            failure = error
        # The compiler also wraps errors of the method and the model. In eager mode these come as
        # they are, with numbers where the compiler has symbols.
        self.run(inputs, changing)
        raise CompileError(not_captured(self.method, failure)) from failure

    def by_units(self, units: CompiledUnits, inputs: Tree, changing: dict[str, Any]) -> Any:
        """The attributions by the method itself, whose passes of the model are compiled."""
        training = getattr(self.model_fn, "training", None)
        if training != self.training:
            self.training, self.draws = training, None
        if self.draws:  # eager code gives each run the same numbers
            return self.run(inputs, changing)
        given, options = dict(changing), {**self.options, **changing}
        target = options.get("target")
        if isinstance(target, int) and not isinstance(target, bool):
            given["target"] = self.index(inputs, target)
        if self.promises and "create_graph" not in options:
            given["create_graph"] = not self.undifferentiated(inputs, changing)
        if (size := self.size(inputs, changing)) != "given":
            given["chunk_size"] = size
        units.start()
        try:
            with using(units), nullcontext() if self.draws is False else unmoved() as moved:
                found = self.run(inputs, given)
            if self.draws is None:
                self.draws = bool(moved) or units.draws
            return self.run(inputs, changing) if moved else found
        except limit_errors() as error:
            raise CompileError(too_often(self.method, units.codes[-1])) from error
        except compiler_error() as error:
            failure = error
        # The method's own errors come as they are. Some operations have no derivatives where sizes
        # are symbols (dropout is one in torch 2.13): each size is then another graph.
        self.run(inputs, changing)
        if units.fix_sizes():
            return self.by_units(units, inputs, changing)
        raise CompileError(not_captured(self.method, failure)) from failure

    def run(self, inputs: Tree, changing: Mapping[str, Any]) -> Any:
        """The method itself."""
        return self.method(self.model_fn, inputs, **{**self.options, **changing})

    def index(self, inputs: Tree, target: int) -> Tensor:
        """An int target as a tensor, after a check against the size of the outputs."""
        # A graph cannot check a tensor of indices, and an index out of range may read other memory.
        leaves = flatten(inputs)[0]
        shape = tuple([t.shape[1:] for t in leaves])
        if shape not in self.widths and not transforming() and all(t.numel() for t in leaves):
            self.widths[shape] = output_width(self.bound(), inputs)
        width = self.widths.get(shape)
        if width is not None and not -width <= target < width:
            select(torch.zeros(1, width), (target,), 1)  # raises
        return torch.full((), target, device=leaves[0].device)

    def bound(self) -> ModelFn:
        """The model, or one of an ensemble, on private copies."""
        return bind(uncompiled(one_of(self.model_fn)), frozen=True)

    def size(self, inputs: Tree, changing: dict[str, Any]) -> Any:
        """The size of chunks in the graph, or "given" if the options determine it."""
        options = {**self.options, **changing}
        size = options.get("chunk_size", self.chunk_size)
        if size != "auto":
            return changing.get("chunk_size", "given")
        if options.get("batching") == "loop" or transforming():
            return "given"
        # A target and a key change in each call and take no memory.
        others = {k: v for k, v in changing.items() if k not in ("target", "key")}
        shape = shapes((inputs, others))
        if shape not in self.sizes:
            known = {size for size, _ in list(self.graphs) if isinstance(size, int)}
            find = functools.partial(static_size, known=known) if self.units is None else unit_size
            self.sizes[shape] = find(
                lambda ask: self.run(inputs, {**changing, "chunk_size": ask}),
                self.model_fn,
                inputs,
            )
        return self.sizes[shape]

    def undifferentiated(self, inputs: Tree, changing: dict[str, Any]) -> bool:
        """Whether the attributions cannot be differentiated, so that rules save a run."""
        if not self.promises or "create_graph" in {**self.options, **changing} or transforming():
            return False
        if not torch.is_grad_enabled():
            return True
        given = _tensors(inputs) + _tensors(changing) + _tensors(self.holding)
        return not any(t.requires_grad for t in given)

    def graph(self, size: Any, undifferentiated: bool = False) -> Graph:
        """The compiled function for a size of chunks."""
        graph = self.graphs.get((size, undifferentiated))
        if graph is None:
            fixed = {} if size == "given" else {"chunk_size": size}
            fixed |= {"create_graph": None} if undifferentiated else {}

            # torch.compile changes what it knows of a function with each compilation, and its
            # limit counts them: a size of chunks is a function by itself.
            def attribute(inputs: Tree, changing: Mapping[str, Any]) -> Any:
                return self.run(inputs, {**changing, **fixed})

            graph = Graph(attribute, self.how(self.dynamic))
            graph = self.graphs.setdefault((size, undifferentiated), graph)
        return graph


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree; the common cases without a call of optree."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) in (dict, list) and not tree:
        return []
    leaves = optree.tree_leaves(tree, none_is_leaf=True)
    return [t for t in leaves if isinstance(t, Tensor)]


def _warn_of_draws(draws: bool) -> None:
    if draws:
        warn(
            "the model draws random numbers, in compiled code others in each of its runs, so that "
            "the attributions belong to no single draw: call model.eval(), or the method without "
            "attrfn.compile"
        )
