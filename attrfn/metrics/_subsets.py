"""Whether the sums of scores over random subsets go with what the output loses without them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import is_integer
from attrfn._copies.chunks import at_once
from attrfn._explain.forms import form_of
from attrfn._explain.masked import Part, add_lists
from attrfn._explain.noise import count_of
from attrfn._random.keys import sample_keys
from attrfn._torch.precision import einsum
from attrfn._torch.typing import Key, ModelFn, Tree, Unpack
from attrfn.metrics._correlation import correlation
from attrfn.metrics._direction import better
from attrfn.metrics._options import ScoreOptions
from attrfn.metrics._scores import Scored, order_keys, scored

Lists = tuple[list[Tensor], ...]
Table = tuple[int, Callable[[slice], Tensor]]
"""The number of subsets of a size, and booleans (S, 1 or B, n) of a slice of them."""


@better("higher")
@form_of(scored)
def sensitivity_n(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    sizes: Sequence[int],
    n_samples: int = 100,
    key: Key = 0,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Sensitivity-n: how sums of scores over subsets go with what the output loses without them.

        r_m = pearson over subsets S of m features of
              ( sum_{k in S} a_k ,  f(x) - f(x with S := x0) )

    The paper takes about 15 sizes, logarithmically spaced, up to 0.8 n. Where there are no more
    than ``n_samples`` subsets of a size, all are taken, each once, and the result is exact.

    Args:
        sizes: The sizes m, from 0 to n.
        n_samples: The number of subsets of each size.

    Returns:
        A correlation for each example and size, (B, len(sizes)); nan where it is undefined, as for
        the sizes 0 and n.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> f, x = lambda x: x @ w, torch.ones(1, 4)
        >>> attrfn.metrics.sensitivity_n(f, x, torch.tensor([[4.0, 3.0, 1.0, 2.0]]), sizes=(1, 2))
        tensor([[0.8000, 0.8000]])

    Reference:
        Ancona et al., Towards better understanding of gradient-based attribution methods for Deep
        Neural Networks, 2018. https://arxiv.org/abs/1711.06104
    """
    s = scored("sensitivity_n", model_fn, inputs, attributions, **options)
    return s.number(_correlations(s, list(sizes), n_samples, key, "sizes").T)


@better("higher")
@form_of(scored)
def faithfulness_correlation(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    size: int | None = None,
    n_samples: int = 100,
    key: Key = 0,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Faithfulness correlation: :func:`attrfn.metrics.sensitivity_n` at one size.

        r = pearson over subsets S of ( sum_{k in S} a_k ,  f(x) - f(x with S := x0) )

    Where there are no more than ``n_samples`` subsets, all are taken, each once.

    Args:
        size: The number of features of a subset; ``None``: a quarter of them.
        n_samples: The number of subsets.

    Returns:
        One correlation per example, (B,); nan where it is undefined.

    Example:
        >>> import torch, attrfn.metrics
        >>> w = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> attrfn.metrics.faithfulness_correlation(lambda x: x @ w, torch.ones(1, 4), w[None])
        tensor([1.])

    Reference:
        Bhatt, Weller and Moura, Evaluating and Aggregating Feature-based Model Explanations, 2020.
        https://arxiv.org/abs/2005.00631
    """
    s = scored("faithfulness_correlation", model_fn, inputs, attributions, **options)
    sizes = [max(1, s.n // 4) if size is None else size]
    return s.number(_correlations(s, sizes, n_samples, key, "size")[0])


def _correlations(s: Scored, sizes: list[int], n_samples: int, key: Key, name: str) -> Tensor:
    """One correlation for each size and example, (sizes, B)."""
    count_of("n_samples", n_samples)
    _check_sizes(sizes, s.n, name)
    keys = order_keys(key, s.p)
    tables = [_subsets(s.n, m, n_samples, keys, stream) for stream, m in enumerate(sizes)]
    lengths = [n for n, _ in tables]
    # The sums of the scores are taken in each chunk, so that the subsets of all samples are never
    # in memory together.
    draw = at_once(lambda i: (_members(tables, i),), sum(lengths), sum(lengths) * len(keys) * s.n)

    def part(i: slice) -> Part[Lists]:
        (chosen,) = draw(i)
        points = s.p.mixed(s.parts.masks(~chosen))
        sums = _sums(chosen, s.scores)
        return points, lambda values: ([sums], [values])

    found: Lists = s.p.collect(sum(lengths), part, add_lists)
    sums, values = map(torch.cat, found)
    # The values themselves, and not their changes, tell how large their rounding is.
    return torch.stack(
        [
            -correlation(a.T, f.T, s.eps)
            for a, f in zip(torch.split(sums, lengths), torch.split(values, lengths), strict=True)
        ]
    )


def _check_sizes(sizes: list[int], n: int, name: str) -> None:
    for m in sizes:
        if not is_integer(m) or not 0 <= m <= n:
            raise ValueError(
                f"{name} has {m!r}, expected integers from 0 to {n}, the number of features"
            )
    if not sizes:
        raise ValueError(f"{name} is empty, expected at least one subset size")


def _members(tables: list[Table], i: slice) -> Tensor:
    """Booleans (S, 1 or B, n): the features of the subsets i of all sizes together."""
    found, start = [], 0
    for n, draw in tables:
        low, high = max(i.start - start, 0), min(i.stop - start, n)
        if low < high:
            found.append(draw(slice(low, high)))
        start += n
    rows = max(t.shape[1] for t in found)
    return torch.cat([t.expand(-1, rows, -1) for t in found])


def _sums(chosen: Tensor, scores: Tensor) -> Tensor:
    """Sums of the scores over subsets (S, 1 or B, n), as (S, B)."""
    z = chosen.to(scores.dtype)
    if z.shape[1] == 1:
        return einsum("sn,bn->sb", z[:, 0], scores)
    return einsum("sbn,bn->sb", z, scores)


def _subsets(n: int, size: int, n_samples: int, keys: Tensor, stream: int) -> Table:
    """The number of subsets, and booleans (S, 1 or B, n) of a slice of them."""
    if math.comb(n, size) <= n_samples:
        every = list(itertools.combinations(range(n), size))
        rows = torch.tensor(every, dtype=torch.int64, device=keys.device).reshape(len(every), size)
        table = torch.zeros(len(every), n, dtype=torch.bool, device=keys.device)
        table = table.scatter(1, rows, True)[:, None]
        return len(every), lambda i: table[i]
    return n_samples, lambda i: random.permutation(sample_keys(keys, i, stream), n) < size
