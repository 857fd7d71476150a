"""A layer's value as rows of examples, by a function of the user that moves its elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import optree
import torch
from torch import Tensor

from attrfn._layers.layout import Layout, only
from attrfn._layers.leaves import real_view, repacked
from attrfn._layers.probe import merge
from attrfn._layers.rows import is_floating
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import is_compiling
from attrfn._torch.dense import is_packed
from attrfn._torch.guard import called
from attrfn._torch.say import say
from attrfn._torch.typing import Tree


class Moved(Layout):
    """The value as rows of examples, by a function that moves its elements.

    How the elements get back is read from what the function makes of their numbers.
    """

    named = True

    def __init__(self, value: Tree, own: Tree, batch: int, move: Callable[[Any], Tree]) -> None:
        self.move = move
        self.value = value
        self.batch = batch
        self.dim: int | None = None
        self.tables: dict[int, tuple[Tensor, list[list[int]]]] = {}
        self.leaves, self.spec = optree.tree_flatten(own)
        self._leave_out(own)
        super().__init__(value, self.own, batch)
        if any(len(t) != batch for t in optree.tree_leaves(self.seen)):
            self._refuse(self.seen)
        if not any(map(_is_fixed, optree.tree_leaves(value, is_packed))):
            dims = range(max(t.ndim for t in self.leaves))
            self.dim = next((d for d in dims if self._doubles(d)), None)
        self.folds = self.dim is not None

    def present(self, own: Tree) -> Tree:
        rows = self._rows(own)
        leaves = optree.tree_leaves(rows)
        if not leaves or not all(isinstance(t, Tensor) and t.ndim for t in leaves):
            self._refuse(rows)
        return rows

    def _refuse(self, rows: Tree) -> NoReturn:
        raise ValueError(
            f"rows returned {say(rows)} for {self.batch} example(s), expected tensors with the "
            "examples in dimension 0, any number of them: write -1 for it, as in "
            "a.unflatten(0, (-1, 5))"
        )

    def plant(self, seen: Tree) -> Tree:
        return self.filled(self._unseen(optree.tree_leaves(seen)))

    def _place(self, sizes: tuple[int, ...]) -> int | None:
        return only(sizes, self.batch)

    def _unseen(self, seen: list[Tensor]) -> list[Tensor]:
        table, sizes = self._table(len(seen[0]) // max(self.batch, 1))
        flat = torch.cat([t.reshape(-1) for t in seen]).index_select(0, table.to(seen[0].device))
        parts = torch.split(flat, [torch.Size(s).numel() for s in sizes])
        return [t.reshape(s) for t, s in zip(parts, sizes, strict=True)]

    def option(self, entries: Sequence[Any]) -> Tree:
        if not any(isinstance(e, Tensor) for e in entries):
            return super().option(entries) if len(entries) == 1 else entries[0]
        whole = [
            torch.as_tensor(0 if e is None else e, device=t.device).double().expand(t.shape)
            for e, t in zip(entries, self.leaves, strict=True)
        ]
        kinds = {e.dtype for e in entries if isinstance(e, Tensor)}
        dtype = next(iter(kinds)) if len(kinds) == 1 else torch.float64
        rows = self._rows(optree.tree_unflatten(self.spec, whole))
        return optree.tree_map(lambda t: t.to(dtype), rows)

    def _rows(self, own: Tree) -> Tree:
        rows = called("rows", self.move, merge(repacked(own, self.value), self.value))
        return optree.tree_map(lambda t: real_view(t) if isinstance(t, Tensor) else t, rows)

    def _numbers(self, sizes: list[list[int]]) -> list[Tensor]:
        """Tensors of these sizes whose elements are numbered from 1."""
        found: list[Tensor] = []
        start = 1
        for size in sizes:
            n = torch.Size(size).numel()
            # Floating, as activations are; float64 counts exactly up to 2^53.
            ids = torch.arange(start, start + n, dtype=torch.float64, device=self.leaves[0].device)
            found.append(ids.reshape(size))
            start += n
        return found

    def _sizes(self, copies: int, dim: int | None) -> list[list[int]]:
        many = [list(t.shape) for t in self.leaves]
        if copies != 1 and dim is not None:
            for s in many:
                s[dim] *= copies
        return many

    def _doubles(self, dim: int) -> bool:
        """Whether a dimension of this value, twice as long, is that of twice the examples."""
        if any(t.ndim <= dim for t in self.leaves):
            return False
        ids = optree.tree_unflatten(self.spec, self._numbers(self._sizes(2, dim)))
        try:
            rows = optree.tree_leaves(self._rows(ids))
        except Exception:  # of the user's function, which is not written for such a shape
            return False
        both = zip(rows, optree.tree_leaves(self.seen), strict=True)
        return all(t.shape == (2 * len(u), *u.shape[1:]) for t, u in both)

    def _table(self, copies: int) -> tuple[Tensor, list[list[int]]]:
        """Where in the rows each element of the value is, for some copies of the batch."""
        if copies in self.tables:
            return self.tables[copies]
        sizes = self._sizes(copies, self.dim)
        ids = self._numbers(sizes)
        rows = optree.tree_leaves(self._rows(optree.tree_unflatten(self.spec, ids)))
        places = torch.cat([t.reshape(-1) for t in rows]).long()
        n = sum(t.numel() for t in ids)
        table = places.new_zeros(n + 1).scatter(0, places, torch.arange(len(places)).to(places))
        found = table[1:], sizes
        if not transforming():
            self.tables[copies] = found
        return found

    def _leave_out(self, own: Tree) -> None:
        """Keep the tensors of the value that the function returns."""
        self.own = own
        if is_compiling():  # numbers cannot be read: the function has to return everything
            return
        ids = self._numbers(self._sizes(1, None))
        rows = self._rows(optree.tree_unflatten(self.spec, ids))
        leaves = optree.tree_leaves(rows)
        if not leaves or not all(isinstance(t, Tensor) for t in leaves):
            self._refuse(rows)
        places = [t.reshape(-1) for t in leaves]
        kept = []
        for t in ids:
            if not t.numel():
                kept.append(False)
                continue
            found = torch.cat([p[(p >= t.min()) & (p <= t.max())] for p in places])
            whole = len(found) == t.numel() and bool((found.sort()[0] == t.reshape(-1)).all())
            if len(found) and not whole:
                raise ValueError(
                    "rows drops, repeats or changes elements of the layer's value, expected a "
                    "function that only moves them, such as lambda a: a.unflatten(0, (-1, 5))"
                )
            kept.append(whole)
        parts = [t if k else None for t, k in zip(self.leaves, kept, strict=True)]
        self.own = optree.tree_unflatten(self.spec, parts)
        if not any(kept):
            raise ValueError("rows returns no tensor of the layer's value, expected at least one")


def _is_fixed(leaf: Any) -> bool:
    """Whether a part of a value has to stay as it is, so that copies cannot be one value."""
    return is_packed(leaf) or (isinstance(leaf, Tensor) and not is_floating(leaf))
