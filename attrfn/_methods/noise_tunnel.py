"""The noise tunnel: any method averaged over noisy copies of the inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, is_one_of, repeat_bound, wide
from attrfn._copies.chunks import Chunks, at_once, over_chunks
from attrfn._explain.baseline import baseline_distribution
from attrfn._explain.forms import documented
from attrfn._explain.introspect import takes_distribution, wraps
from attrfn._explain.method_unit import whole_or_in_units
from attrfn._explain.noise import Noise, count_of
from attrfn._explain.options import SamplingOptions
from attrfn._explain.shared import mark_of, marked
from attrfn._explain.tree import batch_size, each, flatten, require_floating
from attrfn._explain.uncertain import squares, warn_of_spread
from attrfn._layers.repeated import repeat_options
from attrfn._torch.autodiff import transforming
from attrfn._torch.explanation import explained
from attrfn._torch.guard import guarded
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Key, Leaves, Method, ModelFn, Tree

Found = tuple[list[Any], list[torch.dtype], str | None, Any]
Kind = Literal["smoothgrad", "smoothgrad_sq", "vargrad", "samples"]


@documented(SamplingOptions, scores=None)
def noise_tunnel(
    method: Method,
    *,
    kind: Kind = "smoothgrad",
    n_samples: int = 5,
    stdevs: Tree = 1.0,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    draw_baselines: bool = False,
    progress: bool = False,
) -> Method:
    """A method that explains noisy copies of the inputs and takes a mean or variance over them.

        smoothgrad:     E[A(x + s n)]                    n ~ N(0, 1)
        smoothgrad_sq:  E[A(x + s n)^2]
        vargrad:        E[A(x + s n)^2] - E[A(x + s n)]^2
        samples:        A(x + s n) of every sample, with a leading dimension n_samples

    All examples share one draw per sample, so that a row alone gives what it gives in a batch; a
    key of shape (B, 2) draws for each example separately.

    Args:
        method: Any attribution method, one made by :func:`at_layer` or another noise tunnel too, or
            a function that returns tensors with the examples in dimension 0 (completeness gaps).
        kind: One of the four statistics above.
        n_samples: The number of noisy copies.
        draw_baselines: Draw one of the K baselines (K, ...) for each sample.

    Returns:
        A method with the same options as ``method``.

    Raises:
        ValueError: An option has a wrong value.

    Example:
        >>> import torch, attrfn
        >>> smooth = attrfn.noise_tunnel(attrfn.gradient, n_samples=1000, stdevs=0.1)
        >>> a = smooth(lambda x: (x**2).sum(1), torch.tensor([[1.0, 2.0]]))
        >>> torch.allclose(a, torch.tensor([[2.0, 4.0]]), atol=0.02)
        True

    Reference:
        Smilkov et al., SmoothGrad: removing noise by adding noise, 2017.
        Hooker et al., A Benchmark for Interpretability Methods in Deep Neural Networks, 2019.
        Adebayo et al., Local Explanation Methods for Deep Neural Networks Lack Sensitivity to
        Parameter Values, 2018.
    """
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected a method such as attrfn.gradient")
    if not is_one_of(kind, "smoothgrad", "smoothgrad_sq", "vargrad", "samples"):
        raise ValueError(
            f"kind is {say(kind)}, expected 'smoothgrad', 'smoothgrad_sq', 'vargrad' or 'samples'"
        )
    count_of("n_samples", n_samples)
    if kind == "vargrad" and n_samples < 2:
        raise ValueError("n_samples is 1, expected at least 2 for the variance of kind='vargrad'")

    @wraps(method)
    @guarded
    @functools.partial(explained, key=key)
    def noisy(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        x, rebuild = flatten(inputs)
        batch = batch_size(x)
        require_floating(x)
        noise = Noise(key, stdevs, inputs, x)
        pool: Leaves = ()
        if draw_baselines:
            pool = baseline_distribution(options.get("baselines"), inputs, x)
        start, merge, finish = _REDUCTIONS[kind]
        # Of the other kinds the error is not known from squares.
        spread = kind in ("smoothgrad", "smoothgrad_sq") and batch > 0 and not transforming()
        noisy_inputs = at_once(noise.inputs, n_samples, n_samples * sum(t.numel() for t in x))

        # The method sees the samples of a chunk as one batch: any method can be inside, and its own
        # copies are copies of this batch. What has a row per example is repeated with it.
        def part(i: slice) -> Found:
            copies = i.stop - i.start
            rows = each(lambda r, t: r.to(t.dtype), flat_rows(noisy_inputs(i)), x)
            repeated = repeat_options(method, options, model_fn, inputs, copies)
            if draw_baselines:
                repeated["baselines"] = rebuild(_drawn(noise, i, pool, x))
            bound = repeat_bound(model_fn, batch, copies)
            found = whole_or_in_units(method, bound, rebuild(rows), repeated)
            leaves, spec = optree.tree_flatten(found)
            if not leaves or not all(isinstance(a, Tensor) for a in leaves):
                raise TypeError(f"method returned {say(found)}, expected tensors")
            samples = [a.reshape(copies, batch, *a.shape[1:]).to(wide(a.dtype)) for a in leaves]
            states = [start(a) for a in samples]
            if spread:
                power = 2 if kind == "smoothgrad_sq" else 1
                states.append(squares(tuple([a**power for a in samples])))
            return states, [a.dtype for a in leaves], mark_of(leaves), spec

        def both(a: Found, b: Found) -> Found:
            return [merge(s, t) for s, t in zip(a[0], b[0], strict=True)], *a[1:]

        chunks = Chunks(chunk_size, "fold", progress, "noise_tunnel")
        states, dtypes, mark, spec = over_chunks(part, both, n_samples, chunks, x[0].device, x=x)
        found = [finish(m, n_samples) for m in states[: len(dtypes)]]
        if spread:
            warn_of_spread("noise_tunnel", tuple(found), states[-1], n_samples)
        results = [m.to(d) for m, d in zip(found, dtypes, strict=True)]
        return optree.tree_unflatten(spec, marked(results, mark))

    noisy.loops_over_chunks = True  # type: ignore[attr-defined]
    return takes_distribution(noisy) if draw_baselines else noisy


def _drawn(noise: Noise, i: slice, pool: Leaves, x: Leaves) -> Leaves:
    """One baseline per sample, for every row of its copy."""
    copies = i.stop - i.start
    drawn = noise.choice(i, pool)
    return flat_rows(each(lambda b, t: b.to(t.dtype).expand(copies, *t.shape), drawn, x))


# The variance as mean(A^2) - mean(A)^2 loses all digits where the noise moves A little. Counts,
# means and sums of squared deviations can be merged chunk by chunk without that difference.
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


Reduction = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]
_REDUCTIONS: dict[str, Reduction] = {
    "smoothgrad": (lambda a: a.sum(0), _add, _over),
    "smoothgrad_sq": (lambda a: (a**2).sum(0), _add, _over),
    "vargrad": (_moments, _merge_moments, lambda m, n: m[2] / n),
    "samples": (lambda a: a, lambda a, b: torch.cat([a, b]), lambda a, n: a),
}
