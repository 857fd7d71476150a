"""What runs around the layers of a model in one run: edits, and other interventions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import nn

from attrfn._model.classes import Intervention
from attrfn._model.source import Source, find


class Edits(Protocol):
    """A plan of edits, which is a part of a source and the same for all runs.

    Attributes:
        modules: The modules with edits.
    """

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules."""

    def begin(self, given: Any) -> tuple[Sequence[tuple[nn.Module, Any]], Callable[[], None]]:
        """What one run needs: taps around modules, and a check of a run that has passed them all.

        A tap is an intervention that takes another one as ``between``, which then happens to the
        values after the tap's edits.

        Args:
            given: The bound argument of this plan.
        """


class Inside(NamedTuple):
    """What one run needs.

    Attributes:
        layers: Layers of the source.
        interventions: What runs around the forward of each.
        args: The arguments that are left for the model.
        checks: To be called when the run is over.
    """

    layers: Sequence[nn.Module | str]
    interventions: Sequence[Intervention]
    args: tuple[Any, ...]
    checks: tuple[Callable[[], None], ...] = ()

    def over(self) -> None:
        """Check a run that has ended."""
        for check in self.checks:
            check()


def inside(
    src: Source,
    layers: Sequence[nn.Module | str],
    interventions: Sequence[Intervention],
    args: tuple[Any, ...],
) -> Inside:
    """The interventions of one run of a source, together with its edits."""
    if not src.edits:
        return Inside(layers, interventions, args)
    at: dict[int, tuple[nn.Module | str, Any]] = {}
    found = [find(src.module, layer) for layer in layers] if interventions else []
    for module, intervention in zip(found, one_each(found, interventions), strict=True):
        at[id(module)] = (module, intervention)
    # A value may be planted from outside, and the part of the model that makes it need not run.
    whole = not any(getattr(i, "plants", False) for i in interventions)
    checks: list[Callable[[], None]] = []
    # From the last plan to the first, whose edits come before those of all others.
    plans = list(zip(src.edits, args[: len(src.edits)], strict=True))
    for plan, given in reversed(plans):
        taps, check = plan.begin(given)
        checks.append(check)
        for module, tap in taps:
            layer, between = at.get(id(module), (module, None))
            both = tap if between is None else functools.partial(tap, between=between)
            at[id(module)] = (layer, both)
    return Inside(
        [layer for layer, _ in at.values()],
        [both for _, both in at.values()],
        args[len(src.edits) :],
        tuple(reversed(checks)) if whole else (),
    )


def joined(
    src: Source, layers: Sequence[nn.Module | str], interventions: Sequence[Intervention]
) -> tuple[list[nn.Module | str], list[Intervention]]:
    """Layers and interventions with those around the source, which are the inner ones."""
    found: dict[int, tuple[nn.Module | str, Intervention]] = {
        id(find(src.module, layer)): (layer, inner) for layer, inner in src.around
    }
    for layer, outer in zip(layers, interventions, strict=True):
        key = id(find(src.module, layer))
        found[key] = (layer, _nested(outer, found[key][1]) if key in found else outer)
    return [layer for layer, _ in found.values()], [inner for _, inner in found.values()]


def one_each(at: Sequence[Any], interventions: Sequence[Any]) -> Sequence[Any]:
    """The interventions of some modules, nested where one module has several."""
    if len({id(module) for module in at}) == len(at) or not interventions:
        return interventions
    found: dict[int, Any] = {}
    for module, outer in zip(at, interventions, strict=True):
        inner = found.get(id(module))
        found[id(module)] = outer if inner is None else _nested(outer, inner)
    return [found[id(module)] for module in at]


def _nested(outer: Intervention, inner: Intervention) -> Intervention:
    def both(forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return outer(lambda *a, **k: inner(forward, a, k), args, kwargs)

    return both
