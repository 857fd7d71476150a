"""The noise tunnel: any method averaged over noisy copies of the inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, repeat_bound, wide
from attrfn._copies.chunks import Chunks, at_once, over_chunks
from attrfn._explain.baseline import baseline_distribution
from attrfn._explain.forms import documented
from attrfn._explain.introspect import is_over_distribution, wraps
from attrfn._explain.noise import Noise, count_of
from attrfn._explain.options import PER_EXAMPLE, SamplingOptions
from attrfn._explain.tree import as_dicts, batch_size, each, flatten, require_floating
from attrfn._layers.at import place_of, read
from attrfn._layers.split import split_once
from attrfn._torch.explanation import explained
from attrfn._torch.typing import At, ChunkSize, Key, Layer, Leaves, Method, ModelFn, Target, Tree

Found = tuple[list[Any], list[torch.dtype], Any]
Kind = Literal["smoothgrad", "smoothgrad_sq", "vargrad", "samples"]


@documented(SamplingOptions)
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
    if kind not in ("smoothgrad", "smoothgrad_sq", "vargrad", "samples"):
        raise ValueError(
            f"kind is {kind!r}, expected 'smoothgrad', 'smoothgrad_sq', 'vargrad' or 'samples'"
        )
    count_of("n_samples", n_samples)
    if kind == "vargrad" and n_samples < 2:
        raise ValueError("n_samples is 1, expected at least 2 for the variance of kind='vargrad'")

    @wraps(method)
    def noisy(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        x, rebuild = flatten(inputs)
        batch = batch_size(x)
        require_floating(x)
        noise = Noise(key, stdevs, inputs, x)
        pool: Leaves = ()
        if draw_baselines:
            pool = baseline_distribution(options.get("baselines"), inputs, x)
        start, merge, finish = _REDUCTIONS[kind]
        noisy_inputs = at_once(noise.inputs, n_samples, n_samples * sum(t.numel() for t in x))

        # The method sees the samples of a chunk as one batch: any method can be inside, and its own
        # copies are copies of this batch. What has a row per example is repeated with it.
        def part(i: slice) -> Found:
            copies = i.stop - i.start
            rows = each(lambda r, t: r.to(t.dtype), flat_rows(noisy_inputs(i)), x)
            repeated = _repeat_options(method, options, model_fn, inputs, copies)
            if draw_baselines:
                repeated["baselines"] = rebuild(_drawn(noise, i, pool, x))
            found = method(repeat_bound(model_fn, batch, copies), rebuild(rows), **repeated)
            leaves, spec = optree.tree_flatten(found)
            samples = [a.reshape(copies, batch, *a.shape[1:]).to(wide(a.dtype)) for a in leaves]
            return [start(a) for a in samples], [a.dtype for a in leaves], spec

        def both(a: Found, b: Found) -> Found:
            return [merge(s, t) for s, t in zip(a[0], b[0], strict=True)], *a[1:]

        chunks = Chunks(chunk_size, "fold", progress, "noise_tunnel")
        states, dtypes, spec = over_chunks(part, both, n_samples, chunks, x[0].device, x=x)
        return optree.tree_unflatten(
            spec, [finish(m, n_samples).to(d) for m, d in zip(states, dtypes, strict=True)]
        )

    return explained(noisy, key)


def _drawn(noise: Noise, i: slice, pool: Leaves, x: Leaves) -> Leaves:
    """One baseline per sample, for every row of its copy."""
    copies = i.stop - i.start
    drawn = noise.choice(i, pool)
    return flat_rows(each(lambda b, t: b.to(t.dtype).expand(copies, *t.shape), drawn, x))


def _repeat_options(
    method: Method, options: dict[str, Any], model_fn: ModelFn, inputs: Tree, copies: int
) -> dict[str, Any]:
    """The options of a method for several copies: what has a row per example follows the batch.

    The type of an option says in which form it can hold something for each example.
    """
    if isinstance(method, functools.partial):
        options = {**method.keywords, **options}
    batch = batch_size(flatten(inputs)[0])
    repeated = dict(options)
    for name, value in options.items():
        form = PER_EXAMPLE.get(name)
        if form is None or value is None:
            continue
        if form == "index":
            repeated[name] = _repeat_target(value, batch, copies)
        elif form == "key":
            repeated[name] = _repeat_key(value, copies)
        else:
            # Baselines of a distribution have their K in front of the examples.
            dim = 1 if name == "baselines" and is_over_distribution(method) else 0
            rows = _Rows(batch, copies, dim)
            if any(map(rows.are_in, optree.tree_leaves(value, none_is_leaf=True))):
                ranks = _ranks(method, name, options, model_fn, inputs)
                repeated[name] = rows.repeat(value, ranks)
    return repeated


def _repeat_key(key: Any, copies: int) -> Any:
    """A key for each example several times; one for all of them as it is."""
    return key.repeat(copies, 1) if isinstance(key, Tensor) and key.ndim == 2 else key


class _Rows(NamedTuple):
    """Where a tensor has the examples of a batch, and how many copies of them follow."""

    batch: int
    copies: int
    dim: int

    def are_in(self, value: Any) -> bool:
        """Whether a tensor has as many rows as there are examples."""
        return (
            isinstance(value, Tensor)
            and value.ndim > self.dim
            and value.shape[self.dim] == self.batch
        )

    def repeat(self, tree: Tree, ranks: set[int]) -> Tree:
        """A tree with its rows several times; what only broadcasts to the examples as it is."""

        def leaf(value: Any) -> Any:
            # A tensor (B,) for inputs (B, B) has no rows: it broadcasts over the features.
            if not self.are_in(value) or value.ndim - self.dim not in ranks:
                return value
            return value.repeat([self.copies if d == self.dim else 1 for d in range(value.ndim)])

        return optree.tree_map(leaf, tree, none_is_leaf=True)


def _ranks(
    method: Method, name: str, options: dict[str, Any], model_fn: ModelFn, inputs: Tree
) -> set[int]:
    """The ranks of the tensors that an option goes with: the inputs, or a layer's activation."""
    place = None
    if name != "baselines":  # those of a method at a layer are given for the inputs
        place = getattr(method, "moved_to", None)
        if PER_EXAMPLE[name] == "layer":
            place = place or place_of(options)
    tensors = flatten(inputs)[0] if place is None else _activation(model_fn, inputs, *place)
    return {t.ndim for t in tensors}


def _activation(
    model_fn: ModelFn, inputs: Tree, layer: Layer, at: At, call: int | None
) -> list[Tensor]:
    """The tensors of a layer's activation."""
    halves = split_once(model_fn, layer, at=at, call=call, frozen=True)
    value = read(halves, inputs, create_graph=False)
    return [t for t in optree.tree_leaves(as_dicts(value)) if isinstance(t, Tensor)]


def _repeat_target(target: Target, batch: int, copies: int) -> Target:
    if isinstance(target, Tensor) and target.ndim == 1 and target.shape[0] == batch:
        return target.repeat(copies)
    if isinstance(target, list):
        return target * copies
    repeated: Target = repeat_bound(target, batch, copies)
    return repeated


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
