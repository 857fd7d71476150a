"""What DeepLIFT and LRP leave out where they can: each short cut agrees with the long way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracles import close, randn, seeded
from torch import nn

import attrfn
from attrfn import rules
from attrfn._rules import difference, relevance, slopes
from attrfn._rules.notes import Notes
from attrfn._rules.replay import Replay
from attrfn._rules.run import Run

D = torch.float64


def lively(build):
    """A model whose batch norms have statistics, gains of both signs and shifts."""
    model = seeded(build)
    generator = torch.Generator().manual_seed(7)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                m.running_mean.normal_(0, 0.3, generator=generator)
                m.running_var.uniform_(0.5, 2, generator=generator)
                m.weight.normal_(0.2, 1, generator=generator)
                m.bias.normal_(0, 0.3, generator=generator)
    return model.double().eval()


class Residual(nn.Module):
    """Writes in place: ReLUs, the sum, and parts of pooled values."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.two, self.three = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.norm(self.one(x)))
        z = self.two(y)
        z += y
        z = F.max_pool2d(self.relu(z), 1)
        z[:, :1].sub_(0.3)
        w = self.three(z)
        y = F.avg_pool2d(y, 1)
        y.view(-1)[::3].sub_(0.4)
        return (w + self.three(y).relu_()).sum((-1, -2))


class Twice(nn.Module):
    """The output of a convolution goes to a batch norm and elsewhere; padding, pools and parts."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, 3, groups=2, bias=False)
        self.last = nn.Conv2d(4, 3, 2)

    def forward(self, x):
        y = self.one(x)
        y = F.relu6(self.norm(y) + 0.3 * y)
        y = F.max_pool2d(F.pad(F.pad(y, (1, 1, 0, 1), value=0.1), (1, 0, 1, 0), mode="reflect"), 2)
        y = self.two(torch.cat([y[:, :2], y.flip(1)[:, 2:]], 1))
        y = F.hardtanh(F.pad(F.relu(y), (1, 1, 1, 1), value=-0.2), 0.0, 2.0)
        return self.last(y).sum((-1, -2))


class Differences(nn.Module):
    """Zeros that are no ReLU's, from which relevance passes back to equal neighbours."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 3, 2)

    def forward(self, x):
        y = self.one(x[:, :, 1:] - x[:, :, :-1]).relu()
        return self.two(y - y.flip(-1)).sum(-1)


_NEVER = property(lambda self: False, lambda self, value: None)
NETS = {
    "depthwise": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding="same", bias=False), nn.BatchNorm2d(6), nn.ReLU6()),
            *(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Flatten()),
            *(nn.Linear(36, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
        ),
        (3, 8, 8),
    ),
    "residual": (Residual, (3, 6, 6)),
    "twice": (Twice, (3, 6, 6)),
    "differences": (Differences, (2, 9)),
    "transposed": (
        lambda: nn.Sequential(
            *(nn.ConvTranspose2d(3, 6, 3, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.ConvTranspose2d(4, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ),
        (3, 4, 4),
    ),
    "three dimensions": (
        lambda: nn.Sequential(
            *(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(inplace=True)),
            *(nn.Conv3d(4, 4, 2, padding_mode="circular", padding=1), nn.LeakyReLU()),
            *(nn.AvgPool3d(2), nn.Flatten(), nn.Linear(32, 3)),
        ),
        (2, 4, 4, 4),
    ),
    "one dimension": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 4, 3, padding=2, dilation=2), nn.BatchNorm1d(4), nn.GELU()),
            *(nn.Conv1d(4, 4, 3, padding="same"), nn.SiLU(), nn.MaxPool1d(2), nn.Flatten()),
            *(nn.Linear(16, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Hardtanh(-0.5, 0.5)),
            nn.Linear(6, 3),
        ),
        (2, 8),
    ),
}
COMPOSITES = {
    "epsilon": rules.epsilon(),
    "LRP-0": rules.epsilon(0),
    "z_plus": rules.z_plus(),
    "alpha_beta": rules.alpha_beta(),
    "gamma": rules.gamma(),
    "epsilon_plus": rules.epsilon_plus(),
    "epsilon_gamma_box": rules.epsilon_gamma_box(-4.0, 4.0),
    "epsilon_alpha2_beta1_flat": rules.epsilon_alpha2_beta1_flat(),
}


def inputs(shape):
    """Normal numbers, and small integers, which are often equal and often zero."""
    x = randn(0, 4, *shape)
    x[2:] = x[2:].round()
    return x


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("composite", COMPOSITES)
def test_lrp(name, composite, monkeypatch):
    build, shape = NETS[name]
    model, x = lively(build), inputs(shape)
    options = {"target": 1, "rules": COMPOSITES[composite]}
    if name == "differences" and ("box" in composite or "flat" in composite):
        return  # it reads its inputs in no linear operation
    short = attrfn.lrp(model, x, **options)
    with_graph = attrfn.lrp(model, x, create_graph=True, **options)
    monkeypatch.setattr(Replay, "defers", _NEVER, raising=False)
    monkeypatch.setattr(Notes, "is_rectified", lambda self, t: False)
    monkeypatch.setattr(relevance, "_factor", lambda *args: None)
    want = attrfn.lrp(model, x, **options)
    close(short, want)
    close(with_graph.detach(), want)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus"])
def test_a_write_that_no_mode_sees(composite, monkeypatch):
    """The pass is repeated with rules that do not wait."""
    model, x = lively(Residual), inputs((3, 6, 6))
    options = {"target": 1, "rules": COMPOSITES[composite]}
    want = attrfn.lrp(model, x, **options)
    runs = []
    monkeypatch.setattr(Run, "settle", lambda self, t: runs.append(t))
    close(attrfn.lrp(model, x, **options), want)
    assert runs


def test_work_after_a_relu(monkeypatch):
    """LRP-z+ runs a convolution once for its value and once for its rule; the first one twice."""
    model = lively(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)),
        )
    )
    counts = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts.append(str(func))
            return func(*args, **(kwargs or {}))

    with Count():
        attrfn.lrp(model, randn(0, 1, 3, 6, 6), target=1)
    convolutions = sum(name == "aten.convolution.default" for name in counts)
    assert convolutions == (1 + 2) + (1 + 1)
    assert sum("batch_norm" in name for name in counts) == 2


CLAMPED = {
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 1.0),
    "clamp": lambda x: x.clamp(-1, 0.5),
    "clamp_min": lambda x: x.clamp_min(-0.5),
    "clamp below": lambda x: x.clamp(max=0.5),
    "silu": F.silu,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "relu": F.relu,
    "cube": lambda x: x**3,
}


@pytest.mark.parametrize("name", CLAMPED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_slopes_where_points_coincide(name, dtype, monkeypatch):
    f = CLAMPED[name]
    x = randn(0, 3, 40).mul(2).round().div(2)
    x0 = x + torch.tensor([0.0, 1e-9, -1e-12, 1e-300, 0.5, -2.0, 5e-324, 3.0], dtype=D).repeat(5)
    x, x0 = x.to(dtype), x0.to(dtype)
    x0[0], x0[1, 1:] = x[0], x[1, 1:]  # more than a quarter coincides

    def multipliers(rows, starts):
        return attrfn.deep_lift(
            lambda v: f(v).sum(1), rows, baselines=starts, multiply_by_inputs=False
        )

    short = [multipliers(x, x0), multipliers(x[2:], x0[2:])]
    monkeypatch.setattr(slopes, "_slope_by_quotient", lambda *args: None)
    monkeypatch.setattr(difference, "slope_of_clamp", lambda *args: None)
    torch.testing.assert_close(short[0], multipliers(x, x0), rtol=1e-12, atol=1e-30)
    torch.testing.assert_close(short[1], multipliers(x[2:], x0[2:]), rtol=1e-12, atol=1e-30)
