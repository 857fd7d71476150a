"""Rules of selections, products of many factors, linear systems, sampling and losses.

DeepLIFT is complete on each of them, and its multipliers agree with closed forms that share no code
with the rules; LRP conserves relevance where no operation of the form has a bias.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from completeness import gap
from oracles import randn

import attrfn

N = 6
GROUP = torch.tensor([0, 2, 0, 1, 2, 0])
OFFS = torch.tensor([2, 5, 8], dtype=torch.int32)
A = randn(1, N, N) + 4 * torch.eye(N, dtype=torch.float64)
B = randn(2, N, 2)
SPARSE = torch.where(randn(3, 4, N) > 0, randn(4, 4, N), 0.0).to_sparse()
TARGETS = randn(5, N).sigmoid()


def matrix(x):
    """A well-conditioned matrix (B, 3, 3) of the first three numbers of each row."""
    return 3 * torch.eye(3, dtype=x.dtype) + torch.diag_embed(x[:, :3]) + 0.3 * outer(x)


def outer(x):
    return x[:, :3, None] * x[:, None, 3:6].tanh()


def groups(x, reduce, **options):
    into = x[:, :3].tanh() if options.pop("own", True) else torch.zeros_like(x[:, :3])
    return into.scatter_reduce(1, GROUP.expand(len(x), -1), x, reduce, **options)


def index(x, reduce, **options):
    return x[:, :3].tanh().index_reduce(1, GROUP, x, reduce, **options)


def grid(x):
    """A grid (B, 2, 1, 2) that depends on x."""
    return x[:, :4].tanh().reshape(-1, 2, 1, 2)


IMAGE = randn(6, 1, 3, 4, 5)
VOLUME = randn(7, 1, 2, 3, 3, 3)

SELECTIONS = {
    "sort": lambda x: x.sort(1)[0],
    "sort down": lambda x: torch.sort(x, 1, True).values,
    "sort stable": lambda x: torch.sort(x, stable=True, dim=-1, descending=True)[0],
    "sort of columns": lambda x: x.reshape(-1, 2, 3).sort(1).values.flatten(1),
    "msort": lambda x: torch.stack([torch.msort(row) for row in x]),
    "topk": lambda x: x.topk(3)[0],
    "topk least": lambda x: torch.topk(x, 2, largest=False).values,
    # Any order counts as descending, so the form may not depend on it.
    "topk in any order": lambda x: x.topk(4, sorted=False)[0].square().sum(1, keepdim=True),
    "kthvalue": lambda x: x.kthvalue(2)[0][:, None],
    "kthvalue keepdim": lambda x: torch.kthvalue(x, 5, 1, True).values,
    "median": lambda x: x.median(1)[0][:, None],
    "median keepdim": lambda x: torch.median(x, dim=-1, keepdim=True).values,
    "median of all": lambda x: torch.stack([row.median() for row in x])[:, None],
    "cummax": lambda x: x.cummax(1)[0],
    "cummin": lambda x: torch.cummin(x, dim=1).values,
    "quantile": lambda x: x.quantile(0.3, 1)[:, None],
    "quantiles": lambda x: (
        torch.quantile(x, torch.tensor([0.1, 0.85], dtype=x.dtype), dim=1, keepdim=True)[..., 0].T
    ),
    **{
        f"quantile {how}": lambda x, how=how: x.quantile(0.37, dim=1, interpolation=how)[:, None]
        for how in ("lower", "higher", "nearest", "midpoint")
    },
    **{
        f"scatter_reduce {how} {own}": lambda x, how=how, own=own: groups(x, how, include_self=own)
        for how in ("sum", "mean", "amax", "amin")
        for own in (True, False)
    },
    "scatter_reduce into zeros": lambda x: groups(x, "amax", own=False),
    "scatter_reduce of a part": lambda x: torch.zeros(len(x), 4, dtype=x.dtype).scatter_reduce(
        1, GROUP[:4].expand(len(x), -1), x, "amin", include_self=False
    ),
    **{
        f"index_reduce {how} {own}": lambda x, how=how, own=own: index(x, how, include_self=own)
        for how in ("mean", "amax", "amin")
        for own in (True, False)
    },
}

PRODUCTS = {
    "prod": lambda x: x.prod(1)[:, None],
    "prod keepdim": lambda x: torch.prod(x, 1, True),
    "prod of three": lambda x: x.reshape(-1, 2, 3).prod(2),
    "prod of all": lambda x: torch.stack([row.prod() for row in x])[:, None],
    "prod with zeros": lambda x: x.relu().prod(1)[:, None] + x[:, :4].prod(1)[:, None],
    "cumprod": lambda x: x.cumprod(1),
    "sparse.mm": lambda x: torch.sparse.mm(SPARSE, x.T).T,
    "sparse.addmm": lambda x: torch.sparse.addmm(x.T[:4], SPARSE, x.T).T,
    "sparse @": lambda x: (SPARSE @ x.T).T,
}

SYSTEMS = {
    "inv": lambda x: torch.linalg.inv(matrix(x)).flatten(1),
    "inverse": lambda x: matrix(x).inverse().flatten(1),
    "solve for B": lambda x: torch.linalg.solve(A, x.T).T,
    "solve with A": lambda x: torch.linalg.solve(matrix(x), B[None, :3]).flatten(1),
    "solve with both": lambda x: torch.linalg.solve(matrix(x), x.reshape(-1, 3, 2)).flatten(1),
    "solve with vectors": lambda x: torch.linalg.solve(matrix(x), x[:, 3:]),
    "solve by keywords": lambda x: torch.linalg.solve(A=matrix(x), B=x.reshape(-1, 3, 2)).flatten(
        1
    ),
    "solve from the right": lambda x: torch.linalg.solve(
        matrix(x), x.reshape(-1, 2, 3), left=False
    ).flatten(1),
    **{
        f"solve_triangular {upper} {left} {unit}": lambda x, upper=upper, left=left, unit=unit: (
            torch.linalg.solve_triangular(
                matrix(x),
                x.reshape(-1, 3, 2) if left else x.reshape(-1, 2, 3),
                upper=upper,
                left=left,
                unitriangular=unit,
            ).flatten(1)
        )
        for upper in (True, False)
        for left in (True, False)
        for unit in (True, False)
    },
}

SAMPLES = {
    "affine_grid": lambda x: F.affine_grid(x.reshape(-1, 2, 3), (len(x), 1, 2, 3), False).flatten(
        1
    ),
    "spatial transformer": lambda x: F.grid_sample(
        IMAGE.expand(len(x), -1, -1, -1),
        F.affine_grid(0.3 * x.reshape(-1, 2, 3), (len(x), 3, 2, 3), align_corners=False),
        align_corners=False,
    ).flatten(1),
    "image and grid": lambda x: F.grid_sample(
        IMAGE * x[:, :1, None, None], grid(x), align_corners=True
    ).flatten(1),
    "image": lambda x: F.grid_sample(
        x.reshape(-1, 1, 2, 3),
        IMAGE[:, 0, :2, :2, None].tanh().expand(len(x), 2, 2, 2),
        align_corners=False,
    ).flatten(1),
    **{
        f"{mode} {padding}": lambda x, mode=mode, padding=padding: F.grid_sample(
            IMAGE.expand(len(x), -1, -1, -1), grid(x), mode, padding, False
        ).flatten(1)
        for mode in ("bilinear", "bicubic", "nearest")
        for padding in ("zeros", "border", "reflection")
    },
    "volume": lambda x: F.grid_sample(
        VOLUME.expand(len(x), -1, -1, -1, -1),
        x.tanh().reshape(-1, 1, 2, 1, 3),
        align_corners=False,
    ).flatten(1),
}

LOSSES = {
    **{
        f"bce_with_logits {name}": lambda x, options=options: F.binary_cross_entropy_with_logits(
            x, TARGETS.expand_as(x), reduction="none", **options
        )
        for name, options in {
            "": {},
            "weight": {"weight": TARGETS},
            "pos_weight": {"pos_weight": 2 * TARGETS},
        }.items()
    },
    "bce_with_logits of both": lambda x: F.binary_cross_entropy_with_logits(
        x[:, :3], x[:, 3:].sigmoid(), reduction="none"
    ),
    "bce": lambda x: F.binary_cross_entropy(
        x.sigmoid(), TARGETS.expand_as(x), TARGETS, reduction="none"
    ),
    **{
        f"smooth_l1 {beta}": lambda x, beta=beta: F.smooth_l1_loss(
            x, TARGETS.expand_as(x), reduction="none", beta=beta
        )
        for beta in (0.0, 0.3, 1.0)
    },
    **{
        f"huber {delta}": lambda x, delta=delta: F.huber_loss(
            x[:, :3], x[:, 3:], reduction="none", delta=delta
        )
        for delta in (0.3, 1.0)
    },
    "kl_div": lambda x: F.kl_div(x, TARGETS.expand_as(x), reduction="none"),
    "kl_div of logs": lambda x: F.kl_div(x, x.tanh(), reduction="none", log_target=True),
    "loss of a batch of one": lambda x: torch.stack(
        [F.huber_loss(row, TARGETS) + F.smooth_l1_loss(row, TARGETS, reduction="sum") for row in x]
    )[:, None],
}

OTHERS = {
    **{
        f"cdist {p}": lambda x, p=p: torch.cdist(
            x.reshape(-1, 2, 3), x.tanh().reshape(-1, 2, 3) + 1, p
        ).flatten(1)
        for p in (1.0, 2.0, 3.0, math.inf)
    },
    "cdist of constants": lambda x: torch.cdist(x.reshape(-1, 2, 3), A[:4, :3]).flatten(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "logcumsumexp of columns": lambda x: torch.logcumsumexp(x.reshape(-1, 3, 2), dim=-2).flatten(1),
    "angle": lambda x: x.angle(),
}

FORMS = SELECTIONS | PRODUCTS | SYSTEMS | SAMPLES | LOSSES | OTHERS


def scalar(form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = randn(9, *form(rows(100)).shape[1:])
    return lambda x: (form(x) * weights).flatten(1).sum(1)


def rows(seed, batch=3):
    return randn(seed, batch, N)


@pytest.mark.filterwarnings("ignore:.*index_reduce:UserWarning")
@pytest.mark.parametrize("name", FORMS)
def test_deep_lift_is_complete(name):
    f = scalar(FORMS[name])
    for seed in (100, 300):
        x, x0 = rows(seed), rows(seed + 1)
        assert gap(f, x, x0) < 1e-10
        assert gap(f, x, x0, rule="reveal_cancel") < 1e-10
        assert gap(f, x, x0, create_graph=True) < 1e-10


NOT_UNDER_VMAP = {name for name in FORMS if name.startswith("sparse")}  # torch has no rule for it
LRP_REFUSES = {name for name in SAMPLES if name not in ("affine_grid", "image", "image and grid")}
# torch has no derivative for an index that is smaller than the source
LRP_REFUSES |= {"scatter_reduce of a part"}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:the explained output does not depend:UserWarning")  # an inverse
@pytest.mark.filterwarnings("ignore:.*index_reduce:UserWarning")
@pytest.mark.parametrize("name", sorted(FORMS.keys() - NOT_UNDER_VMAP))
def test_a_row_under_vmap_is_the_row_in_the_batch(name):
    f, x, x0 = scalar(FORMS[name]), rows(100), rows(101)
    want = attrfn.deep_lift(f, x, baselines=x0)
    found = torch.func.vmap(
        lambda x, x0: attrfn.deep_lift(f, x[None], baselines=x0[None])[0], randomness="same"
    )(x, x0)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)
    if name not in LRP_REFUSES:
        want = attrfn.lrp(f, x)
        found = torch.func.vmap(lambda x: attrfn.lrp(f, x[None])[0], randomness="same")(x)
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)
