"""The points that an attack may reach: a ball around each example, a box, and a mask."""

from __future__ import annotations

import functools
import math
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._explain.baseline import broadcasts, fill_baselines, per_leaf
from attrfn._explain.explain import Explained, explain
from attrfn._explain.tree import batch_size, each, flatten
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import called, refuse_unusual
from attrfn._torch.say import say
from attrfn._torch.typing import Leaves, ModelFn, Target, Tree
from attrfn.robust._objective import Objective, as_target

Amount = float | Tensor


class Attacked(NamedTuple):
    """A model function, what an attack on it raises, and where the attack may go.

    Attributes:
        p: The model function and its inputs, with the objective as its target.
        sign: Of the objective, -1 where the attack lowers it.
        masks: Per leaf the elements that may change; None for all.
        low: The least values per leaf, or None.
        high: The greatest values.
    """

    p: Explained
    sign: int
    masks: tuple[Tensor | None, ...]
    low: Leaves | None
    high: Leaves | None

    def losses(self, points: Leaves) -> Tensor:
        """What the attack raises at S copies of the batch, (S, B)."""
        copies, p = points[0].shape[0], self.p
        rows = tuple([t.reshape(copies * p.batch, *t.shape[2:]) for t in points])
        with torch.set_grad_enabled(transforming() and torch.is_grad_enabled()):
            values = p.values(rows, copies)
        return self._known(values.reshape(copies, p.batch))

    def gradients(self, points: Leaves) -> tuple[Tensor, Leaves]:
        """What the attack raises at S copies of the batch, (S, B), and its gradients.

        Both are in types to sum in; gradients are 0 where nothing may change.
        """
        values, grads = self.p._replace(create_graph=False).gradients(points)
        grads = each(lambda g: self._raised(g.to(wide(g.dtype))), grads)
        return self._known(values), self.only(grads)

    def only(self, new: Leaves, old: Leaves | None = None) -> Leaves:
        """The new values where elements may change, the old ones, or 0, elsewhere."""
        if all(m is None for m in self.masks):
            return new
        old = each(torch.zeros_like, new) if old is None else old
        pairs = zip(self.masks, new, old, strict=True)
        return tuple([n if m is None else torch.where(m, n, o) for m, n, o in pairs])

    def allowed(self, points: Leaves) -> Leaves:
        """The points in the box and in the dtypes of the inputs; what may not change is x."""
        if self.low is not None and self.high is not None:
            points = each(torch.clamp, points, self.low, self.high)
        elif self.low is not None:
            points = each(torch.maximum, points, self.low)
        elif self.high is not None:
            points = each(torch.minimum, points, self.high)
        return self.only(each(lambda z, t: z.to(t.dtype), points, self.p.x), self.p.x)

    def within(self, radius: Amount) -> Attacked:
        """The same attack, whose box ends at the radius around each element of x."""
        x = tuple([t[None].to(wide(t.dtype)) for t in self.p.x])
        sizes = each(lambda t: times(radius, torch.ones_like(t)), x)
        low, high = each(torch.sub, x, sizes), each(torch.add, x, sizes)
        return self._replace(
            low=low if self.low is None else each(torch.maximum, low, self.low),
            high=high if self.high is None else each(torch.minimum, high, self.high),
        )

    def result(self, leaves: Leaves) -> Tree:
        """The inputs' tree, without a graph unless one is wanted."""
        keeps = self.p.create_graph or transforming()
        return self.p.rebuild(leaves if keeps else [t.detach() for t in leaves])

    def _raised(self, t: Tensor) -> Tensor:
        return t if self.sign > 0 else -t

    def _known(self, values: Tensor) -> Tensor:
        # A value that is not a number is never the best one.
        values = self._raised(values.to(wide(values.dtype)))
        return values.masked_fill(values.isnan(), -torch.inf)


def attacked(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target,
    objective: Objective,
    targeted: bool,
    bounds: tuple[Tree, Tree] | None,
    mask: Tree,
    create_graph: bool = False,
) -> Attacked:
    """Check what attacks by gradients have in common."""
    batch = batch_size(flatten(inputs)[0])
    chosen, name, sign = as_target(objective, target, batch)
    p = explain(model_fn, inputs, chosen, create_graph=create_graph, name=name)
    masks = tuple(
        [_mask(m, t) for m, t in zip(per_leaf(mask, inputs, p.x, "mask"), p.x, strict=True)]
    )
    low, high = _box(bounds, inputs, p.x)
    found = Attacked(p, -sign if targeted else sign, masks, low, high)
    _check_inside(found)
    return found


def _mask(m: Any, x: Tensor) -> Tensor | None:
    if m is None:
        return None
    m = called("mask", torch.as_tensor, m)
    refuse_unusual(m, "mask")
    m = m.to(x.device)
    may_change: Tensor = m != 0
    if not broadcasts(m, x.shape):
        raise ValueError(
            f"mask has shape {tuple(m.shape)} for an input of shape {tuple(x.shape)}, expected one "
            "that broadcasts to the input's"
        )
    if m.dtype != torch.bool and not transforming() and not bool(((m == 0) | (m == 1)).all()):
        raise ValueError(
            "mask has other values than 0 and 1, expected booleans: scale the strength of an "
            "attack by epsilon or radius"
        )
    return may_change


def _box(bounds: Any, inputs: Tree, x: Leaves) -> tuple[Leaves | None, Leaves | None]:
    if bounds is None:
        return None, None
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(
            f"bounds is {say(bounds)}, expected a pair (low, high) of numbers, tensors or None"
        )
    low, high = bounds
    return (
        None if low is None else _side(low, -math.inf, inputs, x),
        None if high is None else _side(high, math.inf, inputs, x),
    )


def _side(bound: Tree, nothing: float, inputs: Tree, x: Leaves) -> Leaves:
    """A bound per leaf, infinite where a tree has None."""
    entries = [nothing if b is None else b for b in per_leaf(bound, inputs, x, "bounds")]
    return fill_baselines(flatten(inputs)[1](entries), inputs, x, "bounds")


def _check_inside(a: Attacked) -> None:
    """Refuse inputs that the box does not hold: clipped to it, they could leave the ball."""
    if (a.low is None and a.high is None) or transforming():
        return
    for z, t in zip(a.allowed(a.p.x), a.p.x, strict=True):
        if bool(((z != t) & ~t.isnan()).any()):
            raise ValueError(
                f"inputs has values from {float(t.min()):g} to {float(t.max()):g}, some outside of "
                "bounds: give bounds in the units of the inputs, as after normalisation, or clamp "
                "the inputs first"
            )


def amount(name: str, value: Any, a: Attacked) -> Amount:
    """A number of at least 0, or one for each example, (B,).

    Raises:
        TypeError: It is neither.
        ValueError: It is negative or not finite, or a tensor of another shape.
    """
    most = min([torch.finfo(t.dtype).max for t in a.p.x])
    wrong = f"{name} is {say(value)}, expected finite numbers of at least 0"
    if isinstance(value, Tensor) and not (value.is_complex() or value.dtype == torch.bool):
        if tuple(value.shape) not in ((), (1,), (a.p.batch,)):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, expected () or ({a.p.batch},) with one "
                "number for each example"
            )
        if not transforming() and not bool(((value >= 0) & (value <= most)).all()):
            raise ValueError(wrong)
        # Without a graph unless one is wanted, as the inputs.
        return value if a.p.create_graph or transforming() else value.detach()
    if isinstance(value, (bool, Tensor)) or not isinstance(value, Real):
        raise TypeError(
            f"{name} is {say(value)}, expected a number or a tensor (B,) with one for each example"
        )
    number = float(value)
    if not 0 <= number <= most:
        raise ValueError(wrong)
    return number


def times(value: Amount, t: Tensor) -> Tensor:
    """``value * t`` for t (S, B, ...) and one value for all, or (B,)."""
    if not isinstance(value, Tensor):
        return value * t
    value = value.to(t)
    return (rows_of(value, t) if value.ndim else value) * t


def along(z: Leaves, size: Amount, signs: Leaves) -> Leaves:
    """``z + size * sign``, in one operation where the size is a number: the product is exact."""
    if isinstance(size, Tensor):
        return each(lambda t, s: t + times(size, s), z, signs)
    return each(lambda t, s: torch.add(t, s, alpha=size), z, signs)


def norms(leaves: Leaves) -> Tensor:
    """The l2 norm over all elements of all leaves of an example, (S, B, ...) each to (S, B)."""
    common = functools.reduce(torch.promote_types, [t.dtype for t in leaves])
    device = leaves[0].device
    flat = [t.to(device, common).reshape(*t.shape[:2], t.shape[2:].numel()) for t in leaves]
    # Divided by the largest element, so that squares of small gradients do not vanish.
    largest = _largest(flat[0])
    if len(flat) > 1:
        largest = torch.stack([_largest(t) for t in flat]).amax(0)
    size = torch.where(largest > 0, largest, 1)
    parts = [torch.linalg.vector_norm(t / size[..., None], dim=-1) for t in flat]
    whole = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), dim=0)
    found: Tensor = whole * largest
    return found


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(-1) if t.shape[-1] else t.new_zeros(t.shape[:-1])


def scaled_to(value: Amount, leaves: Leaves) -> Leaves:
    """``value * leaf / norm``, with one norm over all leaves; 0 where that is 0."""
    n = norms(leaves)
    n = torch.where(n > 0, n, 1)
    return each(lambda t: times(value, t / rows_of(n, t)), leaves)


def rows_of(values: Tensor, t: Tensor) -> Tensor:
    """Values (S, B), or (B,), in a form that broadcasts to t, (S, B, ...)."""
    return values.to(t.device).reshape(*values.shape, *[1] * (t.ndim - 2))
