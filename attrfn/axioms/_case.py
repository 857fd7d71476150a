"""What all axioms share: a method, what it is called with, and how far two results differ."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._explain.explain import Explained, explain
from attrfn._explain.tree import batch_size, each, flatten
from attrfn._torch.typing import Baselines, Leaves, Method, ModelFn, Target, Tree


class AxiomOptions(TypedDict, total=False):
    """What axioms take.

    Raises:
        TypeError: The method is not a function, or does not return tensors.
        ValueError: An option has a wrong value, or the tensors do not fit each other.
    """

    method: Method
    """An attribution method; its own options are bound with
    ``functools.partial(method, n_steps=20)``."""

    target: Target
    """The method's target."""

    baselines: Baselines
    """Those of the method, which gets them. ``None``: those that are bound to the method, or else
    what the method does without (zeros)."""


class Case(NamedTuple):
    """A method and what it explains.

    Attributes:
        model_fn: The model function.
        inputs: The inputs.
        method: The method.
        options: Its options of this call.
        x: The leaves of the inputs.
        rebuild: From leaves to the inputs' tree.
        batch: B.
        keeps_graph: Whether the method's result is meant to be differentiable.
    """

    model_fn: ModelFn
    inputs: Tree
    method: Method
    options: dict[str, Any]
    x: Leaves
    rebuild: Callable[[Any], Tree]
    batch: int
    keeps_graph: bool

    @property
    def bound(self) -> dict[str, Any]:
        """What is bound to the method, and what the call adds."""
        bound = self.method.keywords if isinstance(self.method, functools.partial) else {}
        return {**bound, **self.options}

    def maps(
        self, model_fn: ModelFn | None = None, x: Leaves | None = None, **options: Any
    ) -> Leaves:
        """The leaves of the attributions, each (B, ...)."""
        model_fn = self.model_fn if model_fn is None else model_fn
        inputs = self.inputs if x is None else self.rebuild(x)
        leaves = optree.tree_leaves(self.method(model_fn, inputs, **{**self.options, **options}))
        rows = self.batch if x is None else x[0].shape[0]
        if not leaves or not all(isinstance(t, Tensor) and t.shape[:1] == (rows,) for t in leaves):
            said = ", ".join([str(tuple(getattr(t, "shape", type(t).__name__))) for t in leaves])
            raise ValueError(
                f"method returned {said or 'nothing'} for {rows} example(s), expected attributions "
                "with the examples in dimension 0"
            )
        return tuple([t if t.is_floating_point() else t.double() for t in leaves])

    def maps_like_inputs(
        self, model_fn: ModelFn | None = None, x: Leaves | None = None, **options: Any
    ) -> Leaves:
        """The attributions, refused where they are not shaped like the inputs."""
        found = self.maps(model_fn, x, **options)
        x = self.x if x is None else x
        if len(found) != len(x) or any(a.shape != t.shape for a, t in zip(found, x, strict=True)):
            raise ValueError(
                f"method returned shapes {[tuple(a.shape) for a in found]}, expected those of "
                f"inputs, {[tuple(t.shape) for t in x]}: this axiom is about elements of the inputs"
            )
        return found

    def model(self, model_fn: ModelFn | None = None) -> ModelFn:
        """A model function as the library runs it, which leaves the user's module alone."""
        return self.explained(None, self.keeps_graph, model_fn).model

    def explained(
        self, target: Target, keeps_graph: bool, model_fn: ModelFn | None = None
    ) -> Explained:
        """The explained scalar of a model function."""
        return explain(
            self.model_fn if model_fn is None else model_fn,
            self.inputs,
            target,
            create_graph=keeps_graph,
            differentiated=False,
        )


def case_of(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    target: Target,
    baselines: Baselines = None,
) -> Case:
    """Check the arguments that all axioms have in common."""
    if not callable(method):
        raise TypeError(
            f"method is a {type(method).__name__}, expected an attribution method: pass the "
            "function, not its attributions"
        )
    x, rebuild = flatten(inputs)
    given = {"target": target, "baselines": baselines}
    options = {k: v for k, v in given.items() if v is not None}
    return Case(model_fn, inputs, method, options, x, rebuild, batch_size(x), _keeps_graph(method))


def _keeps_graph(method: Method) -> bool:
    """What has no option for it is differentiable as it is."""
    if isinstance(method, functools.partial) and "create_graph" in method.keywords:
        return bool(method.keywords["create_graph"])
    try:
        return "create_graph" not in inspect.signature(method).parameters
    except (TypeError, ValueError):
        return True


def largest(leaves: Leaves) -> Tensor:
    """The largest absolute value of each example over all leaves, (B,)."""
    rows = [t.to(wide(t.dtype)).reshape(t.shape[0], t.shape[1:].numel()).abs() for t in leaves]
    common = functools.reduce(torch.promote_types, [t.dtype for t in rows])
    table = torch.cat([t.to(common) for t in rows], 1)
    return table.amax(1) if table.shape[1] else table.sum(1)


def differences(a: Leaves, b: Leaves) -> Leaves:
    """``a - b``, leaf by leaf."""
    if [t.shape for t in a] != [t.shape for t in b]:
        raise ValueError(
            f"method returned shapes {[tuple(t.shape) for t in a]} and then "
            f"{[tuple(t.shape) for t in b]}, expected both explanations to have the same shapes"
        )
    return each(torch.sub, a, b)
