"""Inputs in any tree: the attributions come back in the same tree, with the same numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, inner, noise_like, take
from models import TREES, targets
from registry import Row, explain, needs, trial
from registry import rows as all_rows
from torch import Tensor, nn
from zoo import make, randn

import attrfn
from attrfn.testing import _values as checks


class Pair(NamedTuple):
    first: Any
    second: Any


@optree.dataclasses.dataclass(namespace=optree.registry.__GLOBAL_NAMESPACE)
class Record:
    """A dataclass that optree knows in its global namespace."""

    first: Tensor
    second: Tensor
    name: str = optree.dataclasses.field(default="record", pytree_node=False)


# name: how two tensors (B, 2) and (B, 3) are put into a tree, in the order of its leaves
TREE_KINDS: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"b": b, "a": a},
    "ordered dict": lambda a, b: OrderedDict(z=a, y=b),
    "nested": lambda a, b: {"x": [(a,), {"y": b}]},
    "namedtuple": Pair,
    "dataclass": Record,
    "tuple with None": lambda a, b: (a, None, b),
    "dict with None": lambda a, b: {"a": a, "b": None, "c": {"d": b, "e": None}},
}
kinds = pytest.mark.parametrize("kind", TREE_KINDS)

X = TREES.inputs()


def rows(keep: Callable[[Row], bool] = lambda r: True) -> Any:
    """The rows that take any tree."""
    return all_rows(lambda r: keep(r) and not r.images)


def halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """Features 0, 1 and 2, 3, 4."""
    return t[..., :2], t[..., 2:]


def options_for(r: Row, build: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Baselines in the tree's form, and no noise: each leaf has a stream of its own."""
    options: dict[str, Any] = {"stdevs": 0.0} if r.noisy else {}
    if r.baselines == "pool":
        options["baselines"] = build(*halves(TREES.pool))
    if r.baselines == "point":
        options["baselines"] = build(*halves(0.2 * TREES.inputs(3, seed=5)))
    return options


def flat_options(r: Row) -> dict[str, Any]:
    options: dict[str, Any] = {"stdevs": 0.0} if r.noisy else {}
    if r.baselines == "point":
        options["baselines"] = 0.2 * TREES.inputs(3, seed=5)
    return options


def given(r: Row, **options: Any) -> dict[str, Any]:
    """The row's options; a map keeps the layer's size, because the inputs have no other."""
    taken = {**needs(r, TREES), **options}
    if "upsample" in taken:
        taken["upsample"] = None
    if r.target:
        taken["target"] = targets(3)
    return taken


def explain_tree(r: Row, tree: Any, **options: Any) -> Any:
    return r.method(TREES.build(), tree, **given(r, **options))


def two_pools(r: Row) -> dict[str, Any]:
    return {"baselines": (TREES.pool, TREES.pool)} if r.baselines == "pool" else {}


@rows(lambda r: r.name != "occlusion")  # no window reaches across tensors
@kinds
def test_tree_gives_the_numbers_of_the_features_side_by_side(r: Row, kind: str) -> None:
    """Without noise: each leaf has a stream of its own."""
    options: dict[str, Any] = {"stdevs": 0.0} if r.noisy else {}
    if "upsample" in r.options:  # a map keeps the layer's size, because the inputs have no other
        options["upsample"] = None
    checks.pytrees(trial(r, TREES, **options), lambda t: TREE_KINDS[kind](*halves(t)))


@rows(lambda r: r.noisy)
@kinds
def test_noise_of_a_tree_does_not_depend_on_its_form(r: Row, kind: str) -> None:
    def options(build: Callable[[Any, Any], Any]) -> dict[str, Any]:
        baselines = options_for(r, build).get("baselines")
        return {} if baselines is None else {"baselines": baselines}

    build = TREE_KINDS[kind]
    found = explain_tree(r, build(*halves(X)), **options(build))
    expected = explain_tree(r, halves(X), **options(lambda a, b: (a, b)))
    assert_close(optree.tree_leaves(found), optree.tree_leaves(expected))


@rows(lambda r: r.noisy and r.explains == "input")
def test_equal_leaves_get_noise_of_their_own(r: Row) -> None:
    """The model adds its two inputs, so only the draws can tell them apart."""

    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = TREES.build()
            self.mid = self.body.mid

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.body(a + 2 * b)

    options = given(r, **two_pools(r))
    both = r.method(Add(), (X, X), **{**options, "stdevs": (0.3, 0.3)})
    without = r.method(Add(), (X, X), **{**options, "stdevs": (0.3, 0.0)})
    for a, b in zip(both, without, strict=True):
        assert not torch.allclose(a, b)


@rows(lambda r: r.noisy and r.explains == "input")
def test_stdevs_are_a_prefix_tree(r: Row) -> None:
    tree = {"a": halves(X)[0], "b": [halves(X)[1]]}
    options = options_for(r, lambda a, b: {"a": a, "b": [b]})
    full = explain_tree(r, tree, **{**options, "stdevs": {"a": 0.1, "b": [0.4]}})
    prefix = explain_tree(r, tree, **{**options, "stdevs": {"a": 0.1, "b": 0.4}})
    tensors = {"a": torch.tensor(0.1), "b": torch.tensor(0.4)}
    assert_close(prefix, full)
    # 0.1 in float32 is off by 1.5e-9
    assert_close(explain_tree(r, tree, **{**options, "stdevs": tensors}), full, rtol=1e-6)


@rows(lambda r: r.baselines == "point")
@pytest.mark.parametrize(
    "baselines",
    [
        {"a": 0.5, "b": 0.5},
        {"a": torch.full((2,), 0.5), "b": [torch.full((3, 3), 0.5, dtype=torch.float64)]},
        0.5,
        torch.tensor(0.5),
    ],
    ids=["numbers", "tensors", "number", "0-d"],
)
def test_baselines_are_a_prefix_tree(r: Row, baselines: Any) -> None:
    a, b = halves(X)
    tree = {"a": a, "b": [b]}
    full = {"a": torch.full_like(a, 0.5), "b": [torch.full_like(b, 0.5)]}
    found = explain_tree(r, tree, baselines=baselines)
    assert_close(found, explain_tree(r, tree, baselines=full))


class Twice(nn.Module):
    """Uses its two inputs differently."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(5, 6)
        self.mid = nn.Tanh()
        self.out = nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        h = self.mid(self.inp(a * torch.sin(b)).unflatten(1, (2, 3)))
        return self.out(F.softplus(h).flatten(1))


@rows()
def test_the_same_tensor_given_twice_is_two_inputs(r: Row) -> None:
    model, options = make(Twice), given(r, **two_pools(r))
    assert_close(r.method(model, (X, X), **options), r.method(model, (X, X.clone()), **options))


@rows(lambda r: not r.frozen)
def test_the_same_tensor_given_twice_collects_both_derivatives(r: Row) -> None:
    model, options = make(Twice), given(r, **two_pools(r))
    if r.create_graph:
        options["create_graph"] = True

    def penalty(a: Tensor, b: Tensor) -> Tensor:
        found = r.method(model, (a, b), **options)
        return inner(noise_like(optree.tree_map(Tensor.detach, found)), found)

    x, a, b = (X.clone().requires_grad_() for _ in range(3))
    penalty(x, x).backward()
    penalty(a, b).backward()
    assert_close(x.grad, a.grad + b.grad)


@kinds
def test_layers_whose_value_is_a_tree(kind: str) -> None:
    """``mid`` returns its input's two halves in a tree, the rest of the model reads its leaves."""
    build = TREE_KINDS[kind]

    class Apart(nn.Module):
        def forward(self, h: Tensor) -> Any:
            return build(*halves(h))

    class Whole(nn.Module):
        def __init__(self, mid: nn.Module) -> None:
            super().__init__()
            self.inp, self.mid, self.out = nn.Linear(4, 5), mid, nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.cat(optree.tree_leaves(self.mid(self.inp(x).tanh())), 1)
            return self.out(h).exp()

    apart, whole = make(lambda: Whole(Apart())), make(lambda: Whole(nn.Identity()))
    x = randn(3, 4)
    forms: list[Callable[..., Any]] = [
        attrfn.layer_activation,
        functools.partial(attrfn.layer_gradient_x_activation, target=1),
        functools.partial(attrfn.layer_integrated_gradients, target=1, n_steps=3, baselines=0.2),
        functools.partial(attrfn.layer_conductance, target=1, n_steps=3, baselines=0.2),
        functools.partial(attrfn.internal_influence, target=1, n_steps=3),
        functools.partial(attrfn.layer_gradient_shap, target=1, baselines=x[:2]),
        functools.partial(attrfn.layer_deep_lift, target=1, baselines=0.2),
        functools.partial(attrfn.layer_deep_lift_shap, target=1, baselines=x[:2]),
        functools.partial(attrfn.layer_lrp, target=1),
    ]
    for form in forms:
        expected = build(*halves(form(whole, x, layer="mid")))
        assert_close(form(apart, x, layer="mid"), expected)


@rows(lambda r: r.explains == "layer")
def test_a_list_of_layers_gives_a_list(r: Row) -> None:
    model, x = r.net.build(), r.net.inputs()
    found = explain(r, r.net, model, x, layer=["mid"])
    assert isinstance(found, list)
    assert_close(found, [explain(r, r.net, model, x)])


@rows(lambda r: r.explains == "layer")
def test_two_layers_side_by_side(r: Row) -> None:
    """Two branches, neither behind the other, so that every method takes them together."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            a = self.left(x).unflatten(1, (3, 2)).tanh()
            b = self.right(x).unflatten(1, (3, 2)).sigmoid()
            return self.out((a * b).flatten(1))

    model, x = make(Branches), randn(3, 4)
    pool = {"baselines": 0.2 * randn(3, 4, seed=8)} if r.baselines == "pool" else {}
    found = explain(r, r.net, model, x, layer=["left", model.right], **pool)
    assert isinstance(found, list)
    assert [t.shape[r.batch_dim :] for t in found] == [(3, 6), (3, 6)]


def test_vmap_over_a_tree_is_the_batch() -> None:
    model, tree = TREES.build(), {"a": halves(X)[0], "b": halves(X)[1]}
    batched = attrfn.integrated_gradients(model, tree, target=1, n_steps=3)

    def one(row: Any) -> Any:
        row = {k: v[None] for k, v in row.items()}
        return take(attrfn.integrated_gradients(model, row, target=1, n_steps=3), 0)

    assert_close(torch.func.vmap(one)(tree), batched)


def test_dataclass_keeps_what_is_no_node() -> None:
    found = attrfn.gradient(TREES.build(), Record(*halves(X), name="mine"), target=0)
    assert dataclasses.is_dataclass(found)
    assert found.name == "mine"
