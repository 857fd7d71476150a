"""Comparisons of trees, and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from zoo import randn


def assert_close(got: Any, expected: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Two trees of one structure with tensors of one shape and dtype and nearly equal values."""
    assert optree.tree_structure(got) == optree.tree_structure(expected)
    leaves = zip(optree.tree_leaves(got), optree.tree_leaves(expected), strict=True)
    for a, b in leaves:
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def sees_indexing() -> bool:
    """Whether modes see ``x[0]``, which they do not in old versions of torch."""

    class Seen(TorchFunctionMode):
        found = False

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.found |= func is Tensor.__getitem__
            return func(*args, **(kwargs or {}))

    with Seen() as seen:
        torch.ones(2)[0]
    return seen.found


takes_apart = pytest.mark.skipif(
    not sees_indexing(),
    reason="this torch hides x[0] from modes, and its attention of several inputs does that",
)


def multiplied(dtypes: Sequence[torch.dtype]) -> pytest.MarkDecorator:
    """Parametrise by types; those of which this torch has no products on the CPU are skipped."""

    def missing(dtype: torch.dtype) -> bool:  # float16's came after 2.0
        try:
            torch.ones(2, 2, dtype=dtype) @ torch.ones(2, dtype=dtype)
        except RuntimeError:
            return True
        return False

    skip = pytest.mark.skipif
    cases = [pytest.param(d, marks=skip(missing(d), reason=f"no products of {d}")) for d in dtypes]
    return pytest.mark.parametrize("dtype", cases)


def assert_informative(tree: Any) -> None:
    """No leaf is all zero or not finite, so that a comparison with it says something."""
    leaves = optree.tree_leaves(tree)
    assert leaves
    for leaf in leaves:
        assert torch.isfinite(leaf).all()
        assert (leaf != 0).any()


def in_threads(run: Callable[[Any], Any], inputs: Sequence[Any], times: int = 1) -> list[Any]:
    """What the last of some calls returns for each input, with a thread for each of them."""

    def work(one: Any) -> Any:
        return [run(one) for _ in range(times)][-1]

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(work, inputs))


def noise_like(tree: Any, seed: int = 9) -> Any:
    """Fixed normal numbers in the form of a tree of tensors."""
    leaves, spec = optree.tree_flatten(tree)
    return optree.tree_unflatten(
        spec, [randn(*t.shape, seed=seed + i, dtype=t.dtype) for i, t in enumerate(leaves)]
    )


def step(tree: Any, direction: Any, size: float) -> Any:
    """``tree + size * direction``, detached."""
    return optree.tree_map(lambda t, d: (t + size * d).detach(), tree, direction)


def inner(a: Any, b: Any) -> Tensor:
    """The inner product of two trees."""
    products = optree.tree_map(lambda s, t: (s * t).sum(), a, b)
    return torch.stack(optree.tree_leaves(products)).sum()


def finite_difference(f: Callable[[Any], Any], at: Any, direction: Any, size: float = 1e-5) -> Any:
    """(f(at + h d) - f(at - h d)) / 2 h, a tree like f(at); off by order h^2."""
    above, below = f(step(at, direction, size)), f(step(at, direction, -size))
    return optree.tree_map(lambda a, b: ((a - b) / (2 * size)).detach(), above, below)


def fine_difference(f: Callable[[Any], Any], at: Any, direction: Any, size: float = 1e-6) -> Any:
    """Richardson's extrapolation of two central differences, off by order h^4."""
    one, two = (finite_difference(f, at, direction, n * size) for n in (1, 2))
    return optree.tree_map(lambda a, b: (4 * a - b) / 3, one, two)


def take(tree: Any, index: Any, dim: int = 0) -> Any:
    """Rows of every leaf."""
    return optree.tree_map(lambda t: t[(slice(None),) * dim + (index,)], tree)
