"""torch's pytrees, which have no public name; the library's own trees are those of optree.

Three uses need torch's own: inside torch.compile and modes, where optree would be entered; the
outputs of models that are registered with torch alone, such as those of transformers; and values
between two runs under rules, which may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.utils._pytree as _pytree

# torch.compile knows these functions by identity, so they are named here and not wrapped.
tree_flatten = _pytree.tree_flatten
"""The leaves of a tree and its structure; ``None`` is a leaf."""

tree_unflatten = _pytree.tree_unflatten
"""The tree of some leaves and a structure."""

tree_map_only = _pytree.tree_map_only
"""``tree_map_only(type, f, tree)``: the tree with ``f`` of each leaf of a type."""


def _tree_leaves(tree: Any) -> list[Any]:
    return tree_flatten(tree)[0]


tree_leaves: Callable[[Any], list[Any]] = getattr(_pytree, "tree_leaves", _tree_leaves)
"""The leaves of a tree; torch has it since 2.2."""


def children(spec: Any) -> list[Any]:
    """The structures of the parts of a tree."""
    found: list[Any] = spec.children() if hasattr(spec, "children") else spec.children_specs
    return found


def in_order_of(tree: Any, spec: Any) -> Any:
    """The tree with the keys of its dicts in the order of a structure, which compares them so."""
    if type(tree) is not spec.type or not isinstance(tree, (dict, list, tuple)):
        return tree
    parts = children(spec)
    if type(tree) is dict:
        if tree.keys() != set(spec.context):
            return tree
        return {k: in_order_of(tree[k], s) for k, s in zip(spec.context, parts, strict=True)}
    if len(tree) != len(parts) or type(tree) not in (list, tuple):
        return tree
    return type(tree)([in_order_of(v, s) for v, s in zip(tree, parts, strict=True)])
