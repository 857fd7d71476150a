"""Derivatives of attributions by forward mode, also nested and under vmap.

The reference is reverse mode, of which the transform matrix has checked the first order against
finite differences.
"""

from __future__ import annotations

from collections.abc import Callable

import optree
import pytest
import torch
from helpers import randn
from models import NETS
from registry import REGISTRY, Row, explain, primary
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

import attrfn
from attrfn import surrogates

# One for each way to compute: a gradient, a path, forward mode inside, rules, samples, equations.
SAMPLE = {
    *("gradient", "integrated_gradients", "layer_conductance", "deep_lift", "lrp"),
    *("shapley_values", "kernel_shap", "lime", "occlusion"),
}
NET = NETS["mlp"]


def scalar(r: Row) -> Callable[[Tensor], Tensor]:
    """The attributions of one example as a number."""
    model = NET.build()

    def f(x: Tensor) -> Tensor:
        found = explain(r, NET, model, x[None], target=1)
        parts = [t.tanh().sum() for t in optree.tree_leaves(found) if t.is_floating_point()]
        return torch.stack(parts).sum()

    return f


def kept(r: Row) -> bool:
    return r.net is NET and not r.images and not r.mixes


cases = pytest.mark.parametrize(
    "r",
    [
        pytest.param(r, id=r.name, marks=[] if r.name in SAMPLE else [pytest.mark.fuzz])
        for r in REGISTRY
        if kept(r) and r.name in primary()
    ],
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@cases
def test_forward_mode_is_reverse_mode(r: Row) -> None:
    f, x = scalar(r), NET.inputs()[:1].repeat(2, 1)
    x[1] += 0.1
    first = torch.stack([jacrev(f)(row) for row in x])
    torch.testing.assert_close(vmap(jacfwd(f))(x), first)
    second = torch.stack([jacrev(jacrev(f))(row) for row in x])
    torch.testing.assert_close(vmap(jacfwd(jacrev(f)))(x), second)  # torch.func.hessian
    torch.testing.assert_close(vmap(jacfwd(jacfwd(f)))(x), second)
    torch.testing.assert_close(torch.stack([jacfwd(jacfwd(f))(row) for row in x]), second)


SURROGATES = {
    "linear": surrogates.linear(),
    "ridge": surrogates.ridge(0.1),
    "lasso": surrogates.lasso(0.001),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_in_forward_mode(name: str) -> None:
    """Their equations depend on x through the weights of the samples."""

    def f(x: Tensor) -> Tensor:
        found = attrfn.lime(
            lambda z: z.sin().prod(1), x[None], n_samples=30, surrogate=SURROGATES[name]
        )
        return found.tanh().sum()

    x = randn(2, 3).abs() + 0.5
    second = torch.stack([jacrev(jacrev(f))(row) for row in x])
    torch.testing.assert_close(vmap(jacfwd(f))(x), torch.stack([jacrev(f)(row) for row in x]))
    torch.testing.assert_close(vmap(jacfwd(jacfwd(f)))(x), second)
