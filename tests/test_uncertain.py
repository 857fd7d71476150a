"""Results that are mostly noise are announced, and default numbers of samples are enough."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randn
from torch import Tensor

import attrfn
from attrfn._explain.quadrature import legendre_coefficients, quadrature_rule

N = 12


def products(n: int, rows: int = 3) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """Random products of 1 to 6 of n features: each divides its value among its features."""
    draw = torch.Generator().manual_seed(0)
    counts = {1: 12, 2: 20, 3: 20, 4: 15, 5: 10, 6: 8}
    sets = [
        torch.randperm(n, generator=draw)[:size]
        for size, count in counts.items()
        for _ in range(count * n // 12)
    ]
    weights = torch.randn(len(sets), generator=draw, dtype=torch.float64)
    x = torch.randn(rows, n, generator=draw, dtype=torch.float64)
    x = x.sign() * (0.5 + x.abs())
    exact = torch.zeros_like(x)
    for w, s in zip(weights, sets, strict=True):
        exact[:, s] += (w * x[:, s].prod(1) / len(s))[:, None]

    def model(x: Tensor) -> Tensor:
        return sum(w * x[:, s].prod(1) for w, s in zip(weights, sets, strict=True))

    return model, x, exact


@pytest.mark.parametrize("n", [8, 12, 30])
@pytest.mark.parametrize("method", [attrfn.kernel_shap, attrfn.shapley_value_sampling])
def test_default_numbers_of_samples_are_enough(method: Any, n: int) -> None:
    """Within 10 % (root mean squares) of the Shapley values of products, in closed form."""
    model, x, exact = products(n)
    found = torch.stack([method(model, x, key=key) for key in range(3)])
    error = ((found - exact) ** 2).mean() / (exact**2).mean()
    assert error.sqrt() < 0.1


def test_default_numbers_of_samples_are_bounded() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.sum(1)

    for method in (attrfn.kernel_shap, attrfn.lime, attrfn.shapley_value_sampling):
        for n in (0, 1, 2, 5, 200):
            seen.clear()
            method(f, torch.ones(1, n))
            assert sum(seen) <= max(16386, 25 * (n - 1) + 2)


# --- warnings ---

MODEL, X, _ = products(N)
POOL = randn(20, N, seed=5).double()
IMAGES = randn(2, 1, 12, 12).double()


def smooth(x: Tensor) -> Tensor:
    return x.flatten(1).tanh().sum(1)


def image(x: Tensor) -> Tensor:
    return (20 * (x[:, 0, 3:9, 3:9].mean((1, 2)) - 0.2)).sigmoid()


CASES: dict[str, tuple[Callable[..., Any], int, int]] = {
    # the method of n_samples, a number that is too small, and one that is not
    "kernel_shap": (functools.partial(attrfn.kernel_shap, MODEL, X), 40, 1500),
    "shapley_value_sampling": (
        functools.partial(attrfn.shapley_value_sampling, MODEL, X),
        5,
        600,
    ),
    "antithetic": (
        functools.partial(attrfn.shapley_value_sampling, MODEL, X, antithetic=True),
        6,
        600,
    ),
    "interactions": (functools.partial(attrfn.interactions, MODEL, X), 3, 3000),
    "feature_permutation": (functools.partial(attrfn.feature_permutation, MODEL, X), 2, 1000),
    "gradient_shap": (
        functools.partial(attrfn.gradient_shap, MODEL, X, baselines=POOL),
        2,
        3000,
    ),
    "noise_tunnel": (
        lambda n_samples: attrfn.noise_tunnel(attrfn.gradient, n_samples=n_samples)(MODEL, X),
        2,
        5000,
    ),
    "rise": (functools.partial(attrfn.rise, image, IMAGES, grid=3), 4, 2000),
}


@pytest.mark.parametrize("name", CASES)
def test_few_samples_are_announced(name: str) -> None:
    method, few, many = CASES[name]
    with pytest.warns(
        UserWarning, match=rf"has standard errors of .*% .* n_samples={few}"
    ) as found:
        method(n_samples=few)
    assert len(found) == 1
    assert len(str(found[0].message)) <= 300
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(n_samples=many)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_inside_transforms(name: str) -> None:
    """Under vmap values cannot be read; the numbers are the same."""
    method, few, _ = CASES[name]
    if name in ("feature_permutation", "rise", "noise_tunnel"):
        pytest.skip("not a function of X alone, or of one example")
    method = functools.partial(method.func, MODEL, **method.keywords)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = torch.func.vmap(lambda x: method(x[None], n_samples=few)[0])(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(alone, method(X, n_samples=few))


def test_announced_error_is_the_error() -> None:
    """The share that a message names, against the standard errors that the method returns."""
    with pytest.warns(UserWarning, match="has standard errors") as found:
        values, errors = attrfn.shapley_value_sampling(MODEL, X, n_samples=5, return_stderr=True)
    share = (errors.square().mean(1) / values.square().mean(1)).sqrt().max()
    assert f"standard errors of {float(share):.0%} of" in str(found[0].message)
    with pytest.warns(UserWarning, match="has standard errors") as found:
        values, errors = attrfn.kernel_shap(MODEL, X, n_samples=40, return_stderr=True)
    share = (errors.square().mean(1) / values.square().mean(1)).sqrt().max()
    assert f"standard errors of {float(share):.0%} of" in str(found[0].message)


def test_spread_of_gradients_is_that_of_the_samples() -> None:
    tunnel = functools.partial(attrfn.noise_tunnel, attrfn.gradient, n_samples=4)
    samples = tunnel(kind="samples")(MODEL, X)
    mean, errors = samples.mean(0), samples.std(0) / 2
    share = (errors.square().sum(1) / mean.square().sum(1)).sqrt().max()
    with pytest.warns(UserWarning, match="has standard errors") as found:
        tunnel()(MODEL, X)
    assert f"standard errors of {float(share):.0%} of" in str(found[0].message)


def test_too_few_coalitions_to_tell_the_error() -> None:
    model, x, _ = products(30)
    with pytest.warns(UserWarning, match=r"n_samples=70 are so few for 30 features .* least 90"):
        attrfn.kernel_shap(model, x, n_samples=70)


@pytest.mark.parametrize("name", ["shapley_value_sampling", "kernel_shap", "interactions"])
def test_rounding_is_no_error(name: str) -> None:
    """A constant function has values and errors of the size of its rounding."""

    def constant(x: Tensor) -> Tensor:
        return (1e3 * x).sum(1) - 1e3 * x.flip(1).sum(1) + 1e4

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(attrfn, name)(constant, X.float(), n_samples=50)
        attrfn.gradient_shap(lambda x: 0 * x.sum(1), X, baselines=POOL, n_samples=3)


# --- quadrature ---


@pytest.mark.parametrize("n", [2, 3, 8, 50, 200])
def test_coefficients_of_polynomials(n: int) -> None:
    """Those of the Legendre polynomials themselves, of degree below n, by numpy's values."""
    nodes, _ = quadrature_rule("gauss_legendre", n)
    for j in range(min(n, 8)):
        unit = np.eye(n)[j]
        values = torch.tensor(np.polynomial.legendre.legval(2 * nodes.numpy() - 1, unit))
        found = legendre_coefficients(n) @ values
        torch.testing.assert_close(found, torch.tensor(unit), rtol=1e-10, atol=1e-10)


RULES = ["gauss_legendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


@pytest.mark.parametrize("quadrature", RULES)
@pytest.mark.parametrize("batching", ["fold", "vmap"])
@pytest.mark.parametrize("multiply", [True, False])
def test_few_steps_are_announced(quadrature: str, batching: Any, multiply: bool) -> None:
    """A jump of the slope in the middle of the path; the exact change is known."""

    def steep(x: Tensor) -> Tensor:
        return (80 * (x[:, 0] - 0.43)).sigmoid() + x[:, 1]

    x = torch.tensor([[1.0, 0.1], [1.0, -0.1]]).double()
    options = {"quadrature": quadrature, "batching": batching, "multiply_by_inputs": multiply}
    run = functools.partial(attrfn.integrated_gradients, steep, x, **options)
    with pytest.warns(UserWarning, match=r"n_steps=4 misses the change .* raise n_steps") as found:
        run(n_steps=4)
    assert len(found) == 1
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(n_steps=300)
        run(n_steps=300, chunk_size=7)
        run(n_steps=4, check_completeness=False)
        run(n_steps=4, tolerance=1e-3)
        torch.func.vmap(lambda x: run.func(steep, x[None], n_steps=4)[0])(x)
        attrfn.integrated_gradients(smooth, 0.5 * X, n_steps=4)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
def test_exact_rules_are_not_announced(n_steps: int) -> None:
    """Both integrals are exact for gradients of degree n - 1, even where parts cancel."""
    x = torch.tensor([[1.0, -1.0], [2.0, 1.5]]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attrfn.integrated_gradients(lambda x: (x**n_steps).sum(1), x, n_steps=n_steps)
    torch.testing.assert_close(found, x**n_steps)
