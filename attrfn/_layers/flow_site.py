"""A layer on the path of the inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
from torch import Tensor

from attrfn._layers.layout import Layout
from attrfn._layers.probe import LayerValue
from attrfn._layers.rows import like
from attrfn._layers.split import Split
from attrfn._torch.typing import Leaves, Tree


class Cut(NamedTuple):
    """A layer, or several that are explained as one.

    Attributes:
        halves: The split there.
        activation: Leaves of its activation at the inputs.
        rebuild: From such leaves to the activation's tree.
        many: Whether it is a list of layers.
        layout: The layout of its value, if that does not have the examples in dimension 0.
    """

    halves: Split
    activation: Leaves
    rebuild: Callable[[Sequence[Tensor]], Tree]
    many: bool
    layout: Layout | None = None

    def leaves(self, value: Tree) -> Leaves:
        """The leaves of a value that the activation has, too."""
        if self.layout is not None:
            return tuple(optree.tree_leaves(self.layout.present(like(self.layout.own, value))))
        return tuple(optree.tree_leaves(like(self.rebuild(self.activation), value)))

    @property
    def whole(self) -> Layout | None:
        """The layout, if a method sees the value as one thing."""
        return None if self.layout is None or self.layout.named else self.layout


def of_site(site: Cut, found: Any) -> tuple[Leaves, Leaves]:
    """The leaves of a site among those that were watched, and what they were copied from."""
    if not site.many:
        one: LayerValue = next(found)
        return site.leaves(one.value), site.leaves(one.natural)
    count = len(site.rebuild(site.activation))
    parts = list(itertools.islice(found, count))
    return site.leaves([v.value for v in parts]), site.leaves([v.natural for v in parts])
