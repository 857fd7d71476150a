"""Methods on inputs: values against formulas worked out by hand and against naive loops.

The oracles of ``oracles.py`` use no attrfn. Everything is float64 and holds to 1e-10, unless a
test says why not. Other methods are in the other files ``test_closed_forms_*.py``.
"""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from oracles import close, quadrature, randn
from torch import nn

import attrfn

RULES = ["gauss_legendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


def mlp(activation=nn.Tanh, bias=True):
    return oracles.seeded(
        lambda: nn.Sequential(nn.Linear(3, 7, bias=bias), activation(), nn.Linear(7, 4, bias=bias)),
        seed=1,
    )


def product(x):
    return x.prod(1)


# ---------------------------------------------------------------------------------------------
# gradient, saliency, input x gradient


def test_gradient_of_a_quadratic_form():
    """d/dx (x'Qx / 2 + b'x) = (Q + Q')x / 2 + b."""
    q, b, x = randn(0, 4, 4), randn(1, 4), randn(2, 5, 4)
    got = attrfn.gradient(lambda x: ((x @ q) * x).sum(1) / 2 + x @ b, x)
    close(got, x @ (q + q.T) / 2 + b)


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (torch.sin, torch.cos),
        (torch.exp, torch.exp),
        (torch.log, torch.reciprocal),
        (lambda x: x**3, lambda x: 3 * x**2),
        (torch.tanh, lambda x: 1 / torch.cosh(x) ** 2),
        (torch.relu, lambda x: (x > 0).to(x)),
    ],
    ids=["sin", "exp", "log", "cube", "tanh", "relu"],
)
def test_gradient_of_elementary_functions(f, slope):
    x = randn(0, 3, 2, 4).abs() + 0.1 if f is torch.log else randn(0, 3, 2, 4)
    close(attrfn.gradient(lambda x: f(x).flatten(1).sum(1), x), slope(x))


TARGETS = {
    "int": 2,
    "negative": -1,
    "zero_d": torch.tensor(1),
    "per_example": torch.tensor([3, 0, 1, 4]),
    "list": [3, 0, 1, 4],
    "tuple": (2,),
    "slice": (slice(1, 4),),
    "list_of_tuples": [(3,), (0,), (1,), (slice(0, 2),)],
    "contrastive": lambda out: out[:, 3] - out[:, 1],
    "log_probability": lambda out: out.log_softmax(1)[:, 2],
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_gradient_of_a_cnn_example_by_example(target):
    model, x = oracles.seeded(oracles.Cnn), randn(3, 4, 2, 8, 8)
    close(attrfn.gradient(model, x, target=target), oracles.gradients(model, x, target))


@pytest.mark.parametrize("target", [(1, 2), [(0, 1), (2, 3), (1, 0)], (slice(None), 3)], ids=str)
def test_gradient_with_an_index_into_a_matrix_of_outputs(target):
    model = oracles.seeded(
        lambda: nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Unflatten(1, (3, 4)))
    )
    x = randn(0, 3, 5)
    close(attrfn.gradient(model, x, target=target), oracles.gradients(model, x, target))


def test_gradient_against_central_differences():
    """(f(x + h e) - f(x - h e)) / 2h with h = 1e-5 is right to about h^2 = 1e-10."""
    model, x, h = oracles.seeded(lambda: oracles.Cnn(nn.Tanh)), randn(4, 1, 2, 8, 8), 1e-5
    got = attrfn.gradient(model, x, target=1)
    steps = h * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    with torch.no_grad():
        want = ((model(x + steps) - model(x - steps))[:, 1] / (2 * h)).reshape(x.shape)
    close(got, want, 1e-8)


def test_gradient_of_two_inputs_example_by_example():
    model, x = oracles.seeded(oracles.TwoInputs), (randn(0, 5, 3), randn(1, 5, 2, 2))
    close(attrfn.gradient(model, x, target=3), oracles.gradients(model, x, 3))


def test_gradient_of_a_nested_tree():
    """f = sum a^2 b + c: df/da = 2ab, df/db = a^2, df/dc = 1."""
    a, b, c = randn(0, 3, 2), randn(1, 3, 2), randn(2, 3)
    got = attrfn.gradient(
        lambda t: (t["a"] ** 2 * t["rest"][0]).sum(1) + t["rest"][1], {"a": a, "rest": [b, c]}
    )
    close(got, {"a": 2 * a * b, "rest": [a**2, torch.ones(3, dtype=torch.float64)]})


@pytest.mark.parametrize("absolute", [True, False])
def test_saliency_is_the_gradient_with_or_without_its_sign(absolute):
    model, x = oracles.seeded(oracles.TwoInputs), (randn(0, 5, 3), randn(1, 5, 2, 2))
    signed = oracles.gradients(model, x, 0)
    assert any((g < 0).any() for g in signed)
    want = tuple(g.abs() if absolute else g for g in signed)
    close(attrfn.saliency(model, x, target=0, absolute=absolute), want)


def test_saliency_is_absolute_by_default():
    x, w = randn(0, 3, 2), torch.tensor([-3.0, 2.0], dtype=torch.float64)
    close(attrfn.saliency(lambda x: x @ w, x), w.abs().expand(3, 2))


BASELINES = {
    "none": (None, 0.0),
    "int": (1, 1.0),
    "float": (-0.5, -0.5),
    "zero_d": (torch.tensor(0.25), 0.25),
    "row": (randn(7, 3), randn(7, 3)),
    "one_example": (randn(8, 1, 3), randn(8, 1, 3)),
    "column": (randn(9, 5, 1), randn(9, 5, 1)),
    "full": (randn(10, 5, 3), randn(10, 5, 3)),
}
"""What is given as ``baselines`` for inputs (5, 3), and what it stands for."""


@pytest.mark.parametrize("given", BASELINES)
def test_input_x_gradient_counts_from_the_baselines(given):
    model, x, (baselines, x0) = mlp(), randn(0, 5, 3), BASELINES[given]
    got = attrfn.input_x_gradient(model, x, target=1, baselines=baselines)
    close(got, (x - x0) * oracles.gradients(model, x, 1))


def test_input_x_gradient_of_an_affine_function_is_complete():
    x, x0, w = randn(0, 5, 3), randn(1, 5, 3), randn(2, 3)
    got = attrfn.input_x_gradient(lambda x: x @ w + 7, x, baselines=x0)
    close(got, (x - x0) * w)


@pytest.mark.parametrize(
    ("baselines", "x0", "y0"),
    [
        (None, 0.0, 0.0),
        (0.5, 0.5, 0.5),
        ((None, 2), 0.0, 2.0),
        ((randn(5, 1, 3), None), randn(5, 1, 3), 0.0),
        ((randn(5, 3), randn(6, 5, 2, 2)), randn(5, 3), randn(6, 5, 2, 2)),
    ],
    ids=["none", "scalar", "none_and_int", "tensor_and_none", "tensors"],
)
def test_baselines_of_two_inputs(baselines, x0, y0):
    """One value for all the inputs, or one per input."""
    model, (x, y) = oracles.seeded(oracles.TwoInputs), (randn(0, 5, 3), randn(1, 5, 2, 2))
    dx, dy = oracles.gradients(model, (x, y), 2)
    got = attrfn.input_x_gradient(model, (x, y), target=2, baselines=baselines)
    close(got, ((x - x0) * dx, (y - y0) * dy))
    starts = (torch.zeros_like(x) + x0, torch.zeros_like(y) + y0)
    got = attrfn.integrated_gradients(model, (x, y), target=2, baselines=baselines, n_steps=4)
    close(got, oracles.integrated_gradients(model, (x, y), starts, n=4, target=2))


# ---------------------------------------------------------------------------------------------
# integrated gradients: the quadrature rules


def nodes_of(rule, n):
    """The points at which a model is evaluated on the path from 0 to 1, in order."""
    seen = []

    def model(x):
        seen.append(float(x.detach()))
        return x[:, 0]

    one = torch.ones(1, 1, dtype=torch.float64)
    options = {"quadrature": rule, "chunk_size": 1, "check_completeness": False}
    attrfn.integrated_gradients(model, one, n_steps=n, **options)
    return np.array(seen)


def weights_of(rule, n, nodes):
    """The weight at each node: the integrals of n gradients, each 1 at one node and 0 at others."""
    there = torch.as_tensor(nodes)

    def model(x):
        return (x * ((x - there).abs() < 1e-9)).sum(1)

    ones = torch.ones(1, n, dtype=torch.float64)
    options = {"quadrature": rule, "check_completeness": False}  # no gradient of a model
    return attrfn.integrated_gradients(model, ones, n_steps=n, **options)[0].numpy()


@pytest.mark.parametrize(
    ("rule", "n"),
    [
        (rule, n)
        for rule in RULES
        for n in [1, 2, 3, 7, 50, 300]
        if (rule, n) != ("riemann_trapezoid", 1)  # a trapezoid has two sides
    ],
)
def test_nodes_and_weights_of_the_quadrature_rules(rule, n):
    """Gauss and Legendre's are numpy's ``leggauss``, the others the textbook's."""
    nodes, weights = quadrature(rule, n)
    np.testing.assert_allclose(nodes_of(rule, n), nodes, atol=2e-15)
    np.testing.assert_allclose(weights_of(rule, n, nodes), weights, atol=1e-14)


def test_gauss_legendre_with_50_steps_is_the_default():
    x, x0, model = randn(0, 4, 3), randn(1, 4, 3), mlp()
    got = attrfn.integrated_gradients(model, x, target=0, baselines=x0)
    close(got, oracles.integrated_gradients(model, x, x0, "gauss_legendre", 50, 0))


@pytest.mark.parametrize("rule", RULES)
def test_integrated_gradients_is_the_loop_over_steps(rule):
    model, x, x0 = oracles.seeded(oracles.Cnn), randn(0, 2, 2, 8, 8), randn(1, 2, 2, 8, 8)
    got = attrfn.integrated_gradients(
        model, x, target=[4, 1], baselines=x0, n_steps=6, quadrature=rule
    )
    close(got, oracles.integrated_gradients(model, x, x0, rule, 6, [4, 1]))


def simpson(n):
    """n + 1 nodes for n panels (n even); exact for integrands of degree 3."""
    weights = [1, *[4, 2] * (n // 2 - 1), 4, 1]
    return [i / n for i in range(n + 1)], [w / (3 * n) for w in weights]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_a_callable_quadrature(kind):
    """Simpson's rule with one panel integrates d/dx x^4 = 4x^3 exactly: x^4 - b^4."""

    def rule(n):
        nodes, weights = simpson(n)
        return kind(nodes), kind(weights)

    x, b = randn(0, 4, 3), randn(1, 4, 3)
    got = attrfn.integrated_gradients(
        lambda x: (x**4).sum(1), x, baselines=b, n_steps=2, quadrature=rule
    )
    close(got, x**4 - b**4, 1e-6 if kind is torch.tensor else 1e-10)  # tensor() makes float32


# ---------------------------------------------------------------------------------------------
# integrated gradients: integrals that one can do by hand


def test_integrated_gradients_of_separable_functions_is_the_change_of_each_term():
    """f = sum_i g_i(x_i): A_i = g_i(x_i) - g_i(b_i)."""
    x, b = randn(0, 5, 3), randn(1, 5, 3)

    def terms(x):
        return torch.stack([x[:, 0].sin(), x[:, 1].exp(), x[:, 2] ** 5], 1)

    got = attrfn.integrated_gradients(lambda x: terms(x).sum(1), x, baselines=b)
    close(got, terms(x) - terms(b))


def test_integrated_gradients_shares_a_product_fairly():
    """f = x_1 ... x_n from 0: each factor gets f(x) / n. Gauss with n/2 nodes is exact."""
    x = randn(0, 5, 4)
    got = attrfn.integrated_gradients(product, x, n_steps=2)
    close(got, (x.prod(1, keepdim=True) / 4).expand(5, 4))


def test_integrated_gradients_of_a_product_from_a_baseline():
    """f = xy from (b, c): A_x = (x - b)(y + c)/2, A_y = (y - c)(x + b)/2."""
    x, b = randn(0, 5, 2), randn(1, 5, 2)
    got = attrfn.integrated_gradients(product, x, baselines=b, n_steps=1)
    close(got, (x - b) * (x + b).flip(1) / 2)


def test_integrated_gradients_along_a_ridge():
    """f = g(w'x): A = (x - b) w (g(w'x) - g(w'b)) / (w'x - w'b)."""
    x, b, w = randn(0, 5, 3), randn(1, 5, 3), randn(2, 3)
    slope = ((x @ w).exp() - (b @ w).exp()) / (x @ w - b @ w)
    got = attrfn.integrated_gradients(lambda x: (x @ w).exp(), x, baselines=b)
    close(got, (x - b) * w * slope[:, None])


def test_integrated_gradients_of_a_homogeneous_network_is_input_x_gradient():
    """ReLU networks without biases are linear along rays from 0."""
    model, x = mlp(nn.ReLU, bias=False), randn(0, 6, 3)
    got = attrfn.integrated_gradients(model, x, target=2, n_steps=3)
    close(got, x * oracles.gradients(model, x, 2))


def test_integrated_gradients_through_a_kink():
    """f = relu(x) from -1 to 3: the midpoint rule sees slope 1 at the nodes behind the kink."""
    x, b = torch.tensor([[3.0]]), torch.tensor([[-1.0]])
    got = attrfn.integrated_gradients(
        lambda x: x.relu()[:, 0], x, baselines=b, n_steps=8, quadrature="riemann_middle"
    )
    close(got, torch.tensor([[3.0]]))


def test_integrated_gradients_of_trees():
    """f = xy + z^2 with the leaves in a dict: A_x = A_y = xy / 2, A_z = z^2 (baseline 0)."""
    x, y, z = randn(0, 4), randn(1, 4), randn(2, 4)
    got = attrfn.integrated_gradients(
        lambda t: t["x"] * t["y"] + t["z"] ** 2, {"x": x, "y": y, "z": z}, n_steps=2
    )
    close(got, {"x": x * y / 2, "y": x * y / 2, "z": z**2})


@pytest.mark.parametrize("given", BASELINES)
def test_integrated_gradients_with_every_kind_of_baselines(given):
    model, x, (baselines, x0) = mlp(), randn(0, 5, 3), BASELINES[given]
    got = attrfn.integrated_gradients(model, x, target=1, baselines=baselines, n_steps=5)
    close(got, oracles.integrated_gradients(model, x, torch.zeros_like(x) + x0, n=5, target=1))


def test_integrated_gradients_without_the_factor_is_the_mean_gradient():
    """f = x^3: the mean of 3s^2 between b and x is x^2 + xb + b^2, also where x = b."""
    x, b = randn(0, 5, 2), randn(1, 5, 2)
    x[0] = b[0]
    got = attrfn.integrated_gradients(
        lambda x: (x**3).sum(1), x, baselines=b, multiply_by_inputs=False
    )
    close(got, x**2 + x * b + b**2)


def steep(x):
    return torch.sigmoid(40 * (x - 0.4)).sum(1)


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("rule", ["gauss_legendre", "riemann_left"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_tolerance_bounds_the_gap(rule, multiply, tolerance):
    """f is a sum over the features: each gets the change of its own term, but errors cancel."""
    x = torch.tensor([[1.0, 0.9], [0.5, 0.3]]).double()
    want = torch.sigmoid(40 * (x - 0.4)) - torch.sigmoid(torch.tensor(-16.0).double())
    got = attrfn.integrated_gradients(
        steep, x, n_steps=9, quadrature=rule, tolerance=tolerance, multiply_by_inputs=multiply
    )
    got = got if multiply else got * x
    assert (got.sum(1) - want.sum(1)).abs().max() <= tolerance
    assert (got - want).abs().max() <= 5 * tolerance


def test_tolerance_that_is_met_at_once_costs_no_more_steps():
    x = randn(0, 3, 2)
    rows = []

    def f(x):
        rows.append(len(x))
        return x.prod(1)

    attrfn.integrated_gradients(f, x, n_steps=4, tolerance=1e-9)
    assert max(rows) == 4 * len(x)
    close(
        attrfn.integrated_gradients(product, x, n_steps=4, tolerance=1e-9),
        (x.prod(1, keepdim=True) / 2).expand(3, 2),
    )


def test_tolerance_that_cannot_be_met_warns_and_returns_the_best():
    """f = x + (x > 0.5) jumps by 1, which no gradient sees: A = x."""
    x = torch.ones(1, 1)
    with pytest.warns(
        UserWarning, match=r"missed tolerance=0.5 with [0-9]+ gradients.* 1: the model may jump"
    ):
        got = attrfn.integrated_gradients(
            lambda x: (x + (x > 0.5).to(x))[:, 0],
            x,
            n_steps=1,
            tolerance=0.5,
            quadrature="riemann_middle",
        )
    close(got, x, 1e-5)


# ---------------------------------------------------------------------------------------------
# completeness_delta


def test_completeness_delta_is_the_sum_less_the_change():
    """f = sum x^2: sum A - (sum x^2 - sum b^2), for attributions that mean nothing."""
    x, b, a = randn(0, 4, 3), randn(1, 4, 3), randn(2, 4, 3)
    got = attrfn.completeness_delta(lambda x: (x**2).sum(1), x, a, baselines=b)
    close(got, a.sum(1) - ((x**2).sum(1) - (b**2).sum(1)))


def test_completeness_delta_of_two_inputs_with_a_target():
    model, x = oracles.seeded(oracles.TwoInputs), (randn(0, 5, 3), randn(1, 5, 2, 2))
    a = (randn(2, 5, 3), randn(3, 5, 2, 2))
    start = (torch.full_like(x[0], 0.5), torch.zeros_like(x[1]))
    target = [(0,), (1,), (2,), (3,), (slice(0, 2),)]
    want = a[0].sum(1) + a[1].sum((1, 2))
    want = want - oracles.values(model, x, target) + oracles.values(model, start, target)
    close(attrfn.completeness_delta(model, x, a, target=target, baselines=(0.5, None)), want)


def test_completeness_delta_of_a_layer_behind_integer_inputs():
    """Any structure of attributions goes: here an embedding's, of token ids with baseline id 0."""
    model = oracles.seeded(lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3)))
    ids, a = torch.tensor([[1, 2], [3, 4], [5, 5]]), randn(0, 3, 2, 4)
    change = (model(ids) - model(torch.zeros_like(ids)))[:, 1].detach()
    close(attrfn.completeness_delta(model, ids, a, target=1), a.sum((1, 2)) - change)


def test_completeness_delta_of_integrated_gradients_is_the_quadrature_error():
    """f = x^3 by the left rule with n steps: (3/n) sum (k/n)^2 = 1 - 3/(2n) + 1/(2n^2)."""
    x, n = torch.ones(1, 1).double(), 10

    def f(x):
        return x[:, 0] ** 3

    a = attrfn.integrated_gradients(f, x, n_steps=n, quadrature="riemann_left")
    want = torch.tensor([-3 / (2 * n) + 1 / (2 * n**2)], dtype=torch.float64)
    close(attrfn.completeness_delta(f, x, a), want)
