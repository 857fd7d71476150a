"""LRP by hand: small networks worked out on paper, and the formulas of AttnLRP."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import takes_apart
from lrp_nets import both, has_rms_norm
from oracles import close, randn, seeded
from torch import nn

import attrfn
from attrfn import rules

# ---------------------------------------------------------------------------------------------
# fixed values by hand


def dense(*weights, between=nn.ReLU):
    """Linear layers without biases."""
    layers = []
    for w in weights:
        layer = nn.Linear(len(w[0]), len(w), bias=False).double()
        layer.weight.data = torch.tensor(w, dtype=torch.float64)
        layers += [layer, between()]
    return nn.Sequential(*layers[:-1])


TWOS, THREES = [[2.0] * 3] * 3, [[3.0] * 3]
ONE_NEGATIVE = [[-2.0, 2.0, 2.0], [2.0] * 3, [2.0] * 3]
X = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("first", "second", "weights", "want"),
    [
        (rules.epsilon(), rules.epsilon(), TWOS, [18, 36, 54]),
        (rules.gamma(1), rules.gamma(0.25), ONE_NEGATIVE, [28 / 3, 104 / 3, 52]),
        (rules.alpha_beta(1, 0), rules.alpha_beta(1, 0), ONE_NEGATIVE, [12, 33.6, 50.4]),
        (rules.identity(), rules.epsilon(), ONE_NEGATIVE, [24, 36, 36]),
    ],
    ids=["epsilon", "gamma", "alpha1 beta0", "identity"],
)
def test_two_layers_by_hand(first, second, weights, want):
    """[1, 2, 3] -> (weights, ReLU) -> 3s, the values that Captum's tests have, too."""
    by_name = rules.composite(names={"0": first, "2": second})
    got = attrfn.lrp(dense(weights, THREES), X, rules=by_name, target=0)
    close(got, torch.tensor([want], dtype=torch.float64), 1e-5)


def test_tanh_by_hand():
    """Tanh(0.6) * 0.3 is shared as 1 : 2 : 3."""
    model = dense([[0.1] * 3] * 3, [[0.1] * 3], between=nn.Tanh)
    got = attrfn.lrp(model, X, rules=rules.epsilon(0), target=0)
    close(got, X * (0.3 * math.tanh(0.6) / 6))
    close(got, torch.tensor([[0.0269, 0.0537, 0.0806]], dtype=torch.float64), 1e-4)


@pytest.mark.parametrize("rule", [rules.epsilon(), rules.gamma(), rules.z_plus()])
def test_a_skip_connection_by_hand(rule):
    layer = dense([[5.0, 5.0], [5.0, 5.0]])
    x = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    got = attrfn.lrp(lambda x: layer(x) + x, x, target=1, rules=rule)
    close(got, torch.tensor([[10.0, 18.0]], dtype=torch.float64), 1e-6)


def test_max_pooling_gives_all_to_the_greatest():
    x = torch.tensor([[[1.0, 5.0, 2.0, 3.0]]], dtype=torch.float64)
    w = torch.tensor([2.0, 4.0], dtype=torch.float64)
    got = attrfn.lrp(lambda x: F.max_pool1d(x, 2)[:, 0] @ w, x)
    close(got, torch.tensor([[[0.0, 10.0, 0.0, 12.0]]], dtype=torch.float64), 1e-5)


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu tanh": functools.partial(F.gelu, approximate="tanh"),
    **{
        f.__name__: f
        for f in (
            *(F.silu, F.elu, F.selu, F.mish, torch.tanh, F.hardswish, F.softsign, F.relu),
            *(F.leaky_relu, F.relu6, torch.sin, torch.erf),
        )
    },
}


@pytest.mark.parametrize("f", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_pass_relevance_on(f):
    """R_in = R = f(x) c, also at x = 0."""
    x, c = randn(0, 3, 5), randn(1, 3, 5)
    x[0, 0] = 0
    for create_graph in (False, True):
        got = attrfn.lrp(lambda x: (f(x) * c).sum(1), x, create_graph=create_graph)
        close(got, f(x) * c)


# ---------------------------------------------------------------------------------------------
# formulas of AttnLRP; c is the gradient of the output, so that its relevance is output * c

ATTN = rules.attn_lrp(0)


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_softmax_is_expanded_at_x(dim):
    """R_i = x_i (R_out_i - s_i sum_j R_out_j)."""
    x, c = randn(0, 3, 4, 5), randn(1, 3, 4, 5)
    got = both(lambda x: (x.softmax(dim) * c).sum((1, 2)), x, rules=ATTN)
    s = x.softmax(dim)
    close(got, x * (s * c - s * (s * c).sum(dim, keepdim=True)))


def test_products_of_two_are_shared_equally():
    a, b, c = randn(0, 3, 4, 5), randn(1, 3, 5, 2), randn(2, 3, 4, 2)
    got = both(lambda a, b: ((a @ b) * c).sum((1, 2)), (a, b), rules=ATTN)
    close(got, (a * (c @ b.mT) / 2, b * (a.mT @ c) / 2))
    a, b, c = randn(0, 3, 4), randn(1, 3, 4), randn(2, 3, 4)
    got = both(lambda a, b: (a * b * c).sum(1), (a, b), rules=ATTN)
    close(got, (a * b * c / 2, a * b * c / 2))


def test_a_product_of_three_is_shared_by_three():
    a, b, d = randn(0, 3, 4, 5), randn(1, 3, 5, 2), randn(2, 3, 2)
    got = both(lambda a, b, d: torch.einsum("nij,njk,nk->n", a, b, d), (a, b, d), rules=ATTN)
    for part, t in zip(got, (a, b, d), strict=True):
        close(part.flatten(1).sum(1), torch.einsum("nij,njk,nk->n", a, b, d) / 3)
        assert part.shape == t.shape


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_with_its_divisor_as_a_constant(bias):
    norm, x, c = seeded(lambda: nn.LayerNorm(5)), randn(0, 3, 4, 5), randn(1, 3, 4, 5)
    norm.bias = norm.bias if bias else None
    got = both(lambda x: (norm(x) * c).sum((1, 2)), x, rules=ATTN)
    g = c * norm.weight * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + norm.eps)
    close(got, (x * (g - g.mean(-1, keepdim=True))).detach(), 1e-9)


@has_rms_norm
def test_rms_norm_passes_relevance_on():
    norm, x, c = seeded(lambda: nn.RMSNorm(5, eps=1e-3)), randn(0, 3, 4, 5), randn(1, 3, 4, 5)
    got = both(lambda x: (norm(x) * c).sum((1, 2)), x, rules=ATTN)
    close(got, (norm(x) * c).detach(), 1e-9)


@pytest.mark.parametrize(
    "written",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3),
        lambda x: x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-3),
        lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-3),
        lambda x: F.normalize(x, dim=-1),
    ],
    ids=["rsqrt", "division", "norm", "normalize"],
)
def test_written_out_norms_have_a_constant_divisor_too(written):
    x, c = randn(0, 3, 4, 5), randn(1, 3, 4, 5)
    got = both(lambda x: (written(x) * c).sum((1, 2)), x, rules=ATTN)
    close(got, written(x) * c, 1e-9)


def test_a_gated_unit():
    """silu(g) u: half to each, and all of it through SiLU."""
    u, v, x, c = randn(0, 5, 6), randn(1, 5, 6), randn(2, 3, 5), randn(3, 3, 6)
    got = both(lambda x: (F.silu(x @ u) * (x @ v) * c).sum(1), x, rules=ATTN)
    g, h = x @ u, x @ v
    r = F.silu(g) * h * c
    close(got, x * ((r / g / 2) @ u.T + (r / h / 2) @ v.T), 1e-9)


def attention_by_hand(q, k, v, c, mask=None, constant=False):
    """Relevances at q, k and v, where o has the relevance o c."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    s = scores.softmax(-1)
    if constant:
        return torch.zeros_like(q), torch.zeros_like(k), v * (s.mT @ c)
    to_s = (c @ v.mT) / 2
    to_scores = s * (to_s - (s * to_s).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1]) / 2
    return q * (to_scores @ k), k * (to_scores.mT @ q), v * (s.mT @ c) / 2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("composite", ["attn_lrp", "cp_lrp"])
@pytest.mark.parametrize("fused", [True, False])
def test_attention(fused, composite, masked):
    q, k, v, c = (randn(i, 3, 2, 4, 5) for i in range(4))
    mask = torch.ones(4, 4, dtype=torch.bool).tril() if masked else None

    def f(q, k, v):
        if fused:
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.mT / math.sqrt(5)
            if masked:
                scores = scores.masked_fill(~mask, -1e9)
            o = scores.softmax(-1) @ v
        return (o * c).sum((1, 2, 3))

    got = both(f, (q, k, v), rules=getattr(rules, composite)(0))
    close(got, attention_by_hand(q, k, v, c, mask, composite == "cp_lrp"), 1e-9)


@takes_apart
def test_multihead_attention_module():
    """One head of nn.MultiheadAttention, by hand."""
    layer = seeded(lambda: nn.MultiheadAttention(4, 1, bias=False, batch_first=True))
    x, c = randn(0, 3, 5, 4), randn(1, 3, 5, 4)
    wq, wk, wv = (w.detach() for w in layer.in_proj_weight.chunk(3))
    q, k, v = x @ wq.T, x @ wk.T, x @ wv.T
    parts = attention_by_hand(q, k, v, c @ layer.out_proj.weight.detach())
    want = sum(x * ((r / t) @ w) for r, t, w in zip(parts, (q, k, v), (wq, wk, wv), strict=True))
    got = attrfn.lrp(lambda x: (layer(x, x, x)[0] * c).sum((1, 2)), x, rules=ATTN)
    close(got, want, 1e-9)
