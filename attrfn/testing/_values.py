"""Checks of values: rows, vmap, compile, forms, types and options."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

import optree
import torch
from torch import Tensor, nn

from attrfn import random
from attrfn._torch.typing import Tree
from attrfn.testing._state import untouched
from attrfn.testing._strategies import tree_of
from attrfn.testing._trial import Failed, Trial, taken


def result(t: Trial) -> None:
    """Attributions are a tree of finite tensors like the inputs, the same in each call."""
    x, model = t.inputs(), t.build()
    given = t.options(x)
    found = t.method(model, x, **given)
    leaves = optree.tree_leaves(found)
    if not leaves or not all(isinstance(a, Tensor) for a in leaves):
        raise Failed(f"the result is a {type(found).__name__}, expected tensors")
    for a in leaves:
        if a.shape[t.dim : t.dim + 1] != (t.batch,):
            raise Failed(
                f"the result is {tuple(a.shape)}, expected {t.batch} rows in dimension {t.dim}"
            )
    t.said(found, "the result")
    if t.like_inputs and (not isinstance(found, Tensor) or found.shape[t.dim :] != x.shape):
        shapes = [tuple(a.shape) for a in leaves]
        raise Failed(f"the result is {shapes}, expected {tuple(x.shape)} as the inputs")
    torch.default_generator.manual_seed(t.seed + 1)
    again = t.method(model, x, **given)
    t.close(again, found, "a second call, after torch.manual_seed", t.again)


def row_alone(t: Trial) -> None:
    """Row i of a batch is what row i gives alone, and what it gives among others."""
    x, model = t.inputs(max(2, t.batch)), t.build()
    given = t.options(x)
    of_rows = t.rowwise(given, len(x))

    def at(index: Any) -> Tree:
        return t.method(model, x[index], **{**given, **taken(of_rows, index)})

    together = at(slice(None))
    for i in range(len(x)):
        one = slice(i, i + 1)
        t.close(at(one), taken(together, one, t.dim), f"row {i} alone")
    turned = torch.arange(1, len(x) + 1) % len(x)
    t.close(at(turned), taken(together, turned, t.dim), "rows in another order")


def vmap(t: Trial, whole: Collection[str] = ("baselines",)) -> None:
    """``torch.vmap`` over examples is the batch.

    Args:
        t: The method.
        whole: The options of which each example gets its row as a batch of one, and not the row.
    """
    x, model = t.inputs(max(2, t.batch)), t.build()
    given = t.options(x)
    right = t.method(model, x, **given)

    def one(row: Tensor, own: dict[str, Tensor]) -> Any:
        own = {k: v[None] if k in whole else v for k, v in own.items()}
        return taken(t.method(model, row[None], **{**given, **own}), 0, t.dim)

    mapped = torch.vmap(one, out_dims=t.dim)(x, t.rowwise(given, len(x)))
    t.close(mapped, right, "torch.vmap over the examples")


def compile(t: Trial) -> None:
    """``torch.compile(fullgraph=True)`` gives the same, by one graph for all values."""
    x, model = t.inputs(), t.build()
    given = t.options(x)
    of_rows = t.rowwise(given, len(x))

    def f(x: Tensor, own: dict[str, Tensor]) -> Tree:
        return t.method(model, x, **{**given, **own})

    torch.compiler.reset()
    try:
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        t.close(compiled(x, of_rows), f(x, of_rows), "torch.compile(fullgraph=True)")
        with torch.compiler.set_stance("fail_on_recompile"):
            x, of_rows = t.inputs(shift=60), {k: v.flip(0) for k, v in of_rows.items()}
            t.close(compiled(x, of_rows), f(x, of_rows), "compiled code for other values")
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.1)
            t.close(compiled(x, of_rows), f(x, of_rows), "compiled code for other parameters")
    finally:
        torch.compiler.reset()


class Joined(nn.Module):
    """A model of a tensor as one of the tree into which the tensor is cut."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mid = model.mid  # a layer keeps its name

    def forward(self, *tree: Any) -> Tensor:
        """The outputs of the model."""
        leaves: list[Tensor] = optree.tree_leaves(tree)  # type: ignore[arg-type]
        y: Tensor = self.model(torch.cat(leaves, -1))
        return y


def pytrees(t: Trial, cut: Callable[[Tensor], Tree] = tree_of) -> None:
    """Inputs in a tree give attributions in such a tree, with the values of one tensor.

    Args:
        t: The method.
        cut: Cuts a tensor along its last dimension, in the order of the tree's leaves.
    """
    x, model = t.inputs(), t.build()
    given = t.options(x)
    right = t.method(model, x, **given)
    if isinstance(given.get("baselines"), Tensor):
        given["baselines"] = cut(given["baselines"])
    tree = cut(x)
    found = t.method(Joined(model), tree, **given)
    right = cut(right) if t.like_inputs else right
    what = f"inputs in a {type(tree).__name__}"
    if t.by_leaf:
        if optree.tree_structure(found) != optree.tree_structure(right):
            raise Failed(f"{what}: the result is {optree.tree_structure(found)}")
        return
    t.close(found, right, what)


def dtypes(t: Trial, dtype: torch.dtype = torch.float32, allowed: float = 1e-3) -> None:
    """Numbers that a type holds are explained in the type as in float64.

    Args:
        t: The method.
        dtype: The type.
        allowed: What counts as equal, relative to the largest value.
    """
    x = t.inputs().to(dtype)
    given = t.options(x)

    def explained(to: torch.dtype) -> Tree:
        options = {
            k: v.to(dtype).to(to) if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in given.items()
        }
        return t.method(t.build().to(dtype).to(to), x.to(to), **options)

    found, right = explained(dtype), explained(torch.float64)
    t.said(found, "the result")
    for a in optree.tree_leaves(found):
        if a.dtype != dtype:
            raise Failed(f"{_name(dtype)}: the result is {tuple(a.shape)} of {a.dtype}")
    t.close(optree.tree_map(Tensor.double, found), right, _name(dtype), allowed)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def chunks(t: Trial, sizes: Collection[Any] = (1, 2, 100, None), **options: Any) -> None:
    """``chunk_size`` changes no value.

    Args:
        t: The method.
        sizes: The sizes.
        **options: Other options that change no value.
    """
    x, model = t.inputs(), t.build()
    given = t.options(x)
    right = t.method(model, x, **given)
    for size in sizes:
        found = t.method(model, x, **{**given, **options, "chunk_size": size})
        t.close(found, right, f"chunk_size={size}")


def keys(t: Trial) -> None:
    """Different keys draw differently; an int and the key made of it draw the same."""
    x, model = t.inputs(), t.build()
    given = t.options(x)

    def by(key: Any) -> Tree:
        return t.method(model, x, **{**given, "key": key})

    one = by(t.seed)
    t.close(by(random.key(t.seed)), one, "attrfn.random.key(seed) for the int", t.again)
    others = [by(1000 + k) for k in range(6)]
    t.differ([one] * 6, others, "six other keys")


def baselines(t: Trial) -> None:
    """Attributions depend on the baselines."""
    x, model = t.inputs(), t.build()
    given = t.options(x)
    moved = {**given, "baselines": 0.9 - 2 * given["baselines"]}
    t.differ(t.method(model, x, **moved), t.method(model, x, **given), "other baselines")


def targets(t: Trial) -> None:
    """A target for each example is that target alone; other targets explain other outputs."""
    x, model = t.inputs(max(2, t.batch)), t.build()
    given = t.options(x)

    def of(target: Any) -> Tree:
        return t.method(model, x, **{**given, "target": target})

    by_class = [of(c) for c in range(3)]
    t.differ(by_class[:1] * 2, by_class[1:], "another target")
    of_rows = torch.arange(len(x)) % 3
    found = of(of_rows)
    for i, c in enumerate(of_rows.tolist()):
        one = slice(i, i + 1)
        right = taken(by_class[c], one, t.dim)
        t.close(taken(found, one, t.dim), right, "a target for each example")


def no_grad(
    t: Trial, mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.no_grad
) -> None:
    """Attributions are the same where gradients are switched off.

    Args:
        t: The method.
        mode: ``torch.no_grad`` or ``torch.inference_mode``.
    """
    x, model = t.inputs(), t.build()
    given = t.options(x)
    right = t.method(model, x, **given)
    with mode(), untouched(model, x, given):
        found = t.method(model, x, **given)
    t.close(found, right, f"under torch.{mode.__name__}")
