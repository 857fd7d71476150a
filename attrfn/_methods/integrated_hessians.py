"""Integrated Hessians: integrated gradients of integrated gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._copies.batch import along, flat_rows, wide
from attrfn._copies.chunks import Chunks, add, over_chunks
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import Explained, explain, vmapped
from attrfn._explain.features import features
from attrfn._explain.forms import documented
from attrfn._explain.options import Arguments, PerturbationOptions
from attrfn._explain.quadrature import quadrature_rule
from attrfn._explain.tree import each
from attrfn._torch.autodiff import gradients_allowed, transforming, values_and_gradients
from attrfn._torch.precision import einsum
from attrfn._torch.typing import Baselines, Batching, ChunkSize, Leaves, ModelFn, Target, Tree
from attrfn._torch.units import active_units
from attrfn._torch.warn import warn


@documented(Arguments, PerturbationOptions, scores="pairs")
def integrated_hessians(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    n_steps: int = 50,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tensor:
    """Integrated Hessians: interactions of features in a smooth model.

        I_ij = d_i d_j int_0^1 int_0^1 a b d2f/dx_i dx_j (x0 + a b d) da db
               + [i = j] d_i int_0^1 int_0^1 df/dx_i (x0 + a b d) da db,   d = x - x0

    Piecewise linear activations such as ReLU have no second derivative: replace them by a softplus.

    Args:
        model_fn: A twice differentiable function, called as ``model_fn(*inputs)`` when inputs is a
            tuple, else ``model_fn(inputs)``.
        feature_mask: The feature of each element: integers that broadcast to the inputs, or a
            pytree prefix of those; the entries of a feature's elements are summed.
        n_steps: The number of nodes of the integral; each takes n evaluations with two backward
            passes for n features.

    Returns:
        A symmetric matrix of the features in the order of their ids, (B, n, n). Its rows sum to
        integrated gradients, all its entries to f(x) - f(x0).


    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 1] ** 2
        >>> attrfn.integrated_hessians(f, torch.tensor([[2.0, 3.0]])).round(decimals=3)
        tensor([[[ 1.5000,  1.5000],
                 [ 1.5000, 10.5000]]])

    Reference:
        Janizek, Sturmfels and Lee, Explaining Explanations: Axiomatic Feature Interactions for Deep
        Networks, 2021.
    """
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    these = features(feature_mask, inputs, p.x, n_features)
    x0 = these.kept(fill_baselines(baselines, inputs, p.x))
    n, device = these.n, p.x[0].device
    d = each(lambda x, x0: x - x0, p.x, x0)
    t, for_slope, for_curve = _rule(n_steps, d[0])

    # Row k of the matrix needs the Hessian times the part of d in feature k: the gradient of a
    # directional derivative, two backward passes, and no Hessian in memory. Copy c of the batch is
    # node c // n of the integral in the direction of feature c % n.
    def part(i: slice) -> Leaves:
        c = torch.arange(i.start, i.stop, device=device)
        feature = (c % n)[:, None] == torch.arange(n, device=device)  # (S, n)
        v = each(lambda z, d: z * d, these.masks(feature[:, None]), d)
        slope, curve = _directional(p, _points(x0, d, t[c // n]), v, batching)
        rows = these.sums(each(lambda d, h: d * h, d, curve))
        diagonal = (slope * for_slope[c // n, None])[..., None] * feature[:, None]
        rows = rows * for_curve[c // n, None, None] + diagonal
        return (einsum("sk,sbl->bkl", feature.to(rows), rows),)

    chunks = Chunks(chunk_size, batching, progress, "integrated_hessians", passes=3)
    with gradients_allowed():
        (total,) = over_chunks(part, add, len(t) * n, chunks, device, x=p.x) if n else (_none(p),)
    _check(p, x0, total)
    total = total.to(p.x[0].dtype)
    return total if create_graph or transforming() else total.detach()


def _rule(n_steps: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes t and weights of ``int -ln t g(t) dt`` and ``int -t ln t g(t) dt``."""
    # Both integrals over a and b depend on t = a b alone, and the product of two uniform numbers
    # has the density -ln t. That is infinite at 0; with t = u^4 the integrand, -16 u^3 ln u g(u^4),
    # is smooth enough in u for the nodes of Gauss and Legendre.
    u, w = (r.to(torch.float64) for r in quadrature_rule("gauss_legendre", n_steps))
    for_slope = -16 * u**3 * u.log() * w
    kind = wide(like.dtype)
    t, for_slope, for_curve = (r.to(like.device, kind) for r in (u**4, for_slope, u**4 * for_slope))
    return t, for_slope, for_curve


def _points(x0: Leaves, d: Leaves, t: Tensor) -> Leaves:
    """``x0 + t d`` for S nodes, (S, B, ...)."""
    return each(lambda x0, d: (x0 + along(t, x0) * d).to(x0.dtype), x0, d)


def _directional(
    p: Explained, points: Leaves, v: Leaves, batching: Batching
) -> tuple[Tensor, Leaves]:
    """``<df, v>``, (S, B), and ``d2f v``, leaves (S, B, ...)."""
    if p.batch and (units := active_units()) is not None:
        found: tuple[Tensor, Leaves] = p.in_unit(units, _curved, points, batching, more=(v,))
        return found

    def f(*z: Tensor) -> Tensor:
        if batching == "vmap":
            return vmapped(p.values)(*z)  # type: ignore[no-any-return]
        return p.values(flat_rows(z), len(z[0])).reshape(z[0].shape[:2])

    return _curvature(f, points, v, p.create_graph)


def _curved(p: Explained, mapped: bool, v: Leaves) -> tuple[Tensor, Leaves]:
    f = vmapped(p.values) if mapped else lambda *z: p.values(z)
    return _curvature(f, p.x, v, p.create_graph)


def _curvature(
    f: Callable[..., Tensor], points: Leaves, v: Leaves, create_graph: bool
) -> tuple[Tensor, Leaves]:
    def slope(*z: Tensor) -> Tensor:
        values, grads = values_and_gradients(f, z, create_graph=True)
        first = values.ndim
        dots = each(lambda g, v: (g * v)[..., None].flatten(first).sum(first), grads, v)
        # The gradient of a linear f is a constant without a graph, and the values have one.
        return torch.stack(dots).sum(0) + 0 * values

    return values_and_gradients(slope, points, create_graph=create_graph)


def _check(p: Explained, x0: Leaves, total: Tensor) -> None:
    """Warn where the sum of the entries is far from f(x) - f(x0), where it can be read."""
    if transforming():
        return
    # A network of ReLUs has no curvature that a derivative sees: its gap is of the size of the
    # change itself. 5 % was not tuned: it lies between that and what quadrature leaves open.
    with torch.no_grad():
        change = p.values(p.x) - p.values(x0)
        gap = (total.sum((1, 2)) - change).abs()
        if p.batch and bool((gap > 0.05 * change.abs().max() + 1e-6).any()):
            warn(
                f"the sum of integrated_hessians is {float(gap.max()):.3g} away from f(x) - f(x0): "
                "piecewise linear activations such as ReLU have no second derivative, so replace "
                "them by a softplus; else raise n_steps"
            )


def _none(p: Explained) -> Tensor:
    return p.x[0].new_zeros(p.batch, 0, 0)
