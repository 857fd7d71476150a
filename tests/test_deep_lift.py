"""DeepLIFT and DeepSHAP: values by hand and from the literature, and their definitions.

Completeness on whole models is in ``test_rules_completeness.py``. Everything is float64.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracles import Cnn, close, randn, seeded
from torch import nn

import attrfn
from attrfn import rules

RULES = ["rescale", "reveal_cancel"]
by_rule = pytest.mark.parametrize("rule", RULES)
graph = pytest.mark.parametrize("create_graph", [False, True])


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def mlp(activation=nn.ReLU):
    layers = [nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)]
    return seeded(lambda: nn.Sequential(*layers), seed=2)


# ---------------------------------------------------------------------------------------------
# values by hand


@graph
def test_rescale_of_relu_behind_a_dense_layer(create_graph):
    """The example of the authors' own tests: two units with opposite weights, inputs 1 and 2.

    Unit 1 goes from -1 to 9 and 19, so relu from 0 to 9 and 19: 9/10 and 19/20. Unit 2 goes from
    1 to -9 and -19, so relu from 1 to 0: 1/10 and 1/20.
    """
    w1 = tensor(1, 2, 3, 4)
    w, b = torch.stack([w1, -w1]), tensor(-1, 1)
    x = torch.ones(2, 4, dtype=torch.float64) * tensor(1, 2)[:, None]
    for unit, slopes in ((0, (0.9, 0.95)), (1, (0.1, 0.05))):
        got = attrfn.deep_lift(
            lambda x: F.linear(x, w, b).relu(),
            x,
            target=unit,
            multiply_by_inputs=False,
            create_graph=create_graph,
        )
        close(got, tensor(*slopes)[:, None] * w[unit])


@graph
@by_rule
def test_two_units(rule, create_graph):
    """2 relu(a) + 2 relu(b - 1.5) at (1, 2) from 0: (2, 1), the values of Captum's tests."""

    def f(x):
        return 2 * x[:, 0].relu() + 2 * (x[:, 1] - 1.5).relu()

    got = attrfn.deep_lift(f, tensor([1, 2]), rule=rule, create_graph=create_graph)
    close(got, tensor([2, 1]))


@graph
@by_rule
def test_max_pooling(rule, create_graph):
    """Max over the four inputs: what it loses goes to what was greatest, as in Captum's tests."""
    x, x0 = torch.ones(2, 4).double(), tensor([1, 2, 3, 9], [4, 8, 6, 7])
    want = tensor([0, 0, 0, -8], [0, -7, 0, 0])
    for f in (
        lambda x: F.max_pool1d(x[:, None], 4)[:, 0, 0],
        lambda x: F.max_pool2d(x.reshape(-1, 1, 2, 2), 2).flatten(),
        lambda x: F.adaptive_max_pool1d(x[:, None], 1)[:, 0, 0],
        lambda x: torch.adaptive_max_pool1d(x[:, None], 1)[0][:, 0, 0],
        lambda x: x.amax(1),
        lambda x: x.max(1).values,
        lambda x: -(-x).amin(1),
        lambda x: torch.max(x, dim=1)[0],
    ):
        got = attrfn.deep_lift(f, x, baselines=x0, rule=rule, create_graph=create_graph)
        close(got, want)


def test_max_pooling_shares_between_the_greatest_now_and_then():
    """From (4, 1) to (2, 5): up by 1 through the second of four, nothing lost at the first."""
    got = attrfn.deep_lift(lambda x: x.amax(1), tensor([2, 5]), baselines=tensor([4, 1]))
    close(got, tensor([0, 1]))
    got = attrfn.deep_lift(lambda x: x.amax(1), tensor([2, 3]), baselines=tensor([4, 1]))
    close(got, tensor([-1, 0]))


def least(x):
    """min(a, b) = a - relu(a - b), with a linear layer before the ReLU."""
    w = tensor([1, -1])
    return x[:, 0] - F.linear(x, w).relu()[:, 0]


@graph
def test_min_of_two(create_graph):
    """For a > b > 0 from 0 the rescale rule gives all to b, RevealCancel half to each."""
    x = tensor([5, 3], [2, 1], [7, 0.5])
    options = {"create_graph": create_graph}
    b = x[:, 1:]
    close(attrfn.deep_lift(least, x, **options), torch.cat([0 * b, b], 1))
    got = attrfn.deep_lift(least, x, rule="reveal_cancel", **options)
    close(got, torch.cat([b / 2, b / 2], 1))


@graph
def test_saturation(create_graph):
    """1 - relu(1 - a - b) at (1, 1): the gradient is 0, DeepLIFT gives half to each."""
    w = tensor([-1, -1])

    def f(x):
        return 1 - F.linear(x, w, tensor(1)).relu()[:, 0]

    x = tensor([1, 1])
    assert not attrfn.gradient(f, x).any()
    for rule in RULES:
        close(attrfn.deep_lift(f, x, rule=rule, create_graph=create_graph), tensor([0.5, 0.5]))


@graph
def test_products_share_their_change(create_graph):
    """Ab from (a0, b0): (a - a0)(b + b0)/2 and (b - b0)(a + a0)/2."""
    x, x0 = (randn(0, 5), randn(1, 5)), (randn(2, 5), randn(3, 5))
    (a, b), (a0, b0) = x, x0
    want = ((a - a0) * (b + b0) / 2, (b - b0) * (a + a0) / 2)
    for f in (
        lambda a, b: a * b,
        lambda a, b: torch.mul(b, a),
        lambda a, b: torch.einsum("i,i->i", a, b),
        lambda a, b: (a[:, None, None] @ b[:, None, None]).flatten(),
    ):
        close(attrfn.deep_lift(f, x, baselines=x0, create_graph=create_graph), want)


@graph
def test_matrix_products_share_their_change(create_graph):
    a, b, a0, b0 = randn(0, 5, 2, 3), randn(1, 5, 3, 4), randn(2, 5, 2, 3), randn(3, 5, 3, 4)
    c = randn(4, 2, 4)
    got = attrfn.deep_lift(
        lambda a, b: ((a @ b) * c).sum((1, 2)),
        (a, b),
        baselines=(a0, b0),
        create_graph=create_graph,
    )
    close(got, ((a - a0) * (c @ ((b + b0) / 2).mT), (b - b0) * (((a + a0) / 2).mT @ c)))


@graph
@pytest.mark.parametrize("f", [torch.exp, torch.sin, torch.tanh, F.gelu, F.silu, torch.square])
def test_elementwise_functions_give_their_change(f, create_graph):
    """Sum_i f(x_i): A_i = f(x_i) - f(x0_i), also where nothing changes."""
    x, x0 = randn(0, 5, 3), randn(1, 5, 3)
    x0[:, 0] = x[:, 0]
    options = {"baselines": x0, "create_graph": create_graph}
    got = attrfn.deep_lift(lambda x: f(x).sum(1), x, **options)
    close(got, f(x) - f(x0), 1e-9)
    m = attrfn.deep_lift(lambda x: f(x).sum(1), x, multiply_by_inputs=False, **options)
    close(m[:, 0], attrfn.gradient(lambda x: f(x).sum(1), x)[:, 0])
    close(m[:, 1:], ((f(x) - f(x0)) / (x - x0))[:, 1:], 1e-9)


def test_a_ridge():
    """g(w'x): A = (x - x0) w (g(w'x) - g(w'x0)) / (w'x - w'x0), as integrated gradients."""
    x, x0, w = randn(0, 5, 3), randn(1, 5, 3), randn(2, 3)
    got = attrfn.deep_lift(lambda x: (x @ w).exp(), x, baselines=x0)
    slope = ((x @ w).exp() - (x0 @ w).exp()) / (x @ w - x0 @ w)
    close(got, (x - x0) * w * slope[:, None])


# ---------------------------------------------------------------------------------------------
# the textbook: a network of dense layers, backwards with matrices


def rescale_by_hand(model, x, x0, target):
    """Multipliers of a Sequential of linear layers and activations, example by example."""
    at, at0 = [x], [x0]
    for layer in model:
        at.append(layer(at[-1]))
        at0.append(layer(at0[-1]))
    m = torch.zeros_like(at[-1])
    m[:, target] = 1
    for layer, a, a0, b, b0 in zip(
        *(list(model)[::-1], at[-2::-1], at0[-2::-1], at[:0:-1], at0[:0:-1]), strict=True
    ):
        m = m @ layer.weight if isinstance(layer, nn.Linear) else m * (b - b0) / (a - a0)
    return m.detach()


def reveal_by_hand(f, w1, b1, w2, x, x0):
    """RevealCancel for w2 f(w1 x + b1), one example and one unit at a time."""
    total = torch.zeros_like(x)
    for n in range(len(x)):
        for j in range(len(w1)):
            d = w1[j] * (x[n] - x0[n])
            t0 = x0[n] @ w1[j] + b1[j]
            p, q = d[d > 0].sum(), d[d < 0].sum()
            up = (f(t0 + p) - f(t0) + f(t0 + q + p) - f(t0 + q)) / 2
            down = (f(t0 + q) - f(t0) + f(t0 + p + q) - f(t0 + p)) / 2
            total[n] += w2[j] * torch.where(d > 0, d * up / p, d * down / q)
    return total


@graph
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.ELU])
def test_rescale_of_a_network_by_hand(activation, create_graph):
    model, x, x0 = mlp(activation), randn(0, 5, 4), randn(1, 5, 4)
    m = rescale_by_hand(model, x, x0, 1)
    options = {"target": 1, "baselines": x0, "create_graph": create_graph}
    close(attrfn.deep_lift(model, x, multiply_by_inputs=False, **options), m)
    close(attrfn.deep_lift(model, x, **options), (x - x0) * m)
    close(attrfn.deep_lift(model, x, rule=rules.rescale(), **options), (x - x0) * m)


@graph
@pytest.mark.parametrize("f", [torch.relu, torch.tanh, F.gelu])
def test_reveal_cancel_of_a_layer_by_hand(f, create_graph):
    x, x0, w1, b1, w2 = randn(0, 5, 4), randn(1, 5, 4), randn(2, 6, 4), randn(3, 6), randn(4, 6)
    want = reveal_by_hand(f, w1, b1, w2, x, x0)
    for linear in (
        lambda x: F.linear(x, w1, b1),
        lambda x: x @ w1.T + b1,
        lambda x: torch.addmm(b1, x, w1.T),
        lambda x: F.conv1d(x[:, :, None], w1[:, :, None], b1)[:, :, 0],
        lambda x: F.linear(x, w1, b1).reshape(-1, 2, 3).flatten(1),
        lambda x: torch.einsum("bi,oi->bo", x, w1) + b1,
    ):
        got = attrfn.deep_lift(
            lambda x, g=linear: f(g(x)) @ w2,
            x,
            baselines=x0,
            rule="reveal_cancel",
            create_graph=create_graph,
        )
        close(got, want, 1e-9)


def test_reveal_cancel_through_batch_norm():
    """The norm scales the two parts, and swaps them where its weight is negative."""
    norm = nn.BatchNorm1d(6).double().eval()
    norm.running_mean.copy_(randn(5, 6))
    norm.running_var.copy_(randn(6, 6).abs() + 0.3)
    norm.weight.data.copy_(randn(7, 6))
    assert (norm.weight < 0).any()
    x, x0, w1, b1, w2 = randn(0, 5, 4), randn(1, 5, 4), randn(2, 6, 4), randn(3, 6), randn(4, 6)
    s = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    b = (b1 - norm.running_mean) * s + norm.bias.detach()
    want = reveal_by_hand(torch.relu, w1 * s[:, None], b, w2, x, x0)
    got = attrfn.deep_lift(
        lambda x: norm(F.linear(x, w1, b1)).relu() @ w2, x, baselines=x0, rule="reveal_cancel"
    )
    close(got, want, 1e-9)


def test_the_rules_differ():
    model, x, x0 = mlp(), randn(0, 5, 4), randn(1, 5, 4)
    a, b = (attrfn.deep_lift(model, x, target=0, baselines=x0, rule=rule) for rule in RULES)
    assert (a - b).abs().max() > 1e-3
    gradient = attrfn.input_x_gradient(model, x, target=0, baselines=x0)
    assert (a - gradient).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------
# definitions


@graph
@by_rule
def test_linear_functions(rule, create_graph):
    """A = w (x - x0)."""
    x, x0, w = randn(0, 5, 3), randn(1, 5, 3), randn(2, 3)
    options = {"baselines": x0, "rule": rule, "create_graph": create_graph}
    close(attrfn.deep_lift(lambda x: x @ w + 7, x, **options), (x - x0) * w)
    m = attrfn.deep_lift(lambda x: x @ w + 7, x, multiply_by_inputs=False, **options)
    close(m, w.expand(5, 3))


@graph
@by_rule
@pytest.mark.parametrize("make", [lambda: mlp(nn.Tanh), Cnn])
def test_at_the_baseline(make, rule, create_graph):
    """A = 0, and the multipliers are the gradient."""
    model = seeded(make)
    x = randn(0, 5, 4) if isinstance(model, nn.Sequential) else randn(0, 3, 2, 8, 8)
    options = {"target": 1, "baselines": x, "rule": rule, "create_graph": create_graph}
    assert not attrfn.deep_lift(model, x, **options).any()
    m = attrfn.deep_lift(model, x, multiply_by_inputs=False, **options)
    close(m, attrfn.gradient(model, x, target=1), 1e-9)


@by_rule
def test_close_to_the_baseline(rule):
    """Multipliers tend to the gradient, and stay complete, with smaller and smaller steps."""
    model, x, d = mlp(nn.Tanh), randn(0, 5, 4), randn(1, 5, 4)
    want = attrfn.gradient(model, x, target=1)
    for size in (1e-3, 1e-6, 1e-9, 1e-12, 1e-15):
        m = attrfn.deep_lift(
            model, x, target=1, baselines=x + size * d, rule=rule, multiply_by_inputs=False
        )
        # cancellation in f(x) - f(x0) costs eps / size
        close(m, want, 10 * size + min(2e-15 / size, 2.0))


@pytest.mark.parametrize(
    ("baselines", "x0"),
    [(None, 0.0), (0.5, 0.5), (tensor(1, 2, 3, 4), tensor(1, 2, 3, 4)), (randn(7, 5, 1), None)],
    ids=["none", "number", "row", "column"],
)
def test_kinds_of_baselines(baselines, x0):
    model, x = mlp(), randn(0, 5, 4)
    full = torch.zeros_like(x) + (baselines if x0 is None else x0)
    want = (x - full) * rescale_by_hand(model, x, full, 2)
    close(attrfn.deep_lift(model, x, target=2, baselines=baselines), want)


@by_rule
def test_examples_do_not_depend_on_each_other(rule):
    """Softmax and norms included."""
    model = seeded(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Softmax(1), nn.Linear(6, 2))
    )
    x, x0 = randn(0, 5, 4), randn(1, 5, 4)
    options = {"target": 1, "rule": rule}
    together = attrfn.deep_lift(model, x, baselines=x0, **options)
    for i in range(5):
        alone = attrfn.deep_lift(model, x[i : i + 1], baselines=x0[i : i + 1], **options)
        close(together[i : i + 1], alone)


POOL = randn(9, 7, 4)


@graph
@by_rule
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("multiply", [True, False])
def test_deep_shap_is_the_mean_over_the_baselines(multiply, chunk_size, rule, create_graph):
    model, x = mlp(), randn(0, 5, 4)
    options = {"target": [0, 1, 2, 0, 1], "rule": rule, "multiply_by_inputs": multiply}
    want = torch.stack([attrfn.deep_lift(model, x, baselines=b, **options) for b in POOL]).mean(0)
    got = attrfn.deep_lift_shap(
        model, x, baselines=POOL, chunk_size=chunk_size, create_graph=create_graph, **options
    )
    close(got, want)


def test_deep_shap_with_baselines_for_each_example():
    model, x, pool = mlp(), randn(0, 5, 4), randn(9, 7, 5, 4)
    want = torch.stack([attrfn.deep_lift(model, x, target=1, baselines=b) for b in pool]).mean(0)
    close(attrfn.deep_lift_shap(model, x, target=1, baselines=pool), want)


@by_rule
def test_deep_shap_sums_to_the_output_over_the_mean_output(rule):
    model, x = mlp(), randn(0, 5, 4)
    got = attrfn.deep_lift_shap(model, x, target=1, baselines=POOL, rule=rule).sum(1)
    close(got, (model(x)[:, 1] - model(POOL)[:, 1].mean()).detach())


def test_deep_shap_of_a_linear_function_has_shapley_values():
    """A = w (x - mean of the baselines)."""
    x, w = randn(0, 5, 4), randn(2, 4)
    got = attrfn.deep_lift_shap(lambda x: x @ w, x, baselines=POOL)
    close(got, w * (x - POOL.mean(0)))


def test_deep_shap_of_two_inputs():
    x, pool = (randn(0, 5, 2), randn(1, 5, 3)), (randn(2, 7, 2), randn(3, 7, 3))

    def f(a, b):
        return (a[:, :1] * b).tanh().sum(1)

    each = [attrfn.deep_lift(f, x, baselines=(a, b)) for a, b in zip(*pool, strict=True)]
    want = tuple(torch.stack(parts).mean(0) for parts in zip(*each, strict=True))
    close(attrfn.deep_lift_shap(f, x, baselines=pool), want)


# ---------------------------------------------------------------------------------------------
# layers and neurons


@graph
@by_rule
def test_layers_are_the_model_behind_them(rule, create_graph):
    model, x, x0 = seeded(Cnn), randn(0, 3, 2, 8, 8), randn(1, 3, 2, 8, 8)

    def front(x):
        return model.pool(model.act1(model.conv1(x)))

    def behind(a):
        return model.fc(model.flat(model.act2(model.conv2(a))))

    options = {"target": 2, "rule": rule, "create_graph": create_graph}
    for multiply in (True, False):
        want = attrfn.deep_lift(
            behind,
            front(x).detach(),
            baselines=front(x0).detach(),
            multiply_by_inputs=multiply,
            **options,
        )
        got = attrfn.layer_deep_lift(
            model, x, layer="pool", baselines=x0, multiply_by_inputs=multiply, **options
        )
        close(got, want)
    got = attrfn.layer_deep_lift(model, x, layer="conv2", at="input", baselines=x0, **options)
    want = attrfn.layer_deep_lift(model, x, layer="pool", baselines=x0, **options)
    close(got, want)


def test_several_layers():
    """Layers that meet in a sum are explained together: their attributions sum to the change."""
    model, x, x0 = seeded(Branches), randn(0, 5, 4), randn(1, 5, 4)
    found = attrfn.layer_deep_lift(model, x, layer=["left", "right"], target=1, baselines=x0)
    change = (model(x) - model(x0))[:, 1].detach()
    close(found[0].sum(1) + found[1].sum(1), change)
    with pytest.raises(ValueError, match="layer '3' depends on what another layer"):
        attrfn.layer_deep_lift(mlp(), x, layer=["0", "3"], target=1, baselines=x0)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.left(x).tanh() * self.right(x))


def test_layers_against_a_distribution():
    model, x = mlp(), randn(0, 5, 4)
    front, behind = model[:2], model[2:]
    want = attrfn.deep_lift_shap(
        behind, front(x).detach(), target=1, baselines=front(POOL).detach()
    )
    got = attrfn.layer_deep_lift_shap(model, x, layer="1", target=1, baselines=POOL, chunk_size=3)
    close(got, want)


@by_rule
def test_neurons_are_the_model_before_them(rule):
    model, x, x0 = seeded(Cnn), randn(0, 3, 2, 8, 8), randn(1, 3, 2, 8, 8)

    def front(x):
        return model.act1(model.conv1(x))

    neuron = (1, 2, 3)
    for multiply in (True, False):
        options = {"rule": rule, "multiply_by_inputs": multiply}
        want = attrfn.deep_lift(front, x, target=neuron, baselines=x0, **options)
        got = attrfn.neuron_deep_lift(
            model, x, layer="act1", neuron=neuron, baselines=x0, **options
        )
        close(got, want)
    pool = randn(2, 4, 2, 8, 8)
    want = attrfn.deep_lift_shap(front, x, target=neuron, baselines=pool, rule=rule)
    got = attrfn.neuron_deep_lift_shap(
        model, x, layer="act1", neuron=neuron, baselines=pool, rule=rule
    )
    close(got, want)


# ---------------------------------------------------------------------------------------------
# as a model function


@pytest.mark.parametrize("rule", [rules.rescale, rules.reveal_cancel])
@pytest.mark.parametrize("make", [mlp, Cnn])
def test_with_rules(make, rule):
    """Its value is the model's bit for bit, its gradient the multipliers."""
    model = seeded(make)
    shape = (5, 4) if isinstance(model, nn.Sequential) else (3, 2, 8, 8)
    x, x0 = randn(0, *shape), randn(1, *shape)
    ruled = attrfn.with_rules(model, rule(x0))
    assert torch.equal(ruled(x), model(x))
    want = attrfn.deep_lift(model, x, target=1, baselines=x0, rule=rule(), multiply_by_inputs=False)
    close(attrfn.gradient(ruled, x, target=1), want)
    by_autograd = x.clone().requires_grad_()
    close(torch.autograd.grad(ruled(by_autograd)[:, 1].sum(), by_autograd)[0], want)


def test_the_graph_leads_to_inputs_baselines_and_parameters():
    """Of sum(A) = f(x) - f(x0), the derivatives are those of the output."""
    model = mlp(nn.Tanh)
    x, x0 = randn(0, 5, 4).requires_grad_(), randn(1, 5, 4).requires_grad_()
    wanted = (x, x0, model[0].weight)
    for rule in RULES:
        a = attrfn.deep_lift(model, x, target=1, baselines=x0, rule=rule, create_graph=True)
        got = torch.autograd.grad(a.sum(), wanted)
        want = torch.autograd.grad((model(x) - model(x0))[:, 1].sum(), wanted)
        close(got, want, 1e-9)
