"""A method under test: what it takes, and what it is given on a drawn model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._torch.typing import Method
from attrfn.testing._draw import normal
from attrfn.testing._models import KINDS, OUTPUTS, ExampleModel, example, kinds_where
from attrfn.testing._trial import Trial

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


class Subject(NamedTuple):
    """A method under test.

    Attributes:
        method: The method.
        takes: The options that it has and that are not bound.
        needs: What it is given besides.
        differentiable: Whether the result has a derivative.
        axioms: The axioms that it should satisfy.
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
        """What the method is given besides the model and the inputs."""
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

    def trial(self, d: Drawn) -> Trial:
        """The method on the drawn model."""
        return Trial(
            self.method,
            lambda: self.model(d),
            lambda batch, seed: d._replace(seed=seed).inputs(batch),
            lambda x: self.options(d, x),
            takes=self.takes,
            batch=d.batch,
            seed=d.seed,
            of_rows=frozenset(() if "pool" in self.needs else ("baselines",)),
            like_inputs=not self.of_layer,
            by_leaf="key" in self.takes | self.needs,
            graph={"create_graph": True} if "create_graph" in self.takes else None,
            tolerance=self.tolerance,
            # Finite differences are good to about 1e-7, and cancel in the sum over elements.
            slopes=max(self.tolerance, 1e-4),
        )


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
        ValueError: A need or an axiom has an unknown name.
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
