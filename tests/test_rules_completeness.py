"""DeepLIFT is complete on whole models: its attributions sum to f(x) - f(x0), to rounding.

Every model runs in float64 and float32, with both rules, from random baselines; in float64 also
with a graph, which takes another way through the library. A gap is measured in units of the
greatest change of the output in the batch. What is new in the list of elementwise operations is
tested by being there.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import takes_apart
from oracles import close, randn, seeded
from torch import nn

import attrfn
from attrfn._rules import ops
from attrfn._rules.names import spellings

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
RULES = ("rescale", "reveal_cancel")


def gap(f, x, x0, target=None, **options):
    """The greatest |sum(A) - (f(x) - f(x0))| over the greatest |f(x) - f(x0)|."""
    a = attrfn.deep_lift(f, x, baselines=x0, target=target, **options)
    xs, found = (t if isinstance(t, tuple) else (t,) for t in (x, a))
    total = sum(part.detach().flatten(1).sum(1) for part in found)
    with torch.no_grad():
        args = x if isinstance(x, tuple) else (x,)
        args0 = x0 if isinstance(x0, tuple) else (x0,)
        change = f(*args) - f(*args0)
        change = change if target is None else change[:, target]
    assert all(torch.isfinite(part).all() for part in found)
    assert all(part.shape == t.shape for part, t in zip(found, xs, strict=True))
    assert change.abs().max() > 1e-3, "nothing changes"
    return float((total - change).abs().max() / change.abs().max())


def check(model, *shapes, target=None, transform=None, batch=3, rules=RULES):
    """Complete in both precisions and with both rules."""
    for dtype, tolerance in TOLERANCE.items():
        f = copy.deepcopy(model).to(dtype) if isinstance(model, nn.Module) else model
        x, x0 = (
            tuple(randn(seed + i, batch, *s).to(dtype) for i, s in enumerate(shapes))
            for seed in (100, 200)
        )
        if transform is not None:
            x, x0 = tuple(map(transform, x)), tuple(map(transform, x0))
        if len(shapes) == 1:
            (x,), (x0,) = x, x0
        for rule in rules:
            found = gap(f, x, x0, target, rule=rule)
            assert found <= tolerance, f"{rule}, {dtype}: {found:.1e}"
        if dtype is torch.float64:
            found = gap(f, x, x0, target, rule=rules[0], create_graph=True)
            assert found <= tolerance, f"with a graph: {found:.1e}"


# ---------------------------------------------------------------------------------------------
# elementwise operations

DOMAINS = ((-0.95, 0.95), (0.05, 0.95), (1.05, 3.0))

MORE = {
    "threshold": (0.1, -1.0),
    "clamp": (-0.4, 0.5),
    "clip": (-0.4, 0.5),
    "special_round": (),
}
"""Arguments behind the first, where there is no way without."""


def within(domain, seed, n):
    low, high = domain
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(4, n, generator=generator, dtype=torch.float64)


def forms(name):
    """Functions of one tensor (B, 6) that the spellings of an operation make."""
    const = within((0.3, 0.9), 5, 3)
    for func, spelling in spellings(name).items():

        def first(x, func=func, writes=spelling.pure is not None):
            return functools.partial(func, x.clone() if writes else x)

        more = MORE.get(name, ())
        yield lambda x, first=first, more=more: first(x)(*more)
        yield lambda x, first=first: first(x)(0.7)
        yield lambda x, first=first: first(x[:, :3])(const)
        yield lambda x, first=first: first(x[:, :3])(x[:, 3:])
        yield lambda x, first=first: first(const)(x[:, 3:])
        yield lambda x, first=first: first(x)(const[0, :1])


def works(f, x):
    """Whether this is a way to call the function at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = f(x.clone())
    except (TypeError, RuntimeError, AttributeError):
        return False
    return isinstance(y, torch.Tensor) and y.shape[0] == 4 and bool(torch.isfinite(y).all())


@pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning")
@pytest.mark.parametrize("name", ops.ELEMENTWISE.split())
def test_every_elementwise_operation(name):
    tested = 0
    for form in forms(name):
        for domain in DOMAINS:
            x, x0 = within(domain, 1, 6), within(domain, 2, 6)
            if not works(form, x) or not works(form, x0):
                continue
            c = randn(3, *form(x.clone()).shape[1:])

            def f(x, form=form, c=c):
                return (form(x.clone()) * c).flatten(1).sum(1)

            if (f(x) - f(x0)).abs().max() > 1e-3:
                for rule in RULES:
                    assert gap(f, x, x0, rule=rule) < 1e-10
                assert gap(f, x, x0, create_graph=True) < 1e-10
                tested += 1
                break
    assert tested, "no way to call it was found: give its arguments in MORE"


@pytest.mark.parametrize("name", ["relu", "gelu", "log", "exp", "reciprocal", "tanh", "square"])
def test_where_nothing_changes_the_slope_is_the_derivative(name):
    """Elements with x = x0 have no part in the change, and their multipliers are f'(x)."""
    f, x = getattr(F, name, getattr(torch, name, None)), within((0.05, 0.95), 1, 6)
    x0 = x.clone()
    x0[:, :3] += 0.5
    m = attrfn.deep_lift(lambda x: f(x).sum(1), x, baselines=x0, multiply_by_inputs=False)
    want = attrfn.gradient(lambda x: f(x).sum(1), x)
    torch.testing.assert_close(m[:, 3:], want[:, 3:], rtol=1e-10, atol=0)
    assert gap(lambda x: f(x).sum(1), x, x0) < 1e-10


def test_infinite_slopes_where_nothing_changes():
    """sqrt has an infinite slope at zero; what does not move has no part in the change."""

    def f(x):
        return x.relu().sqrt().sum(1) + x.relu().square().sum(1, keepdim=True).sqrt()[:, 0]

    x = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, -2.0]], dtype=torch.float64)
    x0 = torch.tensor([[4.0, 0.0, -3.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert gap(f, x, x0) < 1e-10
    assert gap(f, x, x0, create_graph=True) < 1e-10


ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu tanh": functools.partial(nn.GELU, approximate="tanh"),
    **{
        m.__name__: m
        for m in (
            *(nn.ReLU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Hardswish, nn.Hardsigmoid),
            *(nn.Hardtanh, nn.Softplus, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid),
            *(nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.RReLU),
        )
    },
    "Threshold": functools.partial(nn.Threshold, 0.1, -0.5),
    "PReLU per channel": functools.partial(nn.PReLU, 8),
    "Softmax": functools.partial(nn.Softmax, 1),
    "Softmin": functools.partial(nn.Softmin, 1),
    "LogSoftmax": functools.partial(nn.LogSoftmax, 1),
    "in place": functools.partial(nn.ReLU, inplace=True),
    "in place ELU": functools.partial(nn.ELU, inplace=True),
    "in place SiLU": functools.partial(nn.SiLU, inplace=True),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    act = ACTIVATIONS[name]
    layers = [nn.Linear(6, 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 3)]
    check(seeded(lambda: nn.Sequential(*layers)), (6,), target=1)


def test_glu():
    layers = [nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 8), nn.GLU(1), nn.Linear(4, 3)]
    check(seeded(lambda: nn.Sequential(*layers)), (6,), target=1)


def test_one_activation_for_all_places():
    for act in (nn.ReLU(), nn.ReLU(inplace=True), nn.GELU()):
        layers = [nn.Linear(6, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 3), act]
        check(seeded(lambda layers=layers: nn.Sequential(*layers)), (6,), target=0)


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


class Pooled(nn.Module):
    def __init__(self, pool, shape):
        super().__init__()
        conv = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
        self.conv = conv(2, 3, 3, padding=1)
        # the root in an lp pool has no slope at zero
        self.act = nn.Tanh() if "LP" in type(pool).__name__ else nn.ReLU()
        self.pool = pool
        size = pool(torch.zeros(1, 3, *shape[1:]))
        self.out = nn.Linear(size.numel(), 3)

    def forward(self, x):
        return self.out(self.pool(self.act(self.conv(x))).flatten(1))


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


def statistics(model):
    """Random statistics for batch norms."""
    for i, m in enumerate(model.modules()):
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.copy_(randn(i, m.num_features))
            m.running_var.copy_(randn(10 + i, m.num_features).abs() + 0.3)
    return model


class ResNet(nn.Module):
    """Two blocks with batch norm, one in-place ReLU for all places, and a strided shortcut."""

    def __init__(self):
        super().__init__()
        self.inp, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(4, 4, 3, padding=1, bias=False),
                nn.Conv2d(4, 4, 3, padding=1, bias=False),
                nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
                nn.Conv2d(6, 6, 3, padding=1, bias=False),
                nn.Conv2d(4, 6, 1, stride=2, bias=False),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(c) for c in (4, 4, 6, 6, 6)])
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        c, n = self.convs, self.norms
        x = self.pool(self.act(self.norm(self.inp(x))))
        h = n[1](c[1](self.act(n[0](c[0](x)))))
        h += x
        x = self.act(h)
        h = n[3](c[3](self.act(n[2](c[2](x)))))
        h += n[4](c[4](x))
        return self.out(self.act(h).mean((2, 3)))


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


class Block(nn.Module):
    """Two pre-LN blocks with their own attention."""

    def __init__(self, attend, width=8, kv_heads=2):
        super().__init__()
        self.attend = attend
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.q = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.kv = nn.ModuleList([nn.Linear(width, kv_heads * 8) for _ in range(2)])
        self.mlp = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width)) for _ in range(2)]
        )
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        for i in range(2):
            h = self.norms[2 * i](x)
            q = self.q[i](h).unflatten(-1, (-1, 4)).transpose(1, 2)
            k, v = self.kv[i](h).unflatten(-1, (2, -1, 4)).permute(2, 0, 3, 1, 4)
            x = x + self.attend(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.mlp[i](self.norms[2 * i + 1](x))
        return self.out(x[:, -1])


LOWER = torch.ones(5, 5, dtype=torch.bool).tril()


def fused(q, k, v, **options):
    return F.scaled_dot_product_attention(q, k, v, **options)


def written_out(q, k, v, low=-math.inf):
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
    "written out": written_out,
    "written out, finite": functools.partial(written_out, low=-1e9),
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


class Sequence(nn.Module):
    """A recurrent module; reads the outputs and the final states."""

    def __init__(self, cell, **options):
        super().__init__()
        self.rnn = cell(4, 5, **options)
        self.out = nn.LazyLinear(3)
        self(torch.zeros(3, 6, 4))

    def forward(self, x):
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        seq, last = self.rnn(x)
        seq = seq if self.rnn.batch_first else seq.transpose(0, 1)
        last = last if isinstance(last, tuple) else (last,)
        parts = [seq[:, 2], seq.mean(1), *[s.transpose(0, 1).flatten(1) for s in last]]
        return self.out(torch.cat(parts, 1))


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


# ---------------------------------------------------------------------------------------------
# functions

C = randn(50, 6)
MASK = torch.tensor([True, False, True, True, False, False])
CLASSES = torch.tensor([0, 2, 5])


def in_place(x):
    y = x.clone()
    y += 1.5
    y *= x
    y.tanh_()
    y -= 0.2
    y.mul_(2).sigmoid_().add_(x)
    y.clamp_(-1, 2)
    return y


def written_into(x):
    y = torch.zeros_like(x)
    y[:, :3] = x[:, 3:].exp()
    y[:, 4] = x[:, 0] * x[:, 1]
    y[:, [5, 3]] = x[:, [0, 2]] ** 2
    return y * x


def viewed(x):
    y = x * 2
    first, rest = y[:, :2], y[:, 3]
    first.mul_(x[:, 2:4])
    first.tanh_()
    rest += y[:, 4].exp()
    y[:, 5] *= y[:, 0]
    return y * x


FUNCTIONS = {
    "mul": lambda x: x * x.flip(1),
    "three factors": lambda x: x * x.flip(1) * x.roll(1, 1).tanh(),
    "div": lambda x: x / (2 + x.flip(1) ** 2),
    "div of a constant": lambda x: 3 / (2 + x**2),
    "true_divide": lambda x: torch.true_divide(x.exp(), x.flip(1).exp()),
    "matmul": lambda x: x[:, :, None] @ x[:, None, :].tanh(),
    "bmm": lambda x: torch.bmm(x.reshape(-1, 2, 3), x.reshape(-1, 3, 2)),
    "outer": lambda x: torch.einsum("bi,bj->bij", x, x.exp()),
    "einsum of three": lambda x: torch.einsum("bi,bj,bk->bijk", x, x.sin(), x[:, :2].exp()),
    "einsum with a constant": lambda x: torch.einsum("bi,bi,i->bi", x, x.sin(), C.to(x.dtype)),
    "addmm": lambda x: torch.addmm(x[:, :3], x.tanh(), C.to(x.dtype).reshape(6, 1).expand(6, 3)),
    "addcmul": lambda x: torch.addcmul(x, x.exp(), x.flip(1), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x.flip(1), 2 + x.square(), value=0.5),
    "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "lerp with weights": lambda x: torch.lerp(x, x.flip(1), x.sigmoid()),
    "bilinear": lambda x: F.bilinear(x, x.tanh(), C.to(x.dtype).reshape(1, 6, 1).expand(2, 6, 6)),
    "cross": lambda x: torch.linalg.cross(x[:, :3], x[:, 3:]),
    "normalize": lambda x: F.normalize(x.tanh(), dim=1),
    "normalize 1": lambda x: F.normalize(x, p=1.0, dim=1),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "norm of order 3": lambda x: torch.linalg.vector_norm(x, 3, dim=1, keepdim=True),
    "norm of order inf": lambda x: torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "logsumexp of two": lambda x: x.reshape(-1, 2, 3).logsumexp((1, 2))[:, None],
    "softmax": lambda x: x.reshape(-1, 2, 3).softmax(1),
    "softmax of the last": lambda x: torch.softmax(x.reshape(-1, 2, 3), -1),
    "softmax of float64": lambda x: F.softmax(x, 1, dtype=torch.float64).to(x.dtype),
    "log_softmax": lambda x: x.reshape(-1, 2, 3).log_softmax(1),
    "gumbel-like": lambda x: F.softmax((x + C.to(x.dtype)) / 0.5, dim=1),
    "max": lambda x: x.reshape(-1, 2, 3).max(1).values,
    "min, unpacked": lambda x: torch.min(x.reshape(-1, 2, 3), 2, keepdim=True)[0],
    "max of two": lambda x: torch.max(x, x.flip(1)),
    "maximum": lambda x: torch.maximum(x, x.roll(1, 1)),
    "minimum with a constant": lambda x: torch.minimum(x, C.to(x.dtype)),
    "fmin": lambda x: torch.fmin(x, x.flip(1)),
    "amax": lambda x: x.reshape(-1, 2, 3).amax((1, 2)).unsqueeze(1),
    "amin": lambda x: x.reshape(-1, 2, 3).amin(-1, keepdim=True),
    "pow": lambda x: x**2 + x**3,
    "pow of a root": lambda x: (x.abs() + 0.1) ** 0.5,
    "exponent": lambda x: 2**x + (1 + x.abs()) ** x.flip(1),
    "atan2": lambda x: torch.atan2(x, 2 + x.flip(1)),
    "hypot": lambda x: torch.hypot(x, x.flip(1)),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(1)),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp by tensors": lambda x: torch.clamp(x, min=C.to(x.dtype)),
    "where": lambda x: torch.where(MASK, x.exp(), x.tanh()),
    "where with a number": lambda x: torch.where(MASK, x.exp(), 0.5),
    "masked_fill": lambda x: x.tanh().masked_fill(MASK, 2.0),
    "masked product": lambda x: x.exp() * MASK,
    "in place": in_place,
    "written into": written_into,
    "cat": lambda x: torch.cat([x, x.exp(), C.to(x.dtype).expand(len(x), 6)], 1).tanh(),
    "stack": lambda x: torch.stack([x, x.flip(1)], 2).sin(),
    "chunks": lambda x: torch.mul(*x.chunk(2, 1)),
    "split": lambda x: sum(part.exp() for part in x.split(2, 1)),
    "unbind": lambda x: torch.stack([t.tanh() for t in x.unbind(1)], 1),
    "iterated": lambda x: torch.stack([row.softmax(0) for row in x]),
    "index": lambda x: x[:, [5, 0, 0]].exp() * x[:, 2:5],
    "gather": lambda x: x.tanh().gather(1, torch.tensor([[0, 3]] * 3)),
    "boolean index": lambda x: x.exp()[:, MASK],
    "scatter": lambda x: torch.zeros(3, 6, dtype=x.dtype).scatter_add(
        1, torch.ones(3, 6).long(), x.exp()
    ),
    "pad": lambda x: F.pad(x, (1, 2)).cos(),
    "roll": lambda x: x.roll(2, 1) * x,
    "cumsum": lambda x: x.cumsum(1).sigmoid(),
    "unfold": lambda x: x.unfold(1, 3, 1).tanh(),
    "triangle": lambda x: (x[:, :, None] * x[:, None]).tril(),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(1).exp(), 1)[:, None],
    "pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(1), keepdim=True),
    "var": lambda x: x.var(1, keepdim=True),
    "std": lambda x: torch.std(x.reshape(-1, 2, 3), (1, 2), correction=0)[:, None],
    "var_mean": lambda x: torch.cat(torch.var_mean(x, 1, keepdim=True), 1),
    "standardised": lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "cross_entropy": lambda x: F.cross_entropy(x, CLASSES, reduction="none")[:, None],
    "nll_loss": lambda x: F.nll_loss(x.log_softmax(1), CLASSES, reduction="none")[:, None],
    "mse_loss": lambda x: F.mse_loss(x, C.to(x.dtype).expand(3, 6), reduction="none"),
    "l1_loss": lambda x: F.l1_loss(x.tanh(), C.to(x.dtype).expand(3, 6), reduction="none"),
    "fft": lambda x: torch.view_as_real(torch.fft.rfft(x.tanh())).flatten(1).square(),
    "fft and back": lambda x: torch.fft.irfft(torch.fft.rfft(x), n=6).exp(),
    "fft, real and imaginary": lambda x: torch.fft.fft(x).real * torch.fft.fft(x).imag,
    "magnitude of a spectrum": lambda x: torch.fft.rfft(x).abs(),
    "power of a spectrum": lambda x: torch.fft.rfft(x).abs() ** 2,
    "product of complex numbers": lambda x: (torch.fft.fft(x) * torch.fft.fft(x.exp())).real,
    "views written into": viewed,
    "interpolate": lambda x: F.interpolate(x[:, None], scale_factor=2, mode="linear").exp(),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x[:, :4].reshape(-1, 4, 1, 1), 2).exp(),
    "swiglu": lambda x: F.silu(x[:, :3]) * x[:, 3:],
    "rms by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "rotated": lambda x: (
        x * C.to(x.dtype).cos() + torch.cat([-x[:, 3:], x[:, :3]], 1) * C.to(x.dtype).sin()
    ),
    "float_power": lambda x: torch.float_power(x.abs() + 0.5, 1.5).to(x.dtype),
    "type change": lambda x: x.double().exp().to(x.dtype) * x,
    "mean of all but": lambda x: (x.sum(1, keepdim=True) - x).tanh(),
    "T": lambda x: (x.T.exp() * C.to(x.dtype)[:, None]).T,
    "numbers on the left": lambda x: (1 - x) * (2 + x) / (1 + (3 - x) ** 2),
    "fold": lambda x: F.fold(x[:, :4, None].tanh(), (2, 2), (2, 2)),
    "embedding_bag of weights": lambda x: x[:, :, None] @ C.to(x.dtype)[None, None, :3],
    "torch.prod by hand": lambda x: x[:, 0:1] * x[:, 1:2] * x[:, 2:3],
    "polar": lambda x: torch.sin(x[:, :3]) * torch.cos(x[:, 3:]),
}


PATTERNS = {
    "to": lambda c, x: c.to(x),
    "type_as": lambda c, x: c.type_as(x),
    "expand_as": lambda c, x: c.expand_as(x),
    "view_as": lambda c, x: torch.cat([c] * 3).view_as(x),
    "reshape_as": lambda c, x: torch.cat([c] * 3).reshape_as(x),
    "broadcast_tensors": lambda c, x: torch.broadcast_tensors(c, x)[0],
    "new_tensor": lambda c, x: x.new_tensor(c.tolist()),
    "ones_like": lambda c, x: c.to(x.dtype) * torch.ones_like(x),
    "full_like": lambda c, x: torch.full_like(x, 2.0),
    "new_zeros": lambda c, x: x.new_zeros(x.shape) + 3,
    "meshgrid": lambda c, x: torch.meshgrid(c[0], x.select(0, 0), indexing="ij")[0][:, 0],
}


@pytest.mark.parametrize("name", PATTERNS)
def test_the_pattern_of_another_tensor(name):
    """A constant that takes shape or type of one that depends on the inputs stays a constant."""
    pattern, c, x, x0 = PATTERNS[name], randn(5, 1, 6), randn(1, 3, 6), randn(2, 3, 6)

    def f(x):
        return (x.exp() * pattern(c, x)).sum(1)

    for rule in RULES:
        got = attrfn.deep_lift(f, x, baselines=x0, rule=rule)
        torch.testing.assert_close(got, (x.exp() - x0.exp()) * pattern(c, x), atol=1e-10, rtol=0)
    for create_graph in (False, True):
        got = attrfn.lrp(f, x, rules=attrfn.rules.epsilon(0), create_graph=create_graph)
        torch.testing.assert_close(got, x.exp() * pattern(c, x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    f = FUNCTIONS[name]

    def total(x):
        y = f(x).flatten(1)
        return (y * randn(7, y.shape[1]).to(y.dtype)).sum(1)

    check(total, (6,))


def test_several_inputs():
    check(lambda a, b: ((a[:, :, None] @ b).tanh() * b).sum((1, 2)), (3,), (1, 4))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("size", [1e-6, 10.0, 1e3, 1e6])
def test_softmax_far_from_the_baseline(name, size):
    """Values whose exponentials, seen from the greatest of both, are zero."""

    def f(x):
        y = getattr(x * size, name)(1)
        return (y if name == "logsumexp" else (y * C.to(x.dtype)).sum(1)) / min(size, 1.0)

    x, x0 = randn(1, 3, 6).abs(), -randn(2, 3, 6).abs()
    for rule in RULES:
        assert gap(f, x, x0, rule=rule) < 1e-9
        assert gap(f, x.float(), x0.float(), rule=rule) < 1e-4 if size > 1e-6 else True


SWAPPED = {
    "transformer": (lambda: Block(functools.partial(fused, is_causal=True)), (5, 8)),
    "residual": (ResNet, (2, 10, 10)),
    "recurrent": (lambda: Sequence(nn.GRU, batch_first=True), (6, 4)),
    "pooling": (lambda: Pooled(nn.LPPool2d(2, 2), (2, 6, 6)), (2, 6, 6)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SWAPPED)
def test_from_the_inputs_to_the_baselines_and_back(name, rule):
    """Both rules are symmetric: what leads from x0 to x leads back with the other sign."""
    make, shape = SWAPPED[name]
    model = statistics(seeded(make))
    x, x0 = randn(1, 2, *shape), randn(2, 2, *shape)
    there = attrfn.deep_lift(model, x, baselines=x0, target=1, rule=rule)
    back = attrfn.deep_lift(model, x0, baselines=x, target=1, rule=rule)
    torch.testing.assert_close(there, -back, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------
# other forms of models


@pytest.mark.parametrize("make", [lambda: Block(fused), lambda: statistics(seeded(ResNet))])
def test_exported_models(make):
    model = seeded(make)
    shape = (5, 8) if isinstance(model, Block) else (2, 10, 10)
    statistics(model)
    exported = torch.export.export(model, (randn(0, 3, *shape),), strict=False).module()
    x, x0 = randn(1, 3, *shape), randn(2, 3, *shape)
    for rule in RULES:
        assert gap(exported, x, x0, 1, rule=rule) < 1e-10
    torch.testing.assert_close(
        attrfn.deep_lift(exported, x, baselines=x0, target=1),
        attrfn.deep_lift(model, x, baselines=x0, target=1),
    )


class Writes(nn.Module):
    """A function of what a linear layer returns, between two of them."""

    def __init__(self, function):
        super().__init__()
        self.inp, self.out, self.function = nn.Linear(6, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.out(self.function(self.inp(x), x))


def set_items(h, x):
    h = h.clone()
    h[:, 1:] = x[:, 1:].tanh()
    return h


GRID = randn(60, 1, 1, 6, 2)


def resized(h, x, mode, **options):
    dims = {"linear": 1, "trilinear": 3}.get(mode, 2)
    out = F.interpolate(
        h.tanh().reshape(-1, 1, *[1] * (dims - 1), 6), scale_factor=2, mode=mode, **options
    )
    return out.flatten(1)[:, 1:7].exp()


IN_EXPORTED = {
    "relu_": lambda h, x: F.relu(h, inplace=True),
    "silu_": lambda h, x: F.silu(h, inplace=True),
    "hardtanh_": lambda h, x: F.hardtanh(h, -0.5, 0.5, inplace=True),
    "elu_": lambda h, x: F.elu(h, inplace=True),
    "leaky_relu_": lambda h, x: F.leaky_relu(h, 0.1, inplace=True),
    "tanh_": lambda h, x: h.tanh_(),
    "add_": lambda h, x: h.add_(x).relu(),
    "mul_": lambda h, x: h.mul_(x),
    "div_": lambda h, x: h.div_(1 + x.square()),
    "clamp_": lambda h, x: h.clamp_(min=0),
    "copy_": set_items,
    "gelu": lambda h, x: F.gelu(h, approximate="tanh"),
    "glu": lambda h, x: F.glu(torch.cat([h, x], 1), 1),
    "softmax": lambda h, x: h.softmax(1) * x,
    "layer_norm": lambda h, x: F.layer_norm(h, (6,)) * x,
    "max": lambda h, x: h.max(1, keepdim=True).values * x,
    "pooling": lambda h, x: F.max_pool1d(h[:, None], 2)[:, 0].repeat(1, 2),
    "pooling 2d": lambda h, x: F.max_pool2d(h[:, None, None].tanh(), (1, 2))[:, 0, 0].repeat(1, 2),
    "adaptive pooling": lambda h, x: F.adaptive_max_pool1d(h[:, None], 3)[:, 0].repeat(1, 2),
    "adaptive pooling 2d": lambda h, x: F.adaptive_max_pool2d(
        h.tanh().reshape(-1, 1, 2, 3), (2, 2), return_indices=True
    )[0].flatten(1)[:, [0, 1, 2, 3, 0, 1]],
    "adaptive pooling 3d": lambda h, x: (
        F.adaptive_max_pool3d(h.reshape(-1, 1, 1, 2, 3), (1, 1, 3)).flatten(1).repeat(1, 2)
    ),
    "cat": lambda h, x: torch.stack([h, x], 1).amax(1),
    "T": lambda h, x: h.T.exp().T,
    "mT": lambda h, x: h.reshape(-1, 2, 3).mT.exp().flatten(1),
    "fold": lambda h, x: F.fold(h.tanh()[:, None], (2, 3), (1, 1)).flatten(1).exp(),
    "unfold": lambda h, x: F.unfold(h[:, None, None].tanh(), (1, 1)).flatten(1).exp(),
    "grid_sample": lambda h, x: F.grid_sample(
        h[:, None, None].tanh(), GRID.to(h).expand(len(h), 1, 6, 2), align_corners=False
    )[:, 0, 0],
    "instance_norm": lambda h, x: F.instance_norm(h.reshape(-1, 2, 3)).flatten(1),
    "instance_norm with weights": lambda h, x: (
        F.instance_norm(h.reshape(-1, 2, 3), weight=C[:2], bias=C[2:4]).flatten(1) * x
    ),
    "instance_norm with statistics": lambda h, x: F.instance_norm(
        h.reshape(-1, 2, 3).tanh(), C[:2], C[2:4].abs(), use_input_stats=False
    ).flatten(1),
    "mse_loss": lambda h, x: F.mse_loss(h, C.expand(3, 6), reduction="none"),
    "l1_loss": lambda h, x: F.l1_loss(h.tanh(), C.expand(3, 6), reduction="none"),
    "cross_entropy": lambda h, x: F.cross_entropy(h, CLASSES, reduction="none")[:, None] * h,
    "nll_loss": lambda h, x: F.nll_loss(h.log_softmax(1), CLASSES, reduction="none")[:, None] * h,
    **{
        f"interpolate {mode}": functools.partial(resized, mode=mode, **options)
        for mode, options in {
            "nearest": {},
            "nearest-exact": {},
            "area": {},
            "linear": {"align_corners": False},
            "bilinear": {"align_corners": True},
            "bicubic": {"antialias": True},
            "trilinear": {},
        }.items()
    },
}


@pytest.mark.parametrize("name", IN_EXPORTED)
def test_operations_of_exported_models(name):
    """The same from a graph of aten operations, also of those that write in place."""
    model = seeded(lambda: Writes(IN_EXPORTED[name]))
    exported = torch.export.export(model, (randn(0, 3, 6),), strict=False).module()
    x, x0 = randn(1, 3, 6), randn(2, 3, 6)
    for create_graph in (False, True):
        for rule in RULES:
            options = {"target": 1, "baselines": x0, "rule": rule, "create_graph": create_graph}
            got, want = (attrfn.deep_lift(f, x, **options) for f in (exported, model))
            torch.testing.assert_close(got, want)
            assert gap(exported, x, x0, 1, rule=rule, create_graph=create_graph) < 1e-10
        for rules in (attrfn.rules.epsilon_plus(), attrfn.rules.gamma()):
            options = {"target": 1, "rules": rules, "create_graph": create_graph}
            got, want = (attrfn.lrp(f, x, **options) for f in (exported, model))
            torch.testing.assert_close(got, want)


LOSSES = {
    "mse_loss": lambda y, **o: F.mse_loss(y, C[None], **o),
    "l1_loss": lambda y, **o: F.l1_loss(y, C[None], **o),
    "cross_entropy": lambda y, **o: F.cross_entropy(y, CLASSES[:1], **o) ** 2,
    "cross_entropy with weights": lambda y, **o: F.cross_entropy(y, CLASSES[:1], C.abs(), **o),
    "cross_entropy without a class": lambda y, **o: (
        F.cross_entropy(y, CLASSES[:1], ignore_index=1, **o) * y[0, 0]
    ),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_reductions_of_losses(name, exported):
    """By name, by the old flags, and by the number that exported graphs have."""
    x, x0 = randn(1, 1, 6), randn(2, 1, 6)
    for options in (
        *({"reduction": "sum"}, {"reduction": "mean"}, {}),
        *({"size_average": False}, {"size_average": True, "reduce": True}),
    ):

        class Loss(nn.Module):
            def forward(self, x, options=options):
                return LOSSES[name](x.tanh() * x, **options).reshape(1)

        f = Loss()
        if exported:
            f = torch.export.export(f, (x,)).module()
        for rule in RULES:
            assert gap(f, x, x0, rule=rule) < 1e-10
        close(attrfn.deep_lift(f, x, baselines=x0), attrfn.deep_lift(Loss(), x, baselines=x0))


def test_compiled_models():
    """Rules apply to what a compiled module was made of."""
    model = statistics(seeded(ResNet))
    x, x0 = randn(1, 3, 2, 10, 10), randn(2, 3, 2, 10, 10)
    want = attrfn.deep_lift(model, x, baselines=x0, target=1)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(attrfn.deep_lift(compiled, x, baselines=x0, target=1), want)
    compiled = torch.compile(lambda x: model(x), backend="eager")
    torch.testing.assert_close(attrfn.deep_lift(compiled, x, baselines=x0, target=1), want)


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "initializer_range": 0.3,
}
KEEP = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def bert(transformers, attention):
    config = transformers.BertConfig(
        **SIZES, vocab_size=30, num_labels=3, attn_implementation=attention
    )
    return transformers.BertForSequenceClassification(config)


def gpt2(transformers, attention):
    config = transformers.GPT2Config(
        **{"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12},
        **{"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3},
        attn_implementation=attention,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(transformers, attention):
    config = transformers.LlamaConfig(
        **SIZES, vocab_size=30, num_key_value_heads=2, attn_implementation=attention
    )
    return transformers.LlamaForCausalLM(config)


def vit(transformers, attention):
    config = transformers.ViTConfig(
        **SIZES, image_size=12, patch_size=4, num_channels=2, attn_implementation=attention
    )
    return transformers.ViTForImageClassification(config)


class Logits(nn.Module):
    """A model of transformers as a function of embeddings or pixels."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x):
        if self.name == "vit":
            return self.model(pixel_values=x).logits
        out = self.model(inputs_embeds=x, attention_mask=KEEP).logits
        return out if out.ndim == 2 else out[:, 3]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [bert, gpt2, llama, vit], ids=lambda f: f.__name__)
def test_transformers(make, attention):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Logits(make(transformers, attention), make.__name__).eval().double()
    shape = (2, 12, 12) if make is vit else (5, 16)
    x, x0 = randn(1, 2, *shape), randn(2, 2, *shape)
    # Llama's RMS norm and the softmax of ViT in eager mode run in float32 in a float64 model too
    within_32 = make is llama or (make is vit and attention == "eager")
    tolerance = 1e-5 if within_32 else TOLERANCE[torch.float64]
    for rule in RULES:
        assert gap(model, x, x0, 1, rule=rule) < tolerance
    assert gap(model, x, x0, 1, create_graph=True) < tolerance
    x, x0, model = x.float(), x0.float(), model.float()
    for rule in RULES:
        assert gap(model, x, x0, 1, rule=rule) < 1e-4
