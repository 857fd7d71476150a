"""Oracles: the textbook formulas, written naively, and small models to try them on.

Nothing here uses attrfn. Every oracle takes one example at a time, one backward pass per scalar, a
Python loop over the steps of a path, and plain forward hooks (on a deep copy) where a layer is
read or overwritten, so that it shares no idea with the library: no folding, no vmap, no split.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import nn

# ---------------------------------------------------------------------------------------------
# numbers


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(got, want, tolerance=1e-10):
    """Equal structure, shape and dtype, and values within an absolute + relative tolerance."""
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def within_sigmas(mean, want, std, n, sigmas=5):
    """A mean of n draws of standard deviation ``std`` lies where it should (the key is fixed)."""
    gap = (mean - want).abs() / (torch.as_tensor(std) / math.sqrt(n))
    assert gap.max() < sigmas, f"{float(gap.max()):.1f} standard errors away"


# ---------------------------------------------------------------------------------------------
# quadrature: the textbook rules on [0, 1]


def quadrature(rule, n):
    """Nodes and weights, numpy float64."""
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return (nodes + 1) / 2, weights / 2
    i = np.arange(n)
    if rule == "riemann_trapezoid":
        weights = np.full(n, 1 / (n - 1))
        weights[[0, -1]] /= 2
        return i / (n - 1), weights
    shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[rule]
    return (i + shift) / n, np.full(n, 1 / n)


# ---------------------------------------------------------------------------------------------
# one example at a time


def pick(output, target, i):
    """The explained scalar of example i; ``output`` (1, ...) is the model's answer to it alone."""
    if callable(target):
        return target(output).sum()
    if isinstance(target, torch.Tensor):
        target = target.tolist()
    if isinstance(target, list):
        target = target[i]
    if target is None:
        assert output.numel() == 1
        return output.sum()
    return output[0][target if isinstance(target, tuple) else (target,)].sum()


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def row(xs, i):
    return tuple(t[i : i + 1] for t in as_tuple(xs))


def gradients(f, x, target=None):
    """df/dx at x, example by example; a tuple for a tuple."""
    rows = []
    for i in range(len(as_tuple(x)[0])):
        z = [t.detach().clone().requires_grad_() for t in row(x, i)]
        rows.append(torch.autograd.grad(pick(f(*z), target, i), z))
    grads = tuple(torch.cat(g) for g in zip(*rows, strict=True))
    return grads if isinstance(x, tuple) else grads[0]


def path_mean(f, x, x0, nodes, weights, target=None):
    """sum_k w_k df(x0 + a_k (x - x0))/dx; a tuple for a tuple."""
    xs, starts = as_tuple(x), as_tuple(x0)
    total = [torch.zeros_like(t) for t in xs]
    for a, w in zip(nodes, weights, strict=True):
        point = tuple(b + float(a) * (t - b) for t, b in zip(xs, starts, strict=True))
        for s, g in zip(total, as_tuple(gradients(f, point, target)), strict=True):
            s += float(w) * g
    return tuple(total) if isinstance(x, tuple) else total[0]


def integrated_gradients(f, x, x0, rule="gauss_legendre", n=50, target=None):
    mean = path_mean(f, x, x0, *quadrature(rule, n), target)
    parts = zip(as_tuple(x), as_tuple(x0), as_tuple(mean), strict=True)
    result = tuple((t - b) * g for t, b, g in parts)
    return result if isinstance(x, tuple) else result[0]


def values(f, x, target=None):
    with torch.no_grad():
        return torch.stack([pick(f(*row(x, i)), target, i) for i in range(len(as_tuple(x)[0]))])


# ---------------------------------------------------------------------------------------------
# layers: plain hooks on a deep copy


def layer_value(model, layer, x, at="output"):
    """What the layer returns (or receives, for layers with one argument), with its graph."""
    model, seen = copy.deepcopy(model), []
    module = model.get_submodule(layer)
    if at == "input":
        module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    else:
        module.register_forward_hook(lambda m, args, out: seen.append(out))
    model(*as_tuple(x))
    return seen[0]


def model_behind(model, layer, x, at="output"):
    """The function a -> model(x) with the layer's value overwritten by a."""

    def behind(a):
        planted = copy.deepcopy(model)
        module = planted.get_submodule(layer)
        if at == "input":
            module.register_forward_pre_hook(lambda m, args: (a,))
        else:
            module.register_forward_hook(lambda m, args, out: a)
        return planted(*as_tuple(x))

    return behind


def layer_gradients(model, layer, x, activation=None, target=None, at="output"):
    """df/da at the layer's value for x, or at ``activation``, example by example."""
    found = []
    for i in range(len(as_tuple(x)[0])):
        one = row(x, i)
        a = layer_value(model, layer, one, at) if activation is None else activation[i : i + 1]
        a = a.detach().clone().requires_grad_()
        out = pick(model_behind(model, layer, one, at)(a), target, i)
        found.append(torch.autograd.grad(out, a)[0])
    return torch.cat(found)


def layer_integrated_gradients(
    model, layer, x, x0, rule="gauss_legendre", n=50, target=None, at="output"
):
    """The path leads from the layer's value at x0 to that at x, the other inputs being x."""
    with torch.no_grad():
        end, start = (layer_value(model, layer, z, at) for z in (x, x0))
    total = torch.zeros_like(end)
    for a, w in zip(*quadrature(rule, n), strict=True):
        point = start + float(a) * (end - start)
        total += float(w) * layer_gradients(model, layer, x, point, target, at)
    return (end - start) * total


def path_points(x, x0, nodes):
    for a in nodes:
        yield tuple(b + float(a) * (t - b) for t, b in zip(as_tuple(x), as_tuple(x0), strict=True))


def internal_influence(model, layer, x, x0, rule="gauss_legendre", n=50, target=None, at="output"):
    nodes, weights = quadrature(rule, n)
    return sum(
        float(w) * layer_gradients(model, layer, point, None, target, at)
        for w, point in zip(weights, path_points(x, x0, nodes), strict=True)
    )


def layer_conductance(model, layer, x, x0, rule="gauss_legendre", n=50, target=None, at="output"):
    """integral of df/da times (Jacobian of the head) (x - x0), with the Jacobian written out."""
    nodes, weights = quadrature(rule, n)
    total = 0
    for w, point in zip(weights, path_points(x, x0, nodes), strict=True):
        flows = []
        for i in range(len(point[0])):
            jacobians = torch.autograd.functional.jacobian(
                lambda *z: layer_value(model, layer, z, at), row(point, i)
            )
            moved = 0
            for jacobian, t, b in zip(jacobians, row(x, i), row(x0, i), strict=True):
                moved = moved + torch.tensordot(jacobian, t - b, dims=t.ndim)
            flows.append(moved)
        grads = layer_gradients(model, layer, point, None, target, at)
        total = total + float(w) * grads * torch.cat(flows)
    return total


def layer_conductance_by_differences(model, layer, x, x0, n, target=None, at="output"):
    """sum_k df/da(x_(k + 1/2)) (a(x_(k+1)) - a(x_k)): no derivative of the head at all."""
    total = 0
    with torch.no_grad():
        knots = [
            layer_value(model, layer, point, at)
            for point in path_points(x, x0, np.arange(n + 1) / n)
        ]
    for k, middle in enumerate(path_points(x, x0, (np.arange(n) + 0.5) / n)):
        grads = layer_gradients(model, layer, middle, None, target, at)
        total = total + grads * (knots[k + 1] - knots[k])
    return total


def neuron_conductance(model, layer, neuron, x, x0, rule="gauss_legendre", n=50, target=None):
    """(x - x0) times the integral of df/dn dn/dx, summed over the neurons that ``neuron`` picks."""
    nodes, weights = quadrature(rule, n)
    total = [torch.zeros_like(t) for t in as_tuple(x)]
    for w, point in zip(weights, path_points(x, x0, nodes), strict=True):
        grads = layer_gradients(model, layer, point, None, target)
        for i in range(len(point[0])):
            z = [t.detach().clone().requires_grad_() for t in row(point, i)]
            a = layer_value(model, layer, tuple(z))
            chosen = torch.zeros_like(a[0])
            chosen[neuron] = 1
            through = torch.autograd.grad((a[0] * grads[i] * chosen).sum(), z)
            for s, g in zip(total, through, strict=True):
                s[i] += float(w) * g[0]
    parts = zip(as_tuple(x), as_tuple(x0), total, strict=True)
    result = tuple((t - b) * s for t, b, s in parts)
    return result if isinstance(x, tuple) else result[0]


# ---------------------------------------------------------------------------------------------
# models


def seeded(make, seed=0, dtype=torch.float64):
    """The module that ``make()`` builds with parameters drawn from a seed, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        model = make().to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            scale = 0.5 if p.ndim < 2 else 1 / math.sqrt(p[0].numel())
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=dtype))
    return model


class Square(nn.Module):
    def forward(self, x):
        return x**2


class Cnn(nn.Module):
    """Images (B, 2, 8, 8) to (B, 5)."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.act1 = activation()
        self.pool = nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(4, 6, (2, 1))
        self.act2 = activation()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(72, 5)

    def forward(self, x):
        x = self.pool(self.act1(self.conv1(x)))
        return self.fc(self.flat(self.act2(self.conv2(x))))


class TwoInputs(nn.Module):
    """(B, 3) and (B, 2, 2) to (B, 4); the inputs meet in a product."""

    def __init__(self, activation=nn.Tanh):
        super().__init__()
        self.left = nn.Linear(3, 6)
        self.right = nn.Linear(4, 6)
        self.act = activation()
        self.out = nn.Linear(6, 4)

    def forward(self, x, y):
        return self.out(self.act(self.meet(self.left(x), self.right(y.flatten(1)))))

    @staticmethod
    def meet(left, right):
        return left * 0.5 + left * right


class Attention(nn.Module):
    """Token ids (B, T) to (B, 3): two embeddings, self-attention, LayerNorm, mean over tokens."""

    def __init__(self, vocabulary=11, length=5, width=8):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 3)

    def forward(self, ids, places, mask=None):
        x = self.words(ids) + self.places(places)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / math.sqrt(x.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], float("-inf"))
        x = self.norm(x + scores.softmax(-1) @ self.value(x))
        return self.out(x.mean(1))
