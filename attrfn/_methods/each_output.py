"""All outputs of a model in one call of any method."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.backwards import all_outputs
from attrfn._copies.batch import is_count, repeat_bound, repeat_rows
from attrfn._copies.chunks import Chunks
from attrfn._copies.rows import check_bound
from attrfn._explain.forms import documented
from attrfn._explain.introspect import explains_all_outputs, is_ours, takes_target, wraps
from attrfn._explain.options import ChunkOptions
from attrfn._explain.said import main_tensor
from attrfn._explain.shared import marked, scores_of
from attrfn._explain.tree import call_model, each, flatten
from attrfn._model.bind import bind
from attrfn._torch.autodiff import gradients_allowed, transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import explained, unnoticed
from attrfn._torch.guard import called, guarded
from attrfn._torch.one_run import OneRun
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Leaves, Method, ModelFn, Target, Tree


@documented(ChunkOptions, scores=None)
def each_output(
    method: Method,
    *,
    n: int | None = None,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> Method:
    """A method that explains every output of a model in one call.

        each_output(X)(f, x)[:, k] = X(f, x, target=k)

    The model runs forward once for a chunk of outputs, and backward for all of them together, or
    one after the other where that is faster. A perturbation method sees all outputs in its own
    runs.

    Args:
        method: Any method with the option ``target``; one made by :func:`at_layer` or
            :func:`noise_tunnel` too.
        n: How many of the outputs, the first ones; None finds out how many there are, by a forward
            pass.
        chunk_size: How many outputs at once: an int, None (all) or ``"auto"``, which follows a rule
            of bytes and operations; 1 for models that torch.func.vmap cannot run.

    Returns:
        A method with the same options as ``method``. Its attributions have the dimensions of the
        outputs after that of the examples: (B, N, ...) for outputs (B, N). ``target`` is None, or
        a callable ``outputs -> (B, N)`` whose columns are explained.

    Raises:
        TypeError: The method is not callable or has no target.
        ValueError: An option has a wrong value.

    Example:
        >>> import torch, attrfn
        >>> model, x = torch.nn.Linear(3, 4), torch.randn(5, 3)
        >>> a = attrfn.each_output(attrfn.gradient)(model, x)
        >>> torch.allclose(a, model.weight.expand(5, 4, 3))
        True
    """
    _check(method, n)
    parameters = inspect.signature(method).parameters
    in_chunks, takes_graph = "chunk_size" in parameters, "create_graph" in parameters

    @wraps(method)
    @guarded
    @explained
    def every(model_fn: ModelFn, inputs: Tree, *, target: Target = None, **options: Any) -> Tree:
        if target is not None and not callable(target):
            raise TypeError(
                f"target is {say(target)}, expected None or a callable outputs -> (B, N), because "
                "each_output explains every output: call the method itself for one of them"
            )
        if target is None and n is None and explains_all_outputs(method):
            return method(model_fn, inputs, target=None, **options)
        x, rebuild = flatten(inputs)
        outputs = functools.partial(_outputs, model_fn, x, rebuild, target)
        check_bound(outputs, len(x[0]) if x and x[0].ndim else 0, "each_output")
        shape = _shape(outputs(1), target) if n is None else (n,)
        ungraphed = takes_graph and not (options.get("create_graph") or transforming())
        flags = ungraphed, in_chunks, not explains_all_outputs(method), is_ours(method)
        each_k = _Each(method, model_fn, inputs, target, shape, options, *flags, [])
        chunks = Chunks(chunk_size, "vmap", progress, "each_output")
        found = all_outputs(each_k, math.prod(shape), chunks, x)
        leaves = [_by_example(a, shape) for a in found]
        return optree.tree_unflatten(each_k.specs[-1], marked(leaves, scores_of(method)))

    # Its copies are those of vmap, inside which nothing is compiled.
    every.loops_over_chunks = False  # type: ignore[attr-defined]
    every.explains_each_output = True  # type: ignore[attr-defined]  # for attrfn.text
    return every


class _Each(NamedTuple):
    """A method, and the outputs that it explains one by one or several at once."""

    method: Method
    model_fn: ModelFn
    inputs: Tree
    target: Callable[..., Any] | None
    shape: tuple[int, ...]
    options: dict[str, Any]
    ungraphed: bool  # whether the result has no graph
    in_chunks: bool  # whether the method has chunks of copies
    backward: bool  # whether it takes gradients
    ours: bool  # whether it is one of this library
    specs: list[Any]

    def part(self, i: slice) -> Leaves:
        """The attributions of some outputs, (S, B, ...) each."""
        if i.stop - i.start == 1:
            return each(lambda a: a[None], self.one(i.start))
        device = flatten(self.inputs)[0][0].device
        with gradients_allowed():
            ids = torch.arange(i.start, i.stop, device=device)
        mapped: Leaves = torch.func.vmap(self.one, randomness="same")(ids)
        return mapped

    def columns(self, outputs: Any) -> Tensor:
        """All outputs that are explained, (B, N)."""
        found = outputs if self.target is None else self.target(outputs)
        columns: Tensor = main_tensor(found).flatten(1)
        return columns

    def from_gradients(self, i: slice, run: OneRun, grads: Leaves) -> tuple[Leaves, Leaves]:
        """The attributions of some outputs whose gradients are known, and the explained values."""

        def one(k: Tensor, *g: Tensor) -> tuple[Leaves, Leaves]:
            run.grads, run.seen = g, []
            return self.one(k), tuple(run.seen)

        ids = torch.arange(i.start, i.stop, device=grads[0].device)
        try:
            found: tuple[Leaves, Leaves] = torch.func.vmap(one, randomness="same")(ids, *grads)
        finally:
            run.grads = None
        return found

    def one(self, k: Tensor | int) -> Leaves:
        """The attributions of output number k."""
        # Inside vmap a method keeps the graph of the parameters wherever gradients are on.
        with torch.no_grad() if self.ungraphed else contextlib.nullcontext():
            target = _column(self.target, self.shape, k)
            found = self.method(self.model_fn, self.inputs, target=target, **self.options)
        leaves, spec = optree.tree_flatten(found)
        self.specs.append(spec)
        return tuple(leaves)


def _check(method: Method, n: int | None) -> None:
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected a method such as attrfn.gradient")
    if not takes_target(method):
        raise TypeError(
            f"method is {say(method)}, which has no option target, expected a method such as "
            "attrfn.gradient"
        )
    if n is not None and not is_count(n):
        raise ValueError(f"n is {say(n)}, expected None or the number of outputs, at least 1")


def _outputs(
    model_fn: ModelFn, x: Leaves, rebuild: Callable[..., Tree], target: Any, copies: int
) -> Any:
    """What is explained of several copies of the batch, by one forward pass."""
    batch = len(x[0]) if x and x[0].ndim else 0
    model = repeat_bound(bind(model_fn, frozen=True, forward_only=True), batch, copies)
    rows = rebuild(repeat_rows(x, copies) if copies > 1 else x)
    with torch.no_grad(), contextlib.nullcontext() if is_compiling() else unnoticed():
        outputs = call_model(model, rows)
    if target is None:
        return main_tensor(outputs)
    return main_tensor(called("target", repeat_bound(target, batch, copies), outputs))


def _shape(found: Any, target: Target) -> tuple[int, ...]:
    """The dimensions of each example's outputs."""
    if not isinstance(found, Tensor) or found.ndim < 2:
        giver = "model_fn" if target is None else "the callable target"
        raise ValueError(
            f"{giver} returned {say(found)}, expected a tensor (B, N) of several outputs of each "
            "example: call the method without each_output, or give a callable target"
        )
    return tuple(found.shape[1:])


def _by_example(a: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Attributions (N, B, ...) of all outputs as (B, *shape, ...)."""
    # Integers, such as the lengths of a packed sequence, are the same for every output.
    if not a.is_floating_point():
        return a[0]
    return a.movedim(0, 1).reshape(a.shape[1], *shape, *a.shape[2:])


def _column(target: Any, shape: tuple[int, ...], k: Tensor | int) -> Target:
    """The target of output number k, in the order of the flattened outputs."""
    if target is not None:
        # What is bound to the target stays visible, so that it follows copies of the batch.
        return functools.partial(_column_of, target, k)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    place: list[Any] = [k // stride % size for stride, size in zip(strides, shape, strict=True)]
    return place[0] if len(place) == 1 else tuple(place)


def _column_of(target: Callable[..., Any], k: Tensor | int, outputs: Any) -> Tensor:
    columns: Tensor = target(outputs).flatten(1)
    return columns[:, k] if isinstance(k, int) else columns.index_select(1, k.reshape(1))[:, 0]
