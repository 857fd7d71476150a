"""A method under test: what it takes, what it is given, and how results are compared."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from attrfn._torch.typing import Method, Tree
from attrfn.testing._draw import normal
from attrfn.testing._models import KINDS, OUTPUTS, ExampleModel, example, kinds_where

NEEDS = ("baselines", "pool", "layer", "neuron", "images", "relu", "target", "key")


class Drawn(NamedTuple):
    """What hypothesis draws for a check; its text is the example in a report."""

    kind: type[ExampleModel]
    width: int
    batch: int
    seed: int

    def inputs(self, batch: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
        """The inputs, (B, ...)."""
        rows = self.batch if batch is None else batch
        return normal(rows, *self.kind.shape, seed=100 + self.seed, dtype=dtype)

    def like(self, x: Tensor, stream: int) -> Tensor:
        """Other numbers of the shape of a tensor."""
        return normal(*x.shape, seed=1000 * (stream + 1) + self.seed, dtype=x.dtype)

    def __str__(self) -> str:
        return (
            f"{self.kind.kind}(width={self.width}, seed={self.seed}) on inputs "
            f"{(self.batch, *self.kind.shape)} of seed {self.seed}"
        )


class Failed(AssertionError):
    """A property that a method does not have."""


class Subject(NamedTuple):
    """A method under test.

    Attributes:
        method: The method.
        takes: The options that it has and that are not bound.
        needs: What it is given besides.
        differentiable: Whether the result has a derivative.
        axioms: The axioms that it shall have.
        tolerance: What counts as equal, relative to the largest value.
        only: The names of the kinds of models that it is for; None for all.
    """

    method: Method
    takes: frozenset[str]
    needs: frozenset[str]
    differentiable: bool
    axioms: tuple[str, ...]
    tolerance: float
    only: tuple[str, ...] | None

    @property
    def kinds(self) -> list[type[ExampleModel]]:
        """The models that the method is for."""
        return kinds_where(
            lambda kind: (
                (kind.images or "images" not in self.needs)
                and (kind.relu or "relu" not in self.needs)
                and (self.only is None or kind.kind in self.only)
            )
        )

    @property
    def of_layer(self) -> bool:
        """Whether attributions are those of a layer, and so not like the inputs."""
        return "layer" in self.needs and "neuron" not in self.needs

    def model(self, d: Drawn, dtype: torch.dtype = torch.float64, shift: int = 0) -> ExampleModel:
        """The drawn model; one number per example for a method without a target."""
        outputs = OUTPUTS if "target" in self.takes else 0
        return example(d.kind, d.width, outputs, d.seed + shift, dtype)

    def options(self, d: Drawn, x: Tensor, **others: Any) -> dict[str, Any]:
        """What the method is given beside the model and the inputs."""
        given: dict[str, Any] = {}
        if "target" in self.takes:
            given["target"] = 1
        if "pool" in self.needs:
            given["baselines"] = 0.3 * normal(3, *x.shape[1:], seed=7 + d.seed, dtype=x.dtype)
        elif "baselines" in self.takes:
            given["baselines"] = 0.5 * d.like(x, 1)
        if "layer" in self.takes:
            given["layer"] = "mid"
        if "neuron" in self.takes:
            given["neuron"] = d.kind.neuron
        if "key" in self.takes:
            given["key"] = d.seed
        return {**given, **others}

    def run(self, d: Drawn, model: Any = None, x: Tensor | None = None, **options: Any) -> Tree:
        """Attributions of the drawn model at the drawn inputs, or of others."""
        model = self.model(d) if model is None else model
        x = d.inputs() if x is None else x
        return self.method(model, x, **self.options(d, x, **options))

    def close(self, found: Tree, right: Tree, what: str, loose: float = 1.0) -> None:
        """Refuse attributions that are not what they should be."""
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
            if not gap <= loose * self.tolerance * max(size, 1e-3):
                raise Failed(f"{what}: off by {gap:.2g}, where the largest value is {size:.2g}")

    def differ(self, a: Tree, b: Tree, what: str) -> None:
        """Refuse attributions that are the same where they should not be."""
        pairs = zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
        if all(_largest((s - t).detach()) <= 1e-9 * _largest(t.detach()) for s, t in pairs):
            raise Failed(f"{what}: the result is the same")


def _largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def subject_of(
    method: Method,
    needs: str | Collection[str],
    differentiable: bool,
    axioms: str | Collection[str],
    tolerance: float,
    kinds: str | Collection[str] | None = None,
) -> Subject:
    """A method under test, checked.

    Raises:
        TypeError: The method is not a function.
        ValueError: A need or an axiom is of no known name.
    """
    if not callable(method):
        raise TypeError(f"method is a {type(method).__name__}, expected an attribution method")
    needs = frozenset([needs] if isinstance(needs, str) else needs)
    if unknown := sorted(needs - set(NEEDS)):
        raise ValueError(f"needs has {unknown[0]!r}, expected some of {', '.join(NEEDS)}")
    without: set[str] = set()
    if "neuron" in needs:  # a neuron is a target
        needs |= {"layer"}
        without = {"target"} - needs
    names = (axioms,) if isinstance(axioms, str) else tuple(axioms)
    options = needs & {"baselines", "target", "key"}
    # A method that was moved to a layer, or has it bound, needs the layer and does not take it.
    without |= {"layer", "neuron"} - needs
    takes = (_options_of(method) | options) - _bound(method) - without
    only = (kinds,) if isinstance(kinds, str) else None if kinds is None else tuple(kinds)
    s = Subject(method, takes, needs, differentiable, names, tolerance, only)
    known = [kind.kind for kind in KINDS]
    if unknown := sorted(set(only or ()) - set(known)):
        raise ValueError(f"kinds is {unknown[0]!r}, expected some of {', '.join(known)}")
    if not s.kinds:
        raise ValueError(f"kinds has none with what the method needs, {sorted(needs)}")
    return s


def _options_of(method: Method) -> frozenset[str]:
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return frozenset(["target"])
    named = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return frozenset(named | ({"target", "layer", "neuron"} if anything else set()))


def _bound(method: Method) -> frozenset[str]:
    """What a partial has fixed, also below wrappers such as noise_tunnel."""
    found: set[str] = set()
    inner: Any = method
    while inner is not None:
        if isinstance(inner, functools.partial):
            found |= set(inner.keywords)
            inner = inner.func
        else:
            inner = getattr(inner, "__wrapped__", None)
    return frozenset(found)


def weights_like(d: Drawn, tree: Tree) -> Tree:
    """Fixed numbers in the form of a tree."""
    leaves, spec = optree.tree_flatten(tree)
    return optree.tree_unflatten(spec, [d.like(t, 3 + i) for i, t in enumerate(leaves)])


def weighted(tree: Tree, weights: Tree) -> Tensor:
    """The sum of a tree times weights, a number."""
    pairs = zip(optree.tree_leaves(tree), optree.tree_leaves(weights), strict=True)
    return torch.stack([(a * w).sum() for a, w in pairs]).sum()


def rows(tree: Tree, index: Any) -> Tree:
    """Rows of every leaf."""
    found: Tree = optree.tree_map(lambda t: t[index], tree)
    return found


def difference(f: Callable[[float], Tensor], size: float = 1e-6) -> Tensor:
    """The derivative of a function of a number at 0, by two central differences."""
    # The steps are so small that they rarely cross a kink.
    one = (f(size) - f(-size)) / (2 * size)
    two = (f(2 * size) - f(-2 * size)) / (4 * size)
    return (4 * one - two) / 3


def detached(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module, without a graph."""
    return {name: p.detach() for name, p in model.named_parameters()}
