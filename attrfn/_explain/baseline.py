"""Baselines: where a feature counts as absent."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any, NoReturn

import optree
import torch
from torch import Tensor

from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import refuse_unusual
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, Leaves, Tree


def fill_baselines(
    baselines: Baselines, inputs: Tree, x: Leaves, name: str = "baselines"
) -> Leaves:
    """One baseline per leaf, of the leaf's shape and dtype.

    Args:
        baselines: ``None`` (zeros), a scalar, a tensor that broadcasts to the input, or a prefix
            of the inputs' tree with those as leaves.
        inputs: The inputs' tree.
        x: Its leaves.
        name: The argument's name for messages.
    """
    return tuple(
        _fill(b, t, name) for b, t in zip(per_leaf(baselines, inputs, x, name), x, strict=True)
    )


def baseline_distribution(baselines: Baselines, inputs: Tree, x: Leaves) -> Leaves:
    """Per leaf K baselines of one example's shape, (K, ...), or K for each example, (K, B, ...).

    Args:
        baselines: A tensor of such a shape or a prefix tree of those, with one K.
        inputs: The inputs' tree.
        x: Its leaves.
    """
    pools = []
    for b, t in zip(per_leaf(baselines, inputs, x, "baselines"), x, strict=True):
        _refuse_complex(b, t, "baselines")
        if isinstance(b, Tensor):
            refuse_unusual(b, "baselines")
        if not isinstance(b, Tensor) or b.ndim == 0:
            raise TypeError(
                f"baselines has {_say(b)} for inputs of shape {tuple(t.shape)}, expected a "
                f"tensor (K, {', '.join(map(str, t.shape[1:]))}) of K baselines: one zero baseline "
                "is torch.zeros_like(x[:1])"
            )
        of_each_example = b.ndim == t.ndim + 1
        shape = (b.shape[0], *(t.shape if of_each_example else t.shape[1:]))
        if b.shape[0] == 0 or not broadcasts(b, shape) or b.ndim != len(shape):
            raise ValueError(
                f"baselines has shape {tuple(b.shape)} for inputs of shape {tuple(t.shape)}, "
                f"expected (K, {', '.join(map(str, t.shape[1:]))}) with K baselines, K > 0"
            )
        pools.append(b.to(t).expand(shape))
    # Baseline k of a model with several inputs is one point: row k of each tensor.
    counts = {b.shape[0] for b in pools}
    if len(counts) > 1:
        raise ValueError(
            f"baselines has {sorted(counts)} baselines in its tensors, expected the same number in "
            "all, because they are drawn together"
        )
    return tuple(pools)


def per_leaf(baselines: Baselines, inputs: Tree, x: Leaves, name: str) -> list[Any]:
    """The prefix tree with one entry per leaf of the inputs."""
    if baselines is None or isinstance(baselines, (Tensor, Number)):
        return [baselines] * len(x)
    try:
        return prefix_entries(baselines, inputs)
    except (ValueError, TypeError):
        raise ValueError(
            f"{name} is a tree unlike the inputs, expected {_form(inputs)} or a "
            f"prefix of it and not {_form(baselines)}"
        ) from None


def prefix_entries(
    prefix: Tree, inputs: Tree, is_leaf: Callable[[Any], bool] | None = None
) -> list[Any]:
    """One entry of a prefix tree for each tensor of the inputs.

    Raises:
        ValueError: The tree is not a prefix of the inputs' tree (optree's error).
        TypeError: As ValueError.
    """
    # None in the inputs stands for nothing, None in the prefix for a default: optree has to take
    # both for leaves, and the entries of what is not there are dropped afterwards.
    entries = optree.broadcast_prefix(prefix, inputs, is_leaf=is_leaf, none_is_leaf=True)
    tensors = optree.tree_leaves(inputs, none_is_leaf=True)
    return [e for e, t in zip(entries, tensors, strict=True) if t is not None]


def per_example(pool: Tensor, like: Tensor) -> Tensor:
    """A pool (K, ...) or (K, B, ...) as (K, B, ...)."""
    pool = pool if pool.ndim > like.ndim else pool[:, None]
    return pool.expand(pool.shape[0], *like.shape)


def _fill(b: Any, t: Tensor, name: str) -> Tensor:
    if b is None:
        return torch.zeros_like(t)
    _refuse_complex(b, t, name)
    # A cast to the inputs' integers would not fail: it cuts off fractions and wraps around.
    real = t.is_floating_point() or t.is_complex()
    if not real and is_fraction(b):
        raise TypeError(
            f"{name} has {_say(b)} of floating point for inputs of {t.dtype}, expected integers, "
            "such as the id of a padding token"
        )
    if not real and isinstance(b, (int, float, Tensor)):
        _check_range(b, t, name)
    if isinstance(b, Tensor):
        refuse_unusual(b, name)
        if not broadcasts(b, t.shape):
            _refuse_shape(b, t, name)
        return b.to(t).expand(t.shape)
    if isinstance(b, Number):
        if isinstance(b, complex):
            return torch.full_like(t, b)
        # torch takes neither fractions nor decimals, nor ints beyond 64 bits.
        return torch.full_like(t, b if isinstance(b, (int, float)) and _fits(b) else float(b))  # type: ignore[arg-type]
    raise TypeError(
        f"{name} has {_say(b)} for inputs of shape {tuple(t.shape)}, expected None (zeros), a "
        "number or a tensor"
    )


def _refuse_complex(b: Any, t: Tensor, name: str) -> None:
    """Refuse complex numbers for a real input, whose imaginary part a cast would drop."""
    if t.is_complex() or not (b.is_complex() if isinstance(b, Tensor) else isinstance(b, complex)):
        return
    raise TypeError(
        f"{name} has complex numbers for an input of {t.dtype} and shape {tuple(t.shape)}, "
        "expected real ones, such as torch.view_as_real of them where the input is that of x"
    )


def _refuse_shape(b: Tensor, t: Tensor, name: str) -> NoReturn:
    """Refuse what does not broadcast, with the way out for a background of many baselines."""
    start = f"{name} has shape {tuple(b.shape)} for inputs of shape {tuple(t.shape)}, expected "
    rows = b.ndim == t.ndim and broadcasts(b[:1], t.shape)
    if not rows and not (b.ndim == t.ndim + 1 and broadcasts(b[0:1].squeeze(0), t.shape)):
        raise ValueError(start + "a shape that broadcasts to the input's")
    one = "b[None]" if rows else "b"
    raise ValueError(
        f"{start}1 row, or {t.shape[0]} (one for each example): average over several baselines "
        f"with torch.stack([method(model, x, {name}={one}) for b in {name}]).mean(0)"
    )


def _fits(b: float) -> bool:
    return type(b) is not int or -(2**63) <= b < 2**63


def is_fraction(b: Any) -> bool:
    """Whether a baseline would lose something as an integer."""
    if isinstance(b, Tensor):
        return b.is_floating_point()
    if isinstance(b, complex) or not isinstance(b, Number):
        return False
    return not isinstance(b, int) and not float(b).is_integer()  # type: ignore[arg-type]


def _check_range(b: float | Tensor, t: Tensor, name: str) -> None:
    """Refuse a baseline that the inputs' type of integers cannot hold."""
    # Values cannot be read inside a transform; there the cast decides.
    if isinstance(b, Tensor) and (not b.numel() or transforming()):
        return
    info = None if t.dtype == torch.bool else torch.iinfo(t.dtype)
    low, high = (0, 1) if info is None else (info.min, info.max)
    least, most = (int(b.min()), int(b.max())) if isinstance(b, Tensor) else (b, b)
    if least < low or most > high:
        raise ValueError(
            f"{name} has {least if least < low else most} for inputs of {t.dtype}, expected "
            f"{low} to {high}, which that type can hold"
        )


def broadcasts(b: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor broadcasts to exactly this shape."""
    given = tuple(b.shape)
    return len(given) <= len(shape) and all(
        a in (1, s) for a, s in zip(reversed(given), reversed(shape), strict=False)
    )


def _form(tree: Tree) -> str:
    """The form of a tree, with a * for each leaf, shortened."""
    text = str(optree.tree_structure(tree, none_is_leaf=True))
    text = text.removeprefix("PyTreeSpec(").removesuffix(")").split(", NoneIsLeaf")[0]
    return text if len(text) <= 60 else f"{text[:57]}..."


def _say(value: Any) -> str:
    plain = isinstance(value, (int, float, str, type(None)))
    return say(value) if plain else f"a {type(value).__name__}"
