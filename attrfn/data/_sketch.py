"""Quantiles of a stream, from a sketch of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import is_count
from attrfn._torch.say import say
from attrfn._torch.typing import Tree


class _Sketch(NamedTuple):
    """Sorted samples of each element by weight: level k has samples that stand for 2^k rows each.

    Attributes:
        buffer: Rows that have not been sorted in, fewer than ``size``.
        levels: Per level None or a block (size, ...).
        turns: Per level how many blocks have been thinned: they lose even and odd ranks in turn.
    """

    buffer: Tensor
    levels: tuple[Tensor | None, ...]
    turns: tuple[int, ...]


class quantiles:
    """Quantiles of each element over the data set, from a sketch, a statistic for ``reduce``.

    It gives quantiles like the attributions of an example, with a leading dimension len(q).

    Blocks of ``size`` rows are sorted; two blocks of equal weight become one of twice the weight,
    of every second rank. With n rows a result is off by at most ``log2(n / size) / (2 size)`` of
    the ranks; with ``n <= size`` it is exact. It depends on the order of the rows, but on no batch.

    Args:
        q: Which quantiles, numbers from 0 to 1.
        size: The rows of a block. At most ``log2(n / size) + 2`` blocks are kept.

    Raises:
        ValueError: An argument has a wrong value.

    Example:
        >>> import torch, attrfn.data
        >>> x = torch.arange(101.0)[:, None]
        >>> median = attrfn.data.quantiles((0.5,))
        >>> f = lambda x: (x**2).sum(1) / 2
        >>> attrfn.data.explain(attrfn.gradient, f, x, reduce=median, progress=False)
        tensor([[50.]])

    Reference:
        Manku, Rajagopalan and Lindsay, Approximate Medians and other Quantiles in One Pass and with
        Limited Memory, 1998, https://doi.org/10.1145/276304.276342.
    """

    def __init__(self, q: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95), *, size: int = 512):
        given: Any = q
        if not given or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in given):
            raise ValueError(f"q is {say(q)}, expected numbers from 0 to 1")
        if not is_count(size) or size % 2:
            raise ValueError(f"size is {say(size)}, expected an even number of at least 2")
        self.q = tuple(map(float, q))
        self.size = size

    def init(self) -> Any:
        """No rows."""
        return None

    def update(self, state: Any, attributions: Tree, index: Tensor) -> Any:
        """The rows sorted in."""
        if state is None:
            state = optree.tree_map(lambda t: _Held(_Sketch(t[:0], (), ())), attributions)
        return optree.tree_map(lambda s, t: _Held(self._more(s.sketch, t)), state, attributions)

    def merge(self, a: Any, b: Any) -> Any:
        """Both sketches, block by block; what is in no block is sorted in."""
        if a is None or b is None:
            return a if b is None else b

        def both(a: _Held, b: _Held) -> _Held:
            sketch = a.sketch
            for level, block in enumerate(b.sketch.levels):
                if block is not None:
                    sketch = _put(sketch, level, block)
            return _Held(self._more(sketch, b.sketch.buffer))

        return optree.tree_map(both, a, b)

    def compute(self, state: Any) -> Any:
        """The quantiles, of each element."""
        if state is None:
            raise ValueError("data has no examples, expected at least one to take quantiles of")
        return optree.tree_map(lambda s: self._quantiles(s.sketch), state)

    def _more(self, sketch: _Sketch, rows: Tensor) -> _Sketch:
        buffer = torch.cat([sketch.buffer, rows])
        while len(buffer) >= self.size:
            block, buffer = buffer[: self.size].sort(0).values, buffer[self.size :]
            sketch = _put(sketch, 0, block)
        return sketch._replace(buffer=buffer.clone())

    def _quantiles(self, sketch: _Sketch) -> Tensor:
        parts = [(sketch.buffer, 1)]
        parts += [(b, 2**k) for k, b in enumerate(sketch.levels) if b is not None]
        values = torch.cat([b for b, _ in parts])
        weights = torch.cat([torch.full((len(b),), w, dtype=torch.float64) for b, w in parts])
        values, order = values.sort(0)
        upto = weights[order].cumsum(0)
        # As torch.quantile: the rank q (n - 1), between the two rows next to it.
        found = []
        for q in self.q:
            rank = q * (upto[-1:] - 1)
            low, high = ((upto <= r).sum(0, keepdim=True) for r in (rank.floor(), rank.ceil()))
            a, b = (values.gather(0, i.clamp(max=len(values) - 1)) for i in (low, high))
            found.append(torch.lerp(a, b, (rank - rank.floor()).to(a.dtype)))
        return torch.cat(found)


class _Held:
    """A leaf of a tree that is not a tensor."""

    def __init__(self, sketch: _Sketch) -> None:
        self.sketch = sketch


def _put(sketch: _Sketch, level: int, block: Tensor) -> _Sketch:
    """A sketch with one block more; two of a level are thinned into one of the next."""
    levels, turns = list(sketch.levels), list(sketch.turns)
    while True:
        while len(levels) <= level:
            levels.append(None)
            turns.append(0)
        there = levels[level]
        if there is None:
            levels[level] = block
            return sketch._replace(levels=tuple(levels), turns=tuple(turns))
        levels[level] = None
        block = torch.cat([there, block]).sort(0).values[turns[level] % 2 :: 2]
        turns[level] += 1
        level += 1
