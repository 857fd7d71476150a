"""What a tensor that ``functools.partial`` binds holds: one row for each example, or none.

A mark is an attribute of a plain tensor, an alias of the user's. So a model function with marked
tensors can be called as it is, and whatever is computed from them, such as the clones that a model
gets, has no mark.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import optree
import torch
from torch import Tensor

from attrfn._torch.say import say
from attrfn._torch.typing import Tree

Rows: TypeAlias = int | Literal["shared"]
"""The dimension of the examples, or that all examples share the tensor."""

_ROWS = "_attrfn_rows"


def shared(value: Tree) -> Tree:
    """Mark a tensor that a model function binds as one for all examples.

    Such a tensor stays as it is when a method evaluates several copies of the batch, also where its
    dimension 0 is as long as the batch. The model gets a plain tensor.

    Args:
        value: A tensor, or a tree of tensors (list, tuple, dict). Mark it last: what is
            computed from a marked tensor, by ``.to(device)`` too, has no mark.

    Returns:
        The same tensors, marked, for ``functools.partial`` or an object that it binds.

    Raises:
        TypeError: It is not a tensor or a tree of tensors.

    Example:
        >>> import functools, torch, attrfn
        >>> def f(x, edges):  # a graph of two nodes: each gets what the other has
        ...     return x[:, edges[0]].sum((1, 2)) + x[:, edges[1], 0].square().sum(1)
        >>> edges, x = torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 2, 1)
        >>> model = functools.partial(f, edges=attrfn.shared(edges))
        >>> attrfn.integrated_gradients(model, x).flatten(1)
        tensor([[2., 2.],
                [2., 2.]])
    """
    return _each(value, "shared", "shared")


def per_example(value: Tree, dim: int = 0) -> Tree:
    """Mark a tensor that a model function binds as one with a row for each example.

    Such a tensor is repeated with the batch when a method evaluates several copies of it, and only
    the rows of an example go where it goes. The model gets a plain tensor.

    Args:
        value: A tensor, or a tree of tensors (list, tuple, dict). Mark it last: what is
            computed from a marked tensor, by ``.to(device)`` too, has no mark.
        dim: The dimension of the examples, such as 1 for the states (layers, B, H) of an LSTM.

    Returns:
        The same tensors, marked, for ``functools.partial`` or an object that it binds.

    Raises:
        TypeError: It is not a tensor or a tree of tensors, or ``dim`` is not an int.
        ValueError: The tensor lacks the dimension.

    Example:
        >>> import functools, torch, attrfn
        >>> rnn, x = torch.nn.RNN(3, 4, batch_first=True), torch.randn(2, 5, 3)
        >>> h0 = torch.zeros(1, 2, 4)  # (layers, B, H)
        >>> model = functools.partial(rnn, hx=attrfn.per_example(h0, dim=1))
        >>> target = lambda out: out[0][:, -1, 0]
        >>> attrfn.integrated_gradients(model, x, target=target).shape
        torch.Size([2, 5, 3])
    """
    if type(dim) is not int:
        raise TypeError(f"dim is {say(dim)}, expected an int, the dimension of the examples")
    return _each(value, dim, "per_example")


def _each(value: Tree, rows: Rows, name: str) -> Tree:
    def one(t: Any) -> Tensor:
        if not isinstance(t, Tensor):
            raise TypeError(
                f"attrfn.{name} got {say(t)}, expected a tensor or a list, tuple or dict of "
                "tensors: of an object mark the tensors that it holds"
            )
        if rows == "shared":
            return alias(t, rows)
        if not -t.ndim <= rows < t.ndim:
            raise ValueError(
                f"dim is {rows} for a tensor of shape {tuple(t.shape)}, expected one of its "
                f"{t.ndim} dimension(s), that of the examples"
            )
        return alias(t, rows % t.ndim)

    found: Tree = optree.tree_map(one, value)
    return found


def alias(t: Tensor, rows: Rows | None) -> Tensor:
    """The same tensor as another object, with a mark or without one."""
    new = t.view_as(t) if t.layout == torch.strided and not t.is_nested else t.clone()
    return new if rows is None else put_rows(new, rows)


def put_rows(t: Tensor, rows: Rows) -> Tensor:
    """Mark a tensor that is used nowhere else."""
    setattr(t, _ROWS, rows)
    return t


def rows_of(t: Tensor) -> Rows | None:
    """The mark of a tensor, or None."""
    rows: Rows | None = getattr(t, _ROWS, None)
    return rows
