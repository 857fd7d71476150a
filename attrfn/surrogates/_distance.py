"""Distances of perturbed inputs from the inputs, for the similarities of LIME.

Each is a function ``(inputs, perturbed, z) -> d``, (S, 1 or B): the leaves of inputs are (B, ...),
those of perturbed (S, B, ...), and z (S, 1 or B, n) says which features a sample has.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._torch.precision import matmul
from attrfn._torch.typing import Tree


def _cosine(inputs: Tree, perturbed: Tree, z: Tensor) -> Tensor:
    # One matrix product for each example: elementwise products would be another tensor of the
    # samples' size.
    x, p = _rows(inputs, 1), _rows(perturbed, 2)
    dots = [matmul(b.transpose(0, 1), a[..., None])[..., 0].mT for a, b in zip(x, p, strict=True)]
    return 1 - torch.stack([in_widest(t) for t in dots]).sum(0) / (_length(x) * _length(p))


def _euclidean(inputs: Tree, perturbed: Tree, z: Tensor) -> Tensor:
    x, p = _rows(inputs, 1), _rows(perturbed, 2)
    return _length([b - a for a, b in zip(x, p, strict=True)], 0.0)


def _interpretable(inputs: Tree, perturbed: Tree, z: Tensor) -> Tensor:
    z = in_widest(z)
    return 1 - z.sum(-1) / (_length([z]) * math.sqrt(z.shape[-1]))


def _rows(tree: Tree, leading: int) -> list[Tensor]:
    """The leaves as floating tensors with all elements in one dimension after the leading ones."""
    leaves: list[Tensor] = optree.tree_leaves(tree)
    types = [wide(t.dtype) if t.is_floating_point() else torch.float32 for t in leaves]
    return [t[..., None].flatten(leading).to(d) for t, d in zip(leaves, types, strict=True)]


def _length(rows: list[Tensor], least: float = 1e-8) -> Tensor:
    """The norm over all rows; the least is that of torch's cosine_similarity."""
    norms = torch.stack([in_widest(torch.linalg.vector_norm(t, dim=-1)) for t in rows])
    length: Tensor = torch.linalg.vector_norm(norms, dim=0).clamp_min(least)
    return length


def in_widest(t: Tensor) -> Tensor:
    """In float64 (float32 on mps, which has no other)."""
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


DISTANCES: dict[str, Callable[[Tree, Tree, Tensor], Tensor]] = {
    "cosine": _cosine,
    "euclidean": _euclidean,
    "interpretable": _interpretable,
}
