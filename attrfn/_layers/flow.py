"""The head of a model and the gradient downstream of it, along the path of the inputs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import is_one_of, repeat_bound, split_rows
from attrfn._copies.memory import out_of_memory
from attrfn._explain.explain import Explained, repeat_chosen
from attrfn._explain.target import select
from attrfn._explain.tree import call_model, each, flatten, is_arguments, row_total
from attrfn._layers.flow_site import Cut, of_site
from attrfn._layers.layout import elsewhere
from attrfn._layers.split import Split
from attrfn._layers.tails import of_activation
from attrfn._torch import pytree
from attrfn._torch.autodiff import (
    autograd_leaves,
    gradients_inside,
    push_forward,
    transforming,
    twice_differentiable,
    values_and_gradients,
)
from attrfn._torch.typing import Batching, Leaves, ModelFn, Tree
from attrfn._torch.units import Units, active_units


class Flow(NamedTuple):
    """Activations, and the gradients downstream of them, for the rows of any number of copies.

    Attributes:
        p: The explained inputs and target.
        sites: The layers.
        watched: Head and tail in one pass (:func:`attrfn._layers.split.watched`), or None where
            the two have to run one after the other.
        listed: Whether the user gave a list of the sites.
        head: The head of all sites of a list, or None.
    """

    p: Explained
    sites: tuple[Cut, ...]
    watched: ModelFn | None
    listed: bool
    head: ModelFn | None = None

    def way(self, batching: Batching) -> Batching:
        """How copies are evaluated: one by one in place of folded, where a layout asks for it."""
        alone = any(s.layout is not None and not s.layout.folds for s in self.sites)
        return "loop" if alone and is_one_of(batching, "fold") else batching

    def _units(self) -> Units | None:
        """What compiles passes, if anything does and the sites have examples in dimension 0."""
        units = active_units()
        return units if self.p.batch and all(s.layout is None for s in self.sites) else None

    def heads(self, rows: Leaves, copies: int) -> Leaves:
        """The activations of all sites, one after the other."""
        graph = self.p.create_graph or (transforming() and torch.is_grad_enabled())
        with torch.set_grad_enabled(graph):
            return self._heads(copies, *rows)

    def _heads(self, copies: int, *rows: Tensor) -> Leaves:
        if self.head is None:
            found = [self._head(s, copies, *rows) for s in self.sites]
            return tuple(itertools.chain(*found))
        values: Any = self._value(self.head, copies, rows, self.sites)
        each_value = zip(self.sites, values, strict=True)
        return tuple(itertools.chain(*[s.leaves(value) for s, value in each_value]))

    def both(self, rows: Leaves, copies: int) -> tuple[Leaves, Leaves]:
        """The activations of all sites, one after the other, and df/da there."""
        if (units := self._units()) is not None:
            found: tuple[Leaves, Leaves] = self._in_unit(units, _both, rows, copies)
            return found
        if self.watched is None or transforming():
            a = [self._head(s, copies, *rows) for s in self.sites]
            grads = [
                self._gradients(s, z, rows, copies) for s, z in zip(self.sites, a, strict=True)
            ]
            return tuple(itertools.chain(*a)), tuple(itertools.chain(*grads))

        def values_and_leaves() -> tuple[Tensor, Leaves]:
            values, found = self._watch(rows, copies)
            return values, tuple([t for z, _ in found for t in z])

        return gradients_inside(values_and_leaves)

    def along(self, rows: Leaves, tangents: Leaves, copies: int) -> tuple[Leaves, Leaves]:
        """How the activations change in a direction of the inputs, and df/da there."""
        if (units := self._units()) is not None:
            found: tuple[Leaves, Leaves] = self._in_unit(units, _along, rows, copies, tangents)
            return found
        grads = self.both(rows, copies)[1]
        head = functools.partial(self._heads, copies)
        return push_forward(head, rows, tangents)[1], grads

    def back(self, pick: Callable[[Leaves, int], Leaves], rows: Leaves, copies: int) -> Leaves:
        """The gradient of ``<df/da * pick(a), a(rows)>`` by the rows, the factors held constant.

        Args:
            pick: From the activation of the only site, and the number of copies, to a factor.
            rows: Leaves of the inputs.
            copies: How many copies of the batch they are.
        """
        if (units := self._units()) is not None:
            a, grads = self.both(rows, copies)
            factors = each(torch.mul, grads, pick(a, copies))
            found: Leaves = self._in_unit(units, _back, rows, copies, factors)
            return found
        if self.watched is not None and not transforming():
            try:
                return self._back_at_once(pick, rows, copies)
            except RuntimeError as error:
                # What follows the layer wrote into what the part before it needs for its gradient.
                # An error of the model comes again in the two halves. Less memory is what only the
                # caller can ask for.
                if out_of_memory(error):
                    raise
        site = self.sites[0]
        a = self._head(site, copies, *rows)
        grads = self._gradients(site, a, rows, copies)
        return self._passed_on(rows, each(torch.mul, grads, pick(a, copies)), copies)

    def _passed_on(self, rows: Leaves, factors: Leaves, copies: int) -> Leaves:
        def passed_on(*z: Tensor) -> Tensor:
            return row_total(each(torch.mul, self._head(self.sites[0], copies, *z), factors))

        return values_and_gradients(passed_on, rows, create_graph=self.p.create_graph)[1]

    def _in_unit(
        self, units: Units, function: Callable[..., Any], rows: Leaves, copies: int, *more: Leaves
    ) -> Any:
        """A function of this at all rows as a compiled unit."""
        points, *others = [split_rows(leaves, copies) for leaves in (rows, *more)]
        # Of the activations their form is all that counts.
        forms = tuple([s.rebuild([t[:0].detach() for t in s.activation]) for s in self.sites])
        found = self.p.in_unit(
            units,
            function,
            points,
            "fold",
            forms,
            tuple([s.many for s in self.sites]),
            more=others,
            functions=tuple(itertools.chain(*[s.halves for s in self.sites])),
        )
        return pytree.tree_map_only(Tensor, lambda t: t.flatten(0, 1), found)

    def _back_at_once(
        self, pick: Callable[[Leaves, int], Leaves], rows: Leaves, copies: int
    ) -> Leaves:
        z = autograd_leaves(rows)
        natural: Leaves = ()

        def tail() -> tuple[Tensor, Leaves]:
            nonlocal natural
            values, ((a, natural),) = self._watch(z, copies)
            return values, a

        a, grads = gradients_inside(tail)

        def head() -> tuple[Tensor, Leaves]:
            factors = each(torch.mul, grads, pick(a, copies))
            return row_total(each(torch.mul, natural, factors)), z

        return gradients_inside(head)[1]

    def result(self, total: Leaves) -> Tree:
        """Leaves of all sites as the activations' trees."""
        left = iter(total)
        trees = []
        for site in self.sites:
            leaves = tuple(itertools.islice(left, len(site.activation)))
            p = self.p._replace(x=site.activation, rebuild=site.rebuild)
            found = p.result(leaves)
            trees.append(found if site.layout is None else site.layout.restored(found))
        return trees if self.listed else trees[0]

    def _head(self, site: Cut, copies: int, *rows: Tensor) -> Leaves:
        """The activation of a site, (copies * B, ...) each."""
        return site.leaves(self._value(site.halves.head, copies, rows, (site,)))

    def _value(self, head: ModelFn, copies: int, rows: Leaves, sites: tuple[Cut, ...]) -> Tree:
        """What a head returns for the rows of some copies."""
        head = repeat_bound(head, self.p.batch, copies)

        def run() -> Tree:
            with twice_differentiable(self.p.create_graph):
                return call_model(head, self.p.rebuild(rows))

        return elsewhere([s.layout for s in sites], run)

    def _gradients(self, site: Cut, a: Leaves, rows: Leaves, copies: int) -> Leaves:
        """df/da at the activation ``a`` of a site for the inputs ``rows``."""
        tail = repeat_bound(site.halves.tail, self.p.batch, copies)
        # The tail explained at the activation: the same target, but other leaves and another batch.
        there = self.p._replace(
            model=functools.partial(
                of_activation,
                tail,
                inputs=self.p.rebuild(rows),
                unpacked=is_arguments(site.rebuild(a)),
                layout=site.layout,
            ),
            rebuild=site.rebuild,
            batch=copies * self.p.batch,
            chosen=repeat_chosen(self.p.chosen, self.p.batch, copies),
        )
        return values_and_gradients(
            lambda *z: there.values(z), a, create_graph=self.p.create_graph
        )[1]

    def _watch(self, rows: Leaves, copies: int) -> tuple[Tensor, list[tuple[Leaves, Leaves]]]:
        """The explained values, and of each site its leaves and what they were copied from."""
        run: Any = repeat_bound(self.watched, self.p.batch, copies)
        found, outputs = run(self.p.rebuild(rows))
        values = select(
            outputs,
            repeat_chosen(self.p.chosen, self.p.batch, copies),
            copies * self.p.batch,
            self.p.name,
        )
        left = iter(found)
        return values, [of_site(s, left) for s in self.sites]


def _at_rows(p: Explained, *given: Any) -> Flow:
    """The same at all rows, from its parts: heads and tails, forms of activations, flags."""
    *halves, forms, many = given
    sites = [
        Cut(Split(*halves[2 * i : 2 * i + 2]), *flatten(form, "layer"), many[i])
        for i, form in enumerate(forms)
    ]
    return Flow(p, tuple(sites), None, False)


def _both(p: Explained, mapped: bool, *given: Any) -> tuple[Leaves, Leaves]:
    return _at_rows(p, *given).both(p.x, 1)


def _along(p: Explained, mapped: bool, tangents: Leaves, *given: Any) -> tuple[Leaves, Leaves]:
    return _at_rows(p, *given).along(p.x, tangents, 1)


def _back(p: Explained, mapped: bool, factors: Leaves, *given: Any) -> Leaves:
    return _at_rows(p, *given)._passed_on(p.x, factors, 1)
