"""Multipliers of selections, products of many factors and linear systems, against loops.

Each expected value is a formula in loops over numbers, or an operation whose rule is older.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from completeness import gap
from oracles import randn
from test_rules_selections import FORMS, GROUP, N, groups, rows, scalar

import attrfn

X, X0 = rows(100), rows(101)


def multipliers(f, x=X, x0=X0, **options):
    return attrfn.deep_lift(f, x, baselines=x0, multiply_by_inputs=False, **options)


def of_greatest_sum(x, x0, k):
    """By all sets of k elements: the mean of the winners at x and x0 that carries the change."""
    if k == 0:
        return torch.zeros_like(x)
    sets = list(itertools.combinations(range(len(x)), k))
    best, best0 = (max(sets, key=lambda s, t=t: float(t[list(s)].sum())) for t in (x, x0))
    change = x[list(best)].sum() - x0[list(best0)].sum()
    upper, lower = ((x - x0)[list(s)].sum() for s in (best, best0))
    share = 1.0 if best == best0 else (change - lower) / (upper - lower)
    found = torch.zeros_like(x)
    found[list(best)] += share
    found[list(best0)] += 1 - share
    return found


@pytest.mark.parametrize("k", range(1, N + 1))
def test_the_kth_greatest_is_a_difference_of_greatest_sums(k):
    want = torch.stack(
        [
            of_greatest_sum(x, x0, k) - of_greatest_sum(x, x0, k - 1)
            for x, x0 in zip(X, X0, strict=True)
        ]
    )
    for f in (
        lambda x: x.sort(1, descending=True)[0][:, k - 1],
        lambda x: torch.sort(x, 1)[0][:, N - k],
        lambda x: x.topk(k)[0][:, -1],
        lambda x: x.kthvalue(N + 1 - k)[0],
    ):
        found = multipliers(f)
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found.sum(1), torch.ones(3).double())


def test_the_sum_of_the_greatest_has_multipliers_between_zero_and_one():
    for k in range(1, N):
        m = multipliers(lambda x, k=k: x.topk(k)[0].sum(1))
        assert (m > -1e-12).all()
        assert (m < 1 + 1e-12).all()


def test_where_nothing_changes_the_multipliers_are_the_gradient():
    w = randn(3, N)
    for f in (lambda x: (x.sort(1)[0] * w).sum(1), lambda x: x.median(1)[0], lambda x: x.prod(1)):
        torch.testing.assert_close(multipliers(f, X, X), attrfn.gradient(f, X))


@pytest.mark.parametrize("how", ["amax", "amin"])
@pytest.mark.parametrize("own", [True, False])
def test_maxima_of_groups_are_maxima_of_slices(how, own):
    w = randn(4, 3)

    def by_slices(x):
        into = x[:, :3].tanh()
        parts = [x[:, g == GROUP] for g in range(3)]
        parts = [torch.cat([into[:, [g]], p], 1) for g, p in enumerate(parts)] if own else parts
        return (torch.stack([getattr(torch, how)(p, 1) for p in parts], 1) * w).sum(1)

    want = multipliers(by_slices)
    found = multipliers(lambda x: (groups(x, how, include_self=own) * w).sum(1))
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)


def test_products_of_many_factors():
    """The mean over changing the factors from first to last and from last to first."""
    want = torch.zeros_like(X)
    for b, i in itertools.product(range(3), range(N)):
        x, x0 = X[b], X0[b]
        want[b, i] = (x[:i].prod() * x0[i + 1 :].prod() + x0[:i].prod() * x[i + 1 :].prod()) / 2
    torch.testing.assert_close(multipliers(lambda x: x.prod(1)), want)
    relevance = attrfn.lrp(lambda x: x.prod(1), X)
    torch.testing.assert_close(relevance, (X.prod(1, keepdim=True) / N).expand(3, N))


def test_a_system_of_one_equation():
    """x = b / a, as the mean of (b - b0 - (a - a0) x0) / a and (b - b0 - (a - a0) x) / a0."""

    def f(x):
        return torch.linalg.solve(x[:, :1, None].exp(), x[:, 1:2, None])[:, 0, 0]

    (a, b), (a0, b0) = ((t[:, 0].exp(), t[:, 1]) for t in (X, X0))
    y, y0 = b / a, b0 / a0
    along_b = (1 / a + 1 / a0) / 2
    along_a = -(y0 / a + y / a0) / 2 * (a - a0) / (X[:, 0] - X0[:, 0])
    torch.testing.assert_close(multipliers(f)[:, :2], torch.stack([along_a, along_b], 1))


def test_running_sums_of_exponentials_are_those_of_prefixes():
    w = randn(5, N)
    want = multipliers(lambda x: sum(x[:, : i + 1].logsumexp(1) * w[i] for i in range(N)))
    found = multipliers(lambda x: (x.logcumsumexp(1) * w).sum(1))
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", [F.smooth_l1_loss, F.huber_loss])
def test_losses_of_a_difference_have_its_slope(loss):
    target = randn(6, 3, N)
    each = lambda x: loss(x, target, reduction="none")  # noqa: E731
    want = (each(X) - each(X0)) / (X - X0)
    torch.testing.assert_close(multipliers(lambda x: each(x).sum(1)), want)


def test_samples_of_a_ramp_are_linear_in_the_grid():
    ramp = torch.arange(4).double().expand(3, 1, 4, 4)  # grows by 1 from one column to the next

    def f(x):
        grid = (0.5 * x[:, :2].tanh())[:, None, None]
        return F.grid_sample(ramp, grid, align_corners=True)[:, 0, 0, 0]

    want = 1.5 * 0.5 * (X[:, 0].tanh() - X0[:, 0].tanh())  # from -1 to 1 there are 3 columns
    found = attrfn.deep_lift(f, X, baselines=X0)
    torch.testing.assert_close(found[:, 0], want)
    torch.testing.assert_close(found[:, 1:], torch.zeros(3, N - 1).double(), atol=1e-12, rtol=0)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no products by groups")
@pytest.mark.parametrize("both", [False, True])
def test_products_by_groups_are_products_of_slices(both):
    """Tokens (8, 16) in two groups, with weights (2, 16, 16)."""
    ends, w = torch.tensor([3, 8], dtype=torch.int32), randn(7, 2, 16, 16).float()
    x, x0 = randn(8, 1, 8, 16).float(), randn(9, 1, 8, 16).float()

    def weights(t):
        return w * t[0, :1].tanh() if both else w

    def grouped(t):
        return F.grouped_mm(t[0], weights(t), offs=ends).tanh().sum()[None]

    def sliced(t):
        parts = [t[0, :3] @ weights(t)[0], t[0, 3:] @ weights(t)[1]]
        return torch.cat(parts).tanh().sum()[None]

    a, b = (attrfn.deep_lift(f, x, baselines=x0) for f in (grouped, sliced))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    if not both:
        rules = attrfn.rules.composite(attrfn.rules.gamma())
        a, b = (attrfn.lrp(f, x, rules=rules) for f in (grouped, sliced))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_gumbel_softmax_with_fixed_noise():
    def f(x):
        torch.manual_seed(3)
        return (F.gumbel_softmax(x, tau=0.7, dim=1) * torch.arange(N)).sum(1)

    state = torch.get_rng_state()
    for options in ({}, {"create_graph": True}, {"rule": "reveal_cancel"}):
        assert gap(f, X, X0, **options) < 1e-10
    torch.set_rng_state(state)


def in_no_grad(x):
    with torch.no_grad():
        top = x.amax(1, keepdim=True)
    return x - top


SHIFTED = {
    "x.detach().amax()": lambda x: x - x.detach().amax(1, keepdim=True),
    "x.amax().detach()": lambda x: x - x.amax(1, keepdim=True).detach(),
    "x.max()[0].detach()": lambda x: x - x.max(1, keepdim=True)[0].detach(),
    "values.detach()": lambda x: x - torch.max(x, 1, keepdim=True).values.detach(),
    "unsqueezed": lambda x: x - x.detach().max(1)[0].unsqueeze(1),
    "over two dimensions": lambda x: x - x.detach().reshape(-1, 3, 2).amax((1, 2))[:, None],
    "no_grad": in_no_grad,
}


@pytest.mark.parametrize("name", SHIFTED)
def test_detached_maxima(name):
    """Softmax and log-sum-exp with a shift that is detached: complete, however it is written."""
    shift, w = SHIFTED[name], randn(4, N)

    def softmax(x):
        e = shift(x).exp()
        return (e / e.sum(1, keepdim=True) * w).sum(1)

    for f in (softmax, lambda x: shift(2 * x).exp().sum(1).log() + x[:, 0]):
        want = attrfn.deep_lift(f, X, baselines=X0)
        for options in ({}, {"create_graph": True}, {"rule": "reveal_cancel"}):
            assert gap(f, X, X0, **options) < 1e-10
        found = torch.func.vmap(
            lambda x, x0, f=f: attrfn.deep_lift(f, x[None], baselines=x0[None])[0]
        )(X, X0)
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)


def test_other_detached_values_are_refused():
    for f in (lambda x: x * x.exp().detach(), lambda x: x * x.detach()[:, :1]):
        with pytest.raises(attrfn.UnsupportedOpError, match="without a derivative"):
            attrfn.deep_lift(lambda x, f=f: f(x).sum(1), X, baselines=X0)


COMPILED = ("sort", "topk", "median", "quantile", "scatter_reduce amax False", "prod", "cumprod")
COMPILED += ("solve with both", "image and grid", "bce", "huber 0.3", "cdist 2.0", "logcumsumexp")


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    f = scalar(FORMS[name])
    torch.compiler.reset()
    want = attrfn.deep_lift(f, X, baselines=X0)
    run = torch.compile(
        lambda x, x0: attrfn.deep_lift(f, x, baselines=x0), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(run(X, X0), want, rtol=1e-9, atol=1e-11)


def test_detached_maxima_compiled():
    def f(x):
        e = (x - x.detach().amax(1, keepdim=True)).exp()
        return (e[:, :1] / e.sum(1, keepdim=True))[:, 0]

    torch.compiler.reset()
    want = attrfn.deep_lift(f, X, baselines=X0)
    run = torch.compile(
        lambda x, x0: attrfn.deep_lift(f, x, baselines=x0), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(run(X, X0), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduce", ["prod"])
def test_products_of_groups_are_refused(reduce):
    for method in (attrfn.deep_lift, attrfn.lrp):
        with pytest.raises(attrfn.UnsupportedOpError, match="with reduce='prod'"):
            method(lambda x: groups(x, reduce).sum(1), X)
