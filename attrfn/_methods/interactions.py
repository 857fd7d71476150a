"""Interactions: the joint contribution of two features beyond that of each by itself."""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._copies.chunks import Chunks, add
from attrfn._explain.features import Features, masked_features
from attrfn._explain.forms import documented
from attrfn._explain.masked import Masked, Part, masked
from attrfn._explain.noise import count_of
from attrfn._explain.options import BlackBox, PerturbationOptions, SamplingOptions
from attrfn._explain.uncertain import is_sample, warn_uncertain
from attrfn._methods.shapley import orderings, shapley_weights, subsets, taylor_weights
from attrfn._random.keys import row_keys
from attrfn._torch.precision import full_precision
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, Batching, ChunkSize, Key, Leaves, ModelFn, Target, Tree

Index = Literal["shapley_taylor", "shapley"]
# 4,096 coalitions, each with a matrix of 144 entries to weigh it. Shapley values go up to 20
# features; here every coalition also costs n^2 numbers.
_MOST_FEATURES = 12


@documented(BlackBox, PerturbationOptions, SamplingOptions, scores="pairs")
def interactions(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    index: Index = "shapley_taylor",
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    n_samples: int | None = None,
    key: Key = 0,
    return_stderr: bool = False,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Interactions of pairs of features.

        d_ij(S) = v(S + i + j) - v(S + i) - v(S + j) + v(S),   v(S) = f(x where S, else x0)

        shapley_taylor:  I_ij = 2/n sum_{S without i, j} d_ij(S) / C(n - 1, |S|),
                         I_ii = v({i}) - v({})
        shapley:         I_ij = sum_{S without i, j} |S|! (n - |S| - 2)! / (n - 1)! d_ij(S),
                         I_ii = the Shapley value of i

    Args:
        index: ``"shapley_taylor"`` (of order 2) or ``"shapley"``, the interaction index of Grabisch
            and Roubens.
        n_samples: The number of random orderings, each of about n^2 / 2 evaluations; None evaluates
            all 2^n coalitions, for at most 12 features.
        return_stderr: Return the standard errors of the mean over the orderings too.

    Returns:
        A symmetric matrix of the features in the order of their ids, (B, K..., n, n). With
        ``shapley_taylor`` its upper triangle with the diagonal sums to f(x) - f(x0). With
        ``return_stderr`` a tuple of it and its standard errors.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 1]
        >>> attrfn.interactions(f, torch.tensor([[2.0, 3.0]]))
        tensor([[[0., 6.],
                 [6., 3.]]])

    Reference:
        Grabisch and Roubens, An Axiomatic Approach to the Concept of Interaction among Players in
        Cooperative Games, 1999.
        Sundararajan, Dhamdhere and Agarwal, The Shapley Taylor Interaction Index, 2020.
    """
    if not is_one_of(index, "shapley_taylor", "shapley"):
        raise ValueError(f"index is {say(index)}, expected 'shapley_taylor' or 'shapley'")
    if n_samples is not None:
        count_of("n_samples", n_samples)
    if return_stderr and (n_samples is None or n_samples < 2):
        raise ValueError(
            f"n_samples is {n_samples}, expected at least 2 for standard errors (None is exact)"
        )
    chunks = Chunks(chunk_size, batching, progress, "interactions", backward=False)
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    p, these = masked_features(p, feature_mask, inputs, n_features)
    keys = row_keys(key, p.batch, p.device)  # also where all coalitions leave nothing to draw
    if n_samples is None:
        return p.number(_exact(p, these, index))
    rank = orderings(keys, n_samples, these.n)
    found = _sampled(p, these, rank, index)
    mean = found.mean(0)
    if not (return_stderr or is_sample(found)):
        return p.number(mean)
    stderr = found.std(0) / n_samples**0.5
    warn_uncertain("interactions", mean, stderr, f"n_samples={n_samples}", p.full)
    return (p.number(mean), p.number(stderr)) if return_stderr else p.number(mean)


def _exact(p: Masked, these: Features, index: Index) -> Tensor:
    """``I = sum_T v(T) C(T)``: how often and with which sign a coalition T counts for i and j."""
    # One pass over the coalitions serves all pairs: the value of a coalition counts for every pair
    # at once, with a weight and a sign that say which of the four terms of d_ij it is.
    n = these.n
    if n > _MOST_FEATURES:
        raise ValueError(
            f"there are {n} features, expected at most {_MOST_FEATURES} for interactions "
            "from 2^n coalitions: group elements with feature_mask, or give n_samples"
        )

    def part(i: slice) -> Part[Leaves]:
        z = subsets(i, n, p.device)
        return p.mixed(these.masks(z)), functools.partial(weigh, z[:, 0])

    @full_precision
    def weigh(z: Tensor, values: Tensor) -> Leaves:
        counts = _counts(z, index)
        gain = (values - p.full).to(counts)  # the counts of a pair sum to 0
        return (torch.tensordot(gain, counts, ([0], [0])),)

    if n == 0:
        return p.full[..., None, None][..., :0, :0]
    (total,) = p.collect(2**n - 1, part, add)  # the last coalition is x itself: no gain
    return total


def _counts(z: Tensor, index: Index) -> Tensor:
    """C(T) for coalitions (S, n), (S, n, n)."""
    # In d_ij(S) the coalition T is S + i + j if it holds both features (+, |S| = |T| - 2), S + i or
    # S + j if it holds one (-, |S| = |T| - 1), and S if it holds none (+, |S| = |T|). The weights
    # are padded, so that sizes that no S has get 0.
    n = z.shape[1]
    size = z.sum(1)[:, None, None]
    taylor = index == "shapley_taylor"
    weights = taylor_weights(n, z.device) if taylor else shapley_weights(n - 1, z.device)
    of_size = F.pad(weights, (2, 2))  # of -2 to n
    has_i, has_j = z[:, :, None], z[:, None]
    pairs = torch.where(has_i | has_j, -of_size[size + 1], of_size[size + 2])
    pairs = torch.where(has_i & has_j, of_size[size], pairs)
    if taylor:
        diagonal = (size == 1).to(pairs) * has_i.to(pairs) - (size == 0).to(pairs)
    else:
        of_one = F.pad(shapley_weights(n, z.device), (1, 1))
        diagonal = torch.where(has_i, of_one[size], -of_one[size + 1])
    return torch.where(torch.eye(n, dtype=torch.bool, device=z.device), diagonal, pairs)


def _sampled(p: Masked, these: Features, rank: Tensor, index: Index) -> Tensor:
    """The interactions of all features in each ordering, (P, R, K..., n, n)."""
    # A pair of features is at places a < b of an ordering, with S the features before place a. Then
    # d_ij(S) takes four coalitions: S, S + i, S + j and S + i + j. With
    #     g[a, b] = v(the features before place a, and the one at place b)
    # and v(S) = g[a - 1, a - 1], it is d[a, b] = g[a + 1, b] - g[a, a] - g[a, b] + v(S). So the
    # upper triangle of g, n (n + 1) / 2 coalitions of which the last is x itself, serves all pairs
    # of an ordering.
    #
    # Both indices are means of d over random S, of different distributions. Among random orderings
    # with i and j at the places a < b, a is small more often than large, in proportion to
    # n - 1 - a. That is the distribution of Shapley-Taylor; for the Shapley index, where all sizes
    # of S are equally likely, d is divided by it.
    n_orders, _, n = rank.shape
    p.check_rows(rank.shape[1])
    upper = torch.triu_indices(n, n, device=p.device)
    a, b, m = upper[0], upper[1], upper.shape[1]

    def coalitions(i: slice) -> Tensor:
        c = torch.arange(i.start, i.stop, device=p.device)
        order, which = rank[c // (m - 1)], c % (m - 1)
        return (order < a[which, None, None]) | (order == b[which, None, None])

    v = p.over(n_orders * max(m - 1, 0), lambda i: these.masks(coalitions(i)))
    v = v.reshape(n_orders, max(m - 1, 0), *p.full.shape)
    v = torch.cat([v, p.full.expand(n_orders, 1, *p.full.shape)], 1).movedim(1, -1)
    if n == 0:
        return v[..., None][..., :0, :0]
    places = torch.arange(n, device=p.device)
    low, high = torch.minimum(places[:, None], places), torch.maximum(places[:, None], places)
    g = v[..., low * n - low * (low + 1) // 2 + high]  # symmetric; (P, R, K..., n, n)
    upto = g.diagonal(dim1=-2, dim2=-1)  # v(the features up to each place)
    before = torch.cat([p.empty.expand(n_orders, *p.full.shape)[..., None], upto[..., :-1]], -1)
    gain = upto - before
    d = g[..., 1:, :] - g[..., :-1, :] - gain[..., :-1, None]
    if index == "shapley":
        d = d * (n / 2 / (n - 1 - places[:-1, None])).to(d)
    d = F.pad(d.triu(1), (0, 0, 0, 1))
    of_one = g[..., 0, :] - p.empty[..., None] if index == "shapley_taylor" else gain
    d = d + d.transpose(-1, -2) + torch.diag_embed(of_one)
    return _by_feature(d, rank)


def _by_feature(d: Tensor, rank: Tensor) -> Tensor:
    """A matrix of the places in each ordering as one of the features, (P, R, K..., n, n)."""
    place = rank.reshape(*rank.shape[:2], *[1] * (d.ndim - 4), rank.shape[2]).expand(d.shape[:-1])
    rows = d.gather(-2, place[..., None].expand(d.shape))
    return rows.gather(-1, place[..., None, :].expand(d.shape))
