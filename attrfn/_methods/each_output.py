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

from attrfn._copies.batch import is_count, is_one_of
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._explain.forms import documented
from attrfn._explain.introspect import explains_all_outputs, takes_target, wraps
from attrfn._explain.options import ChunkOptions
from attrfn._explain.said import main_tensor
from attrfn._explain.shared import mark_of, marked, scores_of
from attrfn._explain.tree import call_model, flatten
from attrfn._model.bind import bind
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import unnoticed
from attrfn._torch.guard import called, guarded
from attrfn._torch.say import say
from attrfn._torch.typing import Batching, ChunkSize, Method, ModelFn, Target, Tree

Found = tuple[list[Tensor], Any, str | None]


@documented(ChunkOptions, scores=None)
def each_output(
    method: Method,
    *,
    n: int | None = None,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "vmap",
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
        chunk_size: How many outputs at once: an int, None (all) or ``"auto"`` (what memory holds).
        batching: ``"vmap"`` maps over the outputs; ``"loop"`` explains one after the other, for
            models that torch.func.vmap cannot run.

    Returns:
        A method with the same options as ``method``. Its attributions have the dimensions of the
        outputs behind that of the examples: (B, N, ...) for outputs (B, N). ``target`` is None, or
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
    _check(method, n, batching)

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
        device = flatten(inputs)[0][0].device
        shape = (n,) if n is not None else _outputs(model_fn, inputs, target).shape[1:]

        ungraphed = _takes_graph(method) and not (options.get("create_graph") or transforming())

        def one(k: Tensor) -> Tree:
            # Inside vmap a method keeps the graph of the parameters wherever gradients are on.
            with torch.no_grad() if ungraphed else contextlib.nullcontext():
                return method(model_fn, inputs, target=_column(target, shape, k), **options)

        def part(i: slice) -> Found:
            ids = torch.arange(i.start, i.stop, device=device)
            if batching == "loop":
                leaves, spec = optree.tree_flatten(one(ids[0]))
                return [a[None] for a in leaves], spec, mark_of(leaves)
            found = torch.func.vmap(one, randomness="same")(ids)
            leaves, spec = optree.tree_flatten(found)
            return leaves, spec, None

        chunks = Chunks(chunk_size, batching, progress, "each_output")
        leaves, spec, mark = over_chunks(part, _joined, math.prod(shape), chunks, device)
        results = [a.movedim(0, 1).unflatten(1, shape) for a in leaves]
        return optree.tree_unflatten(spec, marked(results, mark or scores_of(method)))

    return every


def _check(method: Method, n: int | None, batching: object) -> None:
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected a method such as attrfn.gradient")
    if not takes_target(method):
        raise TypeError(
            f"method is {say(method)}, which has no option target, expected a method such as "
            "attrfn.gradient"
        )
    if n is not None and not is_count(n):
        raise ValueError(f"n is {say(n)}, expected None or the number of outputs, at least 1")
    if not is_one_of(batching, "vmap", "loop"):
        raise ValueError(f"batching is {say(batching)}, expected 'vmap' or 'loop'")


def _takes_graph(method: Method) -> bool:
    return "create_graph" in inspect.signature(method).parameters


def _outputs(model_fn: ModelFn, inputs: Tree, target: Callable[..., Any] | None) -> Tensor:
    """The outputs that are explained, (B, K...), by one forward pass."""
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
    return found


def _column(target: Any, shape: tuple[int, ...], k: Tensor) -> Target:
    """The target of output number k, in the order of the flattened outputs."""
    if target is not None:
        return lambda outputs: target(outputs).flatten(1).index_select(1, k.reshape(1))[:, 0]
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    place = [k // stride % size for stride, size in zip(strides, shape, strict=True)]
    return place[0] if len(place) == 1 else tuple(place)


def _joined(a: Found, b: Found) -> Found:
    """The results of two chunks of outputs."""
    return [torch.cat(pair) for pair in zip(a[0], b[0], strict=True)], *b[1:]
