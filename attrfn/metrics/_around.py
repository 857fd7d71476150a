"""Explanations around the inputs: one table of quotients, samples by examples."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import flat_rows, repeat_bound, split_rows, wide
from attrfn._copies.chunks import Chunks, at_once, over_chunks
from attrfn._explain.explain import explain
from attrfn._explain.forms import documented
from attrfn._explain.noise import count_of
from attrfn._explain.options import Arguments
from attrfn._explain.rows import like_rows
from attrfn._explain.shared import refuse_laid_out
from attrfn._explain.tree import batch_size, call_model, each, flatten
from attrfn._layers.located import Located, locate
from attrfn._layers.repeated import repeat_options
from attrfn._layers.rows import like, read
from attrfn._random.keys import row_keys, sample_keys
from attrfn._torch.autodiff import transforming
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Key, Layer, Leaves, Method, ModelFn, Target, Tree
from attrfn.metrics._checks import number
from attrfn.metrics._options import AgainOptions, Explained
from attrfn.metrics._scores import flat, floating

Perturb = Callable[[Tree, Tensor], Tree]


class Point(NamedTuple):
    """Copies of the batch and what was found there, each (S, B, ...).

    Attributes:
        attributions: Those of the method.
        x: The inputs.
        outputs: All outputs of the model, if they were asked for.
        layer: The activation of a layer, if it was asked for.
    """

    attributions: Leaves
    x: Leaves
    outputs: Any
    layer: Leaves


class Samples(NamedTuple):
    """Which samples around the inputs are taken.

    Attributes:
        radius: That of the uniform noise.
        n_samples: Their number.
        perturb: The function of the user in place of the noise.
    """

    radius: float
    n_samples: int
    perturb: Perturb | None


Quotient = Callable[[Point, Point], Tensor]
"""From a point with one copy and one with S to one number for each sample and example, (S, B)."""


class Again(NamedTuple):
    """A method that explains again, at copies of the batch.

    Attributes:
        model_fn: The model function.
        inputs: The inputs.
        method: The method.
        options: Its options of this call, the target.
        x: The leaves of the inputs.
        rebuild: From leaves to the inputs' tree.
        batch: B.
        keeps_graph: Whether the method's result is differentiable.
    """

    model_fn: ModelFn
    inputs: Tree
    method: Method
    options: dict[str, Any]
    x: Leaves
    rebuild: Callable[[Any], Tree]
    batch: int
    keeps_graph: bool

    def maps(self, rows: Leaves, copies: int) -> Leaves:
        """The attributions of the rows of copies, (S, B, ...)."""
        options = repeat_options(self.method, self.options, self.model_fn, self.inputs, copies)
        model = repeat_bound(self.model_fn, self.batch, copies)
        return split_rows(maps_of(self.method, model, self.rebuild(rows), options), copies)


def maps_of(method: Method, model_fn: ModelFn, inputs: Tree, options: dict[str, Any]) -> Leaves:
    """The leaves of a method's attributions, in types to sum in."""
    leaves = optree.tree_leaves(method(model_fn, inputs, **options))
    if not leaves or not all(isinstance(t, Tensor) and t.ndim for t in leaves):
        raise TypeError(
            f"method returned {', '.join([type(t).__name__ for t in leaves]) or 'nothing'}, "
            "expected attributions, tensors with the examples in dimension 0"
        )
    refuse_laid_out(leaves)
    rows = optree.tree_leaves(inputs)[0].shape[0]
    if any(t.shape[0] != rows for t in leaves):
        raise ValueError(
            f"method returned attributions of {leaves[0].shape[0]} example(s) for {rows} row(s), "
            "expected one for each row, in dimension 0"
        )
    return tuple(map(floating, leaves))


@documented(Explained, AgainOptions, Arguments)
def again(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    target: Target = None,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> Again:
    """Check what all metrics that explain again have in common."""
    if not callable(method):
        raise TypeError(
            f"method is a {type(method).__name__}, expected an attribution method, which is called "
            "again: pass the function, not its attributions"
        )
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    row_keys(key, batch, x[0].device)
    bound = method.keywords if isinstance(method, functools.partial) else {}
    keeps_graph = bool(bound.get("create_graph", False))
    if not (keeps_graph or transforming()):
        x = tuple([t.detach() for t in x])
    # A method for a neuron takes no target.
    options = {} if target is None else {"target": target}
    return Again(model_fn, rebuild(x), method, options, x, rebuild, batch, keeps_graph)


def around(
    label: str,
    quotient: Quotient,
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    samples: Samples,
    *,
    outputs: bool = False,
    layer: Layer | None = None,
    target: Target = None,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> Tensor:
    """Quotients of x and its samples, (S, B): ``quotient(at x, at samples)``, chunk by chunk."""
    radius, n_samples, _ = samples
    count_of("n_samples", n_samples)
    number("radius", radius, lambda r: 0 <= r < math.inf, "a finite number of at least 0")
    a = again(model_fn, inputs, method, target=target, key=key)
    draw = _samples(a, samples, row_keys(key, a.batch, a.x[0].device))
    here = None if layer is None else locate(model_fn, inputs, layer, create_graph=a.keeps_graph)
    if here is not None and here.layout is not None:
        raise ValueError(
            f"layer {say(layer)} does not have the examples in dimension 0, expected a layer whose "
            "change can be measured for each example"
        )
    run = _outputs(a) if outputs else None

    def at(points: Leaves) -> Point:
        copies = points[0].shape[0]
        rows = flat_rows(points)
        values = None if run is None else run(rows, copies)
        activation = () if here is None else _activation(here, a, rows, copies)
        # A method of the user may write into what it gets, and the points are measured later.
        return Point(a.maps(each(Tensor.clone, rows), copies), points, values, activation)

    original = at(tuple([t.clone()[None] for t in a.x]))

    def part(i: slice) -> Tensor:
        return quotient(original, at(draw(i)))

    chunks = Chunks(chunk_size, "fold", progress, label)
    return over_chunks(
        part, lambda s, t: torch.cat([s, t]), n_samples, chunks, a.x[0].device, x=a.x
    )


def _samples(a: Again, samples: Samples, keys: Tensor) -> Callable[[slice], Leaves]:
    """From a slice of the samples to x_s, (S, B, ...)."""
    radius, n, perturb = samples

    def noisy(i: slice) -> Leaves:
        found = []
        for stream, x in enumerate(a.x):
            u = random.uniform(sample_keys(keys, i, stream), x.shape[1:], dtype=wide(x.dtype))
            found.append((x + radius * (2 * u - 1)).expand(u.shape[0], *x.shape).to(x.dtype))
        return tuple(found)

    def by_user(i: slice) -> Leaves:
        copies = i.stop - i.start
        rows = sample_keys(keys, i, 0).expand(copies, a.batch, 2).reshape(-1, 2)
        x = flat_rows(tuple([t.expand(copies, *t.shape).clone() for t in a.x]))
        moved = perturb(a.rebuild(x), rows) if perturb is not None else a.rebuild(x)
        return like_rows(moved, a.x, copies, "perturb")

    if perturb is None:
        for t in a.x:
            if not t.is_floating_point():
                raise TypeError(
                    f"inputs has a tensor of {t.dtype}, expected floating point, to which uniform "
                    "noise can be added: pass perturb to change other inputs"
                )
    # The user's function is called once if there is little to do, so that it need not care about
    # chunks.
    make = noisy if perturb is None else by_user
    return at_once(make, n, n * sum(t.numel() for t in a.x))


def _outputs(a: Again) -> Callable[[Leaves, int], Tensor]:
    """From rows to all outputs of the model, (S, B, K)."""
    p = explain(
        a.model_fn,
        a.inputs,
        None,
        create_graph=a.keeps_graph,
        differentiated=False,
        forward_only=not a.keeps_graph,
    )

    def run(rows: Leaves, copies: int) -> Tensor:
        graph = a.keeps_graph or (transforming() and torch.is_grad_enabled())
        if a.batch == 0:
            return a.x[0].new_zeros(copies, 0, 1)
        with torch.set_grad_enabled(graph):
            found = call_model(repeat_bound(p.model, a.batch, copies), a.rebuild(rows))
        if not isinstance(found, Tensor) or not found.ndim or found.shape[0] != rows[0].shape[0]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the model returned {shape} for {rows[0].shape[0]} row(s), expected a tensor with "
                "the rows in dimension 0: wrap the model in a function that returns its logits"
            )
        return flat(floating(found).reshape(copies, a.batch, *found.shape[1:]))

    return run


def _activation(here: Located, a: Again, rows: Leaves, copies: int) -> Leaves:
    halves = here.halves._replace(head=repeat_bound(here.halves.head, a.batch, copies))
    value = like(here.activation, read(halves, a.rebuild(rows), here.create_graph))
    return split_rows(tuple(map(floating, optree.tree_leaves(value))), copies)


def norm_over(leaves: Leaves, p: float = 2) -> Tensor:
    """The norm over all elements of all leaves, (S, B, ...) each to (S, B)."""
    common = functools.reduce(torch.promote_types, [t.dtype for t in leaves])
    norms = [_norm(flat(t).to(common), p, -1) for t in leaves]
    return norms[0] if len(norms) == 1 else _norm(torch.stack(norms), p, 0)


def _norm(t: Tensor, p: float, dim: int) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(t, p, dim=dim)
    return found


def differences(a: Leaves, b: Leaves) -> Leaves:
    """``a - b``, leaf by leaf."""
    return each(lambda s, t: floating(s) - floating(t), a, b)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """A / b, nan where b is 0 or either is not finite."""
    found = a / b.masked_fill(b == 0, torch.nan)
    return found.masked_fill(~(found.isfinite() & b.isfinite()), torch.nan)


def largest(table: Tensor) -> Tensor:
    """The largest quotient of each example, nan if every sample was left out (-inf)."""
    found = table.amax(0)
    return found.masked_fill(found == -torch.inf, torch.nan)


def finish(a: Leaves, t: Tensor) -> Tensor:
    """Results in the type of the first leaf of the inputs, if that is floating."""
    return t.to(a[0].dtype) if a[0].is_floating_point() else t
