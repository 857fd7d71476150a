"""Whether DeepLIFT is complete on a model: its attributions sum to f(x) - f(x0), to rounding."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from oracles import randn
from torch import nn

import attrfn

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


def fused(q, k, v, **options):
    return F.scaled_dot_product_attention(q, k, v, **options)


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


C = randn(50, 6)

CLASSES = torch.tensor([0, 2, 5])
