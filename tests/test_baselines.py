"""Baselines: every kind, prefix trees, distributions, and every wrong one."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
import zoo
from helpers import multiplied
from registry import Row, explain, rows
from torch import Tensor

import attrfn

B, N = 3, 4
X = zoo.randn(B, N, seed=1)
Y = zoo.randn(B, 2, 2, seed=2)
A = zoo.randn(N, seed=3)


def linear(x: Tensor) -> Tensor:
    return x @ A


def two(x: Tensor, y: Tensor) -> Tensor:
    """Linear in both, so that (x - x0) * gradient has a closed form."""
    return x @ A + 2 * y.flatten(1).sum(1)


KINDS = {
    "none": (None, torch.zeros(B, N)),
    "zero": (0, torch.zeros(B, N)),
    "int": (2, torch.full((B, N), 2.0)),
    "float": (-0.5, torch.full((B, N), -0.5)),
    "numpy_float": (np.float64(0.25), torch.full((B, N), 0.25)),
    "bool_is_a_number": (True, torch.ones(B, N)),
    "0d": (torch.tensor(0.5), torch.full((B, N), 0.5)),
    "feature": (torch.arange(4.0), torch.arange(4.0).expand(B, N)),
    "row": (torch.arange(4.0)[None], torch.arange(4.0).expand(B, N)),
    "column": (torch.arange(3.0)[:, None], torch.arange(3.0)[:, None].expand(B, N)),
    "full": (zoo.randn(B, N, seed=4), zoo.randn(B, N, seed=4)),
    "integers": (torch.arange(4), torch.arange(4.0).expand(B, N)),
    "float32": (torch.arange(4, dtype=torch.float32), torch.arange(4.0).expand(B, N)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_tensor(kind):
    """For f(x) = a x every path method gives (x - x0) a: closed form."""
    baselines, x0 = KINDS[kind]
    expected = (X - x0.double()) * A
    for method in (
        attrfn.input_x_gradient,
        functools.partial(attrfn.integrated_gradients, n_steps=3),
        functools.partial(attrfn.integrated_gradients, n_steps=5, chunk_size=2),
        functools.partial(attrfn.integrated_gradients, n_steps=5, batching="vmap"),
    ):
        got = method(linear, X, baselines=baselines)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    gap = attrfn.completeness_delta(linear, X, expected, baselines=baselines)
    torch.testing.assert_close(gap, torch.zeros(B, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_layer(kind):
    """Baselines of the inputs pass through the head: (head(x) - head(x0)) * gradient."""
    model = zoo.make(lambda: torch.nn.Sequential(torch.nn.Linear(N, 5), torch.nn.Linear(5, 2)))
    baselines, x0 = KINDS[kind]
    a, a0 = model[0](X), model[0](x0.double())
    expected = ((a - a0) * model[1].weight[1]).detach()
    for got in (
        attrfn.layer_integrated_gradients(
            model, X, layer="0", target=1, baselines=baselines, n_steps=3
        ),
        attrfn.at_layer(attrfn.input_x_gradient, "0")(model, X, target=1, baselines=baselines),
        attrfn.layer_conductance(model, X, layer="0", target=1, baselines=baselines, n_steps=3),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


PREFIXES = {
    "none": (None, 0.0, 0.0),
    "number": (0.5, 0.5, 0.5),
    "broadcasts_to_both": (torch.tensor([[0.5]]), 0.5, 0.5),
    "tuple_of_numbers": ((1.0, 2.0), 1.0, 2.0),
    "tuple_with_none": ((None, 2.0), 0.0, 2.0),
    "tuple_none_last": ((2.0, None), 2.0, 0.0),
    "tuple_mixed": ((torch.arange(4.0), 2), torch.arange(4.0), 2.0),
    "tuple_of_tensors": ((X + 1, Y - 1), X + 1, Y - 1),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_tuples(kind):
    baselines, x0, y0 = PREFIXES[kind]
    got = attrfn.integrated_gradients(two, (X, Y), baselines=baselines, n_steps=2)
    assert isinstance(got, tuple)
    torch.testing.assert_close(got[0], (X - x0) * A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], (Y - y0) * 2, rtol=1e-12, atol=1e-12)


class Named(NamedTuple):
    x: Tensor
    more: dict


def nested(v: Named) -> Tensor:
    return two(v.x, v.more["y"]) + 3 * v.more["z"][0].sum(1) + v.more["z"][1].sum(1)


@pytest.mark.parametrize(
    ("baselines", "x0", "y0", "z0", "z1"),
    [
        (None, 0, 0, 0, 0),
        (1.5, 1.5, 1.5, 1.5, 1.5),
        (Named(1.0, 2.0), 1, 2, 2, 2),
        (Named(None, {"y": 3.0, "z": 4}), 0, 3, 4, 4),
        (Named(1, {"y": None, "z": [torch.tensor(5.0), None]}), 1, 0, 5, 0),
        (Named(X, {"y": Y, "z": [X, 7]}), X, Y, X, 7),
        (Named(None, None), 0, 0, 0, 0),
    ],
)
def test_prefix_trees(baselines, x0, y0, z0, z1):
    """A prefix of the inputs' tree stands for all that lies below it."""
    inputs = Named(X, {"y": Y, "z": [X, X + 1]})
    got = attrfn.integrated_gradients(nested, inputs, baselines=baselines, n_steps=2)
    assert isinstance(got, Named)
    torch.testing.assert_close(got.x, (X - x0) * A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.more["y"], (Y - y0) * 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.more["z"][0], (X - z0) * 3, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.more["z"][1], X + 1 - z1, rtol=1e-12, atol=1e-12)


def test_inputs_with_none():
    """None in the inputs is no leaf, and takes no baseline."""

    def model(x: Tensor, nothing: None, y: Tensor) -> Tensor:
        assert nothing is None
        return two(x, y)

    for baselines, x0, y0 in [(None, 0, 0), (2.0, 2, 2), ((1.0, None, 3.0), 1, 3)]:
        got = attrfn.integrated_gradients(model, (X, None, Y), baselines=baselines, n_steps=2)
        torch.testing.assert_close(got[0], (X - x0) * A, rtol=1e-12, atol=1e-12)
        assert got[1] is None
        torch.testing.assert_close(got[2], (Y - y0) * 2, rtol=1e-12, atol=1e-12)


def test_gradients_reach_the_baselines():
    """Attributions of a x are (x - x0) a, so d sum / d x0 = -B a for one shared baseline."""
    x0 = torch.zeros(N, dtype=torch.float64, requires_grad=True)
    got = attrfn.integrated_gradients(linear, X, baselines=x0, n_steps=2, create_graph=True)
    got.sum().backward()
    torch.testing.assert_close(x0.grad, -B * A)
    got = torch.func.grad(
        lambda b: attrfn.integrated_gradients(linear, X, baselines=b, n_steps=2).sum()
    )(x0.detach())
    torch.testing.assert_close(got, -B * A)


def test_baselines_under_vmap():
    """One baseline per example, mapped over with it."""
    x0 = zoo.randn(B, N, seed=5)
    got = torch.func.vmap(
        lambda x, b: attrfn.integrated_gradients(linear, x[None], baselines=b, n_steps=2)[0]
    )(X, x0)
    torch.testing.assert_close(got, (X - x0) * A)


@multiplied([torch.float32, torch.bfloat16, torch.float16])
def test_baselines_take_the_dtype_of_the_inputs(dtype):
    a = A.to(dtype)
    got = attrfn.integrated_gradients(lambda x: x @ a, X.to(dtype), baselines=X, n_steps=2)
    assert got.dtype == dtype
    torch.testing.assert_close(got, torch.zeros(B, N, dtype=dtype))


def test_baselines_are_left_as_they_are():
    baselines = zoo.randn(B, N, seed=6)
    before = baselines.clone()
    attrfn.integrated_gradients(lambda x: x.mul_(2).sum(1), X, baselines=baselines, n_steps=2)
    attrfn.completeness_delta(lambda x: x.mul_(2).sum(1), X, X, baselines=baselines)
    assert torch.equal(baselines, before)


def test_baselines_repeat_in_a_noise_tunnel():
    """Baselines with a row per example follow the copies, shared ones stay."""
    x0 = zoo.randn(B, N, seed=7)
    tunnel = attrfn.noise_tunnel(attrfn.integrated_gradients, n_samples=3, stdevs=0.0)
    for baselines in (x0, x0[:1], x0[0], 0.5, None):
        got = tunnel(linear, X, baselines=baselines, n_steps=2)
        expected = attrfn.integrated_gradients(linear, X, baselines=baselines, n_steps=2)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


WRONG = {
    "too_long": (
        torch.zeros(5),
        ValueError,
        r"^baselines has shape \(5,\) .*\(3, 4\), expected .*br",
    ),
    "too_deep": (torch.zeros(1, 3, 4), ValueError, r"^baselines has shape \(1, 3, 4\) .*\(3, 4\)"),
    "rows": (torch.zeros(2, 4), ValueError, r"^baselines has shape \(2, 4\) .*\(3, 4\), expected"),
    "transposed": (torch.zeros(4, 3), ValueError, r"^baselines has shape \(4, 3\) .*\(3, 4\)"),
    "str": (
        "zero",
        TypeError,
        r"^baselines has 'zero' for .*\(3, 4\), expected None .*number or a t",
    ),
    "complex": (
        1j,
        TypeError,
        r"^baselines has complex numbers for .*\(3, 4\), expected real ones",
    ),
    "array": (
        np.zeros((3, 4)),
        TypeError,
        r"^baselines has .*ndarray for .*\(3, 4\), expected None",
    ),
    "function": (
        torch.zeros_like,
        TypeError,
        r"^baselines has .*\w+ for .*\(3, 4\), expected None",
    ),
    "tuple": ((X,), ValueError, r"^baselines is a tree unlike the inputs, expected"),
    "list": (
        [0.0] * N,
        ValueError,
        r"^baselines is a tree unlike the inputs, expected",
    ),
    "dict": (
        {"x": X},
        ValueError,
        r"^baselines is a tree unlike the inputs, expected",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_baselines(case):
    baselines, kind, message = WRONG[case]
    model = zoo.mlp()
    for call in (
        lambda: attrfn.integrated_gradients(linear, X, baselines=baselines),
        lambda: attrfn.input_x_gradient(linear, X, baselines=baselines),
        lambda: attrfn.completeness_delta(linear, X, X, baselines=baselines),
        lambda: attrfn.layer_integrated_gradients(
            model, X, layer="0", target=0, baselines=baselines
        ),
        lambda: attrfn.layer_conductance(model, X, layer="0", target=0, baselines=baselines),
        lambda: attrfn.neuron_integrated_gradients(
            model, X, layer="0", neuron=0, baselines=baselines
        ),
    ):
        with pytest.raises(kind, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@rows(lambda r: r.baselines == "point")
def test_a_background_is_refused_with_a_way_out(r: Row) -> None:
    """As many rows as there are examples are one for each; the mean over others is written out."""
    x = r.net.inputs()
    pool = zoo.randn(5, *x.shape[1:], seed=5).to(x)
    shape = re.escape(str(tuple(pool.shape)))
    message = rf"^baselines has shape {shape}.*, expected 1 row, or \d+ \(one .*baselines=b\[None\]"
    with pytest.raises(ValueError, match=message) as error:
        explain(r, r.net, inputs=x, baselines=pool)
    assert len(str(error.value)) <= 300
    with pytest.raises(ValueError, match=r"expected 1 row, .*, baselines=b\) for b in"):
        explain(r, r.net, inputs=x, baselines=pool[:, None])
    # what the message says: one row of the background at a time, which is the same for all examples
    one = explain(r, r.net, inputs=x, baselines=pool[0][None])
    same = explain(r, r.net, inputs=x, baselines=pool[:1].expand(x.shape))
    torch.testing.assert_close(one, same)


@pytest.mark.parametrize(
    "baselines",
    [(X,), (X, Y, Y), [X, Y], {"a": X, "b": Y}, (X, (Y, Y))],
    ids=["short", "long", "list", "dict", "deep"],
)
def test_wrong_trees(baselines):
    with pytest.raises(ValueError, match=r"^baselines is a tree unlike the inputs, exp"):
        attrfn.integrated_gradients(two, (X, Y), baselines=baselines)


def test_one_wrong_leaf_among_several():
    with pytest.raises(
        ValueError, match=r"^baselines has shape \(3, 4\) .*inputs of shape \(3, 2, 2\)"
    ):
        attrfn.integrated_gradients(two, (X, Y), baselines=X)
    with pytest.raises(
        TypeError, match=r"^baselines has 'y' for inputs of shape \(3, 2, 2\), expect"
    ):
        attrfn.integrated_gradients(two, (X, Y), baselines=(None, "y"))


# --- distributions -------------------------------------------------------------------------------

K = 6
POOL = zoo.randn(K, N, seed=8)
POOL_Y = zoo.randn(K, 2, 2, seed=9)


def shap(*args, **kwargs):
    return attrfn.gradient_shap(*args, n_samples=16, **kwargs)


def test_one_baseline_is_input_x_gradient():
    """A pool of one and a linear f: (x - b) a, closed form."""
    for b in (POOL[:1], POOL[:1].float(), torch.ones(1, N, dtype=torch.long), torch.ones(1, 1)):
        got = shap(linear, X, baselines=b)
        torch.testing.assert_close(got, (X - b.double()) * A, rtol=1e-12, atol=1e-12)


def test_draws_come_from_the_pool_and_stay_together():
    """f(x, y) = x a + 2 y: an attribution names the drawn row, the same in both leaves."""
    one = functools.partial(attrfn.gradient_shap, n_samples=1)
    rows = set()
    for key in range(40):
        a, b = one(two, (X, Y), baselines=(POOL, POOL_Y), key=key)
        drawn = X - a / A
        which = (POOL[:, None] - drawn).abs().sum((1, 2)).argmin()
        torch.testing.assert_close(drawn, POOL[which].expand(B, N), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(Y - b / 2, POOL_Y[which].expand(B, 2, 2), rtol=1e-9, atol=1e-9)
        rows.add(int(which))
    # 40 draws of 6 rows miss one of them with probability 6 * (5/6)^40 < 0.5 %: fixed keys
    assert rows == set(range(K))


def test_distribution_trees():
    got = shap(two, (X, Y), baselines=(POOL, POOL_Y[:, :1, :1]))
    assert [g.shape for g in got] == [X.shape, Y.shape]
    inputs = {"x": X, "y": Y}
    named = shap(
        lambda v: two(v["x"], v["y"]), inputs, baselines={"x": POOL, "y": POOL_Y[:, :1, :1]}
    )
    assert list(named) == ["x", "y"]
    torch.testing.assert_close(named["x"], got[0])


@pytest.mark.parametrize(
    "options", [{"chunk_size": 1}, {"chunk_size": 5}, {"batching": "vmap"}, {"batching": "loop"}]
)
def test_distribution_is_the_same_in_any_chunks(options):
    def f(x: Tensor) -> Tensor:
        return torch.tanh(x @ A) + x[:, 0] ** 2

    got = shap(f, X, baselines=POOL, stdevs=0.3, key=4, **options)
    torch.testing.assert_close(
        got, shap(f, X, baselines=POOL, stdevs=0.3, key=4), rtol=1e-10, atol=1e-12
    )


def test_distribution_at_a_layer():
    """The pool passes through the head: for a linear tail E[(a - head(b)) w], same draws."""
    model = zoo.make(
        lambda: torch.nn.Sequential(torch.nn.Linear(N, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    )
    head, weight = model[:2], model[2].weight[1].detach()
    for key in range(3):
        got = attrfn.layer_gradient_shap(
            model, X, layer="1", target=1, baselines=POOL, n_samples=7, key=key
        )
        carried = attrfn.gradient_shap(
            lambda a: a @ weight, head(X).detach(), baselines=head(POOL), n_samples=7, key=key
        )
        torch.testing.assert_close(got, carried, rtol=1e-12, atol=1e-12)
    one = attrfn.layer_gradient_shap(model, X, layer="1", target=1, baselines=POOL[:1])
    expected = ((head(X) - head(POOL[:1])) * weight).detach()
    torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["tuple", "dict", "nest", "mixed"])
def test_distribution_at_a_structured_layer(kind):
    """K differs from B, and each part of the layer draws from its own part of the pool."""
    model = zoo.structured(kind)
    x, pool = zoo.randn(2, 4, seed=1), zoo.randn(1, 4, seed=2)
    got = attrfn.layer_gradient_shap(model, x, layer="parts", target=1, baselines=pool, key=3)
    want = attrfn.layer_activation(model, x, layer="parts")
    shapes = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.shape, want)
    if kind == "mixed":
        assert [g if g is None else g.shape for g in got] == [(2, 5), None, (2, 5), None]
    else:
        assert torch.utils._pytree.tree_map_only(Tensor, lambda t: t.shape, got) == shapes


def test_distribution_in_the_noise_tunnel():
    """draw_baselines: one row of the pool per sample, for a linear f the mean of (x - b) a."""
    tunnel = attrfn.noise_tunnel(
        attrfn.integrated_gradients, kind="samples", n_samples=30, stdevs=0.0, draw_baselines=True
    )
    got = tunnel(linear, X, baselines=POOL, n_steps=2)
    drawn = X - got / A
    away = (drawn[:, None] - POOL[:, None]).abs().sum((2, 3)).min(1).values
    assert away.max() < 1e-9
    assert drawn[:, 0, 0].unique().numel() > 1
    again = attrfn.noise_tunnel(
        attrfn.integrated_gradients,
        kind="samples",
        n_samples=30,
        stdevs=0.0,
        draw_baselines=True,
        chunk_size=7,
    )(linear, X, baselines=POOL, n_steps=2)
    torch.testing.assert_close(got, again, rtol=1e-12, atol=1e-12)


def test_distribution_of_baselines_in_a_tunnel_around_gradient_shap():
    """gradient_shap's own pool is not repeated, though K equals B."""
    tunnel = attrfn.noise_tunnel(attrfn.gradient_shap, n_samples=3, stdevs=0.0)
    got = tunnel(linear, X, baselines=POOL[:B], key=2)
    expected = attrfn.gradient_shap(linear, X, baselines=POOL[:B], key=2)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


WRONG_POOLS = {
    "none": (
        None,
        TypeError,
        r"^baselines has None for .*\(3, 4\), expected a tensor \(K, 4\).*zeros",
    ),
    "number": (0.0, TypeError, r"^baselines has 0\.0 for .*\(3, 4\), expected a tensor \(K, 4\)"),
    "0d": (
        torch.tensor(0.0),
        TypeError,
        r"^baselines has .*Tensor for .*expected a tensor \(K, 4\)",
    ),
    "one_row": (
        POOL[0],
        ValueError,
        r"^baselines has shape \(4,\) .*\(3, 4\), expected \(K, 4\) with",
    ),
    "features": (POOL[:, :3], ValueError, r"^baselines has shape \(6, 3\) .*expected \(K, 4\)"),
    "empty": (POOL[:0], ValueError, r"^baselines has shape \(0, 4\) .*expected \(K, 4\).*K > 0"),
    "deep": (POOL[None], ValueError, r"^baselines has shape \(1, 6, 4\) .*expected \(K, 4\)"),
    "array": (
        np.zeros((6, 4)),
        TypeError,
        r"^baselines has .*ndarray for .*expected a tensor \(K, 4\)",
    ),
    "tuple": (
        (POOL,),
        ValueError,
        r"^baselines is a tree unlike the inputs, expected",
    ),
}


@pytest.mark.parametrize("case", WRONG_POOLS)
def test_wrong_distributions(case):
    baselines, kind, message = WRONG_POOLS[case]
    model = zoo.mlp()
    for call in (
        lambda: attrfn.gradient_shap(linear, X, baselines=baselines),
        lambda: attrfn.layer_gradient_shap(model, X, layer="0", target=0, baselines=baselines),
        lambda: attrfn.neuron_gradient_shap(model, X, layer="0", neuron=0, baselines=baselines),
        lambda: attrfn.noise_tunnel(attrfn.integrated_gradients, draw_baselines=True)(
            linear, X, baselines=baselines
        ),
    ):
        with pytest.raises(kind, match=message):
            call()


def test_wrong_distribution_trees():
    with pytest.raises(
        ValueError, match=r"^baselines has \[5, 6\] baselines in its tensors, expected"
    ):
        attrfn.gradient_shap(two, (X, Y), baselines=(POOL, POOL_Y[:5]))
    with pytest.raises(TypeError, match=r"^baselines has None for inputs of shape \(3, 2, 2\)"):
        attrfn.gradient_shap(two, (X, Y), baselines=(POOL, None))
    with pytest.raises(TypeError, match=r"missing .*keyword-only argument: 'baselines'"):
        attrfn.gradient_shap(linear, X)
