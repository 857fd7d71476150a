"""LIME: a simple model fitted to the output around one input."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from attrfn import random, surrogates
from attrfn._copies.chunks import Chunks, at_once
from attrfn._explain.features import masked_features
from attrfn._explain.forms import documented
from attrfn._explain.masked import Masked, Part, add_lists, masked
from attrfn._explain.noise import count_of
from attrfn._explain.options import BlackBox, PerturbationOptions, SamplingOptions
from attrfn._explain.tree import flatten
from attrfn._explain.uncertain import MOST_EVALUATIONS
from attrfn._random.keys import row_keys, sample_keys
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import called
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, Batching, ChunkSize, Key, Leaves, ModelFn, Target, Tree

Perturb = Callable[[Tensor, int], Tensor]
Transform = Callable[[Tensor, Tree, Tree], Tree]
Points = Callable[[Tensor], Leaves]
"""From z (S, 1 or B, n) to samples (S, B, ...)."""


@documented(BlackBox, PerturbationOptions, SamplingOptions, scores="shared")
def lime(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    n_samples: int | None = None,
    key: Key = 0,
    surrogate: surrogates.Surrogate | None = None,
    similarity: surrogates.Similarity | None = None,
    perturb: Perturb | None = None,
    transform: Transform | None = None,
    return_input_shape: bool = True,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """LIME: the coefficients of a sparse linear model of the output around the input.

        A = argmin_a 1 / (2 sum_s w_s) sum_s w_s (f(x_s) - b - a z_s)^2 + alpha |a|_1,
        x_s = x where z_s, else x0,   z_sk ~ Bernoulli(1/2),   w_s = similarity(x, x_s)

    All examples share the samples and are fitted together; a key of shape (B, 2) draws for each
    example separately.

    Args:
        n_samples: The number of samples. ``None``: 4 n^2 for n features, at least 2,048 and at
            most 8,192.
        surrogate: The simple model: from z (S, 1 or B, n), values (S, B, K) and weights (S, B) to
            coefficients (B, K, n), as those of :mod:`attrfn.surrogates`. None: ``lasso(0.01)``.
        similarity: From the inputs with leaves (B, ...), the samples with leaves (S, B, ...) and z
            to weights (S, B). None: ``attrfn.surrogates.exponential_kernel()``.
        perturb: From keys (S, 1 or B, 2) and n to z (S, 1 or B, n), booleans or numbers. None: a
            fair coin for each feature.
        transform: From z, the inputs and the baselines to samples with leaves (S, B, ...), for
            features that are not sets of elements; ``n_features`` is their number. None:
            ``x0 + z (x - x0)``.
        return_input_shape: ``False`` returns one coefficient per feature, in the order of their
            ids; a ``transform`` implies it.

    Returns:
        Attributions like the inputs, in which every element has the coefficient of its feature, or
        (B, K..., n).

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * 5 + x[:, 1]
        >>> x = torch.tensor([[2.0, 3.0, 4.0]])
        >>> ridge = attrfn.surrogates.ridge(1e-6)
        >>> attrfn.lime(f, x, n_samples=50, surrogate=ridge).round(decimals=2).abs()
        tensor([[10.,  3.,  0.]])

    Reference:
        Ribeiro, Singh and Guestrin, "Why Should I Trust You?": Explaining the Predictions of Any
        Classifier, 2016.
    """
    _check_callables(surrogate=surrogate, similarity=similarity, perturb=perturb)
    chunks = Chunks(chunk_size, batching, progress, "lime", backward=False)
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    points: Points
    if transform is None:
        p, these = masked_features(p, feature_mask, inputs, n_features)
        n, points = these.n, lambda z: p.mixed(these.masks(z))
    else:
        n, points = _count(n_features, feature_mask), functools.partial(_transformed, transform, p)
    z, values, w = _sampled(p, n, points, perturb, similarity, n_samples, key)
    y = values.reshape(*values.shape[:2], values.shape[2:].numel())
    a = called("surrogate", surrogate or surrogates.lasso(0.01), z, y, w.to(y))
    a = _coefficients(a, (*y.shape[1:], n)).reshape(*values.shape[1:], n)
    if return_input_shape and transform is None:
        return p.result(these.elements(a))
    return p.number(a)


def _sampled(
    p: Masked,
    n: int,
    points: Points,
    perturb: Perturb | None,
    similarity: surrogates.Similarity | None,
    n_samples: int | None,
    key: Key,
) -> tuple[Tensor, Tensor, Tensor]:
    """All samples: z (S, 1 or B, n), values (S, R, K...) and weights (S, R)."""
    weigh = similarity or surrogates.exponential_kernel()
    x = p.rebuild(p.x)
    keys = row_keys(key, p.batch, p.device)
    p.check_rows(len(keys))
    samples = _default(n) if n_samples is None else count_of("n_samples", n_samples)
    draw = at_once(
        lambda i: (_draw(perturb, sample_keys(keys, i, 0), n, p.batch),),
        samples,
        samples * len(keys) * n,
    )

    # The points are dropped with their chunk. Features, values and weights of all samples are kept,
    # because a surrogate is any function of them and not a sum that chunks could add up.
    def part(i: slice) -> Part[tuple[list[Tensor], ...]]:
        (z,) = draw(i)
        found = points(z)
        w = called("similarity", weigh, x, p.rebuild(found), z)
        w = _weights(w, len(z), p.batch)
        w = w.mean(1, keepdim=True) if p.per_batch else w  # one value of the batch has one weight
        return found, lambda values: ([z], [values], [w])

    z, values, w = (torch.cat(t) for t in p.collect(samples, part, add_lists))
    return z, values, w


def _transformed(transform: Transform, p: Masked, z: Tensor) -> Leaves:
    """The samples that a transform makes of z, leaves (S, B, ...)."""
    made = called("transform", transform, z, p.rebuild(p.x), p.rebuild(p.x0))
    points = flatten(made, "transform's result")[0]
    _check_points(points, p.x, len(z))
    return points


def _default(n: int) -> int:
    """The number of samples where none is given."""
    # Random samples determine a fit of n coefficients less well than the coalitions of KernelSHAP.
    return min(max(4 * n * n, 2048), MOST_EVALUATIONS)


def _check_callables(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not callable(value):
            raise TypeError(
                f"{name} is {say(value)}, expected a callable, such as those that "
                "attrfn.surrogates makes"
            )


def _draw(perturb: Perturb | None, keys: Tensor, n: int, batch: int) -> Tensor:
    if perturb is None:
        return random.bernoulli(keys, 0.5, (n,))
    z: object = called("perturb", perturb, keys, n)
    shapes = [(len(keys), rows, n) for rows in (1, batch)]
    if not isinstance(z, Tensor) or z.shape not in shapes:
        raise ValueError(
            f"perturb returned {_say(z)}, expected a tensor ({len(keys)}, 1 or {batch}, {n}): the "
            "features of each sample"
        )
    return z


def _weights(w: object, samples: int, batch: int) -> Tensor:
    shapes = [(samples, rows) for rows in (1, batch)]
    if not isinstance(w, Tensor) or w.shape not in shapes:
        raise ValueError(
            f"similarity returned {_say(w)}, expected a tensor ({samples}, 1 or {batch}): the "
            "weight of each sample"
        )
    if not transforming() and not bool((w >= 0).all()):
        raise ValueError("similarity returned weights that are negative or nan, expected >= 0")
    return w.expand(samples, batch)


def _coefficients(a: object, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(a, Tensor) or a.shape != shape:
        raise ValueError(
            f"surrogate returned {_say(a)}, expected a tensor {shape}: the coefficients of each "
            "example's outputs"
        )
    return a


def _say(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _count(n_features: int | None, feature_mask: Tree) -> int:
    if n_features is None or feature_mask is not None:
        raise ValueError(
            "transform is given with "
            + ("no n_features" if n_features is None else "a feature_mask")
            + ", expected n_features alone, the number of features that it takes"
        )
    return n_features


def _check_points(points: Leaves, x: Leaves, samples: int) -> None:
    shapes = [tuple(t.shape) for t in points]
    expected = [(samples, *t.shape) for t in x]
    if shapes != expected:
        raise ValueError(
            f"transform returned tensors of shapes {shapes}, expected {expected}: the samples in "
            "front of the examples"
        )
