"""Ablation-CAM and Score-CAM against loops over channels."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import as_tuple, close, randn
from torch import nn

import attrfn


def channel_loop(weigh, model, x, layer, target, at="output"):
    """sum_c w_c a_c, with ``weigh(i, a, c)`` for channel c of example i."""
    a = oracles.layer_value(model, layer, x, at).detach()
    maps = []
    for i in range(len(a)):
        w = weigh(i, a[i : i + 1])
        maps.append(sum(w[c] * a[i, c] for c in range(a.shape[1])))
    return torch.stack(maps)[:, None]


def output(model, x, i, target):
    with torch.no_grad():
        return oracles.pick(model(*as_tuple(x)), target, i)


def ablation_cam(model, x, layer, target=None, at="output"):
    """Desai and Ramaswamy, eq. 3 and 4 (before the ReLU)."""

    def weigh(i, a):
        one = oracles.row(x, i)
        whole, w = output(model, one, i, target), []
        for c in range(a.shape[1]):
            less = a.clone()
            less[:, c] = 0
            with torch.no_grad():
                rest = oracles.model_behind(model, layer, one, at)(less)
            w.append((whole - oracles.pick(rest, target, i)) / whole)
        return w

    return channel_loop(weigh, model, x, layer, target, at)


SMOOTH = {3: "linear", 4: "bilinear", 5: "trilinear"}


def score_cam(model, x, layer, target=None, at="output", x0=0.0):
    """Wang et al., Definition 1 and Algorithm 1 (before the ReLU), one input."""
    start = torch.zeros_like(x) + x0

    def weigh(i, a):
        one, base = x[i : i + 1], start[i : i + 1]
        gains = []
        for c in range(a.shape[1]):
            h = F.interpolate(a[:, c : c + 1], size=x.shape[2:], mode=SMOOTH[x.ndim])
            h = (h - h.min()) / (h.max() - h.min())
            seen = output(model, base + h * (one - base), i, target)
            gains.append(seen - output(model, base, i, target))
        return torch.stack(gains).softmax(0)

    return channel_loop(weigh, model, x, layer, target, at)


CAMS = {attrfn.ablation_cam: ablation_cam, attrfn.score_cam: score_cam}


cams = pytest.mark.parametrize("method", CAMS, ids=lambda m: m.__name__)


IMAGES = randn(0, 3, 2, 8, 8)


@cams
@pytest.mark.parametrize(
    ("layer", "at"),
    [("conv1", "output"), ("act1", "output"), ("conv2", "input"), ("conv2", "output")],
)
@pytest.mark.parametrize("target", [2, [4, 0, 2]], ids=str)
def test_maps_by_loops_over_channels(method, layer, at, target):
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    want = CAMS[method](model, IMAGES, layer, target, at)
    got = method(model, IMAGES, layer=layer, at=at, target=target)
    assert got.shape == (3, 1, *want.shape[2:])
    close(got, want)


@cams
def test_maps_of_models_with_one_output(method):
    model = oracles.seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh()))

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            return (self.body(x) ** 2).flatten(1).sum(1)

    want = CAMS[method](One(), IMAGES, "body.0")
    close(method(One(), IMAGES, layer="body.0"), want)


@cams
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("upsample", [None, "nearest", "bilinear"])
def test_maps_rectified_and_resized(method, relu, upsample):
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    with torch.no_grad():  # activations around 0, so that the maps have both signs
        model.conv1.bias.zero_()
        model.conv2.bias.zero_()
    small = CAMS[method](model, IMAGES, "conv2", 1)
    assert (small < 0).any()
    want = small.clamp(min=0) if relu else small
    if upsample:
        want = F.interpolate(want, size=(8, 8), mode=upsample)
    got = method(model, IMAGES, layer="conv2", target=1, relu=relu, upsample=upsample)
    close(got, want)


@cams
def test_maps_of_time_series_and_volumes(method):
    for conv, x in ((nn.Conv1d, randn(1, 3, 2, 9)), (nn.Conv3d, randn(2, 2, 2, 4, 3, 5))):

        def build(conv=conv, x=x):
            places = math.prod(s - 1 for s in x.shape[2:])
            return nn.Sequential(conv(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3 * places, 2))

        model = oracles.seeded(build)
        close(method(model, x, layer="1", target=1), CAMS[method](model, x, "1", 1))


@cams
def test_maps_of_a_list_of_layers(method):
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    if method is attrfn.ablation_cam:  # replaces activations, and act1 is upstream of conv2
        with pytest.raises(ValueError, match="depends on what another layer"):
            method(model, IMAGES, target=1, layer=["act1", model.conv2])
        return
    got = method(model, IMAGES, target=1, layer=["act1", model.conv2])
    close(got, [CAMS[method](model, IMAGES, layer, 1) for layer in ("act1", "conv2")])


def test_score_cam_from_baselines():
    """Behind a channel is x0 + H (x - x0), as in all methods; the paper has x0 = 0."""
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    for x0 in (0.7, randn(5, 2, 8, 8), randn(6, 3, 2, 8, 8)):
        got = attrfn.score_cam(model, IMAGES, layer="conv1", target=1, baselines=x0)
        close(got, score_cam(model, IMAGES, "conv1", 1, x0=x0))


def test_score_cam_with_a_dead_channel_is_finite():
    """A constant channel cannot be scaled to [0, 1]."""
    model = oracles.seeded(oracles.Cnn)
    with torch.no_grad():
        model.conv2.bias[2] = -1e3
    got = attrfn.score_cam(model, IMAGES, layer="act2", target=1)
    assert torch.isfinite(got).all()
    assert (got != 0).any()


class Tokens(nn.Module):
    """Patches of 2 x 2 of a 6 x 4 image as tokens (B, 6, 5)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 5, 2, stride=2)
        self.mix = nn.Linear(5, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        x = self.mix(self.embed(x).flatten(2).transpose(1, 2))
        return self.out((x.sum(2, keepdim=True).softmax(1) * x).sum(1))


@cams
def test_reshape_makes_a_map_of_tokens(method):
    """The twin returns the same activation as a map, and needs no reshape."""

    class Twin(Tokens):
        def __init__(self):
            super().__init__()
            self.here = nn.Identity()

        def forward(self, x):
            x = self.mix(self.embed(x).flatten(2).transpose(1, 2))
            x = self.here(x.transpose(1, 2).unflatten(2, (3, 2))).flatten(2).transpose(1, 2)
            return self.out((x.sum(2, keepdim=True).softmax(1) * x).sum(1))

    model, twin, x = oracles.seeded(Tokens), oracles.seeded(Twin), randn(4, 3, 1, 6, 4)
    got = method(
        model, x, layer="mix", target=2, reshape=lambda t: t.transpose(1, 2).unflatten(2, (3, 2))
    )
    close(got, CAMS[method](twin, x, "here", 2))
