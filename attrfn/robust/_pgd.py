"""Projected gradient descent: many steps, each back into the ball around the example."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import is_one_of, wide
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._copies.progress import steps
from attrfn._explain.forms import documented
from attrfn._explain.noise import count_of
from attrfn._explain.tree import each
from attrfn._random.keys import row_keys, sample_keys
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Key, Leaves, ModelFn, Target, Tree
from attrfn.robust._ball import (
    Amount,
    Attacked,
    along,
    amount,
    attacked,
    norms,
    rows_of,
    scaled_to,
    times,
)
from attrfn.robust._objective import Objective
from attrfn.robust._options import AttackOptions, RandomOptions

# The streams of a key, as in attrfn._explain.noise: changing one changes the numbers of every user.
_LENGTH, _DIRECTION = 0, 1


@documented(AttackOptions, RandomOptions, scores=None)
def pgd(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    radius: Amount,
    step_size: Amount | None = None,
    n_steps: int = 20,
    norm: Literal["linf", "l2"] = "linf",
    random_start: bool = True,
    n_restarts: int = 1,
    objective: Objective = "cross_entropy",
    targeted: bool = False,
    bounds: tuple[Tree, Tree] | None = None,
    mask: Tree = None,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> Tree:
    """Projected gradient descent: the best point of several walks that raise the objective L.

        linf:  z <- clip(project(z + step_size sign(g)), low, high),       g = mask dL/dz
        l2:    z <- clip(project(z + step_size g / ||g||), low, high)

    ``project`` goes to the nearest point of the ball of the radius around x. The l2 norm runs over
    all tensors of an example. Each example gets the best of all points on the way, x included: its
    objective never ends below where it began. The outputs are logits, not probabilities.

    Args:
        radius: That of the ball, a number of at least 0 or one for each example, (B,).
        step_size: The length of a step, in the form of the radius; ``None``: ``2.5 radius /
            n_steps``.
        n_steps: The number of steps of each walk.
        norm: ``"linf"`` or ``"l2"``, the norm of the ball.
        random_start: Start at a random point of the ball, and not at x.
        n_restarts: The number of walks. Without a random start all would be the same, and one is
            made.
        chunk_size: How many walks are made at once: ``"auto"`` (as many as fit into memory; inside
            a transform all), ``None`` (all) or a number.
        progress: Show a progress bar over the steps.

    Returns:
        Inputs of the same structure, shapes and dtypes.

    Example:
        >>> import torch
        >>> from attrfn import robust
        >>> w = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> x = torch.ones(1, 2)
        >>> robust.pgd(lambda x: x @ w.T, x, target=0, radius=0.5, bounds=(0, 1.1))
        tensor([[1.1000, 0.5000]])

    Reference:
        Madry, Makelov, Schmidt, Tsipras and Vladu, Towards Deep Learning Models Resistant to
        Adversarial Attacks, 2017. https://arxiv.org/abs/1706.06083
    """
    _check(norm, n_steps, n_restarts)
    a = attacked(
        model_fn,
        inputs,
        target=target,
        objective=objective,
        targeted=targeted,
        bounds=bounds,
        mask=mask,
    )
    radius = amount("radius", radius, a)
    size = 2.5 * radius / n_steps if step_size is None else amount("step_size", step_size, a)
    keys = row_keys(key, a.p.batch, a.p.x[0].device)
    # In l-inf the ball is a box, and so is its intersection with the bounds.
    a = a.within(radius) if norm == "linf" else a
    restarts = n_restarts if random_start else 1
    with steps(n_steps * restarts, "pgd", progress) as advance:
        walks = _Walks(a, norm, radius, size, n_steps, keys if random_start else None, advance)
        found = walks.best(restarts, Chunks(chunk_size, "fold", False, "pgd"))
    return a.result(tuple([t.clone() for t in found.z]))


def _check(norm: object, n_steps: int, n_restarts: int) -> None:
    if not is_one_of(norm, "linf", "l2"):
        raise ValueError(f"norm is {say(norm)}, expected 'linf' or 'l2'")
    count_of("n_steps", n_steps)
    count_of("n_restarts", n_restarts)


class _Walks(NamedTuple):
    """Walks that raise the objective.

    Attributes:
        a: The attacked function.
        norm: That of the ball.
        radius: That of the ball.
        size: The length of a step.
        n_steps: The number of steps.
        keys: Those of random starts; None to start at x.
        advance: Reports finished steps.
    """

    a: Attacked
    norm: str
    radius: Amount
    size: Amount
    n_steps: int
    keys: Tensor | None
    advance: Callable[[int], object]

    def best(self, n: int, chunks: Chunks) -> _Best:
        """The best point of n walks and x."""
        x = self.a.p.x
        found = over_chunks(self.walk, _better, n, chunks, x[0].device, x=x)
        if self.keys is None:
            return found
        return _better(_Best(self.a.losses(tuple([t[None] for t in x]))[0], x), found)

    def walk(self, i: slice) -> _Best:
        """The best points of some walks."""
        z = self.start(i)
        found: _Best | None = None
        for _ in range(self.n_steps):
            values, grads = self.a.gradients(z)
            found = _better(found, _Best(values, z))
            moved = _moved(self.norm, self.size, self.radius, z, grads, self.a.p.x)
            z = self.a.allowed(moved)
            self.advance(i.stop - i.start)
        found = _better(found, _Best(self.a.losses(z), z))
        return functools.reduce(_better, found.each())

    def start(self, i: slice) -> Leaves:
        """Where some walks start, (S, B, ...)."""
        if self.keys is None:
            return tuple([t[None] for t in self.a.p.x])
        return _start(self.a, self.norm, self.radius, self.keys, i)


class _Best(NamedTuple):
    """The best values so far, (S, B) or (B,), and where they are, (S, B, ...) or (B, ...)."""

    values: Tensor
    z: Leaves

    def each(self) -> list[_Best]:
        """Those of each walk."""
        walks = range(self.values.shape[0])
        return [_Best(self.values[s], tuple([t[s] for t in self.z])) for s in walks]


def _better(a: _Best | None, b: _Best) -> _Best:
    """The better of two for each example; the first where they are equal."""
    if a is None:
        return b
    wins = b.values > a.values

    def chosen(s: Tensor, t: Tensor) -> Tensor:
        rows = wins.to(s.device).reshape(*wins.shape, *[1] * (s.ndim - wins.ndim))
        return torch.where(rows, t, s)

    return _Best(torch.where(wins, b.values, a.values), each(chosen, a.z, b.z))


def _moved(norm: str, size: Amount, radius: Amount, z: Leaves, grads: Leaves, x: Leaves) -> Leaves:
    """A step along the gradient; in l2 back into the ball, whose box in l-inf is that of bounds."""
    if norm == "linf":
        return along(z, size, each(torch.sign, grads))
    return _project(radius, each(torch.add, z, scaled_to(size, grads)), x)


def _project(radius: Amount, z: Leaves, x: Leaves) -> Leaves:
    """The nearest points of the l2 ball around x."""
    moves = each(torch.sub, z, x)
    n = norms(moves)
    tiny = torch.finfo(n.dtype).tiny
    if isinstance(radius, Tensor):
        most = times(radius, torch.ones_like(n))
        shrink = most / torch.maximum(n, most).clamp(min=tiny)
    else:
        shrink = radius / n.clamp(min=max(radius, tiny))
    return each(lambda t, d: t + rows_of(shrink, d) * d, x, moves)


def _start(a: Attacked, norm: str, radius: Amount, keys: Tensor, i: slice) -> Leaves:
    """Random points of the ball, uniform in its volume, (S, B, ...)."""
    copies, x = i.stop - i.start, a.p.x
    draw = random.uniform if norm == "linf" else random.normal
    drawn = []
    for leaf, t in enumerate(x):
        u = draw(sample_keys(keys, i, _DIRECTION + leaf), t.shape[1:], dtype=wide(t.dtype))
        drawn.append((2 * u - 1 if norm == "linf" else u).expand(copies, *t.shape))
    moves = a.only(tuple(drawn))
    if norm == "linf":
        return a.allowed(each(lambda t, d: t + times(radius, d), x, moves))
    length = random.uniform(sample_keys(keys, i, _LENGTH), dtype=wide(x[0].dtype))
    length = length ** (1 / _free(a).clamp(min=1))
    moves = each(lambda d: rows_of(length, d) * d, scaled_to(radius, moves))
    return a.allowed(_project(radius, each(torch.add, x, moves), x))


def _free(a: Attacked) -> Tensor:
    """How many elements of each example may change, (B,) or (1,)."""
    counts = []
    for m, t in zip(a.masks, a.p.x, strict=True):
        n = t.shape[1:].numel()
        if m is None:
            counts.append(torch.full((1,), n, device=a.p.x[0].device))
        else:
            counts.append(m.expand(t.shape).reshape(t.shape[0], n).sum(1).to(a.p.x[0].device))
    return functools.reduce(torch.add, counts)
