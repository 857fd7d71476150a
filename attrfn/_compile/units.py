"""The compiled units of one attribution: each is one graph for all numbers of rows."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._model.bound import Rows, put_rows, rows_of
from attrfn._torch import pytree
from attrfn._torch.autodiff import normal_tensors
from attrfn._torch.private import is_view
from attrfn._torch.private_compiler import changing_size, own_code

_CHANGED = (Tensor, functools.partial)


class Graph:
    """A function with torch.compile, whose first run is that of one thread.

    torch.compile lets each thread that meets a function without a graph compile one of its own,
    and soon reaches its limit on graphs. While the first thread compiles, the others wait; they
    all run the graph at once afterwards.

    Args:
        function: What is compiled, with a code object of its own.
        options: The arguments of torch.compile.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        # torch.compile counts compilations by code: each graph has a code object of its own.
        own = own_code(function)
        self.code = own.__code__
        self.compiled = torch.compile(own, fullgraph=True, **options)
        self.first = threading.RLock()
        self.exists = False

    def __call__(self, *args: Any) -> Any:
        """The function's results."""
        if not self.exists:
            with self.first:
                if not self.exists:
                    found = self.compiled(*args)
                    self.exists = True
                    return found
        return self.compiled(*args)


class _Call(threading.local):
    """What a call has found, in its thread."""

    size = 0  # of the chunks that run now
    alone = False  # whether they hold one copy each
    draws = False


class CompiledUnits:
    """What :class:`attrfn._torch.units.Units` describes, with ``torch.compile``.

    Args:
        how: Makes the arguments of torch.compile, which changes those that it is given, from what
            is dynamic.
        dynamic: As torch.compile takes it. None marks the rows as changing, and nothing else.
        overwrites: Whether the next run of a graph overwrites the results of this one.
    """

    def __init__(
        self,
        how: Callable[[bool | None], dict[str, Any]],
        dynamic: bool | None,
        *,
        overwrites: bool,
    ) -> None:
        self.how = how
        self.dynamic = dynamic
        self.overwrites = overwrites
        self.graphs: dict[tuple[Callable[..., Any], bool], Graph] = {}
        self.codes: list[Any] = []
        self.takes_two: bool | None = None
        self.call = _Call()

    def start(self) -> None:
        """Begin a call, in which no loop has run."""
        call = self.call
        call.size, call.alone, call.draws = 0, False, False

    @property
    def draws(self) -> bool:
        """Whether the model has been found to draw random numbers in this call."""
        return self.call.draws

    @draws.setter
    def draws(self, found: bool) -> None:
        self.call.draws = found

    def fix_sizes(self) -> bool:
        """Compile for each number of rows from now on; False if that is so already."""
        if self.dynamic is False:
            return False
        self.dynamic = False
        self.graphs.clear()
        return True

    def chunk(self, n: int, size: int) -> None:
        """Note that a loop over n copies takes this many at once."""
        call = self.call
        call.size = min(size, n)
        call.alone = call.size == 1 and n > 1

    def copies(self, n: int, batch: int, fits: Callable[[], bool]) -> int:
        """How many copies have to run where n are wanted."""
        if self.dynamic is False:
            # Each size is another graph: the last chunk of a loop is as long as the others.
            return max(n, self.call.size)
        if n * batch > 1 or self.call.alone:
            return n
        # torch.compile makes a graph of its own for a size of 1.
        if self.takes_two is None:
            self.takes_two = fits()
        return n + 1 if self.takes_two else n

    def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        sizes: tuple[int, ...],
        create_graph: bool,
    ) -> Any:
        """The function's results, by its graph."""
        key = function, create_graph
        graph = self.graphs.get(key)
        if graph is None:
            # Of threads that meet here, all take the graph of one.
            graph = self.graphs.setdefault(key, Graph(function, self.how(self.dynamic)))
            self.codes.append(graph.code)
        with torch.inference_mode(False), torch.set_grad_enabled(create_graph):
            given = _map_tensors(functools.partial(self._given, sizes), args)
            with _no_word_of_leaves() if create_graph else contextlib.nullcontext():
                found = graph(*given)
            if self.overwrites:
                found = pytree.tree_map_only(Tensor, Tensor.clone, found)
        return found

    def _given(self, sizes: tuple[int, ...], t: Tensor) -> Tensor:
        """A tensor as the graph takes it: of dense rows, whose number may change."""
        rows = rows_of(t)
        if rows is not None:
            return self._marked(t, rows, sizes)
        if t.ndim == 0 or t.shape[0] not in sizes or isinstance(t, torch.nn.Parameter):
            return t
        t = _own(t)
        if self.dynamic is None:
            changing_size(t, 0)
            if len(sizes) > 1 and t.shape[: len(sizes)] == sizes:
                changing_size(t, 1)
        return t

    def _marked(self, t: Tensor, rows: Rows, sizes: tuple[int, ...]) -> Tensor:
        """A bound tensor, which says itself where its rows are."""
        if t.layout != torch.strided:
            return t
        t = _own(t)
        if rows != "shared" and self.dynamic is None and t.shape[rows] in sizes:
            changing_size(t, rows)
        return put_rows(t, rows)


def _own(t: Tensor) -> Tensor:
    """A dense tensor that is not a view: a graph would contain the sizes of a view's base."""
    t = normal_tensors(t)
    if 0 in t.stride():
        t = t.contiguous()
    if is_view(t):
        t = t.clone() if torch.is_grad_enabled() else t.data
    return t


@contextlib.contextmanager
def _no_word_of_leaves() -> Iterator[None]:
    """The compiler reads ``grad`` of all inputs, of which torch warns where they have a graph."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
        yield


def _map_tensors(f: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same, with other tensors in trees and in what ``functools.partial`` binds."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, functools.partial):
        args, keywords = _map_tensors(f, (value.args, value.keywords))
        return functools.partial(_map_tensors(f, value.func), *args, **keywords)
    leaves, spec = optree.tree_flatten(value, none_is_leaf=True)
    if not any(isinstance(leaf, _CHANGED) for leaf in leaves):
        return value
    new = [_map_tensors(f, leaf) if isinstance(leaf, _CHANGED) else leaf for leaf in leaves]
    return optree.tree_unflatten(spec, new)
