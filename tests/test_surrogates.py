"""attrfn.surrogates: the optimum of scikit-learn, the weights of Captum, under all transforms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import finite_difference, inner, noise_like
from torch import Tensor

from attrfn import random, surrogates
from attrfn.surrogates import (
    Surrogate,
    constant,
    exponential_kernel,
    lasso,
    linear,
    ridge,
    scikit_learn,
)

linear_model = pytest.importorskip("sklearn.linear_model")

F32, F64 = torch.float32, torch.float64
SIZES = [(40, 6), (25, 16), (20, 40), (64, 64), (300, 64)]  # S, n
SURROGATES: dict[str, Surrogate] = {
    "linear": linear(),
    "ridge": ridge(0.3),
    "lasso": lasso(0.05),
    "strong_lasso": lasso(0.5),
}
each_size = pytest.mark.parametrize(("S", "n"), SIZES)
each_surrogate = pytest.mark.parametrize("fit", SURROGATES.values(), ids=SURROGATES)

Problem = tuple[Tensor, Tensor, Tensor]


def normal(seed: int, *shape: int) -> Tensor:
    return random.normal(seed, shape, dtype=F64)


def problem(S: int, n: int, B: int = 2, K: int = 2, R: int = 0, kind: str = "binary") -> Problem:
    """z, y, w of S samples: a noisy linear model with as many zeros as not."""
    R = R or B
    if kind == "normal":
        z = normal(1, S, R, n)
    elif kind == "correlated":
        z = normal(1, S, R, n) + 2 * normal(2, S, R, 1)
    else:
        z = random.bernoulli(1, 0.5, (S, R, n))
    slope = normal(3, n, K) * (torch.arange(n) % 2)[:, None]
    y = z.to(F64) @ slope + 3 + 0.3 * normal(4, S, B, K)
    return z, y, random.uniform(5, (S, B), dtype=F64)


def by_scikit_learn(estimator: Any, z: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The loop over examples and outputs."""
    c = torch.zeros(*y.shape[1:], z.shape[2], dtype=F64)
    for b in range(y.shape[1]):
        for k in range(y.shape[2]):
            zb, wb = z[:, b % z.shape[1]].double(), w[:, b % w.shape[1]]
            c[b, k] = torch.from_numpy(estimator.fit(zb, y[:, b, k], sample_weight=wb).coef_)
    return c


def lasso_loss(alpha: float, z: Tensor, y: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """scikit-learn's objective, with the best intercept."""
    w = (w / w.sum(0))[..., None]
    left = y - torch.einsum("sbn,bkn->sbk", z.double(), c)
    left = left - (w * left).sum(0)
    return (w * left**2).sum(0) / 2 + alpha * c.abs().sum(-1)


def exact_lasso(alpha: float) -> Any:
    return linear_model.Lasso(alpha, tol=1e-10, max_iter=1_000_000)


# The optimum


@each_size
@pytest.mark.parametrize("kind", ["binary", "normal"])
def test_linear_against_scikit_learn(S: int, n: int, kind: str) -> None:
    z, y, w = problem(S, n, kind=kind)
    want = by_scikit_learn(linear_model.LinearRegression(), z, y, w)
    torch.testing.assert_close(linear()(z, y, w), want, rtol=1e-7, atol=1e-7)


@each_size
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 100.0])
def test_ridge_against_scikit_learn(S: int, n: int, alpha: float) -> None:
    z, y, w = problem(S, n)
    want = by_scikit_learn(linear_model.Ridge(alpha), z, y, w)
    torch.testing.assert_close(ridge(alpha)(z, y, w), want, rtol=1e-8, atol=1e-8)


@each_size
@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["binary", "normal", "correlated"])
def test_lasso_against_scikit_learn(S: int, n: int, alpha: float, kind: str) -> None:
    z, y, w = problem(S, n, kind=kind)
    got, want = lasso(alpha)(z, y, w), by_scikit_learn(exact_lasso(alpha), z, y, w)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert (lasso_loss(alpha, z, y, w, got) <= lasso_loss(alpha, z, y, w, want) + 1e-13).all()
    assert (got[want == 0] == 0).all()


def optimality_gap(alpha: float, z: Tensor, y: Tensor, w: Tensor, c: Tensor) -> float:
    """The distance of 0 from the subdifferential of the loss, relative to the gradient at c = 0."""
    w = (w / w.sum(0))[..., None]
    zc = z.double() - (w * z).sum(0)
    slope = torch.einsum("sbn,sbk->bkn", w * zc, y - torch.einsum("sbn,bkn->sbk", zc, c))
    top = torch.einsum("sbn,sbk->bkn", w * zc, y).abs().max()
    off = torch.where(c != 0, slope - alpha * c.sign(), slope.abs() - alpha)
    return float((torch.where(c != 0, off.abs(), off.clamp_min(0)).max()) / top)


@pytest.mark.parametrize("alpha", [1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("kind", ["binary", "normal", "correlated"])
@pytest.mark.parametrize(("S", "n"), [(25, 64), (64, 64), (100, 150)])
def test_lasso_is_solved_to_the_end(S: int, n: int, alpha: float, kind: str) -> None:
    """Also where coordinate descent would take very long."""
    z, y, w = problem(S, n, kind=kind)
    assert optimality_gap(alpha, z, y, w, lasso(alpha)(z, y, w)) < 1e-9


def test_lasso_of_features_in_different_units() -> None:
    z, y, w = problem(100, 12, kind="normal")
    units = 10.0 ** torch.linspace(-3, 3, 12, dtype=F64)
    assert optimality_gap(0.01, z * units, y, w, lasso(0.01)(z * units, y, w)) < 1e-9


def test_lasso_without_penalty_is_linear() -> None:
    z, y, w = problem(50, 8)
    assert torch.equal(lasso(0)(z, y, w), linear()(z, y, w))
    assert torch.equal(ridge(0)(z, y, w), linear()(z, y, w))
    torch.testing.assert_close(lasso(1e-9)(z, y, w), linear()(z, y, w), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [50.0, 1e12])
def test_strong_lasso_is_zero(alpha: float) -> None:
    c = lasso(alpha)(*problem(40, 6))
    assert torch.equal(c, torch.zeros_like(c))


@each_surrogate
def test_shared_design_and_weights(fit: Surrogate) -> None:
    z, y, w = problem(30, 7, B=3, R=1)
    want = fit(z.expand(-1, 3, -1), y, w[:, :1].expand(-1, 3))
    torch.testing.assert_close(fit(z, y, w[:, :1]), want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fit(z, y, w), fit(z.expand(-1, 3, -1), y, w), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", [linear_model.Ridge(0.5), exact_lasso(0.1)])
def test_scikit_learn(estimator: Any) -> None:
    z, y, w = problem(30, 7, R=1)
    got = scikit_learn(estimator)(z, y, w)
    torch.testing.assert_close(got, by_scikit_learn(estimator, z, y, w), rtol=1e-12, atol=1e-12)


def test_scikit_learn_leaves_the_estimator_unfitted() -> None:
    estimator = linear_model.Ridge()
    scikit_learn(estimator)(*problem(30, 7))
    assert not hasattr(estimator, "coef_")


# Degenerate problems


@each_surrogate
@pytest.mark.parametrize(
    "change",
    {
        "constant features": lambda z, y, w: (torch.cat([z, 0 * z + 0.1], -1), y, w),
        "only constant features": lambda z, y, w: (0 * z + 0.1, y, w),
        "duplicates": lambda z, y, w: (torch.cat([z, z, 1 - z], -1), y, w),
        "groups of a constant sum": lambda z, y, w: (torch.cat([z, 3 - z.sum(-1, True)], -1), y, w),
        "constant output": lambda z, y, w: (z, 0 * y + 0.1, w),
        "no weight": lambda z, y, w: (z, y, 0 * w),
        "one weight": lambda z, y, w: (z, y, w * (torch.arange(len(w)) == 3)[:, None]),
        "tiny weights": lambda z, y, w: (z, y, 1e-300 * w),
        "one sample": lambda z, y, w: (z[:1], y[:1], w[:1]),
        "two samples": lambda z, y, w: (z[:2], y[:2], w[:2]),
        "large values": lambda z, y, w: (z, 1e30 * y, w),
        "no feature": lambda z, y, w: (z[..., :0], y, w),
        "no output": lambda z, y, w: (z, y[..., :0], w),
        "no example": lambda z, y, w: (z[:, :0], y[:, :0], w[:, :0]),
    }.items(),
    ids=lambda change: change[0].replace(" ", "_"),
)
def test_degenerate(fit: Surrogate, change: tuple[str, Callable[..., Problem]]) -> None:
    z, y, w = problem(40, 6)
    z, y, w = change[1](z.double(), y, w)
    y.requires_grad_()
    c = fit(z, y, w)
    assert c.shape == (*y.shape[1:], z.shape[2])
    assert c.isfinite().all()
    (slope,) = torch.autograd.grad(c.sum(), y)
    assert slope.isfinite().all()
    if change[0] in ("constant output", "no weight", "one weight", "one sample"):
        assert c.abs().max() < 1e-9
    if change[0] == "only constant features":
        assert (c == 0).all()
    if change[0] == "constant features":
        assert (c[..., 6:] == 0).all()


def test_duplicates_share_equally() -> None:
    z, y, w = problem(40, 6)
    one, both = lasso(0.1)(z, y, w), lasso(0.1)(torch.cat([z, z], -1), y, w)
    torch.testing.assert_close(both[..., :6], one / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(both[..., 6:], one / 2, rtol=0, atol=1e-6)


@each_surrogate
@pytest.mark.parametrize("S", [6, 12])
def test_few_samples_of_many_features(fit: Surrogate, S: int) -> None:
    """Where the solution is not unique, it still does not depend on batch or order."""
    z, y, w = problem(S, 40, B=4)
    c = fit(z, y, w)
    rows = [fit(z[:, b : b + 1], y[:, b : b + 1], w[:, b : b + 1]) for b in range(4)]
    torch.testing.assert_close(torch.cat(rows), c, rtol=0, atol=1e-3)
    order = random.permutation(0, 40)
    torch.testing.assert_close(fit(z[..., order], y, w), c[..., order], rtol=0, atol=1e-3)


@each_surrogate
def test_rows_are_independent(fit: Surrogate) -> None:
    z, y, w = problem(40, 12, B=5)
    rows = [fit(z[:, b : b + 1], y[:, b : b + 1], w[:, b : b + 1]) for b in range(5)]
    torch.testing.assert_close(torch.cat(rows), fit(z, y, w), rtol=1e-9, atol=1e-9)
    y[:, 1] = float("nan")
    assert fit(z, y, w)[[0, 2, 3, 4]].isfinite().all()


def test_inputs_are_left_alone() -> None:
    before = problem(20, 5)
    after = tuple(t.clone() for t in before)
    for fit in (*SURROGATES.values(), scikit_learn(linear_model.Ridge())):
        fit(*after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# Types


@pytest.mark.parametrize("fit", [*SURROGATES.values(), scikit_learn(linear_model.Ridge(0.3))])
def test_types(fit: Surrogate) -> None:
    z, y, w = problem(40, 6)
    want = fit(z, y, w)
    assert want.dtype == F64
    got = fit(z.to(torch.int32), y.to(F32), w.to(F32))
    torch.testing.assert_close(got, want.to(F32), rtol=1e-5, atol=1e-5)
    assert fit(z.half(), y.half(), w.half()).dtype == torch.float16
    assert fit(z, y.long(), w).dtype == torch.get_default_dtype()


# Transforms


@each_surrogate
def test_vmap(fit: Surrogate) -> None:
    problems = [problem(30, 9, kind=kind) for kind in ("normal", "correlated")]
    z, y, w = (torch.stack(t) for t in zip(*problems, strict=True))
    want = torch.stack([fit(*p) for p in problems])
    torch.testing.assert_close(torch.func.vmap(fit)(z, y, w), want, rtol=1e-9, atol=1e-9)
    only_y = torch.func.vmap(lambda y: fit(z[0], y, w[0]))(torch.stack([y[0], 2 - y[0]]))
    torch.testing.assert_close(only_y[0], want[0], rtol=1e-9, atol=1e-9)


@each_surrogate
def test_compile(fit: Surrogate) -> None:
    z, y, w = problem(30, 9)
    compiled = torch.compile(fit, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(z, y, w), fit(z, y, w), rtol=1e-9, atol=1e-9)


def test_graph_of_the_lasso_is_small() -> None:
    sizes = []

    def count(module: Any, example_inputs: Any) -> Any:
        sizes.append(len(module.graph.nodes))
        return module.forward

    torch.compile(lasso(0.1), fullgraph=True, dynamic=False, backend=count)(*problem(30, 9))
    assert len(sizes) == 1
    assert sizes[0] < 1000


@each_surrogate
def test_derivatives_by_all_arguments(fit: Surrogate) -> None:
    p = problem(60, 9, kind="normal")
    c = fit(*p)
    turn, step = noise_like(c), noise_like(p, seed=20)
    want = finite_difference(lambda p: (fit(*p) * turn).sum(), p, step, size=1e-6)
    slopes = torch.func.grad(lambda p: (fit(*p) * turn).sum())(p)
    torch.testing.assert_close(inner(slopes, step), want, rtol=1e-5, atol=1e-7)
    leaves = [t.clone().requires_grad_() for t in p]
    eager = torch.autograd.grad((fit(*leaves) * turn).sum(), leaves)
    torch.testing.assert_close(eager, slopes, rtol=1e-8, atol=1e-10)
    forward = torch.func.jvp(lambda *p: (fit(*p) * turn).sum(), p, tuple(step))[1]
    torch.testing.assert_close(forward, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("S", "n"), [(60, 9), (20, 40)])
def test_derivative_of_the_lasso_by_the_values(S: int, n: int) -> None:
    """It is constant between kinks, so that differences are exact."""
    z, y, w = problem(S, n)
    c = lasso(0.1)(z, y, w)
    turn, step = noise_like(c), noise_like(y, seed=20)
    want = finite_difference(lambda y: (lasso(0.1)(z, y, w) * turn).sum(), y, step, size=1e-4)
    slope = torch.func.grad(lambda y: (lasso(0.1)(z, y, w) * turn).sum())(y)
    torch.testing.assert_close((slope * step).sum(), want, rtol=1e-7, atol=1e-7)
    compiled = torch.compile(
        torch.func.grad(lambda y: (lasso(0.1)(z, y, w) * turn).sum()),
        fullgraph=True,
        dynamic=False,
        backend="aot_eager",
    )
    torch.testing.assert_close(compiled(y), slope, rtol=1e-8, atol=1e-10)


def test_transforms_solve_what_eager_code_solves() -> None:
    """Fewer steps are allowed there, which must be enough up to 64 features."""
    for kind in ("binary", "normal", "correlated"):
        for S, n in ((25, 64), (64, 64), (200, 64)):
            z, y, w = problem(S, n, B=8, K=1, kind=kind)
            got = torch.func.vmap(lasso(0.01))(z[None], y[None], w[None])[0]
            torch.testing.assert_close(got, lasso(0.01)(z, y, w), rtol=0, atol=1e-6)


# Similarities


def perturbed_pair() -> tuple[Any, Any, Tensor]:
    x = (random.normal(1, (3, 4)), {"image": random.normal(2, (3, 2, 5))})
    p = (random.normal(3, (6, 3, 4)), {"image": random.normal(4, (6, 3, 2, 5))})
    p[0][1, 2], p[1]["image"][1, 2] = x[0][2], x[1]["image"][2]  # one sample is the input
    p[0][2, 0], p[1]["image"][2, 0] = 0.0, 0.0  # one is zero
    return x, p, random.bernoulli(5, 0.5, (6, 1, 7))


@pytest.mark.parametrize("width", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_kernel_against_captum(distance: Any, width: float) -> None:
    lime = pytest.importorskip("captum.attr._core.lime")
    theirs = lime.get_exp_kernel_similarity_function(distance, width)
    x, p, z = perturbed_pair()
    got = exponential_kernel(distance, width)(x, p, z)
    assert got.shape == (6, 3)
    for s in range(6):
        for b in range(3):
            want = theirs(
                (x[0][b : b + 1], x[1]["image"][b : b + 1]),
                (p[0][s, b : b + 1], p[1]["image"][s, b : b + 1]),
                None,
            )
            assert float(got[s, b]) == pytest.approx(float(want), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_kernel_of_integers_scalars_and_zeros(distance: Any) -> None:
    x = {"ids": torch.tensor([[3, 1], [0, 0]]), "age": torch.tensor([5, 0])}
    p = {"ids": torch.tensor([[[3, 0], [0, 0]]]), "age": torch.tensor([[5, 0]])}
    got = exponential_kernel(distance)(x, p, torch.ones(1, 1, 2))
    d = {"cosine": 1 - 34 / (34 * 35) ** 0.5, "euclidean": 1.0}[distance]
    zeros = {"cosine": 1.0, "euclidean": 0.0}[distance]  # as torch.nn.functional.cosine_similarity
    want = torch.exp(-(torch.tensor([[d, zeros]], dtype=F64) ** 2) / 2)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F64])
def test_kernel_of_other_types(dtype: torch.dtype) -> None:
    x, p = torch.tensor([[3.0, 4.0]], dtype=dtype), torch.tensor([[[3.0, 0.0]]], dtype=dtype)
    got = exponential_kernel(width=0.5)(x, p, torch.ones(1, 1, 2))
    torch.testing.assert_close(got, torch.full((1, 1), -0.32, dtype=F64).exp(), rtol=1e-6, atol=0)


def test_kernel_of_the_features() -> None:
    z = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])[:, None].bool()
    want = torch.exp(-(torch.tensor([[0.0], [0.5], [1.0]], dtype=F64) ** 2) / (2 * 0.25**2))
    got = exponential_kernel("interpretable", width=0.25)(None, None, z)
    torch.testing.assert_close(got, want)


def test_kernel_of_an_own_distance() -> None:
    def absent(inputs: Any, perturbed: Any, z: Tensor) -> Tensor:
        return 1 - z.float().mean(-1)

    z = torch.tensor([[1, 1], [1, 0]])[:, None]
    want = torch.tensor([[1.0], [-0.125]], dtype=F64)
    want[1].exp_()
    torch.testing.assert_close(exponential_kernel(absent)(None, None, z), want)


def test_constant() -> None:
    assert torch.equal(constant()(None, None, torch.ones(3, 1, 2)), torch.ones(3, 1, dtype=F64))
    z, y, w = problem(30, 6, R=1)
    torch.testing.assert_close(
        lasso(0.1)(z, y, constant()(None, None, z)), lasso(0.1)(z, y, 7 * torch.ones_like(w))
    )


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "interpretable"])
def test_kernel_under_transforms(distance: Any) -> None:
    x, p, z = perturbed_pair()
    kernel = exponential_kernel(distance, 0.7)
    want = kernel(x, p, z)
    compiled = torch.compile(kernel, fullgraph=True, dynamic=False, backend="aot_eager")(
        x[0], p[0], z
    )
    torch.testing.assert_close(compiled, kernel(x[0], p[0], z), rtol=1e-6, atol=1e-6)
    rows = torch.func.vmap(
        lambda a, b, c, d: kernel((a[None], b[None]), (c[:, None], d[:, None]), z)[:, 0],
        in_dims=(0, 0, 1, 1),
    )(x[0], x[1]["image"], p[0], p[1]["image"])
    torch.testing.assert_close(rows, want.mT.expand_as(rows), rtol=1e-6, atol=1e-6)
    slope = torch.func.grad(lambda x: kernel(x, p, z).sum())(x)
    assert slope[0].isfinite().all()
    assert slope[1]["image"].isfinite().all()


# Errors


@pytest.mark.parametrize("make", [lasso, ridge])
@pytest.mark.parametrize("alpha", [-1.0, float("nan")])
def test_bad_alpha(make: Any, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha is (-1.0|nan), expected"):
        make(alpha)


@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_bad_width(width: float) -> None:
    with pytest.raises(ValueError, match=r"width is .* expected a positive number"):
        exponential_kernel(width=width)


@pytest.mark.parametrize("distance", ["manhattan", None, 3])
def test_bad_distance(distance: Any) -> None:
    with pytest.raises(ValueError, match=r"distance is .* expected one of cosine, euclidean"):
        exponential_kernel(distance)


@pytest.mark.parametrize("fit", [*SURROGATES.values(), scikit_learn(linear_model.Ridge())])
def test_bad_shapes(fit: Surrogate) -> None:
    z, y, w = problem(10, 4, B=3)
    bad = [(z[:, 0], y, w), (z, y[..., 0], w), (z, y, w[:, 0]), (z[:5], y, w), (z, y, w[:5])]
    for args in [*bad, (z[:, :2], y, w), (z, y, w[:, :2])]:
        with pytest.raises(ValueError, match=r"z, y and w have shapes .* expected"):
            fit(*args)


def test_scikit_learn_needs_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'attrfn\[surrogates\]'"):
        scikit_learn(linear_model.Ridge())


@pytest.mark.parametrize("estimator", [3, linear_model.Ridge, None])
def test_no_estimator(estimator: Any) -> None:
    with pytest.raises(TypeError, match=r"estimator is .* expected an estimator of scikit-learn"):
        scikit_learn(estimator)


def test_an_estimator_without_coefficients() -> None:
    from sklearn.tree import DecisionTreeRegressor

    with pytest.raises(TypeError, match="expected one with coef_ after its fit"):
        scikit_learn(DecisionTreeRegressor())(*problem(10, 4))


def test_scikit_learn_in_a_transform() -> None:
    z, y, w = problem(10, 4)
    fit = scikit_learn(linear_model.Ridge())
    with pytest.raises(RuntimeError, match=r"inside a torch.func transform .* take lasso"):
        torch.func.vmap(lambda y: fit(z, y, w))(y[None])


def test_public_names() -> None:
    assert all(callable(getattr(surrogates, name)) for name in surrogates.__all__)
