"""Small models for the transform matrix; ``mid`` cuts each of them in two.

Every model is float64, in evaluation mode and the same in every process. ``NETS`` says with what
inputs, baselines and neuron of ``mid`` it is explained.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import make, randn

CLASSES = 3


class Net(NamedTuple):
    """A model and what is needed to explain it.

    Attributes:
        build: Makes the model, float64 and in evaluation mode.
        shape: The shape of one example.
        neuron: The index of one neuron of ``mid`` behind the batch dimension.
        spatial: Whether ``mid`` has the form (B, C, *spatial) that class activation maps need.
        smooth: Whether attributions are differentiable around the inputs.
        pool: Three baselines to draw from.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    neuron: int | tuple[int | slice, ...]
    spatial: bool
    smooth: bool
    pool: Tensor

    def inputs(self, batch: int = 3, seed: int = 1) -> Tensor:
        return randn(batch, *self.shape, seed=seed)


def targets(batch: int) -> Tensor:
    """One class per example, not all the same."""
    return torch.arange(batch) * 2 % CLASSES


def _mlp() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            inp=nn.Linear(4, 5), mid=nn.Tanh(), hid=nn.Linear(5, 4), act=nn.Softplus(), out=_out(4)
        )
    )


def _cnn() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            inp=nn.Conv2d(2, 3, 3, padding=1),
            soft=nn.Softplus(),
            mid=nn.AvgPool2d(2),
            act=nn.Tanh(),
            flat=nn.Flatten(),
            out=_out(12),
        )
    )


class Reuse(nn.Module):
    """Convolutions with one in-place ReLU that is used three times, also on the model's input."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.inp = nn.Conv2d(2, 3, 3, padding=1)
        self.mid = nn.Conv2d(3, 3, 3)
        self.out = _out(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x.mul_(1.5).add_(0.5))
        y = self.act(self.inp(x))
        return self.out(self.act(self.mid(y)).flatten(1))


class Rectified(nn.Module):
    """Rectifiers as modules and functions, in place and not, between smooth layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Conv2d(2, 3, 3, padding=1)
        self.soft = nn.Tanh()
        self.act = nn.ReLU(inplace=True)
        self.mid = nn.Conv2d(3, 3, 3)
        self.hid = nn.Conv2d(3, 4, 1)
        self.out = _out(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.act(self.soft(self.inp(x)) + 0.1))
        x = F.relu(self.hid(torch.tanh(x)))
        return self.out(torch.sigmoid(x.flatten(1)).clamp(min=0).relu())


def _norm() -> nn.Module:
    bn = nn.BatchNorm2d(3)
    bn.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
    bn.running_var.copy_(torch.tensor([0.5, 1.5, 2.0]))
    return nn.Sequential(
        OrderedDict(
            inp=nn.Conv2d(2, 3, 3),
            mid=bn,
            act=nn.Softplus(),
            drop=nn.Dropout(0.5),
            flat=nn.Flatten(),
            out=_out(12),
        )
    )


class Attention(nn.Module):
    """A transformer block on a sequence of four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)
        self.mid = nn.Linear(4, 4)
        self.out = _out(4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(self.inp(x))).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(F.gelu(self.mid(y.transpose(1, 2).flatten(2))).mean(1))


def _out(width: int) -> nn.Linear:
    return nn.Linear(width, CLASSES)


class Scalars(nn.Module):
    """Takes one number per example, a tensor of shape (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.mid = nn.Tanh()
        self.out = _out(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mid(self.scale * x + 0.2)[:, None])


class Trees(nn.Module):
    """Takes any tree of tensors (B, ...) with five features in all, and sees them side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(5, 6)
        self.mid = nn.Tanh()
        self.hid = nn.Linear(6, 4)
        self.out = _out(4)

    def forward(self, *inputs: Any) -> Tensor:
        x = torch.cat([t.flatten(1) for t in optree.tree_leaves(inputs)], 1)
        h = self.mid(self.inp(x).unflatten(1, (2, 3)))
        return self.out(F.softplus(self.hid(h.flatten(1))))


class TrainedBatchNorm(nn.Module):
    """Ties the rows together and writes into its buffers when it is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 5)
        self.mid = nn.BatchNorm1d(5)
        self.out = _out(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mid(self.inp(x))))


def _net(
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    neuron: int | tuple[int | slice, ...],
    *,
    spatial: bool,
    smooth: bool = True,
) -> Net:
    pool = 0.3 * randn(3, *shape, seed=2)
    return Net(functools.partial(make, build), shape, neuron, spatial, smooth, pool)


NETS = {
    "mlp": _net(_mlp, (4,), 2, spatial=False),
    "cnn": _net(_cnn, (2, 4, 4), (1, 1, slice(0, 2)), spatial=True),
    "reuse": _net(Reuse, (2, 4, 4), (0, 1, 1), spatial=True, smooth=False),
    "norm": _net(_norm, (2, 4, 4), (2, 0, 1), spatial=True),
    "attention": _net(Attention, (4, 3), (1, 2), spatial=True),
}
RECTIFIED = {"reuse": NETS["reuse"], "relu": _net(Rectified, (2, 4, 4), (0, 1, 1), spatial=True)}
SCALARS = _net(Scalars, (), (), spatial=False)
TREES = _net(Trees, (5,), (1, 2), spatial=True)
