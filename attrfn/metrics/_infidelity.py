"""Infidelity: how far attributions are from predicting what a perturbation does to the output."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import flat_rows
from attrfn._copies.chunks import at_once
from attrfn._explain.forms import form_of
from attrfn._explain.masked import Part, add_lists
from attrfn._explain.noise import Noise, count_of
from attrfn._explain.rows import like_rows
from attrfn._explain.tree import each, require_floating
from attrfn._random.keys import sample_keys
from attrfn._torch.precision import einsum
from attrfn._torch.typing import Key, Leaves, ModelFn, Tree, Unpack
from attrfn.metrics._checks import number
from attrfn.metrics._direction import better
from attrfn.metrics._options import ScoreOptions
from attrfn.metrics._scores import (
    Scored,
    allow_graph,
    flat,
    floating,
    order_keys,
    scored,
)

Lists = tuple[list[Tensor], ...]
Perturb = Callable[[Tree, Tensor], Tree]
Drawn = tuple[Leaves, Tensor]
"""Points (S, B, ...) in place of x, and what the attributions say about the way there, (S, B)."""

_STREAM = 0


@better("lower")
@form_of(scored)
def infidelity(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    perturb: Perturb | None = None,
    p: float = 0.5,
    stdevs: Tree = None,
    multiply_by_inputs: bool = True,
    n_samples: int = 10,
    normalize: bool = False,
    key: Key = 0,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Infidelity: the squared error of attributions as predictions of what perturbations do.

        E_I ( I . A - (f(x) - f(x - I)) )^2                  multiply_by_inputs=False
        E_I ( (I / (x - x0)) . A - (f(x) - f(x - I)) )^2     multiply_by_inputs=True

    Attributions that hold the factor x - x0 already, such as those of integrated gradients,
    input x gradient, DeepLIFT or Shapley values, need the second form, where by default
    I = z (x - x0) with z ~ Bernoulli(p) for each feature; an entry with x = x0 counts as 0.
    Gradients need the first form, where by default I = s n, n ~ N(0, 1), with s = ``stdevs``.

    Args:
        perturb: ``perturb(inputs, keys) -> I``, the perturbation of rows by their keys (R, 2), in
            place of the default; the model sees x - I. Rows are those of several copies of the
            batch.
        p: The probability that a feature is replaced by its baseline.
        stdevs: s, a number or a pytree prefix of the inputs; ``multiply_by_inputs=False`` needs it
            or ``perturb``.
        multiply_by_inputs: Whether the attributions hold the factor x - x0.
        n_samples: The number of perturbations.
        normalize: Multiply A by the number, one for each example, that makes the error least.

    Returns:
        One error per example, (B,), in squared units of the output.

    Example:
        >>> import torch, attrfn, attrfn.metrics
        >>> f = lambda x: 2 * x[:, 0] + 3 * x[:, 1]
        >>> x = torch.ones(1, 2)
        >>> attrfn.metrics.infidelity(f, x, attrfn.input_x_gradient(f, x))
        tensor([0.])

    Reference:
        Yeh et al., On the (In)fidelity and Sensitivity of Explanations, 2019.
        https://arxiv.org/abs/1901.09392
    """
    count_of("n_samples", n_samples)
    s = scored("infidelity", model_fn, inputs, attributions, **options)
    keys = order_keys(key, s.p)
    if perturb is not None:
        draw = _by_user(s, perturb, keys, multiply_by_inputs, n_samples)
    elif multiply_by_inputs:
        draw = _removed(s, p, keys, n_samples)
    else:
        draw = _noise(s, stdevs, inputs, key)

    def part(i: slice) -> Part[Lists]:
        points, predicted = draw(i)
        return points, lambda values: ([predicted], [s.p.full - values])

    found: Lists = s.p.collect(n_samples, part, add_lists)
    predicted, change = map(torch.cat, found)
    # Errors, and not their expanded square: that cancels in float32 and can be negative.
    if normalize:
        predicted = predicted * _best_factor(predicted, change)
    return s.number((predicted - change).square().mean(0))


def _best_factor(predicted: Tensor, change: Tensor) -> Tensor:
    """Beta = E[(I . A) df] / E[(I . A)^2], 0 where that is 0 / 0, (B,)."""
    size = predicted.square().mean(0)
    none = size == 0
    return ((predicted * change).mean(0) / size.masked_fill(none, 1)).masked_fill(none, 0)


def _removed(s: Scored, p: float, keys: Tensor, n: int) -> Callable[[slice], Drawn]:
    """I = z (x - x0), so that the quotient is z itself and nothing is divided."""
    number("p", p, lambda p: 0 < p <= 1, "a probability above 0 and at most 1")

    def choose(i: slice) -> Leaves:
        return (random.bernoulli(sample_keys(keys, i, _STREAM), p, (s.n,)),)

    chosen = at_once(choose, n, n * len(keys) * s.n)

    def draw(i: slice) -> Drawn:
        (z,) = chosen(i)
        points = s.p.mixed(s.parts.masks(~z))
        return points, _dot((z.to(s.scores.dtype),), (s.scores,))

    return draw


def _noise(s: Scored, stdevs: Tree, inputs: Tree, key: Key) -> Callable[[slice], Drawn]:
    if stdevs is None:
        raise ValueError(
            "stdevs is None, expected the size of the noise, a number or a tree like the inputs, "
            "for multiply_by_inputs=False without perturb"
        )
    require_floating(s.p.x)
    noise = Noise(key, stdevs, inputs, s.p.x)

    def draw(i: slice) -> Drawn:
        points = each(lambda n, x: n.to(x.dtype, copy=True), noise.inputs(i), s.p.x)
        # What the model sees is rounded; I is the difference to that.
        return points, _dot(each(lambda x, z: floating(x - z), s.p.x, points), s.leaves)

    return draw


def _by_user(
    s: Scored, perturb: Perturb, keys: Tensor, multiply_by_inputs: bool, n: int
) -> Callable[[slice], Drawn]:
    p = s.p
    away = each(lambda x, x0: floating(x) - floating(x0), p.x, p.x0)

    def perturbed(i: slice) -> Leaves:
        copies = i.stop - i.start
        rows = sample_keys(keys, i, _STREAM).expand(copies, p.batch, 2).reshape(-1, 2)
        x = flat_rows(tuple([t.expand(copies, *t.shape) for t in p.x]))
        with allow_graph(p):
            return like_rows(perturb(p.rebuild(x), rows), p.x, copies, "perturb")

    # The user's function is called once if there is little to do, so that it need not care about
    # chunks.
    moved = at_once(perturbed, n, n * sum(t.numel() for t in p.x))

    def draw(i: slice) -> Drawn:
        moves = moved(i)
        points = each(torch.sub, p.x, moves)
        moves = tuple(map(floating, moves))
        if multiply_by_inputs:
            moves = each(_quotient, moves, away)
        return points, _dot(moves, s.leaves)

    return draw


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """A / b, 0 where b is 0."""
    none = b == 0
    return (a / b.masked_fill(none, 1)).masked_fill(none, 0)


def _dot(moves: Leaves, attributions: Leaves) -> Tensor:
    """I . A over all leaves: (S, 1 or B, ...) and (B, ...) each to (S, B)."""
    found: list[Tensor] = []
    for m, a in zip(moves, attributions, strict=True):
        z, row = flat(m).to(a.dtype), flat(a[None])[0]
        if z.shape[1] == 1:
            found.append(einsum("sn,bn->sb", z[:, 0], row))
        else:
            found.append(einsum("sbn,bn->sb", z, row))
    return functools.reduce(torch.add, found)
