"""Shapley values: a feature's mean contribution to coalitions of the others."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.chunks import Chunks, add
from attrfn._explain.features import Features, masked_features
from attrfn._explain.forms import documented
from attrfn._explain.masked import Masked, Part, masked
from attrfn._explain.noise import count_of
from attrfn._explain.options import BlackBox, PerturbationOptions, SamplingOptions
from attrfn._explain.uncertain import MOST_EVALUATIONS, is_sample, warn_uncertain
from attrfn._random.keys import row_keys, sample_keys
from attrfn._torch.precision import full_precision, widest
from attrfn._torch.typing import Baselines, Batching, ChunkSize, Key, Leaves, ModelFn, Target, Tree

_MOST_FEATURES = 20  # a million evaluations; one more feature doubles them


@documented(BlackBox, PerturbationOptions, SamplingOptions, scores="shared")
def shapley_values(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Exact Shapley values: each of the 2^n coalitions of features is evaluated once.

        A_k = sum_{S without k} |S|! (n - |S| - 1)! / n! (v(S + k) - v(S)),
        v(S) = f(x where S, else x0)

    Args:
        feature_mask: The feature of each element: integers that broadcast to the inputs, or a
            pytree prefix of those; at most 20 features.

    Returns:
        Attributions like the inputs; every element has the score of its feature. Over the features
        they sum to f(x) - f(x0).

    Raises:
        ValueError: There are more than 20 features.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 2]
        >>> attrfn.shapley_values(f, torch.tensor([[2.0, 3.0, 4.0]]))
        tensor([[3., 3., 4.]])

    Reference:
        Shapley, A Value for n-Person Games, 1953.
        Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017.
    """
    chunks = Chunks(chunk_size, batching, progress, "shapley_values", backward=False)
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    p, these = masked_features(p, feature_mask, inputs, n_features)
    n = these.n
    _check_number(n)
    if n == 0:
        return p.result(these.elements(p.full[..., None][..., :0]))
    # The sum over pairs (S + k, S) as one over coalitions T: v(T) counts for a feature inside it as
    # v(S + k) with |S| = |T| - 1, for one outside as -v(S) with |S| = |T|. So each coalition is
    # evaluated once and not once for every feature, and the sum is a matrix product.
    weights = torch.nn.functional.pad(shapley_weights(n, p.device), (1, 1))  # of -1 to n

    @full_precision
    def contributions(z: Tensor, values: Tensor) -> Leaves:
        size = z.sum(1, keepdim=True)
        weight = torch.where(z, weights[size], -weights[size + 1])
        gain = (values - p.full).to(weight)  # the weights of a feature sum to 0
        return (torch.tensordot(gain, weight, ([0], [0])),)

    def part(i: slice) -> Part[Leaves]:
        z = subsets(i, n, p.device)
        return p.mixed(these.masks(z)), functools.partial(contributions, z[:, 0])

    (total,) = p.collect(2**n - 1, part, add)  # the last coalition is x itself: no gain
    return p.result(these.elements(total))


def _check_number(n: int) -> None:
    if n > _MOST_FEATURES:
        raise ValueError(
            f"there are {n} features, expected at most {_MOST_FEATURES} for exact Shapley "
            "values of 2^n coalitions: group elements with feature_mask, or use "
            "shapley_value_sampling or kernel_shap"
        )


@documented(BlackBox, PerturbationOptions, SamplingOptions, scores="shared")
def shapley_value_sampling(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    n_samples: int | None = None,
    key: Key = 0,
    antithetic: bool = False,
    return_stderr: bool = False,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Shapley values by sampling: a feature's mean contribution when it joins in random order.

        A_k = mean_pi (v(features up to k in pi) - v(features before k in pi))

    Every ordering's contributions sum to f(x) - f(x0). All examples share the orderings, so that a
    row alone gives what it gives in a batch; a key of shape (B, 2) draws for each example
    separately.

    Args:
        n_samples: The number of orderings; each takes n - 1 evaluations for n features. ``None``:
            500, or as many of at least 25 as take 16,384 evaluations.
        antithetic: Follow each ordering by its reverse, in which the error from interactions of two
            features cancels: with no others in the model, two orderings are exact.
        return_stderr: Return the standard errors of the mean too.

    Returns:
        Attributions like the inputs; every element has the score of its feature. With
        ``return_stderr`` a tuple of those and their standard errors.

    Raises:
        ValueError: There are too few orderings for an error.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 2]
        >>> x = torch.tensor([[2.0, 3.0, 4.0]])
        >>> attrfn.shapley_value_sampling(f, x, n_samples=2, antithetic=True)
        tensor([[3., 3., 4.]])

    Reference:
        Castro, Gómez and Tejada, Polynomial Calculation of the Shapley Value Based on Sampling,
        2009.
        Mitchell, Cooper, Frank and Holmes, Sampling Permutations for Shapley Value Estimation,
        2022.
    """
    least = (4 if antithetic else 2) if return_stderr else 1
    if n_samples is not None and count_of("n_samples", n_samples) < least:
        raise ValueError(
            f"n_samples is {n_samples}, expected at least {least} for standard errors"
            + (" of pairs of orderings" if antithetic else "")
        )
    chunks = Chunks(chunk_size, batching, progress, "shapley_value_sampling", backward=False)
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    p, these = masked_features(p, feature_mask, inputs, n_features)
    count = _default(these.n) if n_samples is None else n_samples
    rank = orderings(row_keys(key, p.batch, p.device), count, these.n, antithetic)
    found = _marginals(p, these, rank)
    values = found.mean(0)
    if antithetic:
        # An ordering and its reverse are not independent, their mean is one observation.
        pairs = count // 2
        found = found[: 2 * pairs].reshape(pairs, 2, *found.shape[1:]).mean(1)
    mean = p.result(these.elements(values))
    if not (return_stderr or is_sample(found)):
        return mean
    stderr = found.std(0) / len(found) ** 0.5
    warn_uncertain("shapley_value_sampling", values, stderr, f"n_samples={count}", p.full)
    return (mean, p.result(these.elements(stderr))) if return_stderr else mean


def _default(n: int) -> int:
    """The number of orderings where none is given."""
    # The error of a number of orderings hardly depends on the number of features. With 500 it is
    # below 10 % on the games of benchmarks/shapley_error_per_evaluation.py.
    return min(500, max(25, 2 * MOST_EVALUATIONS // max(n - 1, 1)))


def _marginals(p: Masked, these: Features, rank: Tensor) -> Tensor:
    """The contribution of each feature when it joins, per ordering: (P, R, K..., n)."""
    # In an ordering feature k joins the features of lower rank, so that a prefix is a comparison of
    # ranks. The n - 1 proper prefixes of all orderings are copies of one batch; the empty and the
    # full one are the same for all orderings and evaluated once.
    n_orders, _, n = rank.shape
    inner = max(n - 1, 0)

    def prefixes(i: slice) -> Tensor:
        c = torch.arange(i.start, i.stop, device=p.device)
        return rank[c // inner] <= (c % inner)[:, None, None]

    p.check_rows(rank.shape[1])
    v = p.over(n_orders * inner, lambda i: these.masks(prefixes(i)))
    v = v.reshape(n_orders, inner, *p.full.shape)
    ends = [e.expand(n_orders, 1, *p.full.shape) for e in (p.empty, p.full)]
    v = torch.cat([ends[0], v, ends[1]], 1)
    joined = (v[:, 1:] - v[:, :-1]).movedim(1, -1)  # (P, R, K..., n), by place in the ordering
    place = rank.reshape(*rank.shape[:2], *[1] * (joined.ndim - 3), n)
    return joined.gather(-1, place.expand(*joined.shape[:-1], n))


def subsets(i: slice, n: int, device: torch.device) -> Tensor:
    """The subsets with the numbers i of n features, (S, 1, n): feature k is bit k of the number."""
    numbers = torch.arange(i.start, i.stop, device=device)
    bits = torch.arange(n, device=device)
    return ((numbers[:, None] >> bits) & 1).bool()[:, None]


def shapley_weights(n: int, device: torch.device) -> Tensor:
    """``|S|! (n - |S| - 1)! / n!`` for |S| = 0 to n - 1, (n,)."""
    weights = [1 / (n * math.comb(n - 1, size)) for size in range(n)]
    return torch.tensor(weights, dtype=widest(device), device=device)


def taylor_weights(n: int, device: torch.device) -> Tensor:
    """``2 / (n C(n - 1, |S|))`` for |S| = 0 to n - 2, (n - 1,)."""
    weights = [2 / (n * math.comb(n - 1, size)) for size in range(n - 1)]
    return torch.tensor(weights, dtype=widest(device), device=device)


def orderings(keys: Tensor, count: int, n: int, antithetic: bool = False) -> Tensor:
    """The place of each feature in random orderings, (count, 1 or B, n).

    With ``antithetic`` every second one is the reverse of the one before.
    """
    draws = (count + 1) // 2 if antithetic else count
    place = random.permutation(sample_keys(keys, slice(0, draws), 0), n)
    if not antithetic:
        return place
    return torch.stack([place, n - 1 - place], 1).flatten(0, 1)[:count]
