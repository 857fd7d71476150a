"""DeepLIFT is complete on whole models: its attributions sum to f(x) - f(x0), to rounding.

Every model runs in float64 and float32, with both rules, from random baselines; in float64 also
with a graph, which takes another way through the library. A gap is measured in units of the
greatest change of the output in the batch. What is new in the list of elementwise operations is
tested by being there.
"""

from __future__ import annotations

import functools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from completeness import (
    CLASSES,
    RULES,
    Block,
    C,
    Pooled,
    ResNet,
    Sequence,
    check,
    fused,
    gap,
    statistics,
)
from oracles import randn, seeded
from torch import nn

import attrfn
from attrfn._rules import ops
from attrfn._rules.names import spellings

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
# functions

MASK = torch.tensor([True, False, True, True, False, False])


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
