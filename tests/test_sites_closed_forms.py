"""What sites are for, on nets that a sheet of paper explains: patching, circuits, masks.

The numbers are those of shared derivations with the tests' nets, each by hand: effects are the
change of the output by patching towards the other run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from torch.func import jacrev, vmap

from attrfn import Site, activations, intervene
from attrfn._layers.at_sites import gradients

D = torch.float64


def column(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=D).T


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


class Function(nn.Module):
    """A function as a module, so that it is a site."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def patched(model: nn.Module, x: Tensor, value: Mapping[Any, Tensor]) -> Tensor:
    """The output with other values at sites."""
    edits = {k: functools.partial(lambda t, a, seen: t, v) for k, v in value.items()}
    return intervene(model, edits)(x)


def attribution_patching(model: nn.Module, x: Tensor, other: Tensor, site: Any) -> Tensor:
    values, grads = gradients(model, x, [site])
    return (activations(model, [site])(other)[1][site] - values[site]) * grads[site]


# --- patching of units -----------------------------------------------------------------------


def two_units(relu: bool) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
            self.act = nn.ReLU() if relu else nn.Identity()
            self.first.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=D))
            self.last.weight = nn.Parameter(torch.tensor([[2.0, -1.0]], dtype=D))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.first(x)))[:, 0]

    return Net()


CLEAN, CORRUPT = torch.tensor([[1.0, 1.0]], dtype=D), torch.tensor([[0.0, 2.0]], dtype=D)


@pytest.mark.parametrize(
    ("relu", "outputs", "linear", "exact"),
    [
        (False, (4.0, 10.0), (-2.0, -4.0), (-2.0, -4.0)),
        (True, (4.0, 8.0), (-2.0, 0.0), (-2.0, -2.0)),
    ],
)
def test_patching_two_units(relu: bool, outputs: Any, linear: Any, exact: Any) -> None:
    """m = 2 a - b; without ReLU attribution patching is patching."""
    model = two_units(relu)
    assert_close(torch.cat([model(CLEAN), model(CORRUPT)]).detach(), numbers(*outputs))
    found = attribution_patching(model, CORRUPT, CLEAN, "first")
    assert_close(found.detach(), numbers(*linear)[None])
    clean = activations(model, ["first"])(CLEAN)[1]["first"]
    effects = []
    for unit in range(2):

        def one(a: Tensor, seen: Any, unit: int = unit) -> Tensor:
            return torch.where(torch.arange(2) == unit, clean, a)

        effects.append(intervene(model, {"first": one})(CORRUPT) - model(CORRUPT))
    assert_close(torch.cat(effects).detach(), numbers(*exact))


def test_from_clean_to_corrupt_behind_a_relu() -> None:
    """The other way round the gradient of both units is there: 2 and 4."""
    found = attribution_patching(two_units(True), CLEAN, CORRUPT, "first")
    assert_close(found.detach(), numbers(2.0, 4.0)[None])


# --- sites behind each other ---------------------------------------------------------------------


class Chain(nn.Module):
    """a = 2 x, b = a^2, m = 3 b + a."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Function(lambda x: 2 * x), Function(lambda a: a**2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return (3 * self.b(a) + a)[:, 0]


def test_sites_behind_each_other() -> None:
    """dm/da = 6 a + 1 = 13 at x = 1, which includes the path through b."""
    model, base, other = Chain(), column(1.0), column(2.0)
    values, grads = gradients(model, base, ["a", "b"])
    assert_close(values, {"a": column(2.0), "b": column(4.0)})
    assert_close(grads, {"a": column(13.0), "b": column(3.0)})
    for site, linear, exact in (("a", 26.0, 38.0), ("b", 36.0, 36.0)):
        assert_close(attribution_patching(model, base, other, site), column(linear))
        there = activations(model, [site])(other)[1]
        effect = patched(model, base, there) - model(base)
        assert_close(effect, numbers(exact))


# --- edges: writers, readers and masks -----------------------------------------------------------


class Stream(nn.Module):
    """Blocks that read and write a stream of scalars, whose last value is read by ``out``.

    Writers are ``embed`` and the outputs of the blocks; readers are the inputs of the blocks and
    of ``out``.
    """

    def __init__(self, out: Callable[[Tensor], Tensor], *blocks: Callable[[Tensor], Tensor]):
        super().__init__()
        self.embed = Function(lambda x: 1 * x)
        self.blocks = nn.ModuleList([Function(f) for f in blocks])
        self.out = Function(out)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.embed(x)
        for block in self.blocks:
            stream = stream + block(stream)
        return self.out(stream)[:, 0]

    @property
    def sites(self) -> tuple[list[Any], list[Any]]:
        blocks = [f"blocks.{i}" for i in range(len(self.blocks))]
        return ["embed", *blocks], [Site(name, "input") for name in [*blocks, "out"]]


def edges_by_gradient(model: Stream, base: Tensor, other: Tensor) -> dict[tuple[int, int], Tensor]:
    """(u_other - u_base) dm/d(input of v), for each writer u before a reader v."""
    writers, readers = model.sites
    values, grads = gradients(model, base, [*writers, *readers])
    there = activations(model, writers)(other)[1]
    return {
        (u, v): ((there[writers[u]] - values[writers[u]]) * grads[readers[v]])[:, 0]
        for v in range(len(readers))
        for u in range(v + 1)
    }


def circuit(model: Stream, base: Tensor, other: Tensor, keep: Mapping[Any, Any]) -> Tensor:
    """input of v + sum_u (1 - keep[u, v]) (u_other - u), with what this run's writers gave."""
    writers, readers = model.sites
    there = activations(model, writers)(other)[1]

    def read(v: int, x: Tensor, seen: Any) -> Tensor:
        for u in range(v + 1):
            x = x + (1 - keep[u, v]) * (there[writers[u]] - seen[writers[u]])
        return x

    edits: dict[Any, Any] = dict.fromkeys(writers)
    edits |= {site: functools.partial(read, v) for v, site in enumerate(readers)}
    return intervene(model, edits)(base)


def by_edge(found: Mapping[Any, Tensor]) -> dict[tuple[int, int], float]:
    return {edge: round(float(t.detach()), 9) for edge, t in found.items()}


def test_edges_of_a_linear_stream() -> None:
    """u1 = 2 r0, u2 = -3 (r0 + u1), m = the sum: out of x and into the output -6 each."""
    model = Stream(lambda s: s, lambda s: 2 * s, lambda s: -3 * s)
    base, other = column(1.0), column(2.0)
    assert_close(torch.cat([model(base), model(other)]), numbers(-6.0, -12.0))
    found = by_edge(edges_by_gradient(model, base, other))
    expected = {(0, 0): -4.0, (0, 1): -3.0, (1, 1): -6.0, (0, 2): 1.0, (1, 2): 2.0, (2, 2): -9.0}
    assert found == expected
    assert sum(s for (u, _), s in found.items() if u == 0) == -6
    assert sum(s for (_, v), s in found.items() if v == 2) == -6


SQUARE = Stream(lambda s: s**2, lambda s: s**2)
BASE, OTHER = column(1.0), column(2.0)
EDGES = [(0, 0), (0, 1), (1, 1)]


def of_keep(keep: Tensor) -> Tensor:
    return circuit(SQUARE, BASE, OTHER, dict(zip(EDGES, keep, strict=True)))[0]


def test_edges_of_a_square() -> None:
    """r0 = x, u1 = r0^2, m = (r0 + u1)^2 from 1 to 2."""
    assert by_edge(edges_by_gradient(SQUARE, BASE, OTHER)) == {(0, 0): 8, (0, 1): 4, (1, 1): 12}
    ones = torch.ones(3, dtype=D)
    exact = [of_keep(ones - torch.eye(3, dtype=D)[i]) - of_keep(ones) for i in range(3)]
    assert_close(torch.stack(exact), numbers(21.0, 5.0, 21.0))


def test_edges_along_the_path_of_the_inputs() -> None:
    """Two nodes are exact; out of x it is 32, the total; into the output it is not."""
    nodes, weights = numbers(-1.0, 1.0) / 3**0.5 / 2 + 0.5, numbers(0.5, 0.5)
    writers, readers = SQUARE.sites
    start = activations(SQUARE, writers)(BASE)[1]
    there = activations(SQUARE, writers)(OTHER)[1]
    found = dict.fromkeys(EDGES, torch.zeros(1, dtype=D))
    for s, w in zip(nodes, weights, strict=True):
        grads = gradients(SQUARE, BASE + s * (OTHER - BASE), readers)[1]
        for u, v in EDGES:
            change = there[writers[u]] - start[writers[u]]
            found[u, v] = found[u, v] + w * (change * grads[readers[v]])[:, 0]
    expected = {(0, 0): 73 / 3, (0, 1): 23 / 3, (1, 1): 23.0}
    assert by_edge(found) == {edge: round(v, 9) for edge, v in expected.items()}
    assert round(float(found[0, 0] + found[0, 1]), 9) == 32
    assert round(float(found[0, 1] + found[1, 1]), 9) == round(92 / 3, 9)


def test_one_site_along_its_own_path() -> None:
    """m = a^3 from 1 to 3: one Gauss node 24, two 26; right sums of 1, 2 and 5 steps."""
    model = Stream(lambda s: s**3)
    base, other = column(1.0), column(3.0)

    def mean_gradient(nodes: Tensor, weights: Tensor) -> Tensor:
        def at(s: Tensor) -> Tensor:
            moved = intervene(model, {"embed": lambda a, seen: a + s * (other - base)})
            return gradients(moved, base, ["embed"])[1]["embed"]

        return (vmap(at)(nodes)[:, 0, 0] * weights).sum() * 2

    two = numbers(-1.0, 1.0) / 3**0.5 / 2 + 0.5
    assert_close(mean_gradient(numbers(0.5), numbers(1.0)), torch.tensor(24.0, dtype=D))
    assert_close(mean_gradient(two, numbers(0.5, 0.5)), torch.tensor(26.0, dtype=D))
    for n, expected in ((1, 54.0), (2, 39.0), (5, 30.96)):
        nodes = torch.arange(1, n + 1, dtype=D) / n
        found = mean_gradient(nodes, torch.full((n,), 1 / n, dtype=D))
        assert_close(found, torch.tensor(expected, dtype=D))


def test_gradients_at_the_ends() -> None:
    """m = 1 - relu(1 - a) from 2 to 0: effects by the gradients there 0 and -2, true -1."""
    model = Stream(lambda s: 1 - torch.relu(1 - s))
    base, other = column(2.0), column(0.0)
    for x, expected in ((base, 0.0), (other, 1.0)):
        assert_close(gradients(model, x, ["embed"])[1]["embed"], column(expected))
    assert_close(patched(model, base, {"embed": other}) - model(base), numbers(-1.0))


def test_a_block_that_is_cut_off_the_gradient() -> None:
    """m = n + L(n), L = -n + n^2/4, from 0 to 1: 0, with L detached 1, true 1/4."""
    model = Stream(lambda s: s, lambda n: -n + n**2 / 4)
    base, other = column(0.0), column(1.0)
    assert_close(attribution_patching(model, base, other, "embed"), column(0.0))
    dropped = intervene(model, {"blocks.0": lambda a, seen: a.detach()})
    assert_close(attribution_patching(dropped, base, other, "embed"), column(1.0))
    assert_close(patched(model, base, {"embed": other}) - model(base), numbers(0.25))


def test_a_circuit_of_soft_edges() -> None:
    """Every edge kept by half: block input 3/2, u1 9/4, input of the output 37/8, m = 1369/64."""
    half = torch.full((3,), 0.5, dtype=D)
    assert float(of_keep(half)) == 1369 / 64
    ones, zeros = torch.ones(3, dtype=D), torch.zeros(3, dtype=D)
    assert float(of_keep(ones)) == 4
    assert float(of_keep(zeros)) == 36
    # minus the scores of edges by gradients
    assert_close(jacrev(of_keep)(ones), numbers(-8.0, -4.0, -12.0))
    eps = 1e-6
    differences = [
        (of_keep(half + eps * e) - of_keep(half - eps * e)) / (2 * eps)
        for e in torch.eye(3, dtype=D)
    ]
    assert_close(jacrev(of_keep)(half), torch.stack(differences), rtol=1e-7)


def test_edges_along_the_path_of_the_masks() -> None:
    """Minus dm/dkeep from all kept to none: 157/15, 53/6, 12.7; together the total, 32."""
    # Gauss-Legendre nodes and weights of three points on [0, 1]
    nodes = 0.5 + numbers(-1.0, 0.0, 1.0) * 0.6**0.5 / 2
    weights = numbers(5.0, 8.0, 5.0) / 18
    grads = vmap(lambda s: jacrev(of_keep)(torch.ones(3, dtype=D) * s))(nodes)
    found = -(weights[:, None] * grads).sum(0)
    assert_close(found, numbers(157 / 15, 53 / 6, 12.7))
    assert_close(found.sum(), torch.tensor(32.0, dtype=D))
