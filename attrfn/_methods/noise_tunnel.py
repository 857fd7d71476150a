"""The noise tunnel: any method averaged over noisy copies of the inputs."""

from __future__ import annotations

import functools
from typing import Any, Literal

from attrfn._copies.batch import flat_rows, is_one_of
from attrfn._copies.chunks import Chunks, at_once, over_chunks
from attrfn._explain.baseline import baseline_distribution
from attrfn._explain.forms import documented
from attrfn._explain.introspect import takes_distribution, wraps
from attrfn._explain.noise import Noise, count_of
from attrfn._explain.options import SamplingOptions
from attrfn._explain.tree import batch_size, each, flatten, require_floating
from attrfn._methods.samples import Samples, of_copies, statistic
from attrfn._torch.autodiff import transforming
from attrfn._torch.explanation import explained
from attrfn._torch.guard import guarded
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Key, Leaves, Method, ModelFn, Tree

Kind = Literal["smoothgrad", "smoothgrad_sq", "vargrad", "samples"]

_KINDS = {
    "smoothgrad": "mean",
    "smoothgrad_sq": "mean of squares",
    "vargrad": "variance",
    "samples": "all",
}


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
    _check(method, kind, n_samples)

    @wraps(method)
    @guarded
    @functools.partial(explained, key=key)
    def noisy(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        x, rebuild = flatten(inputs)
        batch = batch_size(x)
        require_floating(x)
        noise = Noise(key, stdevs, inputs, x)
        pool = baseline_distribution(options.get("baselines"), inputs, x) if draw_baselines else ()
        noisy_inputs = at_once(noise.inputs, n_samples, n_samples * sum(t.numel() for t in x))

        alone: list[bool] = []

        def part(i: slice) -> Samples:
            rows = each(lambda r, t: r.to(t.dtype), flat_rows(noisy_inputs(i)), x)
            own = {"baselines": rebuild(_drawn(noise, i, pool, x))} if draw_baselines else {}
            copies = i.stop - i.start
            return of_copies(method, model_fn, inputs, options, copies, rebuild(rows), alone, **own)

        chunks = Chunks(chunk_size, "fold", progress, "noise_tunnel")
        loop = functools.partial(over_chunks, n=n_samples, chunks=chunks, device=x[0].device, x=x)
        # Of the other kinds the error is not known from squares.
        told = kind in ("smoothgrad", "smoothgrad_sq") and batch > 0 and not transforming()
        return statistic(_KINDS[kind], n_samples, part, loop, "noise_tunnel" if told else "")

    noisy.loops_over_chunks = True  # type: ignore[attr-defined]
    return takes_distribution(noisy) if draw_baselines else noisy


def _check(method: Any, kind: object, n_samples: int) -> None:
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected a method such as attrfn.gradient")
    if not is_one_of(kind, *_KINDS):
        raise ValueError(
            f"kind is {say(kind)}, expected 'smoothgrad', 'smoothgrad_sq', 'vargrad' or 'samples'"
        )
    count_of("n_samples", n_samples)
    if kind == "vargrad" and n_samples < 2:
        raise ValueError("n_samples is 1, expected at least 2 for the variance of kind='vargrad'")


def _drawn(noise: Noise, i: slice, pool: Leaves, x: Leaves) -> Leaves:
    """One baseline per sample, for every row of its copy."""
    copies = i.stop - i.start
    drawn = noise.choice(i, pool)
    return flat_rows(each(lambda b, t: b.to(t.dtype).expand(copies, *t.shape), drawn, x))
