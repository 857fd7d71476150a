"""Integrated Hessians against double integrals and by hand."""

from __future__ import annotations

import itertools

import oracles
import pytest
import torch
from games import ids_of, players_of, wavy
from oracles import close, quadrature, randn
from torch import nn

import attrfn


def double_integral(f, x, x0, n=24):
    """Janizek et al., eq. 4 and 5: Gauss-Legendre in alpha and beta, Hessians row by row."""
    nodes, weights = quadrature("gauss_legendre", n)
    square = list(itertools.product(zip(nodes, weights, strict=True), repeat=2))
    t = torch.tensor([s * t for (s, _), (t, _) in square])[:, None]
    w = torch.tensor([u * w for (_, u), (_, w) in square])[:, None]
    results = []
    for z, b in zip(x, x0, strict=True):
        d = z - b
        points = (b + t * d).requires_grad_()
        slopes = torch.autograd.grad(f(points).sum(), points, create_graph=True)[0]
        total = torch.diag((w * slopes).sum(0).detach() * d)
        for i in range(len(z)):
            curve = torch.autograd.grad(slopes[:, i].sum(), points, retain_graph=True)[0]
            total[i] += d[i] * d * (w * t * curve).sum(0)
        results.append(total)
    return torch.stack(results)


def test_integrated_hessians_are_the_double_integral():
    """24^2 nodes in the plane against 50 on a line leave 1e-9 of this analytic function."""
    x, x0 = randn(0, 2, 3), 0.5 * randn(1, 2, 3)
    got = attrfn.integrated_hessians(wavy, x, baselines=x0)
    close(got, double_integral(wavy, x, x0), 1e-8)


def test_integrated_hessians_of_a_quadratic_form():
    """f = x'Qx/2 + b'x, Q symmetric: the integral of alpha beta is 1/4, so off the diagonal
    Q_ij d_i d_j / 4; on it also d_i (b_i + Q_i (x0 + d/4))."""
    q, b, x, x0 = randn(0, 4, 4), randn(1, 4), randn(2, 3, 4), randn(3, 3, 4)
    q, d = q + q.T, x - x0
    got = attrfn.integrated_hessians(lambda x: ((x @ q) * x).sum(1) / 2 + x @ b, x, baselines=x0)
    want = q * d[:, :, None] * d[:, None] / 4 + torch.diag_embed(d * (b + (x0 + d / 4) @ q))
    close(got, want)


def test_integrated_hessians_of_a_bilinear_function():
    """f = xy from 0: all four entries are xy / 4."""
    x = randn(0, 3, 2)
    got = attrfn.integrated_hessians(lambda x: x.prod(1), x, n_steps=8)
    close(got, (x.prod(1) / 4)[:, None, None].expand(3, 2, 2), 1e-8)


def test_integrated_hessians_of_a_product_of_three():
    """f = xyz from 0: the integral of (alpha beta)^2 is 1/9, so all nine entries are xyz / 9."""
    x = randn(0, 3, 3)
    got = attrfn.integrated_hessians(lambda x: x.prod(1), x)
    close(got, (x.prod(1) / 9)[:, None, None].expand(3, 3, 3))


def test_integrated_hessians_of_a_product_of_three_from_a_baseline():
    """f_12 = b_3 + t d_3 with t = alpha beta: I_12 = d_1 d_2 (b_3/4 + d_3/9), and on the diagonal
    I_11 = d_1 (b_2 b_3 + (b_2 d_3 + b_3 d_2)/4 + d_2 d_3/9)."""
    x, b = randn(0, 4, 3), randn(1, 4, 3)
    d = x - b
    want = torch.zeros(4, 3, 3, dtype=torch.float64)
    for i, j in itertools.permutations(range(3), 2):
        k = 3 - i - j
        want[:, i, j] = d[:, i] * d[:, j] * (b[:, k] / 4 + d[:, k] / 9)
    for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        mixed = b[:, j] * d[:, k] + b[:, k] * d[:, j]
        want[:, i, i] = d[:, i] * (b[:, j] * b[:, k] + mixed / 4 + d[:, j] * d[:, k] / 9)
    close(attrfn.integrated_hessians(lambda x: x.prod(1), x, baselines=b), want)


@pytest.mark.parametrize("target", [1, [3, 0]])
def test_integrated_hessians_sum_to_the_change_by_integrated_gradients(target):
    model = oracles.seeded(oracles.TwoInputs)
    x, x0 = (randn(0, 2, 3), randn(1, 2, 2, 2)), (0.1, 0.3 * randn(2, 2, 2, 2))
    got = attrfn.integrated_hessians(model, x, target=target, baselines=x0)
    assert got.shape == (2, 7, 7)
    starts = (torch.full_like(x[0], 0.1), x0[1])
    change = oracles.values(model, x, target) - oracles.values(model, starts, target)
    close(got.sum((1, 2)), change, 1e-8)
    rows = oracles.integrated_gradients(model, x, starts, n=40, target=target)
    close(got.sum(2), torch.cat([r.flatten(1) for r in rows], 1), 1e-8)
    close(got, got.mT)


def test_integrated_hessians_of_features_sum_those_of_their_elements():
    """Features in two tensors, with gaps in the ids, and one mask per example."""
    x = (randn(0, 2, 2), randn(1, 2, 2, 1))
    single = attrfn.integrated_hessians(wavy, x)
    for mask in (
        (torch.tensor([8, 2]), torch.tensor([[[2], [5]]])),
        (torch.tensor([[1, 1], [0, 2]]), torch.tensor([[2], [0]])),
    ):
        ids = torch.cat([leaf.flatten(1) for leaf in ids_of(mask, x)], 1)
        players = players_of([ids])
        want = torch.stack(
            [
                torch.stack(
                    [torch.stack([s[i == a][:, i == b].sum() for b in players]) for a in players]
                )
                for s, i in zip(single, ids, strict=True)
            ]
        )
        close(attrfn.integrated_hessians(wavy, x, feature_mask=mask), want)


def test_integrated_hessians_of_relus_warn():
    """Piecewise linear functions have no curvature, so the entries miss the change."""
    model = oracles.seeded(lambda: nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 1)))
    x = randn(0, 4, 3)
    with pytest.warns(UserWarning, match="integrated_hessians"):
        attrfn.integrated_hessians(model, x, baselines=randn(1, 4, 3))
