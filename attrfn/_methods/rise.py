"""RISE: the mean of random masks, each weighted by the output for the masked input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import weighted_sum, wide
from attrfn._copies.chunks import Chunks, add, at_once
from attrfn._explain.forms import documented
from attrfn._explain.introspect import of_examples
from attrfn._explain.masked import Masked, Part, masked
from attrfn._explain.noise import count_of
from attrfn._explain.options import BlackBox, PerturbationOptions, SamplingOptions
from attrfn._explain.shared import marked
from attrfn._explain.tree import each
from attrfn._explain.uncertain import warn_of_spread
from attrfn._random.keys import row_keys, sample_keys
from attrfn._torch.autodiff import transforming
from attrfn._torch.precision import full_precision
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, Batching, ChunkSize, Key, Leaves, ModelFn, Target, Tree


@of_examples
@documented(BlackBox, PerturbationOptions, SamplingOptions, scores="shared")
def rise(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    n_samples: int = 1000,
    grid: int = 7,
    p: float = 0.5,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """RISE: random smooth masks, each weighted by the output for the masked input.

        A_j = 1 / (N p) sum_s f(x0 + m_s (x - x0)) m_sj,   E m_sj = p

    A mask is a coarse grid of ones (with probability p) and zeros, shifted at random by less than a
    cell and interpolated linearly. All examples share the masks, so that a row alone gives what it
    gives in a batch; a key of shape (B, 2) draws for each example separately.

    Args:
        inputs: Floating tensors (B, C, *spatial); a mask covers all channels alike.
        n_samples: N, the number of masks.
        grid: How many cells a mask has along each spatial dimension.
        p: The probability of a one.

    Returns:
        Attributions like the inputs, equal in all channels.

    Raises:
        ValueError: The inputs have no spatial dimension.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0, :4, :4].mean((1, 2))
        >>> a = attrfn.rise(f, torch.ones(1, 1, 8, 8), n_samples=200, grid=2)
        >>> bool(a[0, 0, :4, :4].mean() > a[0, 0, 4:, 4:].mean())
        True

    Reference:
        Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box
        Models, 2018.
    """
    _check_probability(p)
    chunks = Chunks(chunk_size, batching, progress, "rise", backward=False)
    f = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    _check_floating(f.x)
    n, cells = count_of("n_samples", n_samples), count_of("grid", grid)
    keys = row_keys(key, f.batch, f.device)
    f.check_rows(len(keys))

    def draw(i: slice) -> Leaves:
        return tuple([_masks(sample_keys(keys, i, k), x, cells, p) for k, x in enumerate(f.x)])

    masks = at_once(draw, n, n * len(keys) * sum(x[:1].numel() for x in f.x))
    found, squares = _sums(f, n, masks)
    means = each(lambda t: t / (n * p), found)
    if squares is not None:
        warn_of_spread("rise", means, squares / p**2, n)
    maps = each(_over_channels, means, f.x)
    shared = any(x.shape[1] > 1 for x in f.x)
    return f.result(marked(maps, "shared" if shared else "divided"))


def _sums(f: Masked, n: int, masks: Callable[[slice], Leaves]) -> tuple[Leaves, Tensor | None]:
    """The sum of values times masks, and that of its squares, where a warning may need them."""
    checked = f.batch > 0 and not transforming()

    # The sum of values times masks is taken in each chunk, so that the masks of all samples are
    # never in memory together. A mask has no channels; they come back by the expansion at the end.
    def part(i: slice) -> Part[Leaves]:
        m = masks(i)

        def sums(values: Tensor) -> Leaves:
            found = each(lambda m: weighted_sum(values, m), m)
            return (*found, _squares(values, m)) if checked else found

        return f.mixed(m), sums

    totals = f.collect(n, part, add)
    return totals[: len(f.x)], totals[-1] if checked else None


def _over_channels(means: Tensor, x: Tensor) -> Tensor:
    """A map of all places, the same in each channel of x."""
    rows = means.shape[:-1]
    return means.reshape(*rows, 1, *x.shape[2:]).expand(*rows, *x.shape[1:]).contiguous()


def _squares(values: Tensor, masks: Leaves) -> Tensor:
    """The sum of (v m)^2 over samples, outputs and places, (R,)."""
    with torch.no_grad():
        sizes = torch.stack([m.flatten(2).square().sum(2) for m in masks]).sum(0)
        squares = values.square().flatten(2).sum(2) if values.ndim > 2 else values.square()
        return (squares * sizes.to(squares)).sum(0)


def _check_floating(x: Leaves) -> None:
    for t in x:
        if not t.is_floating_point():
            raise TypeError(
                f"inputs has a tensor of {t.dtype}, expected floating point, because masks of rise "
                "are smooth: use feature_ablation or shapley_value_sampling for others"
            )


def _check_probability(p: object) -> None:
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 < p <= 1:
        raise ValueError(f"p is {say(p)}, expected a probability above 0 and at most 1")


@full_precision
def _masks(keys: Tensor, x: Tensor, cells: int, p: float) -> Tensor:
    """Random masks (S, R, 1, *spatial): ``m(u) = sum_k g_k hat(u - k)`` in each dimension."""
    sizes = x.shape[2:]
    if not sizes:
        raise ValueError(
            f"inputs has a tensor of shape {tuple(x.shape)}, expected (B, C, *spatial) with at "
            "least one spatial dimension: for other inputs use shapley_value_sampling or lime"
        )
    # Resizing each grid and cutting the shifted window out of it would be a loop over the samples.
    # The hat functions of all places are a matrix (places, nodes) for each sample and dimension, so
    # that a dimension is one matrix product, which moves the next dimension to the front. Two more
    # nodes than cells: the last place, shifted by up to one cell, lies between them.
    nodes = torch.arange(cells + 2, device=x.device)
    ones = random.bernoulli(random.fold_in(keys, 0), p, (cells + 2,) * len(sizes))
    shift = random.uniform(random.fold_in(keys, 1), (len(sizes),))
    masks = ones.to(wide(x.dtype))
    for d, size in enumerate(sizes):
        places = (torch.arange(size, device=x.device) + 0.5) * (cells / max(size, 1))
        at = places + shift[..., d, None]
        hat = (1 - (at[..., None] - nodes).abs()).clamp(min=0).to(masks)
        masks = torch.einsum("srk...,sruk->sr...u", masks, hat)
    return masks[:, :, None]
