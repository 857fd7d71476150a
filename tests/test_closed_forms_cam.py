"""Class activation maps: the papers' formulas as explicit loops over channels and places.

Activations and gradients come from plain hooks, one example at a time (``oracles.py``); the loops
follow the equation of each paper and are float64 throughout.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import close, randn
from torch import nn

import attrfn

IMAGES = randn(0, 3, 2, 8, 8)
TARGET = [4, 0, 2]


def places(channel):
    return itertools.product(*map(range, channel.shape))


def grad_cam(a, g):
    """Selvaraju et al., eq. 1 and 2 (before the ReLU): the mean gradient weighs the channel."""
    out = np.zeros(a.shape[1:])
    for c in range(len(a)):
        weight = sum(g[c][p] for p in places(g[c])) / g[c].size
        for p in places(out):
            out[p] += weight * a[c][p]
    return out


def hires_cam(a, g):
    """Draelos and Carin, eq. 4: the product of gradient and activation, summed over channels."""
    out = np.zeros(a.shape[1:])
    for c in range(len(a)):
        for p in places(out):
            out[p] += g[c][p] * a[c][p]
    return out


def grad_cam_plus_plus(a, g):
    """Chattopadhay et al., eq. 19 and 5, for the score S itself.

    The paper explains Y = exp(S); its derivatives are exp(S) times powers of dS/dA, and exp(S)
    cancels in alpha. What is left of it, one positive factor exp(S) per image, is not applied.
    """
    out = np.zeros(a.shape[1:])
    for c in range(len(a)):
        total = sum(a[c][p] for p in places(a[c]))
        weight = 0.0
        for p in places(out):
            below = 2 * g[c][p] ** 2 + total * g[c][p] ** 3
            if below != 0:
                weight += g[c][p] ** 2 / below * max(g[c][p], 0)
        for p in places(out):
            out[p] += weight * a[c][p]
    return out


def xgrad_cam(a, g):
    """Fu et al., eq. 8: each place's gradient counts by its share of the channel's activation."""
    out = np.zeros(a.shape[1:])
    for c in range(len(a)):
        total = sum(a[c][p] for p in places(a[c]))
        weight = 0.0
        for p in places(out):
            if total != 0:
                weight += a[c][p] / total * g[c][p]
        for p in places(out):
            out[p] += weight * a[c][p]
    return out


def layer_cam(a, g):
    """Jiang et al., eq. 5 and 6: positive gradients, place by place."""
    out = np.zeros(a.shape[1:])
    for c in range(len(a)):
        for p in places(out):
            out[p] += max(g[c][p], 0) * a[c][p]
    return out


def eigen_cam(a, g=None):
    """Muhammad and Yeasin: A V_1 of the decomposition A = U S V', its sign by a positive sum."""
    matrix = np.stack([channel.ravel() for channel in a], 1)
    out = matrix @ np.linalg.svd(matrix)[2][0]
    return (out if out.sum() >= 0 else -out).reshape(a.shape[1:])


FORMULAS = [grad_cam, hires_cam, grad_cam_plus_plus, xgrad_cam, layer_cam, eigen_cam]
by_name = pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.__name__)


def test_every_map_of_cam_py_has_a_formula():
    modules = {name: getattr(f, "__module__", "") for name, f in vars(attrfn).items()}
    maps = {name for name, module in modules.items() if module == "attrfn._methods.cam"}
    assert maps == {formula.__name__ for formula in FORMULAS}


def explain(formula, model, x, *, target=None, **options):
    """attrfn's method of the formula's name (Eigen-CAM has no target)."""
    if formula is not eigen_cam:
        options["target"] = target
    return getattr(attrfn, formula.__name__)(model, x, **options)


def expected(formula, model, x, layer, target, at="output", reshape=lambda a: a):
    a = reshape(oracles.layer_value(model, layer, x, at).detach())
    g = reshape(oracles.layer_gradients(model, layer, x, target=target, at=at))
    maps = [formula(*pair) for pair in zip(a.numpy(), g.numpy(), strict=True)]
    return torch.as_tensor(np.stack(maps))[:, None]


@by_name
@pytest.mark.parametrize(
    ("layer", "at"),
    [("conv1", "output"), ("act1", "output"), ("conv2", "input"), ("conv2", "output")],
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_maps_by_loops_over_channels_and_places(formula, layer, at, activation):
    model = oracles.seeded(lambda: oracles.Cnn(activation))
    want = expected(formula, model, IMAGES, layer, TARGET, at)
    got = explain(formula, model, IMAGES, target=TARGET, layer=layer, at=at)
    assert got.shape[1] == 1
    close(got, want, 1e-9)


@by_name
def test_dead_channels_give_nothing(formula):
    """A channel that is 0 everywhere (a sum of 0 divides in XGrad-CAM) and gradients that are 0."""
    model = oracles.seeded(oracles.Cnn)
    with torch.no_grad():
        model.conv2.bias[2] = -1e3
        model.fc.weight.unflatten(1, (6, 12))[:, 4] = 0
    assert (oracles.layer_value(model, "act2", IMAGES)[:, 2] == 0).all()
    assert (oracles.layer_gradients(model, "act2", IMAGES, target=TARGET)[:, 4] == 0).all()
    want = expected(formula, model, IMAGES, "act2", TARGET)
    close(explain(formula, model, IMAGES, target=TARGET, layer="act2"), want, 1e-9)


def unbiased_cnn():
    """Activations around 0, so that all the maps, Eigen-CAM's too, have both signs."""
    model = oracles.seeded(lambda: oracles.Cnn(nn.Tanh))
    with torch.no_grad():
        model.conv1.bias.zero_()
        model.conv2.bias.zero_()
    return model


@by_name
def test_relu_keeps_the_positive_part(formula):
    model = unbiased_cnn()
    signed = expected(formula, model, IMAGES, "conv2", TARGET)
    assert (signed < 0).any()
    got = explain(formula, model, IMAGES, target=TARGET, layer="conv2", relu=True)
    close(got, signed.clamp(min=0), 1e-9)


@by_name
def test_maps_of_a_list_of_layers(formula):
    model = oracles.seeded(oracles.Cnn)
    got = explain(formula, model, IMAGES, target=1, layer=["act1", model.conv2])
    want = [expected(formula, model, IMAGES, layer, 1) for layer in ("act1", "conv2")]
    close(got, want, 1e-9)


def gap_network():
    """A convolution, global average pooling and a linear layer: f = sum_c w_c mean_p a_cp + d."""
    return oracles.seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
        )
    )


def test_under_global_average_pooling_all_gradient_maps_are_the_class_activation_map():
    """df/da_cp = w_tc / P everywhere, so the maps are sum_c w_tc a_cp / P (Zhou et al., 2016)."""
    model = gap_network()
    a = oracles.layer_value(model, "1", IMAGES).detach()
    w = model[4].weight.detach()[1] / 36
    want = torch.einsum("c,bchw->bhw", w, a)[:, None]
    for method in (attrfn.grad_cam, attrfn.hires_cam, attrfn.xgrad_cam):
        close(method(model, IMAGES, layer="1", target=1), want)
    got = attrfn.layer_cam(model, IMAGES, layer="1", target=1)
    close(got, torch.einsum("c,bchw->bhw", w.clamp(min=0), a)[:, None])
    weights = torch.where(w > 0, 36 * w / (2 + a.sum((2, 3)) * w), torch.zeros_like(w))
    got = attrfn.grad_cam_plus_plus(model, IMAGES, layer="1", target=1)
    close(got, torch.einsum("bc,bchw->bhw", weights, a)[:, None])


def test_hires_cam_and_xgrad_cam_sum_to_the_output_without_the_bias():
    """Before a linear layer sum(g a) = f - bias; XGrad-CAM moves it inside each channel only."""
    model = oracles.seeded(oracles.Cnn)
    want = oracles.values(model, IMAGES, TARGET) - model.fc.bias.detach()[TARGET]
    for method in (attrfn.hires_cam, attrfn.xgrad_cam):
        close(method(model, IMAGES, layer="act2", target=TARGET).flatten(1).sum(1), want)


def test_grad_cam_plus_plus_up_to_scale_is_that_of_the_exponential_score():
    """The paper's Y = exp(S): weights from the derivatives of exp(S), which differ by exp(S)."""
    model = gap_network()
    a = oracles.layer_value(model, "1", IMAGES).detach()
    score = oracles.values(model, IMAGES, 1)
    g = oracles.layer_gradients(model, "1", IMAGES, target=1)
    first, second, third = (score.exp()[:, None, None, None] * g**power for power in (1, 2, 3))
    alpha = second / (2 * second + a.sum((2, 3), keepdim=True) * third)
    weights = (alpha * first.clamp(min=0)).sum((2, 3), keepdim=True)
    paper = (weights * a).sum(1, keepdim=True)
    got = attrfn.grad_cam_plus_plus(model, IMAGES, layer="1", target=1)
    close(got * score.exp()[:, None, None, None], paper)


def test_eigen_cam_of_a_rank_one_activation():
    """a_cp = u_c m_p with |u| = 1: the first direction is u, the map m (with a positive sum)."""
    u, m = torch.tensor([0.6, -0.8], dtype=torch.float64), randn(3, 3, 4, 5)
    m = m * m.sum((1, 2), keepdim=True).sign()

    class RankOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.spread = nn.Conv2d(1, 2, 1, bias=False)

        def forward(self, x):
            return self.spread(x).sum((1, 2, 3))

    model = RankOne().double()
    with torch.no_grad():
        model.spread.weight.copy_(u[:, None, None, None])
    close(attrfn.eigen_cam(model, -m[:, None], layer="spread"), m[:, None])


# ---------------------------------------------------------------------------------------------
# the size of the map


def nearest(image, size):
    """out(i) = in(floor(i h / H)), in each dimension."""
    out = np.zeros(size)
    for p in places(out):
        q = tuple(i * h // big for i, h, big in zip(p, image.shape, size, strict=True))
        out[p] = image[q]
    return out


def linear(image, size):
    """Linear between the centres of the pixels, (i + 1/2) h / H - 1/2, constant beyond the last."""
    out = np.zeros(size)
    for p in places(out):
        corners = []
        for i, h, big in zip(p, image.shape, size, strict=True):
            at = min(max((i + 0.5) * h / big - 0.5, 0), h - 1)
            low = math.floor(at)
            corners.append([(low, 1 - at + low), (min(low + 1, h - 1), at - low)])
        for corner in itertools.product(*corners):
            out[p] += math.prod(w for _, w in corner) * image[tuple(i for i, _ in corner)]
    return out


@by_name
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("relu", [False, True])
def test_upsampling_to_the_size_of_the_inputs(formula, mode, relu):
    """The rectified map is resized, not the other way round."""
    model = unbiased_cnn()
    x = randn(1, 2, 2, 8, 8)
    small = expected(formula, model, x, "conv2", 1).numpy()
    small = np.maximum(small, 0) if relu else small
    resize = {"nearest": nearest, "bilinear": linear}[mode]
    want = np.stack([resize(one[0], (8, 8)) for one in small])[:, None]
    got = explain(formula, model, x, target=1, layer="conv2", upsample=mode, relu=relu)
    close(got, torch.as_tensor(want), 1e-9)
    if relu:
        late = explain(formula, model, x, target=1, layer="conv2", upsample=mode).clamp(min=0)
        assert mode == "nearest" or (late - got).abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["bicubic", "area", "nearest-exact"])
def test_the_other_modes_are_those_of_interpolate(mode):
    model = oracles.seeded(oracles.Cnn)
    small = expected(grad_cam, model, IMAGES, "act2", TARGET)
    got = attrfn.grad_cam(model, IMAGES, layer="act2", target=TARGET, upsample=mode)
    want = torch.cat([F.interpolate(one[None], size=(8, 8), mode=mode) for one in small])
    close(got, want)


@by_name
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_maps_of_time_series(formula, mode):
    model = oracles.seeded(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
        )
    )
    x = randn(2, 3, 2, 10)
    small = expected(formula, model, x, "1", 2)
    assert small.shape == (3, 1, 4)
    close(explain(formula, model, x, target=2, layer="1"), small, 1e-9)
    resize = {"nearest": nearest, "linear": linear}[mode]
    want = np.stack([resize(one[0], (10,)) for one in small.numpy()])[:, None]
    got = explain(formula, model, x, target=2, layer="1", upsample=mode)
    close(got, torch.as_tensor(want), 1e-9)


@by_name
@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
def test_maps_of_volumes(formula, mode):
    model = oracles.seeded(
        lambda: nn.Sequential(
            nn.Conv3d(1, 3, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)
        )
    )
    x = randn(3, 2, 1, 4, 5, 4)
    small = expected(formula, model, x, "1", 1)
    close(explain(formula, model, x, target=1, layer="1"), small, 1e-9)
    resize = {"nearest": nearest, "trilinear": linear}[mode]
    want = np.stack([resize(one[0], (4, 5, 4)) for one in small.numpy()])[:, None]
    got = explain(formula, model, x, target=1, layer="1", upsample=mode)
    close(got, torch.as_tensor(want), 1e-9)


@by_name
def test_layers_without_places(formula):
    """Channels alone: (B, C) gives (B, 1); Grad-CAM is then the sum of gradient x activation."""
    model = oracles.seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    x = randn(4, 5, 3)
    want = expected(formula, model, x, "1", 0)
    assert want.shape == (5, 1)
    close(explain(formula, model, x, target=0, layer="1"), want, 1e-9)


class Tokens(nn.Module):
    """A tiny ViT: patches of 2 x 2 of a 6 x 4 image and one class token, (B, 7, 5) in ``mix``."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 5, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, 5))
        self.mix = nn.Linear(5, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.mix(x)
        weights = (x @ x[:, :1].transpose(1, 2)).softmax(1)
        return self.out((weights * x).sum(1))


@by_name
@pytest.mark.parametrize("at", ["output", "input"])
def test_reshape_makes_a_map_of_tokens(formula, at):
    """Without the class token, the patches are 3 x 2 places with the width as channels."""

    def reshape(tokens):
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 2))

    model, x = oracles.seeded(Tokens), randn(5, 3, 1, 6, 4)
    small = expected(formula, model, x, "mix", 2, at, reshape)
    got = explain(formula, model, x, target=2, layer="mix", at=at, reshape=reshape)
    close(got, small, 1e-9)
    want = np.stack([nearest(one[0], (6, 4)) for one in small.numpy()])[:, None]
    got = explain(
        formula, model, x, target=2, layer="mix", at=at, reshape=reshape, upsample="nearest"
    )
    close(got, torch.as_tensor(want), 1e-9)


class ImageAndTable(nn.Module):
    """A table comes first, then the image whose size the map takes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2, stride=2)
        self.scale = nn.Linear(4, 3)

    def forward(self, table, image):
        maps = self.conv(image).tanh()
        return (maps * self.scale(table)[:, :, None, None]).flatten(1).sum(1)


@by_name
def test_maps_with_several_inputs_take_the_size_of_the_image(formula):
    model, x = oracles.seeded(ImageAndTable), (randn(6, 3, 4), randn(7, 3, 1, 6, 4))
    small = expected(formula, model, x, "conv", None)
    want = np.stack([nearest(one[0], (6, 4)) for one in small.numpy()])[:, None]
    got = explain(formula, model, x, layer="conv", upsample="nearest")
    close(got, torch.as_tensor(want), 1e-9)
