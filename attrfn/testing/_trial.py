"""A method on one model, as the checks see it, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from attrfn._torch.typing import Method, Tree
from attrfn.testing._draw import normal


class Failed(AssertionError):
    """A property that a method does not have."""


class Trial(NamedTuple):
    """A method, a model and what the method is given, which a check looks at.

    Attributes:
        method: The method.
        build: Makes the model, whose layer ``mid`` is run once or more; the same in each call.
        draw: Makes inputs of float64: ``draw(batch, seed)``.
        options: What the method is given for some inputs, besides the model and the inputs.
        takes: The options that it has, and that are not bound.
        batch: The number of examples.
        seed: Of the inputs and of other numbers.
        dim: The dimension of the examples in the result.
        of_rows: The options that have a row for each example, where they are tensors.
        like_inputs: Whether the result has the form of the inputs.
        by_leaf: Whether each tensor has its own draws, so that those of a tree differ.
        graph: Options with which ``backward`` reaches the inputs; None where there are none.
        informative: Whether results and derivatives must have numbers other than 0.
        tolerance: What counts as equal, relative to the largest value.
        least: What the largest value counts as at least.
        slopes: What counts as equal to finite differences.
        again: What counts as equal in a second call; None is the tolerance.
    """

    method: Method
    build: Callable[[], nn.Module]
    draw: Callable[[int, int], Tensor]
    options: Callable[[Tensor], dict[str, Any]]
    takes: frozenset[str] = frozenset()
    batch: int = 3
    seed: int = 0
    dim: int = 0
    of_rows: frozenset[str] = frozenset(["target", "baselines", "key"])
    like_inputs: bool = True
    by_leaf: bool = False
    graph: dict[str, Any] | None = None
    informative: bool = False
    tolerance: float = 1e-6
    least: float = 1e-3
    slopes: float = 1e-4
    again: float | None = None

    def inputs(self, batch: int | None = None, shift: int = 0) -> Tensor:
        """The inputs, (B, ...), or others by a shift of the seed."""
        return self.draw(self.batch if batch is None else batch, self.seed + shift)

    def like(self, x: Tensor, stream: int) -> Tensor:
        """Other numbers of the shape of a tensor."""
        return normal(*x.shape, seed=1000 * (stream + 1) + self.seed, dtype=x.dtype)

    def rowwise(self, given: dict[str, Any], batch: int) -> dict[str, Tensor]:
        """Those of some options that have a row for each example."""
        return {
            name: value
            for name, value in given.items()
            if name in self.of_rows and isinstance(value, Tensor)
            if value.ndim > (name == "key") and len(value) == batch
        }

    def close(self, found: Tree, right: Tree, what: str, allowed: float | None = None) -> None:
        """Refuse a result that is not what it should be."""
        allowed = self.tolerance if allowed is None else allowed
        if optree.tree_structure(found) != optree.tree_structure(right):
            raise Failed(
                f"{what}: the result is {optree.tree_structure(found)}, "
                f"expected {optree.tree_structure(right)}"
            )
        pairs = zip(optree.tree_leaves(found), optree.tree_leaves(right), strict=True)
        for a, b in pairs:
            if a.shape != b.shape or a.dtype != b.dtype:
                raise Failed(
                    f"{what}: the result is {tuple(a.shape)} of {a.dtype}, "
                    f"expected {tuple(b.shape)} of {b.dtype}"
                )
            gap, size = _largest(a.detach() - b.detach()), _largest(b.detach())
            if not gap <= allowed * max(size, self.least):
                raise Failed(f"{what}: off by {gap:.2g}, where the largest value is {size:.2g}")

    def differ(self, a: Tree, b: Tree, what: str) -> None:
        """Refuse results that are the same where they should not be."""
        pairs = zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
        if all(_largest((s - t).detach()) <= 1e-9 * _largest(t.detach()) for s, t in pairs):
            raise Failed(f"{what}: the result is the same")

    def said(self, found: Tree, what: str) -> None:
        """Refuse numbers that are not finite, or all 0 where a comparison should say something."""
        for t in optree.tree_leaves(found):
            if not torch.isfinite(t).all():
                raise Failed(f"{what} is not finite")
            if self.informative and not (t != 0).any():
                raise Failed(f"{what} is 0 everywhere")


def _largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def weights_like(t: Trial, tree: Tree, stream: int = 3) -> Tree:
    """Fixed numbers in the form of a tree."""
    leaves, spec = optree.tree_flatten(tree)
    return optree.tree_unflatten(spec, [t.like(a, stream + i) for i, a in enumerate(leaves)])


def weighted(tree: Tree, weights: Tree) -> Tensor:
    """The sum of a tree times weights, a number."""
    pairs = zip(optree.tree_leaves(tree), optree.tree_leaves(weights), strict=True)
    return torch.stack([(a * w).sum() for a, w in pairs]).sum()


def taken(tree: Tree, index: Any, dim: int = 0) -> Tree:
    """Rows of every leaf."""
    found: Tree = optree.tree_map(lambda t: t[(slice(None),) * dim + (index,)], tree)
    return found


def detached(tree: Tree) -> Tree:
    """A tree without a graph."""
    found: Tree = optree.tree_map(Tensor.detach, tree)
    return found


def difference(f: Callable[[float], Tree], size: float = 1e-6) -> Tree:
    """The derivative of a function of a number at 0, by two central differences."""
    # The steps are so small that they rarely cross a kink.
    above, below, above2, below2 = (f(h * size) for h in (1, -1, 2, -2))
    found: Tree = optree.tree_map(
        lambda a, b, c, d: (4 * (a - b) / (2 * size) - (c - d) / (4 * size)) / 3,
        *(above, below, above2, below2),
    )
    return found
