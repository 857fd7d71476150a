"""One batch after the other: keys, memory that runs out, and examples that fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import optree
import torch
from torch import Tensor

from attrfn._explain.shared import mark_of, marked
from attrfn._torch.guard import fail, is_plain
from attrfn._torch.typing import ModelFn, Tree
from attrfn._torch.warn import warn
from attrfn.data._bound import bound_to
from attrfn.data._columns import Rows
from attrfn.data._memory import is_of_memory, let_go
from attrfn.data._options import Options, check_rows
from attrfn.data._sources import Batch, Source, first_line


class Found(NamedTuple):
    """The attributions of a batch.

    Attributes:
        start: The number of the first row.
        size: The number of rows.
        tree: The attributions, on the CPU; nan for the rows that failed.
        numbers: The numbers by which random numbers were drawn.
        failed: What failed, by number.
        scores: What the scores are (:mod:`attrfn._explain.shared`).
    """

    start: int
    size: int
    tree: Tree
    numbers: Tensor
    failed: dict[int, str]
    scores: str | None

    def good(self) -> tuple[Tree, Tensor]:
        """The attributions that there are, and their numbers."""
        if not self.failed:
            return self.tree, self.numbers
        keep = torch.tensor([self.start + i not in self.failed for i in range(self.size)])
        return optree.tree_map(lambda t: t[keep], self.tree), self.numbers[keep]


Part = tuple[Rows, Tensor]
"""Rows and their places."""


class Runner:
    """Explains batches.

    Args:
        model_fn: The model function.
        options: The method and its options.
        source: The data, for messages.
        device: Where batches are moved to; None: they stay.
        size: How many rows are explained at once.
        skip: Whether examples that fail are recorded; else the first one is raised.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        options: Options,
        source: Source,
        device: torch.device | None,
        size: int,
        skip: bool,
    ) -> None:
        self.model_fn = model_fn
        self.options = options
        self.source = source
        self.device = device
        self.size = size
        self.skip = skip
        self._empty: Tree = None  # a row of the attributions, by which failed rows are filled
        self._probed = False

    def explain(self, batch: Batch) -> Found:
        """The attributions of a batch.

        Raises:
            Exception: What the method raised, with the number of the example.
        """
        failed = {i: first_line(error) for i, error in batch.failed.items()}
        parts: list[tuple[Tensor, Tree]] = []
        index = batch.places
        if batch.rows is not None:
            part = (batch.rows, batch.places)
            parts = list(self._pieces(part, failed))
            self._probe(part, parts)
            index = batch.places if batch.rows.numbers is None else batch.rows.numbers.cpu()
        if batch.failed:  # which draw by their place
            every = torch.arange(batch.start, batch.start + batch.size)
            index = every.index_copy(0, batch.places - batch.start, index)
        if not parts and self._empty is None:
            cause = next(iter(batch.failed.values()), None)
            where = self.source.where(min(failed))
            raise ValueError(
                f"all {batch.size} examples of the first batch failed, {where} with: "
                f"{failed[min(failed)]}: repair the call or the data"
            ) from cause
        scores = None
        if parts:
            scores = mark_of(optree.tree_leaves(parts[0][1]))
        if parts and self._empty is None:
            self._empty = optree.tree_map(lambda t: _blank(t[:1]), parts[0][1])
        return Found(batch.start, batch.size, self._whole(batch, parts), index, failed, scores)

    def _whole(self, batch: Batch, parts: list[tuple[Tensor, Tree]]) -> Tree:
        """The parts in the order of the rows, with blanks between."""
        if len(parts) == 1 and len(parts[0][0]) == batch.size:
            return parts[0][1]
        if sum(len(places) for places, _ in parts) == batch.size:
            return optree.tree_map(lambda *t: torch.cat(t), *[tree for _, tree in parts])

        def fill(empty: Tensor, *found: Tensor) -> Tensor:
            whole = empty.repeat(batch.size, *[1] * (empty.ndim - 1))
            for (places, _), t in zip(parts, found, strict=True):
                whole[places - batch.start] = t
            return whole

        return optree.tree_map(fill, self._empty, *[tree for _, tree in parts])

    def _pieces(self, part: Part, failed: dict[int, str]) -> Iterator[tuple[Tensor, Tree]]:
        """The part in pieces that fit into memory; what fails is left out."""
        start, rows = 0, len(part[0])
        while start < rows:
            whole = start == 0 and rows <= self.size
            piece = part if whole else _pick(part, slice(start, start + self.size))
            found, error = self._try(piece)
            if error is None:
                yield piece[1], found
            elif is_of_memory(error) and self._halve(len(piece[0]), error):
                continue
            else:
                yield from self._apart(piece, error, failed)
            start += len(piece[0])

    def _try(self, part: Part) -> tuple[Tree, Exception | None]:
        """The attributions of some rows, or why there are none."""
        # What is done about an error happens outside of the handler, which would keep the tensors
        # of the failed run alive.
        try:
            return self._run(part), None
        except Warning:  # which the user's filters make an error, whatever the example
            raise
        except Exception as error:
            return None, error

    def _halve(self, rows: int, error: BaseException) -> bool:
        """Take half as many rows from now on, if there are several."""
        let_go(error)
        if rows > 1:
            self.size = (rows + 1) // 2
        return rows > 1

    def _apart(
        self, piece: Part, error: Exception, failed: dict[int, str]
    ) -> Iterator[tuple[Tensor, Tree]]:
        """Find which examples of a piece fail, half by half."""
        rows = len(piece[0])
        if rows == 1:
            i = int(piece[1][0])
            if not self.skip:
                _raise(error, f"{self.source.where(i)}: {first_line(error)}")
            failed[i] = first_line(error)
            return
        for half in (slice(0, rows // 2), slice(rows // 2, rows)):
            part = _pick(piece, half)
            found, caught = self._try(part)
            if caught is None:
                yield part[1], found
            else:
                yield from self._apart(part, caught, failed)
        if not self.skip:
            first, last = int(piece[1][0]), int(piece[1][-1])
            _raise(error, f"examples {first} to {last} fail together: {first_line(error)}")

    def _run(self, part: Part) -> Tree:
        """The attributions of some rows, on the CPU."""
        rows, places = part
        if self.device is not None:
            there = self.device
            rows = rows.each(lambda t: t.to(there, non_blocking=True))
        model = bound_to(self.model_fn, rows.bound, len(places))
        device = self.device or _device(rows.inputs)
        options = self.options.of(rows.inputs, places, rows.numbers, rows.options, device)
        tree = self.options.method(model, rows.inputs, **options)
        leaves, spec = optree.tree_flatten(tree)
        check_rows(tree, leaves, len(places))
        found = marked([t.detach().cpu() for t in leaves], mark_of(leaves))
        return optree.tree_unflatten(spec, found)

    def _probe(self, part: Part, parts: list[tuple[Tensor, Tree]]) -> None:
        """Explain the first row alone, once, to see that its batch does not change it."""
        if self._probed or not parts or len(parts[0][0]) < 2:
            return
        self._probed = True
        together = parts[0][1]
        row = _pick(part, part[1] == parts[0][0][0])
        alone, error = self._try(row)
        if error is not None:
            if not is_of_memory(error):
                _raise(error, f"{self.source.where(int(row[1][0]))} alone: {first_line(error)}")
            return
        pairs = zip(optree.tree_leaves(together), optree.tree_leaves(alone), strict=True)
        if not all(_near(a[:1], b) for a, b in pairs):
            warn(
                "an example alone has other attributions than in its batch, so that results depend "
                "on batch_size: call model.eval(), or use a model whose rows do not depend on each "
                "other"
            )


def _pick(part: Part, i: slice | Tensor) -> Part:
    return part[0].pick(i), part[1][i]


def _device(inputs: Tree) -> torch.device:
    leaves: list[Any] = optree.tree_leaves(inputs)
    found: torch.device = leaves[0].device
    return found


def _blank(t: Tensor) -> Tensor:
    return torch.full_like(t, torch.nan) if t.is_floating_point() else torch.zeros_like(t)


def _near(a: Tensor, b: Tensor) -> bool:
    """Whether values are equal up to what rounding and kinks make of them."""
    if not a.is_floating_point():
        return True
    scale = a.double().abs().nan_to_num(0.0, 0.0, 0.0).amax() if a.numel() else a.new_zeros(())
    same = (a == b) | (a.isnan() & b.isnan())
    return bool((same | ((a - b).double().abs() <= 1e-2 * scale + 1e-12)).all())


def _raise(error: Exception, message: str) -> NoReturn:
    """An error of the same class with the number of the example."""
    if is_plain(error) or isinstance(error, (TypeError, ValueError)):
        fail(error, message)
    raise RuntimeError(message[:300]) from error
