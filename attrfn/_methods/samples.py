"""What methods over many runs share: samples of attributions, and one statistic of all of them.

A run is a chunk of copies of the batch (with noise, or with other baselines), or one of several
models. Its attributions are samples (S, B, ...), of which sums are kept and not the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import repeat_bound, wide
from attrfn._explain.method_unit import whole_or_in_units
from attrfn._explain.shared import is_laid_out, laid_out, mark_of, marked, scores_of
from attrfn._explain.tree import each, flatten, map_tensors
from attrfn._explain.uncertain import squares, warn_of_spread
from attrfn._layers.repeated import in_copies, repeat_options
from attrfn._torch.say import say
from attrfn._torch.typing import Leaves, Method, ModelFn, Tree


class Samples(NamedTuple):
    """The attributions of some runs.

    Attributes:
        leaves: Of their tree, (S, B, ...) each.
        spec: The tree.
        scores: What they are (:mod:`attrfn._explain.shared`).
        laid_out: Whether they are those of a layer without examples in dimension 0.
    """

    leaves: Leaves
    spec: Any
    scores: str | None
    laid_out: bool


class State(NamedTuple):
    """What is kept of samples.

    Attributes:
        sums: Of each leaf what its statistic needs.
        squares: The sum of all squares, where a spread is asked for.
        dtypes: Of the leaves.
        spec: As of the samples.
        scores: As of the samples.
        laid_out: As of the samples.
        first: The first sample.
    """

    sums: list[Any]
    squares: Any
    dtypes: list[torch.dtype]
    spec: Any
    scores: str | None
    laid_out: bool
    first: Leaves


Part = Callable[[slice], Samples]
Loop = Callable[[Callable[[slice], State], Callable[[State, State], State]], State]


def of_copies(
    method: Method,
    model_fn: ModelFn,
    inputs: Tree,
    options: dict[str, Any],
    copies: int,
    rows: Tree,
    alone: list[bool],
    **own: Tree,
) -> Samples:
    """The attributions of several copies of the batch, which the method sees as one batch.

    So any method can be inside, and its own copies are copies of this batch. What has a row for
    each example is repeated with it.

    Args:
        method: The method.
        model_fn: The model function for one copy.
        inputs: The inputs.
        options: Options for one copy.
        copies: How many copies.
        rows: The inputs of the copies.
        alone: As for :func:`in_copies`.
        **own: Options with a row for each of them.
    """
    batch = flatten(inputs)[0][0].shape[0]  # len() would fix it in compiled code

    def run(i: slice) -> Tree:
        def part(tree: Tree) -> Tree:
            if (i.start, i.stop) == (0, copies):
                return tree
            # A slice from one symbolic size to another would fix the batch in compiled code.
            return map_tensors(
                lambda t: t.reshape(copies, batch, *t.shape[1:])[i].flatten(0, 1), tree
            )

        n = i.stop - i.start
        some = {name: part(tree) for name, tree in own.items()}
        repeated = {**repeat_options(method, options, model_fn, inputs, n), **some}
        return whole_or_in_units(method, repeat_bound(model_fn, batch, n), part(rows), repeated)

    leaves, found = in_copies(run, slice(0, copies), batch, alone)
    return samples_of(method, found)._replace(leaves=leaves)


def samples_of(method: Method, found: Tree) -> Samples:
    """The leaves of what a method returned, as they are.

    Raises:
        TypeError: They are not tensors.
    """
    leaves, spec = optree.tree_flatten(found)
    if not leaves or not all(isinstance(a, Tensor) for a in leaves):
        raise TypeError(f"method returned {say(found)}, expected tensors")
    # What compiled code returns has no mark.
    scores = mark_of([a for a in leaves if a.is_floating_point()]) or scores_of(method)
    return Samples(tuple(leaves), spec, scores, is_laid_out(leaves))


def statistic(how: str, n: int, part: Part, loop: Loop, spread: str = "") -> Tree:
    """A statistic of n samples of attributions, in their tree and dtypes.

    Args:
        how: A key of ``STATISTICS``.
        n: The number of samples.
        part: From a slice of 0..n to their samples.
        loop: Calls a function of slices until all n are through, and merges what it returns.
        spread: The name of a method that warns where the mean is mostly noise; empty for none.
    """
    start, merge, finish = STATISTICS[how]

    def state(i: slice) -> State:
        found = part(i)
        samples = [a.to(wide(a.dtype)) for a in found.leaves]
        if found.laid_out:  # integers are the lengths of packed sequences, the same in all samples
            samples = [a if a.is_floating_point() else a.double() for a in samples]
        power = 2 if how == "mean of squares" else 1
        total = squares(_parts(samples, found.laid_out, 1, power)) if spread else 0
        dtypes, first = [a.dtype for a in found.leaves], each(lambda a: a[0], found.leaves)
        return State([start(a) for a in samples], total, dtypes, *found[1:], first)

    def both(a: State, b: State) -> State:
        sums = [merge(s, t) for s, t in zip(a.sums, b.sums, strict=True)]
        return a._replace(sums=sums, squares=a.squares + b.squares)

    done = loop(state, both)
    found = [finish(m, n) for m in done.sums]
    if spread:
        warn_of_spread(spread, _parts(found, done.laid_out, 0), done.squares, n)
    results = [m.to(d) for m, d in zip(found, done.dtypes, strict=True)]
    if done.laid_out:
        pairs = zip(results, done.first, strict=True)
        results = [m if m.is_floating_point() else t for m, t in pairs]
        laid_out(results, ())
    return optree.tree_unflatten(done.spec, marked(results, done.scores))


def _parts(leaves: Sequence[Tensor], as_one: bool, dim: int, power: int = 1) -> Leaves:
    """Tensors with examples in a dimension; where nothing tells them apart, all counts as one."""
    found = [a.flatten(dim).unsqueeze(dim) if as_one else a for a in leaves]
    return tuple([a**power for a in found])


# The variance as mean(A^2) - mean(A)^2 loses all digits where samples differ little. Counts, means
# and sums of squared deviations can be merged chunk by chunk without that difference.
Moments = tuple[int, Tensor, Tensor]


def _moments(a: Tensor) -> Moments:
    """Count, mean and sum of squared deviations over the samples."""
    mean = a.mean(0)
    return a.shape[0], mean, ((a - mean) ** 2).sum(0)


def _merge_moments(a: Moments, b: Moments) -> Moments:
    """Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm, 1979."""
    n = a[0] + b[0]
    step = b[1] - a[1]
    return n, a[1] + step * (b[0] / n), a[2] + b[2] + step**2 * (a[0] * b[0] / n)


def _add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def _over(total: Tensor, n: int) -> Tensor:
    return total / n


Statistic = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]
STATISTICS: dict[str, Statistic] = {
    "mean": (lambda a: a.sum(0), _add, _over),
    "mean of squares": (lambda a: (a**2).sum(0), _add, _over),
    "variance": (_moments, _merge_moments, lambda m, n: m[2] / n),
    "std": (_moments, _merge_moments, lambda m, n: (m[2] / (n - 1)).sqrt()),
    "all": (lambda a: a, lambda a, b: torch.cat([a, b]), lambda a, n: a),
}
