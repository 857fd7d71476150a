"""Operations that have backward kernels of their own, and layouts of the gradients they receive."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import randn


class Case(NamedTuple):
    """An operation, its parameters, and the shape of a row."""

    f: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    row: tuple[int, ...]


C, WIDTH = 4, 5
ROWS = {"0d": (C,), "1d": (C, WIDTH), "2d": (C, 3, WIDTH), "3d": (C, 3, 3, 4)}
MEAN, VAR = randn(C, seed=1), randn(C, seed=2).square() + 0.5
SCALE, SHIFT = randn(C, seed=3), randn(C, seed=4)
SEQUENCE = (3, 4)  # positions, features


def _in_module(module: nn.Module, run: Callable[..., Tensor], row: tuple[int, ...]) -> Case:
    names = [name for name, _ in module.named_parameters()]
    values = tuple(randn(*p.shape, seed=i) for i, p in enumerate(module.parameters()))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            return run(self.inner, x)

    wrapped = Wrapped().eval()

    def f(x: Tensor, *parameters: Tensor) -> Tensor:
        named = {f"inner.{k}": v for k, v in zip(names, parameters, strict=True)}
        return torch.func.functional_call(wrapped, named, (x,))

    return Case(f, values, row)


def _norms() -> Iterator[tuple[str, Case]]:
    for d, row in ROWS.items():

        def evaluated(x: Tensor, *wb: Tensor) -> Tensor:
            return F.batch_norm(x, MEAN.to(x), VAR.to(x), *wb)

        yield f"batch_norm {d}", Case(evaluated, (SCALE, SHIFT), row)
        yield f"batch_norm without parameters {d}", Case(evaluated, (), row)
        yield f"group_norm {d}", Case(lambda x, *p: F.group_norm(x, 2, *p), (SCALE, SHIFT), row)
        yield f"prelu {d}", Case(F.prelu, (SCALE,), row)
        if d == "0d":
            continue

        def instance(x: Tensor, *wb: Tensor) -> Tensor:
            return F.instance_norm(x, None, None, *wb)

        def running(x: Tensor, *wb: Tensor) -> Tensor:
            return F.instance_norm(x, MEAN.to(x), VAR.to(x), *wb, use_input_stats=False)

        yield f"instance_norm {d}", Case(instance, (SCALE, SHIFT), row)
        yield f"instance_norm without parameters {d}", Case(instance, (), row)
        yield f"instance_norm of running statistics {d}", Case(running, (SCALE, SHIFT), row)
        if d != "3d":  # torch refuses some layouts of it
            yield f"local_response_norm {d}", Case(lambda x: F.local_response_norm(x, 2), (), row)
    two = ROWS["2d"]
    last = (randn(WIDTH, seed=5), randn(WIDTH, seed=6))
    yield "layer_norm", Case(lambda x, *p: F.layer_norm(x, (WIDTH,), *p), last, two)
    if hasattr(F, "rms_norm"):
        yield "rms_norm", Case(lambda x, *p: F.rms_norm(x, (WIDTH,), *p), last[:1], two)
    yield "normalize", Case(lambda x: F.normalize(x, dim=1), (), two)


def _local() -> Iterator[tuple[str, Case]]:
    for d in (1, 2, 3):
        row = ROWS[f"{d}d"]
        conv = getattr(F, f"conv{d}d")
        transposed = getattr(F, f"conv_transpose{d}d")
        for groups in (1, 2, 4):
            weights = randn(C, C // groups, *[3] * d, seed=7)

            def spread(x: Tensor, w: Tensor, b: Tensor, f=conv, groups=groups) -> Tensor:
                return f(x, w, b, padding=1, groups=groups)

            def strided(x: Tensor, w: Tensor, f=conv, groups=groups) -> Tensor:
                return f(x, w, padding=2, stride=2, dilation=2, groups=groups)

            def back(x: Tensor, w: Tensor, b: Tensor, f=transposed, groups=groups) -> Tensor:
                return f(x, w, b, groups=groups)

            yield f"conv{d}d of {groups} groups", Case(spread, (weights, SHIFT), row)
            yield f"strided conv{d}d of {groups} groups", Case(strided, (weights,), row)
            yield (
                f"conv_transpose{d}d of {groups} groups",
                Case(back, (weights, randn(C, seed=8)[: weights.shape[1] * groups]), row),
            )
        for kind in ("max", "avg"):
            pool = getattr(F, f"{kind}_pool{d}d")
            adaptive = getattr(F, f"adaptive_{kind}_pool{d}d")
            yield f"{kind}_pool{d}d", Case(lambda x, f=pool: f(x, 3, 2, padding=1), (), row)
            yield f"adaptive_{kind}_pool{d}d", Case(lambda x, f=adaptive: f(x, 2), (), row)
        for mode in ("reflect", "replicate", "circular", "constant"):

            def pad(x: Tensor, mode=mode, sides=(1, 1) * d) -> Tensor:
                return F.pad(x, sides, mode=mode)

            yield f"pad {mode} {d}d", Case(pad, (), row)
    for mode, d in {"nearest": 2, "bilinear": 2, "bicubic": 2, "linear": 1, "trilinear": 3}.items():

        def resize(x: Tensor, mode=mode) -> Tensor:
            return F.interpolate(x, scale_factor=2, mode=mode)

        yield f"interpolate {mode}", Case(resize, (), ROWS[f"{d}d"])
    two = ROWS["2d"]
    grid = randn(1, 3, 3, 2, seed=9).tanh()

    def sampled(x: Tensor) -> Tensor:
        return F.grid_sample(x, grid.to(x).expand(x.shape[0], -1, -1, -1), align_corners=False)

    yield "grid_sample", Case(sampled, (), two)
    yield "pixel_shuffle", Case(lambda x: F.pixel_shuffle(x, 2), (), two)
    yield "unfold", Case(lambda x: F.unfold(x, 2, padding=1), (), two)
    yield "fold", Case(lambda x: F.fold(x, (3, 3), 2), (), (8, 4))


def _sequences() -> Iterator[tuple[str, Case]]:
    def attention(x: Tensor, **options: bool) -> Tensor:
        return F.scaled_dot_product_attention(x, x * 2, x + 1, **options)

    heads = (2, 5, 4)
    yield "attention", Case(attention, (), heads)
    yield "causal attention", Case(lambda x: attention(x, is_causal=True), (), heads)
    width = SEQUENCE[1]
    mha = nn.MultiheadAttention(width, 2, batch_first=True)
    encoder = nn.TransformerEncoderLayer(width, 2, 8, batch_first=True)
    yield "MultiheadAttention", _in_module(mha, lambda m, x: m(x, x, x)[0], SEQUENCE)
    yield "TransformerEncoderLayer", _in_module(encoder, lambda m, x: m(x), SEQUENCE)
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        recurrent = kind(width, 3, batch_first=True)
        yield kind.__name__, _in_module(recurrent, lambda m, x: m(x)[0], SEQUENCE)
    table = torch.tensor([[0, 1, 1], [2, 0, 1]])
    yield (
        "embedding",
        Case(lambda x: torch.stack([F.embedding(table, t) for t in x.unbind(0)]), (), SEQUENCE),
    )
    yield (
        "embedding_bag",
        Case(lambda x: torch.stack([F.embedding_bag(table, t) for t in x.unbind(0)]), (), SEQUENCE),
    )
    yield "linear", Case(F.linear, (randn(3, WIDTH, seed=10), randn(3, seed=11)), ROWS["2d"])


def _others() -> Iterator[tuple[str, Case]]:
    two = ROWS["2d"]
    for name in ("cumsum", "logcumsumexp", "cumprod", "softmax", "log_softmax"):
        yield name, Case(lambda x, name=name: getattr(torch, name)(x, 2), (), two)
    for name in (
        "gelu",
        "silu",
        "mish",
        "elu",
        "leaky_relu",
        "hardswish",
        "softplus",
        "logsigmoid",
    ):
        yield name, Case(getattr(F, name), (), two)
    yield "glu", Case(lambda x: F.glu(x, 1), (), two)
    for name in ("amax", "logsumexp", "var", "prod", "norm"):
        yield name, Case(lambda x, name=name: getattr(torch, name)(x, dim=2), (), two)
    yield "sort", Case(lambda x: x.sort(2)[0], (), two)
    yield "topk", Case(lambda x: x.topk(2, 2)[0], (), two)
    yield "cummax", Case(lambda x: x.cummax(2)[0], (), two)
    yield "index_select", Case(lambda x: x[:, :, [0, 1, 1]], (), two)
    yield "einsum", Case(lambda x: torch.einsum("bchw,bdhw->bcdh", x, x), (), two)
    yield "bmm", Case(lambda x: torch.bmm(x, x.transpose(1, 2)), (), (C, WIDTH))
    yield "cdist", Case(lambda x: torch.cdist(x, x * 2 + 1), (), (C, WIDTH))
    yield "roll", Case(lambda x: x.roll(1, 2), (), two)


OPERATIONS: dict[str, Case] = {
    name: case for group in (_norms, _local, _sequences, _others) for name, case in group()
}


def orders(n: int) -> list[tuple[int, ...]]:
    """All orders of n dimensions."""
    return list(itertools.permutations(range(n)))


def stored(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values, stored with the dimensions in this order."""
    return x.permute(order).contiguous().permute([order.index(d) for d in range(x.ndim)])


def received(y: Tensor, layout: tuple[int, ...] | str) -> Tensor:
    """A sum per row, whose gradient reaches y in a layout: an order, "expanded" or "sliced"."""
    if layout == "expanded":
        return y.flatten(1).sum(1)
    weights = randn(1, *y.shape[1:], seed=12).to(y.dtype)
    if layout == "sliced":
        y = torch.cat([y, torch.zeros_like(y)], -1)
        return (y * torch.cat([weights, weights], -1)).flatten(1).sum(1)
    weights = weights.expand(y.shape).permute(layout).contiguous()
    weighted = y.permute(layout).contiguous() * weights
    return weighted.permute([layout.index(d) for d in range(y.ndim)]).flatten(1).sum(1)
