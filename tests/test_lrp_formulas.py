"""The rules of LRP for linear operations against their formulas with plain matrices.

The oracle takes the dense matrix W and the offset b of an operation from its derivative and its
value at zero, and applies the textbook formula to them. It shares nothing with the library: no
surrogates, no kernels. Everything is float64.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oracles import close, randn, seeded
from torch import nn

import attrfn
from attrfn import rules

EPS = 1e-6

# ---------------------------------------------------------------------------------------------
# formulas: p(.) = max(., 0), n(.) = min(., 0); s = R / (z + eps sign(z))


def p(t):
    return t.clamp(min=0)


def n(t):
    return t.clamp(max=0)


def share(r, z, eps):
    """R / (z + eps sign(z)), sign(0) = 1."""
    return r / torch.where(z < 0, z - eps, z + eps)


def epsilon(w, b, x, r, eps=EPS):
    return x * (w.T @ share(r, w @ x + b, eps))


def z_plus(w, b, x, r, eps=EPS):
    s = share(r, p(w) @ p(x) + n(w) @ n(x) + p(b), eps)
    return p(x) * (p(w).T @ s) + n(x) * (n(w).T @ s)


def z_minus(w, b, x, r, eps=EPS):
    s = share(r, n(w) @ p(x) + p(w) @ n(x) + n(b), eps)
    return p(x) * (n(w).T @ s) + n(x) * (p(w).T @ s)


def alpha_beta(w, b, x, r, alpha, beta):
    return alpha * z_plus(w, b, x, r) - beta * z_minus(w, b, x, r)


def gamma(w, b, x, r, g):
    z = w @ x + b
    up, down = w + g * p(w), w + g * n(w)
    for_up = up @ p(x) + down @ n(x) + b + g * p(b)
    for_down = down @ p(x) + up @ n(x) + b + g * n(b)
    s = torch.where(z > 0, share(r, for_up, EPS), 0.0)
    t = torch.where(z < 0, share(r, for_down, EPS), 0.0)
    return p(x) * (up.T @ s + down.T @ t) + n(x) * (down.T @ s + up.T @ t)


def z_box(w, b, x, r, low, high):
    low, high = (torch.as_tensor(v, dtype=x.dtype).expand(x.shape) for v in (low, high))
    s = share(r, w @ x - p(w) @ low - n(w) @ high, EPS)
    return x * (w.T @ s) - low * (p(w).T @ s) - high * (n(w).T @ s)


def w_square(w, b, x, r):
    return (w**2).T @ share(r, (w**2).sum(1) + b**2, EPS)


def flat(w, b, x, r):
    ones = (w != 0).to(w)  # no weight of the operation is zero
    return ones.T @ share(r, ones.sum(1), EPS)


def at_inputs(rule):
    return rules.composite(first=rule)


RULES = {
    "epsilon": (rules.epsilon(), epsilon),
    "epsilon 0": (rules.epsilon(0), functools.partial(epsilon, eps=0.0)),
    "epsilon 0.25": (rules.epsilon(0.25), functools.partial(epsilon, eps=0.25)),
    "z_plus": (rules.z_plus(), z_plus),
    "z_plus 0.1": (rules.z_plus(0.1), functools.partial(z_plus, eps=0.1)),
    "alpha_beta(1, 0)": (rules.alpha_beta(1, 0), z_plus),
    "alpha_beta": (rules.alpha_beta(), functools.partial(alpha_beta, alpha=2, beta=1)),
    "alpha_beta(1.5, 0.5)": (
        rules.alpha_beta(1.5, 0.5),
        functools.partial(alpha_beta, alpha=1.5, beta=0.5),
    ),
    "gamma": (rules.gamma(), functools.partial(gamma, g=0.25)),
    "gamma(1)": (rules.gamma(1), functools.partial(gamma, g=1)),
    "gamma(0)": (rules.gamma(0), functools.partial(gamma, g=0)),
    "z_box": (at_inputs(rules.z_box(-3, 3)), functools.partial(z_box, low=-3, high=3)),
    "w_square": (at_inputs(rules.w_square()), w_square),
    "flat": (at_inputs(rules.flat()), flat),
}
by_rule = pytest.mark.parametrize("rule", RULES)


# ---------------------------------------------------------------------------------------------
# operations


def matrix(op, shape):
    """The dense matrix and the offset of an affine operation on one example of a shape."""

    def of_one(flat):
        return op(flat.reshape(1, *shape)).flatten()

    zero = torch.zeros(shape, dtype=torch.float64).flatten()
    return torch.autograd.functional.jacobian(of_one, zero), of_one(zero).detach()


def expected(op, x, weights, formula):
    """The formula with the relevance ``z * weights`` at the operation's output, row by row."""
    w, b = matrix(op, x.shape[1:])
    found = []
    for row, c in zip(x, weights, strict=True):
        flat = row.flatten()
        found.append(formula(w, b, flat, (w @ flat + b) * c.flatten()).reshape(row.shape))
    return torch.stack(found)


def weighed(op, weights):
    """The sum of the outputs times constants, so that the relevance at output i is z_i c_i."""
    return lambda x: (op(x) * weights).flatten(1).sum(1)


def check(op, x, rule, tolerance=1e-9):
    given, formula = RULES[rule]
    weights = randn(7, *op(x).shape)
    want = expected(op, x, weights, formula)
    assert (want != 0).any()
    f = weighed(op, weights)
    close(attrfn.lrp(f, x, rules=given), want, tolerance)
    close(attrfn.lrp(f, x, rules=given, create_graph=True), want, tolerance)


def module(make, *args, **options):
    """An operation with random weights and, where it has one, a random bias."""
    return seeded(lambda: make(*args, **options), seed=3)


OPS = {
    "linear": (nn.Linear, (5, 4), {}, (5,)),
    "linear on tokens": (nn.Linear, (5, 4), {}, (3, 5)),
    "conv1d": (nn.Conv1d, (2, 3, 3), {"stride": 2, "padding": 1}, (2, 7)),
    "conv1d same": (nn.Conv1d, (2, 3, 3), {"padding": "same"}, (2, 6)),
    "conv1d circular": (nn.Conv1d, (2, 3, 3), {"padding": 1, "padding_mode": "circular"}, (2, 6)),
    "conv2d": (nn.Conv2d, (2, 4, (3, 2)), {"stride": (1, 2), "padding": (1, 0)}, (2, 4, 5)),
    "conv2d groups": (nn.Conv2d, (4, 4, 2), {"groups": 2, "dilation": 2}, (4, 4, 3)),
    "conv3d": (nn.Conv3d, (1, 2, 2), {"stride": 2, "padding": 1}, (1, 3, 2, 3)),
    "conv_transpose1d": (nn.ConvTranspose1d, (2, 3, 3), {"stride": 2, "padding": 1}, (2, 4)),
    "conv_transpose2d": (
        nn.ConvTranspose2d,
        (2, 3, 3),
        {"stride": 2, "padding": 1, "output_padding": 1},
        (2, 2, 3),
    ),
    "conv_transpose2d groups": (nn.ConvTranspose2d, (4, 2, 2), {"groups": 2}, (4, 2, 2)),
    "conv_transpose3d": (nn.ConvTranspose3d, (1, 2, 2), {"stride": 2}, (1, 2, 2, 1)),
}


@by_rule
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", OPS)
def test_modules(name, bias, rule):
    make, args, options, shape = OPS[name]
    check(module(make, *args, bias=bias, **options), randn(5, 3, *shape), rule)


W, B = randn(1, 4, 5), randn(2, 4)
STACK = randn(3, 3, 5, 4)

SPELLINGS = {
    "F.linear": ((5,), lambda x: F.linear(x, W, B)),
    "F.linear without bias": ((5,), lambda x: F.linear(x, W)),
    "F.linear by keyword": ((5,), lambda x: F.linear(input=x, weight=W, bias=B)),
    "x @ W": ((5,), lambda x: x @ W.T),
    "W @ x": ((5,), lambda x: (W @ x.T).T),
    "Tensor.matmul": ((5,), lambda x: x.matmul(W.mT)),
    "torch.matmul of tokens": ((3, 5), lambda x: torch.matmul(x, W.mT)),
    "torch.mm": ((5,), lambda x: torch.mm(x, W.mT)),
    "torch.bmm": ((2, 5), lambda x: torch.bmm(x, W.mT.expand(len(x), 5, 4))),
    "torch.addmm": ((5,), lambda x: torch.addmm(B, x, W.mT)),
    "Tensor.addmm": ((5,), lambda x: B.addmm(x, W.mT)),
    "torch.addmm with factors": ((5,), lambda x: torch.addmm(B, x, W.mT, beta=0.5, alpha=2)),
    "torch.addmm with a negative factor": (
        (5,),
        lambda x: torch.addmm(B, x, W.mT, beta=-1, alpha=-0.5),
    ),
    "torch.baddbmm": (
        (2, 5),
        lambda x: torch.baddbmm(B.expand(len(x), 2, 4), x, W.mT.expand(len(x), 5, 4)),
    ),
    "einsum": ((5,), lambda x: torch.einsum("bi,oi->bo", x, W)),
    "einsum, weights first": ((3, 5), lambda x: torch.einsum("oi,bti->bot", W, x)),
    "einsum of heads": ((3, 5), lambda x: torch.einsum("bhi,hio->bho", x, STACK)),
    "tensordot": ((3, 5), lambda x: torch.tensordot(x, W, dims=([2], [1]))),
    "inner": ((3, 5), lambda x: torch.inner(x, W)),
    "F.conv1d": ((5, 3), lambda x: F.conv1d(x, W[..., None], B)),
    "F.conv1d by keyword": ((5, 3), lambda x: F.conv1d(input=x, weight=W[..., None], bias=B)),
    "torch.conv1d": ((5, 3), lambda x: torch.conv1d(x, W[..., None], B)),
    "torch.conv_transpose1d": (
        (4, 3),
        lambda x: torch.conv_transpose1d(x, W[..., None], randn(4, 5)),
    ),
}


@by_rule
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name, rule):
    shape, op = SPELLINGS[name]
    check(op, randn(5, 3, *shape), rule)


@by_rule
def test_inputs_and_outputs_of_zero(rule):
    """Of an example of zeros nothing is known but a number; of some zeros the formula."""
    op, x = module(nn.Linear, 5, 4, bias=False), randn(5, 3, 5)
    x[0, :3] = 0
    x[1] = 0
    given, formula = RULES[rule]
    weights = randn(7, 3, 4)
    f = weighed(op, weights)
    for create_graph in (False, True):
        got = attrfn.lrp(f, x, rules=given, create_graph=create_graph)
        assert torch.isfinite(got).all()
        close(got[[0, 2]], expected(op, x, weights, formula)[[0, 2]], 1e-9)


@by_rule
def test_values_stay_and_gradients_are_the_rule(rule):
    """``with_rules``: the same values bit for bit; gradients R / x, or R at the inputs."""
    op, x = module(nn.Linear, 5, 4), randn(5, 3, 5)
    given, formula = RULES[rule]
    weights = randn(7, 3, 4)
    composite = given if isinstance(given, rules.Rules) else rules.composite(given)
    f = weighed(op, weights)
    ruled = attrfn.with_rules(f, composite)
    assert torch.equal(ruled(x), f(x))
    got = attrfn.gradient(ruled, x)
    relevance = got if isinstance(given, rules.Rules) else x * got
    close(relevance, expected(op, x, weights, formula), 1e-9)


def test_identity():
    """R_in = R at a square operation, whatever its weights are."""
    for op, shape in [
        (module(nn.Linear, 5, 5), (5,)),
        (module(nn.Conv2d, 2, 2, 3, padding=1), (2, 4, 4)),
    ]:
        x = randn(5, 3, *shape)
        weights = randn(7, 3, *shape)
        for create_graph in (False, True):
            got = attrfn.lrp(
                weighed(op, weights), x, rules=rules.identity(0), create_graph=create_graph
            )
            close(got, (op(x) * weights).detach(), 1e-9)


def test_identity_of_other_shapes():
    with pytest.raises(ValueError, match=r"rule identity .*\(3, 5\) to \(3, 4\)"):
        attrfn.lrp(module(nn.Linear, 5, 4), randn(0, 3, 5), target=0, rules=rules.identity())


@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (3, 5)], ids=str)
def test_bounds_of_the_box(shape):
    """Numbers, and tensors that broadcast to the input."""
    op, x, weights = module(nn.Linear, 5, 4), randn(5, 3, 5), randn(7, 3, 4)
    low, high = (sign * (3 + randn(seed, 1, *shape).abs())[0] for seed, sign in ((1, -1), (2, 1)))
    got = attrfn.lrp(weighed(op, weights), x, rules=at_inputs(rules.z_box(low, high)))
    lows, highs = low.expand(3, 5), high.expand(3, 5)
    want = [
        expected(
            op,
            x[i : i + 1],
            weights[i : i + 1],
            functools.partial(z_box, low=lows[i], high=highs[i]),
        )
        for i in range(3)
    ]
    close(got, torch.cat(want), 1e-9)


def test_shifts_and_scalings_before_a_rule_for_the_inputs():
    """The relevance of a preprocessed input is that of the input itself."""
    op, x, weights = module(nn.Linear, 5, 4), randn(5, 3, 5), randn(7, 3, 4)
    mean, std = randn(1, 5), 0.5 + randn(2, 5).abs()
    shapes = {
        "shift and scale": lambda x: (x - mean) / std,
        "product": lambda x: x * std + mean,
    }
    for prepare in shapes.values():
        for rule in ("z_box", "w_square", "flat"):
            given, formula = RULES[rule]
            want = expected(op, prepare(x), weights, formula)
            close(attrfn.lrp(weighed(lambda t, g=prepare: op(g(t)), weights), x, rules=given), want)


def test_two_operations_that_read_the_inputs():
    """Each gets the rule for inputs, and the relevances add up."""
    a, b, x, w = module(nn.Linear, 5, 4), module(nn.Conv1d, 1, 2, 2), randn(5, 3, 5), randn(7, 3, 4)
    v = randn(8, 3, 2, 4)

    def narrow(x):
        return b(x[:, None])

    for rule in ("z_box", "w_square", "flat"):
        given, formula = RULES[rule]
        got = attrfn.lrp(lambda x: weighed(a, w)(x) + weighed(narrow, v)(x), x, rules=given)
        close(got, expected(a, x, w, formula) + expected(narrow, x, v, formula), 1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.epsilon(-1e-3), r"epsilon is -0.001, expected a number of at least 0"),
        (lambda: rules.epsilon(float("nan")), r"epsilon is nan"),
        (lambda: rules.epsilon(True), r"epsilon is True"),
        (lambda: rules.epsilon("0"), r"epsilon is '0'"),
        (lambda: rules.epsilon(None), r"epsilon is None"),
        (lambda: rules.gamma(-0.25), r"gamma is -0.25"),
        (lambda: rules.gamma(0.25, -1), r"epsilon is -1"),
        (lambda: rules.z_plus(-1), r"epsilon is -1"),
        (lambda: rules.alpha_beta(2, 2), r"alpha is 2 and beta is 2.*alpha - beta = 1"),
        (lambda: rules.alpha_beta(0.5, -0.5), r"alpha is 0.5 and beta is -0.5"),
        (lambda: rules.alpha_beta(-1, -2), r"alpha is -1 and beta is -2"),
        (lambda: rules.alpha_beta(2, 1, -1), r"epsilon is -1"),
        (lambda: rules.identity(-1), r"epsilon is -1"),
        (lambda: rules.flat(-1), r"epsilon is -1"),
        (lambda: rules.w_square(-1), r"epsilon is -1"),
        (lambda: rules.z_box(0, 1, -1), r"epsilon is -1"),
    ],
)
def test_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------------
# fixed values

# Computed by running zennit, unmodified.
FIXED = json.loads((Path(__file__).parent / "data" / "lrp_reference_values.json").read_text())
LINEAR = {k: torch.tensor(v, dtype=torch.float64) for k, v in FIXED["linear"].items()}

NAMES = {
    "epsilon(1e-6)": rules.epsilon(1e-6),
    "epsilon(0.25)": rules.epsilon(0.25),
    "zplus": rules.z_plus(),
    "gamma(0.25)": rules.gamma(0.25),
    "gamma(1.0)": rules.gamma(1.0),
    "alpha2beta1": rules.alpha_beta(2, 1),
    "alpha1beta0": rules.alpha_beta(1, 0),
    "zbox(-3,3)": at_inputs(rules.z_box(-3, 3)),
    "wsquare": at_inputs(rules.w_square()),
    "flat": at_inputs(rules.flat()),
    "norm": rules.epsilon(1e-6),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_fixed_values(name, create_graph):
    w, b, x, z, r = (LINEAR[k] for k in ("weight", "bias", "x", "z", "R_out"))

    def f(x):
        return (F.linear(x, w, b) * (r / z)).sum(1)

    got = attrfn.lrp(f, x, rules=NAMES[name], create_graph=create_graph)
    close(got, LINEAR[name], 1e-9)


def test_fixed_values_of_a_rule_that_leaves_out_the_bias():
    """A rule of one's own: the parts of LRP-epsilon without b."""
    w, b, x, z, r = (LINEAR[k] for k in ("weight", "bias", "x", "z", "R_out"))

    def without_bias(op, x, w, b):
        return (op(x, w, None),)

    rule = rules.LinearRule("no bias", without_bias, rules.epsilon(1e-6).multipliers)
    got = attrfn.lrp(lambda x: (F.linear(x, w, b) * (r / z)).sum(1), x, rules=rule)
    close(got, LINEAR["epsilon(1e-6,zero bias)"], 1e-9)
