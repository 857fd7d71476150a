"""RISE against sums over its masks."""

from __future__ import annotations

import itertools
import math

import oracles
import pytest
import torch
from games import ones, wavy, wavy_pair
from oracles import close, randn

import attrfn


def masks_of(shape, **options):
    """The masks (N, B, ...) that rise draws: ones seen through them."""
    seen = []

    def f(x):
        seen.append(x.clone())
        return x.flatten(1).sum(1)

    x = ones(*shape)
    attrfn.rise(f, x, chunk_size=1, **options)
    seen = [z for z in seen if z.shape == x.shape]
    n = options["n_samples"]
    return torch.stack(seen[-n:])


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 1, 6, 8), (1, 2, 4, 3, 5)])
@pytest.mark.parametrize("p", [0.5, 0.2])
def test_rise_is_the_mean_of_its_masks_by_the_output(shape, p):
    x, x0, options = randn(0, *shape), randn(1, *shape), {"n_samples": 7, "grid": 3, "p": p}
    m = masks_of(shape, key=4, **options)
    assert ((m >= 0) & (m <= 1)).all()
    close(m, m[:, :1, :1].expand_as(m))  # one for all channels, and for all examples
    assert len({tuple(one.flatten().tolist()) for one in m}) > 1
    want = torch.zeros_like(x)
    for one in m:
        value = wavy(x0 + one * (x - x0))
        want += value.reshape(-1, *[1] * (x.ndim - 1)) * one / (7 * p)
    close(attrfn.rise(wavy, x, baselines=x0, key=4, **options), want)


def test_rise_of_two_inputs_and_outputs():
    """Each input has masks of its own; several outputs give (B, K, ...)."""
    x = (randn(0, 2, 1, 4), randn(1, 2, 2, 3, 3))
    seen = []

    def f(a, b):
        seen.append((a / x[0], b / x[1]))
        return wavy_pair(a, b)

    got = attrfn.rise(f, x, n_samples=5, grid=2, chunk_size=1)
    assert [g.shape for g in got] == [(2, 2, 1, 4), (2, 2, 2, 3, 3)]
    want = [torch.zeros_like(g) for g in got]
    for masks in seen[-5:]:
        value = wavy_pair(*[m * t for m, t in zip(masks, x, strict=True)])
        for total, m in zip(want, masks, strict=True):
            total += value.reshape(2, 2, *[1] * (m.ndim - 1)) * m[:, None] / (5 * 0.5)
    close(got, tuple(want))


def test_masks_have_mean_p():
    """At every place, over 4000 keys; a value between 0 and 1 has at most the spread of a coin."""
    keys = attrfn.random.split(0, 4000)
    for p in (0.5, 0.15):
        m = masks_of((4000, 1, 5, 6), n_samples=1, grid=4, p=p, key=keys)[0]
        assert m.std(0).max() <= math.sqrt(p * (1 - p)) + 0.01
        oracles.within_sigmas(m.mean(0), p * torch.ones(1, 5, 6).double(), m.std(0), 4000)


def spline(t):
    """The cubic B-spline: the hat function's correlation with itself."""
    t = abs(t)
    if t < 1:
        return 2 / 3 - t**2 + t**3 / 2
    return max(2 - t, 0) ** 3 / 6


@pytest.mark.parametrize(("shape", "grid", "p"), [((8,), 3, 0.5), ((4, 6), 2, 0.3)])
def test_rise_of_a_linear_function_in_expectation(shape, grid, p):
    """A_j = 1/p sum_k w_k x_k E[m_j m_k] with E[m_j m_k] = p^2 + p (1 - p) prod_d B((j - k)_d).

    The cells are independent coins, interpolated linearly, and a uniform shift makes the
    correlation of two places that of the hat function with itself at their distance in cells.
    """
    keys, w, x = attrfn.random.split(1, 400), randn(2, *shape), randn(3, 1, *shape)
    many = x.expand(400, 1, *shape)
    got = attrfn.rise(
        lambda x: (x[:, 0] * w).flatten(1).sum(1),
        many,
        n_samples=50,
        grid=grid,
        p=p,
        key=keys,
        chunk_size=25,
    )
    want = torch.zeros(shape, dtype=torch.float64)
    places = list(itertools.product(*map(range, shape)))
    for j, k in itertools.product(places, repeat=2):
        near = math.prod(
            spline((a - b) * grid / size) for a, b, size in zip(j, k, shape, strict=True)
        )
        want[j] += float(w[k] * x[0][k]) * (p + (1 - p) * near)
    oracles.within_sigmas(got.mean(0)[0], want, got.std(0)[0], 400)


def test_rise_with_p_of_one_keeps_everything():
    """Every mask is 1, so that A = f(x) everywhere."""
    x = randn(0, 3, 2, 4, 4)
    got = attrfn.rise(wavy, x, n_samples=3, p=1.0)
    close(got, wavy(x)[:, None, None, None].expand_as(x))
