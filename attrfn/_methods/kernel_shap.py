"""KernelSHAP: Shapley values as the weighted least squares fit of a linear model."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._copies.batch import is_count, weighted_sum
from attrfn._copies.chunks import Chunks
from attrfn._explain.features import masked_features
from attrfn._explain.forms import documented
from attrfn._explain.masked import masked
from attrfn._explain.options import BlackBox, PerturbationOptions, SamplingOptions
from attrfn._explain.uncertain import MOST_EVALUATIONS, warn_uncertain
from attrfn._methods.kernel_design import Design, design
from attrfn._random.keys import row_keys
from attrfn._torch.autodiff import transforming
from attrfn._torch.precision import full_precision, widest
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, Batching, ChunkSize, Key, ModelFn, Target, Tree
from attrfn._torch.warn import warn


@documented(BlackBox, PerturbationOptions, SamplingOptions, scores="shared")
def kernel_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    n_samples: int | None = None,
    key: Key = 0,
    return_stderr: bool = False,
    return_input_shape: bool = True,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """KernelSHAP: Shapley values by weighted least squares over coalitions.

        A = argmin_a sum_S k(|S|) (v(S) - v({}) - sum_{k in S} a_k)^2,
        k(s) = (n - 1) / (C(n, s) s (n - s)),   subject to sum_k a_k = f(x) - f(x0)

    The constraint holds exactly. Coalitions come in pairs of complements: all of a size where
    ``n_samples`` allows it, else those that are least alike, with the features in random order. All
    examples share the coalitions; a key of shape (B, 2) draws for each example separately.

    Args:
        n_samples: The greatest number of coalitions evaluated in addition to x and x0; 2^n - 2 are
            all of them and give exact Shapley values, 2 n - 2 determine the fit. ``None``: 2 n^2
            for n features, but at most 8,192.
        return_stderr: Return standard errors of the sampling too, of the sandwich form. They are
            those of random coalitions, and so mostly too large for these, which are less alike.
            Infinite for less than 3 n samples, zero where all coalitions are enumerated.
        return_input_shape: ``False`` returns one score per feature, in the order of their ids.

    Returns:
        Attributions like the inputs, in which every element has the score of its feature, or
        (B, K..., n); over the features they sum to f(x) - f(x0). With ``return_stderr`` a tuple of
        them and their errors.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 2]
        >>> attrfn.kernel_shap(f, torch.tensor([[2.0, 3.0, 4.0]])).round(decimals=4)
        tensor([[3., 3., 4.]])

    Reference:
        Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017.
        Covert and Lee, Improving KernelSHAP: Practical Shapley Value Estimation via Linear
        Regression, 2021.
    """
    if n_samples is not None and (not is_count(n_samples) or n_samples < 2):
        raise ValueError(f"n_samples is {say(n_samples)}, expected an int of at least 2, or None")
    chunks = Chunks(chunk_size, batching, progress, "kernel_shap", backward=False)
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    p, these = masked_features(p, feature_mask, inputs, n_features)
    keys = row_keys(key, p.batch, p.device)
    p.check_rows(len(keys))
    count = _default(these.n) if n_samples is None else n_samples
    d = design(these.n, count, keys, widest(p.device))
    inner = p.over(len(d.z), lambda i: these.masks(d.z[i]))
    checked = _tells_error(d, count)
    found = _fit(d, inner.to(d.w), p.empty.to(d.w), p.full.to(d.w), return_stderr or checked)
    if checked:
        warn_uncertain("kernel_shap", found[0], found[1], f"n_samples={count}", p.full)
    found = found[: 1 + return_stderr]
    if return_input_shape:
        results = tuple([p.result(these.elements(t)) for t in found])
    else:
        results = tuple([p.number(t) for t in found])
    return results if return_stderr else results[0]


def _default(n: int) -> int:
    """The number of samples where none is given."""
    # The error of a fit by c n^2 coalitions hardly depends on n, unlike that of one by c n of them.
    # With 2 n^2 it is below 10 % on the games of benchmarks/shapley_error_per_evaluation.py.
    return max(2, min(2 * n * n, MOST_EVALUATIONS))


def _tells_error(d: Design, n_samples: int) -> bool:
    """Whether the coalitions tell an error of the fit; if they are too few, a warning says so."""
    pairs, n = len(d.z) // 2, d.z.shape[-1]
    if pairs < n - 1:
        warn(
            f"n_samples={n_samples} cannot determine {n} features, so kernel_shap returns "
            f"the solution of least norm: expected at least {2 * n - 2}, or fewer features "
            "by feature_mask"
        )
        return False
    if transforming() or d.complete:
        return False
    if 2 * pairs < 3 * n:
        warn(
            f"n_samples={n_samples} are so few for {n} features that kernel_shap cannot tell its "
            f"error, which may be as large as its values: expected at least {3 * n}, or fewer "
            "features by feature_mask"
        )
        return False
    return True


@full_precision
def _fit(d: Design, inner: Tensor, empty: Tensor, full: Tensor, stderr: bool) -> tuple[Tensor, ...]:
    """Coefficients (R, K..., n), and their standard errors."""
    # The constraint is eliminated: with a = (v(N) - v({})) / n + u it is sum u = 0, so u lies in
    # the space of z less its mean, where the least squares have no constraint. The Gram matrix has
    # one null direction there, (1, ..., 1), up to rounding. A tolerance well above rounding keeps
    # the pseudo-inverse from blowing that direction up, which its default does.
    n = d.z.shape[-1]
    if n == 0:
        return (full[..., None][..., :0],) * (1 + stderr)
    z = d.z.to(d.w)
    size = z.mean(-1, keepdim=True)  # |S| / n
    z = z - size
    change = (full - empty).flatten(1) if full.ndim > 1 else (full - empty)[:, None]  # (R, K)
    y = (inner - empty).reshape(len(inner), *change.shape) - size * change
    gram = torch.einsum("srn,sr,srm->rnm", z, d.w, z)
    inverse = torch.linalg.pinv(
        gram, hermitian=True, rtol=1e-9 if z.dtype == torch.float64 else 1e-5
    )
    wz = torch.einsum("sr,srn,rnm->srm", d.w, z, inverse)
    u = weighted_sum(y, wz)
    a = (change[..., None] / n + u).reshape(*full.shape, n)
    if not stderr:
        return (a,)
    rest = y - torch.einsum("srn,rkn->srk", z.expand(len(z), y.shape[1], n), u)
    return a, _standard_error(d, rest, wz, (z * wz).sum(-1)).reshape(a.shape)


def _standard_error(d: Design, rest: Tensor, wz: Tensor, leverage: Tensor) -> Tensor:
    """The root of the diagonal of the sandwich ``(Z'WZ)^-1 V (Z'WZ)^-1``, V the strata's variance.

    Reference:
        Cochran, Sampling Techniques, 1977.
        MacKinnon and White, Some Heteroskedasticity-Consistent Covariance Matrix Estimators with
        Improved Finite Sample Properties, 1985.
    """
    n = wz.shape[-1]
    total = wz.new_zeros(*rest.shape[1:], n)
    if d.complete:
        return total
    # n - 1 pairs determine the fit without residuals; with few more they say little about the
    # error, and half as many again is the least that is trusted.
    if len(wz) < 3 * n:
        return total + torch.inf
    # Pairs are drawn, not coalitions, so that a pair is one observation. It pulls the fit towards
    # itself, by its leverage: its residual is smaller than that of a new pair, which is what an
    # error is about, by the factor 1 - leverage. A complement has the opposite row of wz.
    new_share = 1 - (leverage[::2] + leverage[1::2])
    moves = (rest[::2] - rest[1::2]) / new_share.clamp_min(1e-9)[..., None]  # (pairs, R, K)
    rows, start = wz[::2].expand(-1, moves.shape[1], -1), 0
    for _, m, of in d.strata:
        g, z = moves[start : start + m], rows[start : start + m]
        start += m
        squares = torch.einsum("prk,prn->rkn", g**2, z**2)
        if m > 1:
            mean = torch.einsum("prk,prn->rkn", g, z) / m
            squares = (squares - m * mean**2).clamp_min(0) * m / (m - 1)
        total = total + squares * (1 - m / of)  # the correction for drawing from a finite set
    return total.sqrt()
