"""Every floating type and every batch size, down to none."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import assert_close, assert_informative, multiplied
from models import NETS, SCALARS, Net, targets
from registry import REGISTRY, Row, explain, rows, rows_and_nets, trial
from torch import Tensor, nn
from zoo import randn

import attrfn
from attrfn.testing import _values as checks

# Relative to the largest attribution: a few hundred roundings of each type.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}


def pools(dtype: torch.dtype) -> bool:
    """Whether this torch has the type's pooling on the CPU: float16's came after 2.2."""
    try:
        torch.nn.functional.avg_pool2d(torch.zeros(1, 1, 2, 2, dtype=dtype), 2)
    except RuntimeError:
        return False
    return True


dtypes = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(d, marks=pytest.mark.skipif(not pools(d), reason=f"no pooling of {d}"))
        for d in TOLERANCE
    ],
    ids=lambda d: str(d).removeprefix("torch."),
)


def loss(r: Row) -> int:
    """Quotients of small differences lose some bits, and squares one."""
    return 4 if r.rules else 2 if r.name in ("vargrad", "smoothgrad_sq") else 1


@rows()
@dtypes
def test_dtype_is_kept_and_agrees_with_float64(r: Row, dtype: torch.dtype) -> None:
    """The same rounded numbers, explained in the type and in float64."""
    worse = loss(r) if dtype in (torch.float16, torch.bfloat16) else 1
    t = trial(r, NETS["cnn"])._replace(least=6e-6)
    checks.dtypes(t, dtype, worse * TOLERANCE[dtype])


@rows()
def test_autocast_keeps_the_dtype_of_what_is_explained(r: Row) -> None:
    """float32 inputs; a layer's activation, and a value, are what autocast makes of them."""
    net = NETS["cnn"]
    model, x = net.build().bfloat16().float(), net.inputs().bfloat16().float()
    options = {} if r.baselines is None else {"baselines": net.pool.float()}
    if r.baselines == "point":
        options = {"baselines": 0.125}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explain(r, net, model, x, **options)
    expected = explain(r, net, model, x, **options)
    of_inputs = r.explains in ("input", "features", "pairs")
    assert found.dtype == (torch.float32 if of_inputs else torch.bfloat16)
    assert_informative(found)
    allowed = loss(r) * TOLERANCE[torch.bfloat16] * expected.abs().max()
    assert (found - expected).abs().max() <= allowed


def test_sums_over_steps_stay_in_the_inputs_precision_under_autocast() -> None:
    """Elementwise models are not touched by autocast, so nothing is rounded to bfloat16."""
    x = 1 + 1e-3 * randn(3, 4).float()

    def f(x: Tensor) -> Tensor:
        return (x**3).sum(1)

    methods = [
        functools.partial(attrfn.integrated_gradients, n_steps=8),
        functools.partial(attrfn.occlusion, window=2),
        attrfn.shapley_values,
        functools.partial(attrfn.kernel_shap, n_samples=14),
    ]
    for method in methods:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = method(f, x)
        assert_close(found, method(f, x), rtol=1e-5, atol=1e-6)


@rows(lambda r: r.baselines is not None)
def test_baselines_of_another_dtype_are_converted(r: Row) -> None:
    net = r.net
    x0 = net.pool if r.baselines == "pool" else 0.3 * net.inputs(3, seed=5)
    model, x = net.build().float(), net.inputs().float()
    found = explain(r, net, model, x, baselines=x0)
    assert_close(found, explain(r, net, model, x, baselines=x0.float()), rtol=0, atol=0)


def test_leaves_of_two_dtypes_keep_theirs() -> None:
    def f(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() * b).pow(2).sum(1)

    inputs = torch.rand(2, 3), torch.rand(2, 3, dtype=torch.float64)
    for method in (
        attrfn.gradient,
        attrfn.input_x_gradient,
        functools.partial(attrfn.integrated_gradients, n_steps=3),
        functools.partial(attrfn.gradient_shap, baselines=inputs, stdevs=0.1),
        attrfn.noise_tunnel(attrfn.saliency, stdevs=0.1),
    ):
        found = method(f, inputs)
        assert [a.dtype for a in found] == [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_steps_do_not_lose_small_parts(dtype: torch.dtype) -> None:
    """500 equal gradients: summed one by one in half precision they would stall far below 1."""
    x = torch.ones(1, 2, dtype=dtype)

    def f(x: Tensor) -> Tensor:
        return x.sum(1)

    for chunk_size in (None, 1):
        options = {"n_steps": 500, "quadrature": "riemann_middle", "chunk_size": chunk_size}
        assert_close(attrfn.integrated_gradients(f, x, **options), x, rtol=1e-2)
        smooth = attrfn.noise_tunnel(attrfn.gradient, n_samples=500, chunk_size=chunk_size)
        assert_close(smooth(f, x), x, rtol=1e-2)
        shap = functools.partial(attrfn.gradient_shap, n_samples=500, chunk_size=chunk_size)
        assert_close(shap(f, x, baselines=torch.zeros(1, 2)), x, rtol=1e-2)


MANY: dict[Any, dict[str, Any]] = {
    attrfn.deep_lift_shap: {"baselines": torch.zeros(500, 2)},
    attrfn.shapley_value_sampling: {"n_samples": 500},
    attrfn.feature_permutation: {"n_samples": 500},
    attrfn.kernel_shap: {"n_samples": 500},
    attrfn.layer_conductance: {"layer": "0", "n_steps": 500},
    attrfn.layer_integrated_gradients: {"layer": "0", "n_steps": 500},
    attrfn.layer_gradient_shap: {"layer": "0", "n_samples": 500, "baselines": torch.zeros(1, 2)},
    attrfn.layer_deep_lift_shap: {"layer": "0", "baselines": torch.zeros(500, 2)},
}


@multiplied([torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", MANY)
def test_sums_over_copies_do_not_lose_small_parts(method: Any, dtype: torch.dtype) -> None:
    """500 parts of the size of the result, one by one, beside the same draws in float32."""

    def model(dtype: torch.dtype) -> nn.Module:
        sums = nn.Linear(2, 1, bias=False)
        nn.init.ones_(sums.weight)
        return nn.Sequential(nn.Identity(), sums).to(dtype)

    x = 1 + torch.arange(4.0).reshape(2, 2) / 4
    found, expected = (
        method(model(d), x.to(d), target=0, chunk_size=1, **MANY[method])
        for d in (dtype, torch.float32)
    )
    assert found.dtype == dtype
    assert_close(found.float(), expected, rtol=2e-2, atol=1e-2)


@rows_and_nets()
def test_empty_batch(r: Row, net: Net) -> None:
    """No example gives no attribution, of the right shape and type, and no warning."""
    full = explain(r, net)
    for dtype in (torch.float64, torch.float32):
        model, x = net.build().to(dtype), net.inputs(0).to(dtype)
        found = explain(r, net, model, x, target=targets(0))
        shape = list(full.shape)
        shape[r.batch_dim] = 0
        assert list(found.shape) == shape
        assert found.dtype == dtype


@rows(lambda r: r.target)
@pytest.mark.parametrize("target", [1, [], (slice(0, 2),)], ids=["int", "list", "slice"])
def test_empty_batch_with_every_target(r: Row, target: Any) -> None:
    found = explain(r, r.net, inputs=r.net.inputs(0), target=target)
    assert found.shape[r.batch_dim] == 0


@rows(lambda r: r.batching)
@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_empty_batch_in_every_batching(r: Row, batching: str) -> None:
    found = explain(r, r.net, inputs=r.net.inputs(0), target=targets(0), batching=batching)
    assert found.shape[0] == 0


@rows(lambda r: not r.spatial and not r.mixes)
def test_inputs_without_feature_dimensions(r: Row) -> None:
    """Inputs (B,): one number per example."""
    x = SCALARS.inputs(4)
    assert x.shape == (4,)
    found = explain(r, SCALARS, inputs=x)
    assert_informative(found)
    assert found.shape[r.batch_dim] == 4
    assert found.ndim == r.batch_dim + {"output": 2, "features": 2, "pairs": 3}.get(r.explains, 1)
    alone = explain(r, SCALARS, inputs=x[1:2], target=targets(4)[1:2])
    assert_close(alone.select(r.batch_dim, 0), found.select(r.batch_dim, 1))


def test_inputs_without_feature_dimensions_have_known_attributions() -> None:
    """f(x) = x^3: gradient 3 x^2, and all of f(x) - f(0) goes to the one feature."""
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return x**3

    assert_close(attrfn.gradient(f, x), 3 * x**2)
    assert_close(attrfn.input_x_gradient(f, x, baselines=1.0), (x - 1) * 3 * x**2)
    assert_close(attrfn.integrated_gradients(f, x, n_steps=2), x**3)
    for batching in ("vmap", "loop"):
        found = attrfn.integrated_gradients(f, x, n_steps=2, batching=batching)
        assert_close(found, x**3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_gradients_with_respect_to_integers_are_refused_with_advice(dtype: torch.dtype) -> None:
    x = torch.ones(3, 4, dtype=dtype)
    for r in (r for r in REGISTRY if r.explains == "input" and r.gradient):
        with pytest.raises(TypeError, match=r"floating point.*at_layer"):
            explain(r, NETS["mlp"], inputs=x)


def test_complex_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match="real numbers"):
        attrfn.gradient(lambda x: x.abs().sum(1), torch.ones(2, 3, dtype=torch.complex64))
