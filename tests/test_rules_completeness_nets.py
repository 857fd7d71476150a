"""DeepLIFT is complete on networks: pooling, norms, attention and recurrent layers."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from completeness import Block, Pooled, ResNet, Sequence, check, fused, statistics
from helpers import takes_apart
from oracles import randn, seeded
from torch import nn

# ---------------------------------------------------------------------------------------------
# pooling and normalisation

POOLS = {
    "max1d": (lambda: nn.MaxPool1d(3, 2, padding=1), (2, 9)),
    "max1d dilated": (lambda: nn.MaxPool1d(3, 1, dilation=2), (2, 9)),
    "max2d": (lambda: nn.MaxPool2d(2), (2, 6, 6)),
    "max2d overlapping": (lambda: nn.MaxPool2d(3, 1), (2, 6, 6)),
    "max2d padded": (lambda: nn.MaxPool2d((3, 2), 2, padding=1), (2, 7, 6)),
    "max2d ceil": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), (2, 6, 6)),
    "max2d dilated": (lambda: nn.MaxPool2d(2, 2, dilation=2), (2, 7, 7)),
    "max3d": (lambda: nn.MaxPool3d(2), (2, 4, 4, 4)),
    "avg1d": (lambda: nn.AvgPool1d(3, 2, padding=1), (2, 9)),
    "avg2d": (lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), (2, 5, 5)),
    "avg3d": (lambda: nn.AvgPool3d(2), (2, 4, 4, 4)),
    "lp1d": (lambda: nn.LPPool1d(2, 3, 1), (2, 8)),
    "lp2d": (lambda: nn.LPPool2d(2, 2), (2, 6, 6)),
    "adaptive max1d": (lambda: nn.AdaptiveMaxPool1d(3), (2, 8)),
    "adaptive max2d": (lambda: nn.AdaptiveMaxPool2d((3, None)), (2, 7, 5)),
    "adaptive max3d": (lambda: nn.AdaptiveMaxPool3d(2), (2, 5, 4, 4)),
    "adaptive avg1d": (lambda: nn.AdaptiveAvgPool1d(3), (2, 8)),
    "adaptive avg2d": (lambda: nn.AdaptiveAvgPool2d((3, 2)), (2, 7, 5)),
    "adaptive avg3d": (lambda: nn.AdaptiveAvgPool3d(2), (2, 5, 4, 4)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name):
    make, shape = POOLS[name]
    check(seeded(lambda: Pooled(make(), shape)), shape, target=2)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("adaptive", [False, True])
def test_pooling_that_returns_indices(n, adaptive):
    """Unpooling would use them as constants: only the values are."""
    pool = getattr(F, f"{'adaptive_' if adaptive else ''}max_pool{n}d")
    c = randn(3, 2, *[2] * n)

    def f(x):
        values, indices = pool(x.tanh(), 2, return_indices=True)
        assert not indices.is_floating_point()
        return (values * c.to(x.dtype)).flatten(1).sum(1)

    check(f, (2, *[4] * n))


def test_residual_network():
    check(statistics(seeded(ResNet)), (2, 10, 10), target=1)


NORMS = {
    "group": lambda: nn.GroupNorm(2, 4),
    "group of one": lambda: nn.GroupNorm(4, 4, affine=False),
    "instance": lambda: nn.InstanceNorm2d(4),
    "instance affine": lambda: nn.InstanceNorm2d(4, affine=True),
    "local response": lambda: nn.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=1.0),
    "layer": lambda: nn.LayerNorm(5),
    "layer without affine": lambda: nn.LayerNorm((4, 5, 5), elementwise_affine=False),
    "batch": lambda: nn.BatchNorm2d(4),
}
if hasattr(nn, "RMSNorm"):  # since torch 2.4
    NORMS |= {
        "rms": lambda: nn.RMSNorm(5),
        "rms eps": lambda: nn.RMSNorm((5, 5), eps=1e-3),
    }


@pytest.mark.parametrize("name", NORMS)
def test_norms(name):
    layers = [nn.Conv2d(2, 4, 3, padding=1), NORMS[name](), nn.GELU(), nn.Flatten()]
    model = seeded(lambda: nn.Sequential(*layers, nn.Linear(100, 3)))
    check(statistics(model), (2, 5, 5), target=0)


# ---------------------------------------------------------------------------------------------
# attention


class Encoder(nn.Module):
    def __init__(self, norm_first, activation="relu", mask=None):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            *(8, 2, 12, 0.1, activation), batch_first=True, norm_first=norm_first
        )
        self.inp = nn.Linear(4, 8)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 3)
        self.mask = mask

    def forward(self, x):
        h = self.inp(x)
        if self.mask == "padding":
            padding = torch.arange(5) >= torch.tensor([5, 4, 2])[:, None]
            h = self.enc(h, src_key_padding_mask=padding)
        elif self.mask == "causal":
            m = nn.Transformer.generate_square_subsequent_mask(5).to(x.dtype)
            h = self.enc(h, mask=m, is_causal=True)
        else:
            h = self.enc(h)
        return self.out(h[:, 0])


@pytest.mark.parametrize("mask", [None, "padding", "causal"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder(norm_first, mask):
    check(seeded(lambda: Encoder(norm_first, "gelu", mask)), (5, 4), target=1)


@takes_apart
def test_transformer_with_a_decoder():
    model = seeded(
        lambda: nn.Transformer(8, 2, 1, 1, 12, batch_first=True, activation="gelu", dropout=0.0)
    )
    check(lambda a, b: copied(model, a)(a, b)[:, 0, :].sum(-1) ** 2, (4, 8), (3, 8))


def copied(model, like):
    """The model in the type of a tensor."""
    return model if like.dtype is torch.float64 else copy.deepcopy(model).to(like.dtype)


LOWER = torch.ones(5, 5, dtype=torch.bool).tril()


def decompositions(q, k, v, low=-math.inf):
    scores = (q @ k.mT / 2).masked_fill(~LOWER, low)
    return F.dropout(scores.softmax(-1), 0.1, training=False) @ v


ATTENTION = {
    "plain": fused,
    "causal": functools.partial(fused, is_causal=True),
    "scale": functools.partial(fused, scale=0.9),
    "bool mask": functools.partial(fused, attn_mask=LOWER),
    "infinite mask": lambda q, k, v: fused(
        q, k, v, attn_mask=torch.zeros(5, 5, dtype=q.dtype).masked_fill(~LOWER, -math.inf)
    ),
    "float mask": lambda q, k, v: fused(q, k, v, attn_mask=randn(0, 5, 5).to(q.dtype)),
    "mask of the inputs": lambda q, k, v: fused(q, k, v, attn_mask=(q @ k.mT).tanh()),
    "causal mask of the inputs": lambda q, k, v: fused(
        *(q, k, v), attn_mask=(v.mean(-1)[..., None, :] * 2).masked_fill(~LOWER, -math.inf)
    ),
    "mask of the inputs that closes a row": lambda q, k, v: fused(
        *(q, k, v), attn_mask=(q @ k.mT).masked_fill(torch.arange(5)[:, None] == 2, -math.inf)
    ),
    "written out": decompositions,
    "written out, finite": functools.partial(decompositions, low=-1e9),
    "added mask": lambda q, k, v: (
        (q @ k.mT / 2 + torch.zeros(5, 5, dtype=q.dtype).masked_fill(~LOWER, -math.inf)).softmax(-1)
        @ v
    ),
    "einsum": lambda q, k, v: torch.einsum(
        "bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v
    ),
    "log_softmax": lambda q, k, v: (q @ k.mT).log_softmax(-1).exp() @ v,
}


@pytest.mark.parametrize("name", ATTENTION)
def test_written_transformer(name):
    if name.endswith("closes a row"):
        row = torch.ones(1, 1, 1, 1)
        if F.scaled_dot_product_attention(row, row, row, row - torch.inf).isnan():
            pytest.skip("what closed rows give is nan in this torch")
    if name == "scale" and "scale=None" not in (F.scaled_dot_product_attention.__doc__ or ""):
        pytest.skip("torch has it since 2.1")
    check(seeded(lambda: Block(ATTENTION[name])), (5, 8), target=1)


@pytest.mark.skipif(
    "enable_gqa" not in (F.scaled_dot_product_attention.__doc__ or ""),
    reason="torch has it since 2.5",
)
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_queries(causal):
    grouped = functools.partial(fused, enable_gqa=True, is_causal=causal)
    check(seeded(lambda: Block(grouped, kv_heads=1)), (5, 8), target=1)

    def repeated(q, k, v):
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        return fused(q, k, v, is_causal=causal)

    check(seeded(lambda: Block(repeated, kv_heads=1)), (5, 8), target=1)


# ---------------------------------------------------------------------------------------------
# recurrent networks

RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "lstm of two layers": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "lstm with projection": (nn.LSTM, {"proj_size": 3, "num_layers": 2, "batch_first": True}),
    "lstm without bias": (nn.LSTM, {"bias": False, "bidirectional": True}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru of two layers": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "rnn": (nn.RNN, {"batch_first": True}),
    "rnn with relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent(name):
    cell, options = RECURRENT[name]
    check(seeded(lambda: Sequence(cell, **options)), (6, 4), target=1)


class Cells(nn.Module):
    def __init__(self, cell, **options):
        super().__init__()
        self.cell, self.out = cell(4, 5, **options), nn.Linear(5, 3)

    def forward(self, x):
        state = None
        for t in x.unbind(1):
            state = self.cell(t, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(
    ("cell", "options"),
    [(nn.LSTMCell, {}), (nn.GRUCell, {}), (nn.RNNCell, {}), (nn.RNNCell, {"nonlinearity": "relu"})],
    ids=["lstm", "gru", "tanh", "relu"],
)
def test_cells(cell, options):
    check(seeded(lambda: Cells(cell, **options)), (4, 4), target=0)


def test_initial_states_are_explained_too():
    rnn = seeded(lambda: nn.LSTM(4, 5, batch_first=True))

    def f(x, h, c):
        return copied(rnn, x)(x, (h.unsqueeze(0), c.unsqueeze(0)))[0][:, -1].sum(1)

    check(f, (3, 4), (5,), (5,))
