"""All outputs of a model in one call of any method."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import is_count
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._explain.forms import documented
from attrfn._explain.introspect import explains_all_outputs, takes_target, wraps
from attrfn._explain.options import ChunkOptions
from attrfn._explain.said import main_tensor
from attrfn._explain.shared import marked, scores_of
from attrfn._explain.tree import call_model, each, flatten
from attrfn._model.bind import bind
from attrfn._torch.autodiff import gradients_allowed, transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import unnoticed
from attrfn._torch.guard import called, guarded
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

    For a chunk of outputs the model runs forward once, and backward for all of them together. A
    perturbation method sees all outputs in its own runs.

    Args:
        method: Any method with the option ``target``; one made by :func:`at_layer` or
            :func:`noise_tunnel` too.
        n: How many of the outputs, the first ones; None finds out how many there are, by a forward
            pass.
        chunk_size: How many outputs at once: an int, None (all) or ``"auto"`` (what memory holds);
            1 for models that torch.func.vmap cannot run.

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

    @wraps(method)
    @guarded
    def every(model_fn: ModelFn, inputs: Tree, *, target: Target = None, **options: Any) -> Tree:
        if target is not None and not callable(target):
            raise TypeError(
                f"target is {say(target)}, expected None or a callable outputs -> (B, N), because "
                "each_output explains every output: call the method itself for one of them"
            )
        if target is None and n is None and explains_all_outputs(method):
            return method(model_fn, inputs, target=None, **options)
        x, _ = flatten(inputs)
        shape = _shape(model_fn, inputs, target) if n is None else (n,)
        ungraphed = _takes_graph(method) and not (options.get("create_graph") or transforming())
        specs: list[Any] = []

        def one(k: Tensor | int) -> Leaves:
            # Inside vmap a method keeps the graph of the parameters wherever gradients are on.
            with torch.no_grad() if ungraphed else contextlib.nullcontext():
                found = method(model_fn, inputs, target=_column(target, shape, k), **options)
            leaves, spec = optree.tree_flatten(found)
            specs.append(spec)
            return tuple(leaves)

        def part(i: slice) -> Leaves:
            if i.stop - i.start == 1:
                return each(lambda a: a[None], one(i.start))
            with gradients_allowed():
                ids = torch.arange(i.start, i.stop, device=x[0].device)
            mapped: Leaves = torch.func.vmap(one, randomness="same")(ids)
            return mapped

        chunks = Chunks(chunk_size, "vmap", progress, "each_output")
        found = over_chunks(part, _joined, math.prod(shape), chunks, x[0].device, x=x)
        leaves = [a.movedim(0, 1).reshape(a.shape[1], *shape, *a.shape[2:]) for a in found]
        return optree.tree_unflatten(specs[-1], marked(leaves, scores_of(method)))

    # Its copies are those of vmap, inside which nothing is compiled.
    every.loops_over_chunks = False  # type: ignore[attr-defined]
    every.explains_each_output = True  # type: ignore[attr-defined]  # for attrfn.text
    return every


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


def _takes_graph(method: Method) -> bool:
    return "create_graph" in inspect.signature(method).parameters


def _shape(model_fn: ModelFn, inputs: Tree, target: Callable[..., Any] | None) -> tuple[int, ...]:
    """The dimensions of each example's outputs, by one forward pass."""
    x, rebuild = flatten(inputs)
    with torch.no_grad(), contextlib.nullcontext() if is_compiling() else unnoticed():
        outputs = call_model(bind(model_fn, frozen=True, forward_only=True), rebuild(x))
    found = main_tensor(outputs if target is None else called("target", target, outputs))
    if not isinstance(found, Tensor) or found.ndim < 2:
        giver = "model_fn" if target is None else "the callable target"
        raise ValueError(
            f"{giver} returned {say(found)}, expected a tensor (B, N) of several outputs of each "
            "example: call the method without each_output, or give a callable target"
        )
    return tuple(found.shape[1:])


def _column(target: Any, shape: tuple[int, ...], k: Tensor | int) -> Target:
    """The target of output number k, in the order of the flattened outputs."""
    if target is not None:
        if isinstance(k, int):
            return lambda outputs: target(outputs).flatten(1)[:, k]
        column = k.reshape(1)
        return lambda outputs: target(outputs).flatten(1).index_select(1, column)[:, 0]
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    place: list[Any] = [k // stride % size for stride, size in zip(strides, shape, strict=True)]
    return place[0] if len(place) == 1 else tuple(place)


def _joined(a: Leaves, b: Leaves) -> Leaves:
    """The results of two chunks of outputs."""
    return each(lambda s, t: torch.cat([s, t]), a, b)
