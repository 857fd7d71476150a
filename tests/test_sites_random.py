"""Random trees of modules: sites agree with hooks of torch, which the library itself never uses."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import randn

import attrfn
from attrfn import Site
from attrfn._layers.at_sites import gradients

D = torch.float64
WIDTH = 3


@dataclasses.dataclass
class Out:
    """A dataclass that no library knows."""

    main: Tensor
    other: Any = None


class Leaf(nn.Module):
    """A linear map and a curve, with one of several kinds of output."""

    def __init__(self, kind: str, by_name: bool, writes: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.kind, self.by_name, self.writes = kind, by_name, writes

    def forward(self, x: Tensor) -> Any:
        y = torch.tanh(self.inner(x)) + 0.1 * x
        if self.kind == "tuple":
            return y, None, 2, y.sin()
        if self.kind == "dict":
            return {"main": y, "list": [y.cos(), 1.5]}
        return Out(y, (y * 2,)) if self.kind == "dataclass" else y


def main(value: Any) -> Tensor:
    if isinstance(value, tuple):
        return value[0] + value[3]
    if isinstance(value, dict):
        return value["main"] * value["list"][0]
    return value.main + value.other[0] if isinstance(value, Out) else value


class Tree(nn.Module):
    """Children in a row or around a residual connection; a child may be used several times."""

    def __init__(self, children: list[nn.Module], order: list[int], residual: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(children)
        self.order, self.residual = order, residual

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for i in self.order:
            part: Any = self.parts[i % len(self.parts)]
            by_name = isinstance(part, Leaf) and part.by_name
            y = main(part(x=x) if by_name else part(x))
            if isinstance(part, Leaf) and part.writes:
                y = y.mul_(0.9) if part.kind == "tensor" else y
            x = x + y if self.residual else y
        return x - 0.5 * start if self.residual else x


leaves = st.builds(
    Leaf, st.sampled_from(["tensor", "tuple", "dict", "dataclass"]), st.booleans(), st.booleans()
)
orders = st.lists(st.integers(0, 3), min_size=1, max_size=3)
trees = st.recursive(
    leaves,
    lambda inner: st.builds(Tree, st.lists(inner, min_size=1, max_size=3), orders, st.booleans()),
    max_leaves=5,
)


def whole(tree: nn.Module) -> nn.Module:
    """The tree as a module that returns a tensor, with parameters that depend on nothing."""
    model = Tree([tree], [0], False).to(D)
    for i, p in enumerate(model.parameters()):
        p.data = randn(*p.shape, seed=i)
    return model.eval()


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a value, by means of this file."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Out):
        value = (value.main, value.other)
    parts = value.values() if isinstance(value, dict) else value
    return [t for v in parts for t in tensors(v)] if isinstance(value, (tuple, list, dict)) else []


def changed(f: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Out):
        return Out(changed(f, value.main), changed(f, value.other))
    if isinstance(value, dict):
        return {k: changed(f, v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([changed(f, v) for v in value])
    return value


class Hooks:
    """The values at all inputs and outputs of a copy of a model, by hooks.

    Args:
        edit: A place at which values change: a module's name, its side, and the function.
    """

    def __init__(self, model: nn.Module, edit: tuple[str, str, Any] | None = None) -> None:
        self.model = copy.deepcopy(model)
        self.found: dict[tuple[str, str], list[Any]] = defaultdict(list)
        name, side, f = edit or ("", "", None)
        for k, m in self.model.named_modules():
            m.register_forward_pre_hook(
                self.before(k, f if (name, side) == (k, "input") else None), with_kwargs=True
            )
            m.register_forward_hook(self.after(k, f if (name, side) == (k, "output") else None))

    def before(self, name: str, f: Any) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            value = changed(lambda t: t.clone(), args[0] if args else kwargs)
            value = value if f is None else changed(f, value)
            self.found[name, "input"].append(value)
            new = changed(lambda t: t.clone(), value)
            return ((new,), kwargs) if args else ((), new)

        return hook

    def after(self, name: str, f: Any) -> Any:
        def hook(module: Any, args: Any, out: Any) -> Any:
            value = changed(lambda t: t.clone(), out)
            value = value if f is None else changed(f, value)
            self.found[name, "output"].append(value)
            return changed(lambda t: t.clone(), value)

        return hook


def sites_of(found: Any) -> list[Any]:
    return [
        Site(name, side, call)  # type: ignore[arg-type]
        for (name, side), values in found.items()
        for call in (*range(len(values)), None)
    ]


def assert_same(got: Any, expected: Any, exact: bool = True) -> None:
    a, b = tensors(got), tensors(expected)
    assert len(a) == len(b)
    assert type(got) is type(expected)
    for p, q in zip(a, b, strict=True):
        if exact:
            assert torch.equal(p, q)
        else:
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_values_at_all_sites(tree: nn.Module) -> None:
    model, x = whole(tree), randn(2, WIDTH)
    hooks = Hooks(model)
    expected = hooks.model(x.clone())
    keys = sites_of(hooks.found)
    outputs, found = attrfn.activations(model, keys)(x)
    assert torch.equal(outputs, expected)
    assert list(found) == keys
    for site in keys:
        values = hooks.found[site.layer, site.at]
        assert_same(found[site], tuple(values) if site.call is None else values[site.call])


@settings(max_examples=40, deadline=None)
@given(trees)
def test_gradients_at_all_sites(tree: nn.Module) -> None:
    """Against the gradients of what the hooks found, which is a part of the graph."""
    model, x = whole(tree), randn(2, WIDTH).requires_grad_()
    hooks = Hooks(model)
    out = hooks.model(x)[:, 1].sum()
    keys = [site for site in sites_of(hooks.found) if site.call is not None]
    leaves = {site: tensors(hooks.found[site.layer, site.at][site.call]) for site in keys}
    flat = [t for site in keys for t in leaves[site]]
    # What hooks found is cloned for the model, so that its gradient is whole.
    grads = iter(torch.autograd.grad(out, flat, allow_unused=True))
    for create_graph in (False, True):
        values, found = gradients(model, x, keys, 1, create_graph=create_graph)
        for site in keys:
            assert_close_leaves(values[site], leaves[site])
        if not create_graph:
            first = found
    for site in keys:
        expected = [
            torch.zeros_like(t) if g is None else g
            for t, g in ((t, next(grads)) for t in leaves[site])
        ]
        assert_close_leaves(first[site], expected)
        assert_close_leaves(found[site], expected)


def assert_close_leaves(got: Any, expected: list[Tensor]) -> None:
    found = tensors(got)
    if len(found) != len(expected):  # a dataclass that no library knows has no leaves there
        assert found == []
        return
    for p, q in zip(found, expected, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(trees, st.data())
def test_an_edit_anywhere(tree: nn.Module, data: st.DataObject) -> None:
    model, x = whole(tree), randn(2, WIDTH)
    names = [name for name, _ in model.named_modules()]
    plain = Hooks(model)
    plain.model(x.clone())
    name, side = data.draw(st.sampled_from(sorted(plain.found)))
    assert name in names
    hooks = Hooks(model, (name, side, lambda t: 1.5 * t + 0.25))
    expected = hooks.model(x.clone())
    edit = {Site(name, side, None): lambda v, seen: changed(lambda t: 1.5 * t + 0.25, v)}
    edited = attrfn.intervene(model, edit)
    assert torch.equal(edited(x), expected)
    # The edited model is a model: its values, and its two halves at another place.
    keys = sites_of(hooks.found)
    outputs, found = attrfn.activations(edited, keys)(x)
    assert torch.equal(outputs, expected)
    for site in keys:
        values = hooks.found[site.layer, site.at]
        assert_same(found[site], tuple(values) if site.call is None else values[site.call])
    where = data.draw(st.sampled_from([s for s in keys if isinstance(s.call, int)]))
    halves = attrfn.split(edited, where.layer, at=where.at, call=where.call)
    a = halves.head(x)
    assert_same(a, hooks.found[where.layer, where.at][where.call])
    assert torch.equal(halves.tail(a, x), expected)
    jac = torch.func.jacrev(edited)(x)
    torch.testing.assert_close(jac, torch.func.jacrev(hooks.model)(x), rtol=1e-10, atol=1e-12)


@pytest.mark.fuzz
@settings(max_examples=400, deadline=None)
@given(trees)
def test_many_trees(tree: nn.Module) -> None:
    model, x = whole(tree), randn(2, WIDTH)
    hooks = Hooks(model)
    expected = hooks.model(x.clone())
    outputs, found = attrfn.activations(model, sites_of(hooks.found))(x)
    assert torch.equal(outputs, expected)
    for site, value in found.items():
        values = hooks.found[site.layer, site.at]
        assert_same(value, tuple(values) if site.call is None else values[site.call])
