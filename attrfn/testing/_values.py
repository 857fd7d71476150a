"""Checks of values: rows, transforms, derivatives, forms, types and options."""

from __future__ import annotations

import functools
from typing import Any

import optree
import torch
from torch import Tensor, nn

from attrfn import random
from attrfn.testing._strategies import tensor_of, tree_of
from attrfn.testing._subject import (
    Drawn,
    Failed,
    Subject,
    detached,
    difference,
    rows,
    weighted,
    weights_like,
)


def result(s: Subject, d: Drawn) -> None:
    """Attributions are a tree of finite tensors like the inputs, the same in each call."""
    x = d.inputs()
    found = s.run(d, x=x)
    leaves = optree.tree_leaves(found)
    if not leaves or not all(isinstance(t, Tensor) for t in leaves):
        raise Failed(f"the result is a {type(found).__name__}, expected tensors")
    for t in leaves:
        if t.shape[:1] != (d.batch,):
            raise Failed(f"the result is {tuple(t.shape)}, expected {d.batch} rows in dimension 0")
        if not torch.isfinite(t).all():
            raise Failed("the result is not finite")
    if not s.of_layer and (not isinstance(found, Tensor) or found.shape != x.shape):
        shapes = [tuple(t.shape) for t in leaves]
        raise Failed(f"the result is {shapes}, expected {tuple(x.shape)} as the inputs")
    torch.default_generator.manual_seed(d.seed + 1)
    s.close(s.run(d, x=x), found, "a second call, after torch.manual_seed")


def row_alone(s: Subject, d: Drawn) -> None:
    """Row i of a batch is what row i gives alone."""
    x = d.inputs(max(2, d.batch))
    given = s.options(d, x)
    together = s.run(d, x=x)
    for i in range(len(x)):
        one = slice(i, i + 1)
        own = {"baselines": given["baselines"][one]} if _of_rows(s, given) else {}
        s.close(s.run(d, x=x[one], **own), rows(together, one), f"row {i} alone")


def _of_rows(s: Subject, given: dict[str, Any]) -> bool:
    """Whether baselines have a row for each example."""
    return "baselines" in given and "pool" not in s.needs


def vmap(s: Subject, d: Drawn) -> None:
    """``torch.vmap`` over examples is the batch."""
    x = d.inputs(max(2, d.batch))
    model, given = s.model(d), s.options(d, x)
    right = s.run(d, model, x)

    def one(row: Tensor, base: Tensor) -> Any:
        own = {"baselines": base[None]} if _of_rows(s, given) else {}
        return rows(s.run(d, model, row[None], **own), 0)

    base = given["baselines"] if _of_rows(s, given) else x
    s.close(torch.vmap(one)(x, base), right, "torch.vmap over the examples")


def jvp(s: Subject, d: Drawn) -> None:
    """Forward-mode derivatives of the attributions are those by finite differences."""
    x, model, given, weights = _at(s, d)
    direction = d.like(x, 2)

    def f(x: Tensor) -> Tensor:
        return weighted(s.method(model, x, **given), weights)

    right = difference(lambda h: f(x + h * direction).detach())
    found = torch.func.jvp(f, (x,), (direction,))[1]
    s.close(found, right, "torch.func.jvp of the attributions", _loose(s))


def grad(s: Subject, d: Drawn) -> None:
    """Derivatives of the attributions in the inputs are those by finite differences."""
    x, model, given, weights = _at(s, d)
    direction = d.like(x, 2)

    def f(x: Tensor, **options: Any) -> Tensor:
        return weighted(s.method(model, x, **given, **options), weights)

    right = difference(lambda h: f(x + h * direction).detach())
    found = (torch.func.grad(f)(x) * direction).sum()
    s.close(found, right, "torch.func.grad of the attributions", _loose(s))
    if "create_graph" in s.takes:
        leaf = x.clone().requires_grad_()
        score = f(leaf, create_graph=True) + 0 * leaf.sum()  # constant attributions have no graph
        found = torch.autograd.grad(score, leaf)[0]
        s.close((found * direction).sum(), right, "backward with create_graph=True", _loose(s))


def parameters(s: Subject, d: Drawn) -> None:
    """Derivatives of the attributions in the parameters are those by finite differences."""
    x, model, given, weights = _at(s, d)
    start = detached(model)
    directions = {k: d.like(p, 20 + i) for i, (k, p) in enumerate(start.items())}

    def f(params: dict[str, Tensor]) -> Tensor:
        bound = functools.partial(torch.func.functional_call, model, params)
        return weighted(s.method(bound, x, **given), weights)

    def along(h: float) -> Tensor:
        return f({k: p + h * directions[k] for k, p in start.items()}).detach()

    right = difference(along)
    grads = torch.func.grad(f)(start)
    found = torch.stack([(grads[k] * directions[k]).sum() for k in start]).sum()
    s.close(found, right, "torch.func.grad in the parameters", _loose(s))


def _at(s: Subject, d: Drawn) -> tuple[Tensor, nn.Module, dict[str, Any], Any]:
    x, model = d.inputs(), s.model(d)
    given = s.options(d, x)
    return x, model, given, weights_like(d, s.method(model, x, **given))


def _loose(s: Subject) -> float:
    """Finite differences are good to about 1e-7, and cancel in the sum over elements."""
    return max(1.0, 1e-4 / s.tolerance)


def compile(s: Subject, d: Drawn) -> None:
    """``torch.compile(fullgraph=True)`` gives the same."""
    x, model = d.inputs(), s.model(d)
    given = s.options(d, x)
    torch.compiler.reset()
    try:
        compiled = torch.compile(
            lambda x: s.method(model, x, **given), fullgraph=True, backend="aot_eager"
        )
        found = compiled(x)
    finally:
        torch.compiler.reset()
    s.close(found, s.method(model, x, **given), "torch.compile(fullgraph=True)")


class Joined(nn.Module):
    """A model of a tensor as one of the tree into which the tensor is cut."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mid = model.mid  # a layer keeps its name

    def forward(self, tree: Any) -> Tensor:
        """The outputs of the model."""
        y: Tensor = self.model(tensor_of(tree))
        return y


def pytrees(s: Subject, d: Drawn) -> None:
    """Inputs in a dict give attributions in such a dict, with the values of one tensor."""
    x, model = d.inputs(), s.model(d)
    given = s.options(d, x)
    right = s.method(model, x, **given)
    if "baselines" in given:
        given["baselines"] = tree_of(given["baselines"])
    found = s.method(Joined(model), tree_of(x), **given)
    right = right if s.of_layer else tree_of(right)
    if "key" in s.takes or "key" in s.needs:
        if optree.tree_structure(found) != optree.tree_structure(right):
            raise Failed(f"inputs in a dict: the result is {optree.tree_structure(found)}")
        return  # draws may go by tensors
    s.close(found, right, "inputs in a dict")


def dtypes(s: Subject, d: Drawn) -> None:
    """Inputs and models of float32 give attributions of float32, close to those of float64."""
    right = optree.tree_map(lambda t: t.float(), s.run(d))
    x = d.inputs(dtype=torch.float32)
    found = s.run(d, s.model(d, torch.float32), x)
    s.close(found, right, "float32", max(1.0, 1e-2 / s.tolerance))


def chunks(s: Subject, d: Drawn) -> None:
    """``chunk_size`` changes no value."""
    right = s.run(d)
    for size in (1, 2, None):
        s.close(s.run(d, chunk_size=size), right, f"chunk_size={size}")


def keys(s: Subject, d: Drawn) -> None:
    """Different keys draw differently; an int and the key made of it draw the same."""
    one = s.run(d, key=d.seed)
    s.close(s.run(d, key=random.key(d.seed)), one, "attrfn.random.key(seed) for the int")
    others = [s.run(d, key=1000 + k) for k in range(6)]
    s.differ([one] * 6, others, "six other keys")


def baselines(s: Subject, d: Drawn) -> None:
    """Attributions depend on the baselines."""
    given = s.options(d, d.inputs())
    moved = 0.9 - 2 * given["baselines"]
    s.differ(s.run(d, baselines=moved), s.run(d), "other baselines")


def targets(s: Subject, d: Drawn) -> None:
    """A target for each example is that target alone; other targets explain other outputs."""
    x = d.inputs(max(2, d.batch))
    by_class = [s.run(d, x=x, target=t) for t in range(3)]
    s.differ(by_class[:1] * 2, by_class[1:], "another target")
    of_rows = torch.arange(len(x)) % 3
    found = s.run(d, x=x, target=of_rows)
    for i, t in enumerate(of_rows.tolist()):
        one = slice(i, i + 1)
        s.close(rows(found, one), rows(by_class[t], one), "a target for each example")


def no_grad(s: Subject, d: Drawn) -> None:
    """Attributions are the same where gradients are switched off."""
    right = s.run(d)
    with torch.no_grad():
        found = s.run(d)
    s.close(found, right, "under torch.no_grad")
