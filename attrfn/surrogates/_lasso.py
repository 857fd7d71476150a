"""The lasso on a Gram matrix: an interior point method, and the exact solution on its support.

Reference:
    Tibshirani, Regression Shrinkage and Selection via the Lasso, 1996.
    Wright, Primal-Dual Interior-Point Methods, 1997.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attrfn._torch.autodiff import transforming

# Why not coordinate descent, as in scikit-learn: it is a loop over features whose length depends on
# values, for one problem at a time. Here all problems of a batch take the same steps, each a
# Cholesky factorisation, so that the solver maps and compiles. The central path ends near the
# optimum, but not on it, and a derivative through its steps would be one of the path. So the path
# only shows the support, and the linear equations that hold there give c and its derivative.

# 12 to 20 steps lead to the optimum, the more the stronger the features correlate. Values cannot
# end the loop inside transforms, so that it has this fixed length there.
_STEPS = 20


def central_path(G: Tensor, v: Tensor) -> Tensor:
    """The c that minimises 1/2 c'Gc - v'c + |c|_1, nearly to rounding: a primal-dual method."""
    # c = p - q with p, q > 0 is optimal where h = v - G c lies in [-1, 1] and the products
    # p (1 - h) and q (1 + h) are 0. Each step is Newton's towards products of 3 % of their present
    # mean, cut short so that all four factors stay positive. x holds p and q in its last dimension,
    # s holds 1 - h and 1 + h.
    G, v, traced = G.detach(), v.detach(), transforming()
    eye = torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
    least = 64 * torch.finfo(v.dtype).eps
    # Of several solutions this prefers the shortest, and G has a Cholesky factor despite rounding.
    G = G * (1 + 1e-10 * eye)
    sign = torch.tensor([[1.0], [-1.0]], dtype=v.dtype, device=v.device)
    half, turn = sign / 2, -sign.mT
    s = torch.ones_like(v).expand(*v.shape[:-1], 2)
    x = 0.3 * s
    for _ in range(_STEPS if traced else 3 * _STEPS):
        product = x * s
        mean = product.mean((-2, -1), keepdim=True)
        arrived = mean < 2 * least
        if not traced and bool(arrived.all()):
            break
        aim = (0.03 * mean).clamp_min(least)
        root = (x / s).sum(-1, keepdim=True).sqrt()
        L = torch.linalg.cholesky_ex(root * G * root.mT + eye)[0]
        r = v + s @ half - G @ (aim / s @ sign)
        ds = torch.cholesky_solve(root * r, L) / root * turn / s  # relative to s, as dx to x
        dx = aim / product - 1 - ds
        t = -0.999 / torch.minimum(dx, ds).amin((-2, -1), keepdim=True).clamp_max(-0.999)
        t = torch.where(arrived, 0, t)
        x, s = torch.addcmul(x, t * dx, x), torch.addcmul(s, t * ds, s)
    return x @ sign


def on_support(G: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """The solution of G c = v - sign(c) on the support that c points to, and zero elsewhere.

    Of several solutions it is the shortest or, where that is not an optimum, the one closest to c.
    Where neither is an optimum, because c is too far from it to show the support, it is c itself.
    """
    eps, scale = torch.finfo(v.dtype).eps, variances(G)
    pull = scale * c + (v - G @ c).detach()
    shrunk = shrink(pull) / scale
    on, sign = (shrunk != 0).to(v.dtype), pull.sign()
    H = on * G * on.mT + torch.diag_embed((1 - on + math.sqrt(eps) * on * scale)[..., 0])
    L = torch.linalg.cholesky_ex(H)[0]

    def solution(c: Tensor) -> Tensor:
        for _ in range(3):
            c = c + torch.cholesky_solve(on * (v - sign - G @ c), L)
        return c

    def error(c: Tensor) -> Tensor:
        return (c - shrink(scale * c + v - G @ c) / scale).abs().amax((-2, -1), keepdim=True)

    shortest, nearest = solution(torch.zeros_like(c)), solution(on * c)
    least = error(shrunk) + 1e6 * eps
    nearest = torch.where(error(nearest) <= least, nearest, shrunk)
    return torch.where(error(shortest) <= least, shortest, nearest)


def shrink(c: Tensor) -> Tensor:
    """The distance of c from [-1, 1], with its sign."""
    return c - c.clamp(-1, 1)


def variances(G: Tensor) -> Tensor:
    """The diagonal of G (..., n, 1), above zero."""
    return G.detach().diagonal(dim1=-2, dim2=-1)[..., None].clamp_min(tiny(G))


def tiny(t: Tensor) -> float:
    """A number whose square is still a normal number."""
    return math.sqrt(torch.finfo(t.dtype).tiny)
