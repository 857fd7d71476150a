"""Infinite, zero, tiny and missing numbers under the rules of DeepLIFT and LRP."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from oracles import randn

import attrfn

INF, TINY = math.inf, 5e-324  # the least number of double precision
ENDS = (-INF, -1.5, -TINY, 0.0, TINY, 0.75, INF)

UNARY = {
    **{f.__name__: f for f in (F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.hardtanh)},
    **{f.__name__: f for f in (F.softplus, F.logsigmoid, F.hardsigmoid, F.softsign, F.hardshrink)},
    **{f.__name__: f for f in (torch.exp, torch.exp2, torch.expm1, torch.tanh, torch.sigmoid)},
    **{f.__name__: f for f in (torch.erf, torch.erfc, torch.atan, torch.square, torch.abs)},
    **{f.__name__: f for f in (torch.asinh, torch.sinh, torch.cosh, torch.reciprocal, torch.sign)},
    "clamp": lambda x: x.clamp(-1, 2),
    "cube": lambda x: x**3,
    "root of a square": lambda x: x.square().sqrt(),
    "maximum": lambda x: torch.maximum(x, torch.full_like(x, 0.1)),
}


def multiplier(f, x, x0, **options):
    given = torch.tensor([[x]], dtype=torch.float64), torch.tensor([[x0]], dtype=torch.float64)
    m = attrfn.deep_lift(
        lambda x: f(x).sum(1), given[0], baselines=given[1], multiply_by_inputs=False, **options
    )
    return float(m.detach())


@pytest.mark.parametrize("name", UNARY)
def test_multipliers_at_every_pair_of_ends(name):
    """The slope where it is a number, 0 where only x or x0 is infinite, and never NaN."""
    f = UNARY[name]
    for x, x0 in itertools.product(ENDS, ENDS):
        y, y0 = (float(f(torch.tensor(v, dtype=torch.float64))) for v in (x, x0))
        if math.isnan(y) or math.isnan(y0) or (math.isinf(x - x0) and name == "reciprocal"):
            continue
        m = multiplier(f, x, x0)
        with_graph = multiplier(f, x, x0, create_graph=True)
        assert not math.isnan(m), (x, x0)
        if math.isfinite(m) and not (x == -x0 and math.isinf(x)):
            assert with_graph == pytest.approx(m, rel=1e-9, abs=1e-300), (x, x0)
        if x == x0 and math.isinf(x):
            assert math.isfinite(m), (x, x0)
        elif math.isinf(x - x0) and math.isfinite(y - y0):
            assert m == pytest.approx(0, abs=1e-300), (x, x0)
        elif x != x0 and math.isfinite((y - y0) / (x - x0)):
            assert m * (x - x0) == pytest.approx(y - y0, rel=1e-10, abs=1e-300), (x, x0)


LIMITS = [
    (F.relu, INF, 0.0, 1.0),
    (F.relu, 0.0, INF, 1.0),
    (F.relu, -INF, 1.0, 0.0),
    (F.silu, INF, 0.0, 1.0),
    (F.gelu, INF, -1.0, 1.0),
    (F.softplus, 1.0, INF, 1.0),
    (F.elu, INF, 0.0, 1.0),
    (torch.exp, -INF, -INF, 0.0),
    (torch.exp, INF, INF, 0.0),
    (torch.tanh, INF, INF, 0.0),
    (torch.reciprocal, 0.0, 0.0, 0.0),
    (torch.square, -INF, -INF, 0.0),
]


@pytest.mark.parametrize(("f", "x", "x0", "want"), LIMITS)
def test_limits_of_the_slope(f, x, x0, want):
    for options in ({}, {"create_graph": True}):
        assert multiplier(f, x, x0, **options) == pytest.approx(want, abs=1e-300)


@pytest.mark.parametrize(
    ("f", "x", "x0"),
    [
        (torch.sqrt, 1e-20, 0.0),
        (torch.log, 1e-20, 1e-30),
        (lambda x: 1e60 * x**3, 1e-20, 0.0),
        (lambda x: (x.abs() + 1e-30).log(), 1e-25, 0.0),
        (torch.round, 0.5000000000000001, 0.5),
        (lambda x: torch.sqrt(x.relu()), 1e-300, -1.0),
    ],
)
def test_small_changes_with_large_effects(f, x, x0):
    want = float(f(torch.tensor(x, dtype=torch.float64)) - f(torch.tensor(x0, dtype=torch.float64)))
    for options in ({}, {"create_graph": True}):
        assert multiplier(f, x, x0, **options) * (x - x0) == pytest.approx(want, rel=1e-10)


def test_close_values_have_the_derivative():
    x = 0.3
    for f, want in ((torch.cos, -math.sin(x)), (F.gelu, None), (torch.exp, math.exp(x))):
        t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        want = torch.autograd.grad(f(t), t)[0].item() if want is None else want
        assert multiplier(f, x + 1e-16, x) == pytest.approx(want, rel=1e-9)


KEEP = torch.tensor([True, False, True, True])
MASK = torch.where(KEEP, 0.0, -INF).double()

MASKED = {
    "of the issue": lambda x: (torch.where(KEEP, x, -INF) + x).exp(),
    "masks on masks": lambda x: (x + MASK + MASK).exp(),
    "masks on masks of both": lambda x: ((x + MASK) + (x.tanh() + MASK)).exp(),
    "sigmoid": lambda x: (x.masked_fill(~KEEP, -INF)).sigmoid(),
    "softmax": lambda x: (x + MASK).softmax(1),
    "logsumexp": lambda x: (x + MASK).logsumexp(1, keepdim=True),
    "maximum": lambda x: (x + MASK).amax(1, keepdim=True),
    "running maximum": lambda x: (x + MASK).cummax(1)[0],
    "sorted": lambda x: (x + MASK).sort(1, descending=True)[0][:, :3],
    "sorted up": lambda x: (x + MASK).sort(1)[0][:, 1:],
    "topk": lambda x: (x + MASK).topk(2)[0],
    "pairs": lambda x: torch.maximum(x + MASK, x.flip(1) + MASK).exp(),
    "logaddexp": lambda x: torch.logaddexp(x + MASK, x.tanh() + MASK).exp(),
    "scaled": lambda x: ((x + MASK) * x.exp()).exp(),
    "quotient": lambda x: ((x + MASK) / (x.exp() + 1)).exp(),
    "log": lambda x: (x.square() * KEEP).log().exp(),
    "reciprocal": lambda x: (-1 / (x.square() * KEEP)).exp(),
    "clamped": lambda x: (x + MASK).clamp(min=-3.0),
    "relu": lambda x: (x + MASK).relu(),
    "min of +inf": lambda x: (x - MASK).amin(1, keepdim=True),
    "prod": lambda x: (x + MASK).exp().prod(1, keepdim=True) + x,
    "logcumsumexp": lambda x: (x + MASK).logcumsumexp(1),
    "normal": lambda x: -((x + MASK).exp() + 0.1).log().relu(),
}


@pytest.mark.filterwarnings("ignore:the explained output does not depend:UserWarning")  # by LRP
@pytest.mark.parametrize("name", MASKED)
def test_masks_of_minus_infinity(name):
    """Complete and finite, alone, with a graph and under vmap."""
    x, x0, weights = (
        randn(1, 3, 4),
        randn(2, 3, 4),
        randn(3, *MASKED[name](randn(1, 3, 4)).shape[1:]),
    )

    def f(x):
        return (MASKED[name](x) * weights).sum(1)

    change = f(x) - f(x0)
    found = [
        attrfn.deep_lift(f, x, baselines=x0),
        attrfn.deep_lift(f, x, baselines=x0, create_graph=True).detach(),
        attrfn.deep_lift(f, x, baselines=x0, rule="reveal_cancel"),
        torch.func.vmap(
            lambda x, x0: attrfn.deep_lift(f, x[None], baselines=x0[None])[0], randomness="same"
        )(x, x0),
    ]
    for a in found:
        torch.testing.assert_close(a.sum(1), change, rtol=1e-10, atol=1e-10)
    assert attrfn.lrp(f, x).isfinite().all()
    assert attrfn.lrp(f, x, create_graph=True).isfinite().all()


def test_infinite_inputs_that_equal_their_baselines_have_no_part():
    x, x0 = randn(1, 3, 4) + MASK, randn(2, 3, 4) + MASK
    a = attrfn.deep_lift(lambda x: x.softmax(1)[:, 0] + x.exp().sum(1), x, baselines=x0)
    assert (a[:, 1] == 0).all()
    assert a.isfinite().all()


NETS = {
    "mlp": torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)),
    "softmax": torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Softmax(1)),
    "norm": torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Tanh(), torch.nn.Linear(4, 2)),
}
ROW_BY_ROW = {
    "gradient": attrfn.gradient,
    "input_x_gradient": attrfn.input_x_gradient,
    "saliency": attrfn.saliency,
    "integrated_gradients": attrfn.integrated_gradients,
    "deep_lift": attrfn.deep_lift,
    "lrp": attrfn.lrp,
    "guided_backprop": attrfn.guided_backprop,
    "deconvolution": attrfn.deconvolution,
    "feature_ablation": attrfn.feature_ablation,
    "shapley_values": attrfn.shapley_values,
    "kernel_shap": attrfn.kernel_shap,
    "gradient_shap": lambda f, x, **o: attrfn.gradient_shap(
        f, x, baselines=torch.zeros(2, 4).double(), key=0, **o
    ),
    "deep_lift_shap": lambda f, x, **o: attrfn.deep_lift_shap(f, x, baselines=randn(5, 2, 4), **o),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_what_is_not_finite_stays_in_its_row(name, bad, net):
    model, x = NETS[net].double(), randn(1, 3, 4)
    want = ROW_BY_ROW[name](model, x, target=1)
    x[1, 2] = bad
    got = ROW_BY_ROW[name](model, x, target=1)
    torch.testing.assert_close(got[[0, 2]], want[[0, 2]], rtol=1e-9, atol=1e-11)
    if math.isnan(bad) and name in ("deep_lift", "lrp", "integrated_gradients", "input_x_gradient"):
        assert got[1].isnan().any()
