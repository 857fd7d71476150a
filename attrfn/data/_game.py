"""The metric of a data set as a game: its value for every set of features that are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.progress import steps
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import Explained, explain
from attrfn._explain.features import Features, features
from attrfn._explain.tree import call_model, each, flatten
from attrfn._torch.guard import fail, is_plain
from attrfn._torch.typing import Baselines, FeatureMask, Leaves, ModelFn, Tree
from attrfn.data._ahead import ahead
from attrfn.data._bound import bound_to, shared_by_all
from attrfn.data._columns import BadRow, Rows
from attrfn.data._digest import device_of
from attrfn.data._memory import is_of_memory, let_go
from attrfn.data._metrics import Metric
from attrfn.data._options import moved
from attrfn.data._sources import Batch, Source, short

Coalition = tuple[bool, ...]

# Coalitions whose metric is followed in one pass over the data, and the bytes that the states of
# all of them may take: some metrics keep every output.
_AT_ONCE, _STATE_BYTES = 1024, 2**28
_LOOKS = 64  # batches after which the states are measured again


class Game:
    """The metric of the data set as a function of the features that are kept.

    Args:
        model_fn: The model function.
        data: The data set.
        metric: The metric.
        size: How many rows run at once.
        target: One target for each example, if it is no column.
        progress: Whether a bar is shown.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        data: Source,
        metric: Metric,
        size: int,
        target: Tensor | None,
        progress: bool,
    ) -> None:
        self.model_fn = shared_by_all(model_fn, data.length)
        self.data = data
        self.metric = metric
        self.size = size
        self.target = target
        self.progress = progress
        self.device = device_of(model_fn)
        self.features: Features
        self._inputs: Tree
        self._x0: Leaves
        self._at_once = _AT_ONCE
        self._length = data.length

    def begin(self, baselines: Baselines, mask: FeatureMask) -> None:
        """Find out what the features are, on the first example."""
        first = self.data.first()
        if first is None or not len(first):
            self.data.read(0, 1)  # says why, if there are any
            raise ValueError("data has no examples, expected at least one")
        if not self.data.again:
            raise TypeError(
                "data can be read only once, expected a data set that can be read several times: "
                "give a Dataset, a DataLoader, a list of batches or tensors"
            )
        self.data.close()  # each pass reads its own
        self._inputs = optree.tree_map(lambda t: t[:1], first.inputs)
        x, _ = flatten(self._inputs)
        self.features = features(mask, self._inputs, x, None)
        self._x0 = moved(fill_baselines(baselines, self._inputs, x), self.device)

    def elements(self, scores: Tensor) -> Tree:
        """Scores (1, F) for the elements of an example; others as they are, without the row."""
        if scores.shape != (1, self.features.n):
            return scores[0]
        leaves = self.features.elements(scores.float())
        return flatten(self._inputs)[1]([t[0] for t in leaves])

    def values(
        self, coalitions: list[Coalition], order: Tensor | None = None
    ) -> dict[Coalition, float]:
        """The metric for each coalition.

        Args:
            coalitions: Which features are kept.
            order: The example from which the others come; None: baselines.
        """
        coalitions = list(dict.fromkeys(coalitions))
        found: dict[Coalition, float] = {}
        while len(found) < len(coalitions):
            group = coalitions[len(found) : len(found) + self._at_once]
            found.update(zip(group, self._one_pass(group, order), strict=False))
        return found

    def _one_pass(self, group: list[Coalition], order: Tensor | None) -> list[float]:
        """The metric for coalitions; for the first of them, if the states of all are too large."""
        z = torch.tensor(group, dtype=torch.bool)[:, None]
        masks = moved(self.features.masks(z), self.device)
        states = [self.metric.init() for _ in group]
        rows = 0
        for number, batch in enumerate(self._batches()):
            if batch.rows is not None:
                self._update(states, batch.rows, batch.places, masks, order)
            rows += batch.size
            due = number % _LOOKS == 0 or number & (number - 1) == 0
            while due and len(states) > 1 and _bytes(states[0]) * len(states) > _STATE_BYTES:
                del states[(len(states) + 1) // 2 :]
                self._at_once = len(states)
        self._check_length(rows)
        return [_number(self.metric.compute(s)) for s in states]

    def _check_length(self, rows: int) -> None:
        if self.target is not None and len(self.target) != rows:
            raise ValueError(
                f"target has {len(self.target)} entries, expected one for each of the {rows} "
                "examples of data"
            )
        if self._length not in (None, rows):
            raise ValueError(
                f"data had {self._length} examples and gave {rows} now, expected the same number "
                "in every pass: give a data set that stays as it is"
            )
        self._length = rows

    def _update(
        self, states: list[Any], rows: Rows, places: Tensor, masks: Leaves, order: Tensor | None
    ) -> None:
        """Add a batch to the state of each coalition."""
        pieces, i = self._pieces(rows, places, order), 0
        while i < len(states):
            mask = [m[i] for m in masks]
            try:
                outputs = [self._outputs(piece, mask) for piece in pieces]
            except Exception as error:
                if not is_of_memory(error) or min(self.size, len(places)) == 1:
                    raise
                let_go(error)
                outputs = None
            if outputs is None:  # outside of the handler, which would keep the tensors alive
                self.size = (min(self.size, len(places)) + 1) // 2
                pieces = self._pieces(rows, places, order)
                continue
            for piece, found in zip(pieces, outputs, strict=True):
                states[i] = self._added(states[i], found, piece)
            i += 1

    def _pieces(self, rows: Rows, places: Tensor, order: Tensor | None) -> list[_Piece]:
        """A batch in pieces that fit into memory."""
        cuts = [slice(i, i + self.size) for i in range(0, len(places), self.size)]
        return [self._piece(rows.pick(cut), places[cut], order) for cut in cuts]

    def _piece(self, rows: Rows, places: Tensor, order: Tensor | None) -> _Piece:
        inputs, options, bound, _ = moved(rows.tree(), self.device)
        target = options.get("target")
        if target is None and self.target is not None:
            if int(places[-1]) >= len(self.target):
                raise ValueError(
                    f"target has {len(self.target)} entries, and data have more examples, expected "
                    "one entry for each"
                )
            target = self.target[places]
        other = self._x0
        if order is not None:
            other, _ = flatten(moved(self.data.at(order[places]).inputs, self.device))
        model = bound_to(self.model_fn, bound, len(places))
        p = explain(
            model, inputs, None, create_graph=False, differentiated=False, forward_only=True
        )
        return _Piece(p, other, target, places)

    def _outputs(self, piece: _Piece, mask: list[Tensor]) -> Any:
        """What the model says where some features are replaced."""
        kept = each(torch.where, tuple(mask), piece.p.x, piece.other)
        try:
            with torch.no_grad():
                return call_model(piece.p.model, piece.p.rebuild(kept), fresh=True)
        except Exception as error:
            if is_plain(error) and not is_of_memory(error):
                where = self.data.where(int(piece.places[0]), onwards=True)
                fail(error, f"{where}: model_fn failed: {short(error)}")
            raise

    def _added(self, state: Any, outputs: Any, piece: _Piece) -> Any:
        try:
            return self.metric.update(state, outputs, piece.target)
        except BadRow as error:
            where = self.data.where(int(piece.places[error.row]))
            raise ValueError(f"{where}: {error}") from error

    def _batches(self) -> Iterator[Batch]:
        data = self.data.fresh()
        found = _read(data, self.size)
        batches = ahead(found) if data.slow else found
        bar = steps(data.length, "importance", self.progress, ("example", "examples"))
        with bar as advance, contextlib.closing(batches):
            for batch in batches:
                yield batch
                advance(batch.size)


class _Piece(NamedTuple):
    """Rows that run at once: the model and their inputs, what replaces features, and targets."""

    p: Explained
    other: Leaves
    target: Tensor | None
    places: Tensor


def _read(data: Source, size: int) -> Generator[Batch, None, None]:
    start = 0
    while (batch := data.read(start, start + size)) is not None:
        yield batch
        start += batch.size


def _bytes(state: Any) -> int:
    """The bytes of the tensors of a state."""
    leaves: list[Any] = optree.tree_leaves(state)
    return sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))


def _number(value: Any) -> float:
    found = torch.as_tensor(value)
    if found.numel() != 1:
        raise ValueError(f"metric gave a tensor of shape {tuple(found.shape)}, expected one number")
    return float(found)
