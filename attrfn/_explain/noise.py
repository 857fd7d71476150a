"""Draws for copies of a batch: sample s of a key is the same for any chunking and any batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import is_count, wide
from attrfn._explain.baseline import broadcasts, per_leaf
from attrfn._explain.tree import each
from attrfn._random.keys import row_keys, sample_keys, sample_keys_of
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import refuse_unusual
from attrfn._torch.say import say
from attrfn._torch.typing import Key, Leaves, Tree

# The streams of a key. A sample's key depends on its number and on nothing else, so that it draws
# the same in any chunk; different streams keep its draws independent of each other. Changing one of
# these numbers changes the numbers of every user.
_UNIFORM, _CHOICE, _NORMAL = 0, 1, 2


class Noise:
    """The random numbers of a method: one stream per purpose, one key per sample.

    Args:
        key: An int or a key, (2,) shared by all examples or (B, 2) with one for each.
        stdevs: The standard deviation of the noise, a number or a prefix tree of the inputs.
        inputs: The inputs' tree.
        x: Its leaves.
    """

    def __init__(self, key: Key, stdevs: Tree, inputs: Tree, x: Leaves) -> None:
        self.x = x
        self.keys = row_keys(key, x[0].shape[0], x[0].device)
        self.stdevs = per_leaf(stdevs, inputs, x, "stdevs")
        for s, t in zip(self.stdevs, x, strict=True):
            if isinstance(s, bool) or not isinstance(s, (int, float, Tensor)):
                raise TypeError(
                    f"stdevs has {say(s)}, expected a number for each input, at least 0"
                )
            if isinstance(s, Tensor):
                refuse_unusual(s, "stdevs")
            if isinstance(s, Tensor) and s.is_complex():
                raise TypeError(f"stdevs has a tensor of {s.dtype}, expected real numbers")
            if isinstance(s, Tensor) and not broadcasts(s, t.shape):
                raise ValueError(
                    f"stdevs has shape {tuple(s.shape)} for inputs of shape {tuple(t.shape)}, "
                    "expected a number or a shape that broadcasts to the input's"
                )
            if not _in_range(s):
                raise ValueError(
                    f"stdevs has {say(s)}, expected a number of at least 0, and finite"
                )

    def inputs(self, i: slice) -> Leaves:
        """Noisy copies ``x + s n`` of the inputs for the samples i, (S, B, ...)."""
        keys = [sample_keys(self.keys, i, stream) for stream in self._normals()]
        return self.around(i.stop - i.start, keys)

    def choice(self, i: slice, pool: Leaves) -> Leaves:
        """For each sample one of the K rows of the pool, as (S, 1 or B, ...) per leaf."""
        keys = sample_keys(self.keys, i, _CHOICE)
        return self.rows(random.randint(keys, (), pool[0].shape[0]), pool)

    def numbers(self, i: slice, rows: int) -> Leaves:
        """A number in [0, 1) per sample, one of so many rows, and the keys of the noise.

        What takes little memory, (S, 1 or B) and (S, 1 or B, 2), and many small operations.
        """
        streams = (_UNIFORM, _CHOICE, *self._normals())
        places, choices, *normals = sample_keys_of(self.keys, i, streams)
        return (
            random.uniform(places, dtype=torch.float64),
            random.randint(choices, (), rows),
            *normals,
        )

    def around(self, copies: int, keys: Sequence[Tensor]) -> Leaves:
        """Copies of the inputs with the noise of the keys, one for each input that has noise."""
        left = iter(keys)
        pairs = zip(self.x, self.stdevs, strict=True)
        return tuple([_noisy(x, s, copies, next(left) if _is_noise(s) else None) for x, s in pairs])

    def rows(self, chosen: Tensor, pool: Leaves) -> Leaves:
        """The rows of a pool that were chosen, (S, 1 or B, ...) per leaf."""
        return each(lambda t, x: _chosen_rows(t, chosen, x).to(wide(t.dtype)), pool, self.x)

    def _normals(self) -> list[int]:
        """The streams of the inputs that have noise."""
        return [_NORMAL + leaf for leaf, s in enumerate(self.stdevs) if _is_noise(s)]


def _is_noise(s: Tensor | float) -> bool:
    return isinstance(s, Tensor) or s != 0


def _noisy(x: Tensor, s: Tensor | float, copies: int, keys: Tensor | None) -> Tensor:
    expanded = x[None].to(wide(x.dtype)).expand(copies, *x.shape)
    if keys is None:
        return expanded
    return torch.add(expanded, s * random.normal(keys, x.shape[1:], dtype=wide(x.dtype)))


def _in_range(s: Tensor | float) -> bool:
    """Whether standard deviations are finite and at least 0; true where they cannot be read."""
    if not isinstance(s, Tensor):
        return 0 <= s < (2**63 if isinstance(s, int) else math.inf)
    if s.is_complex():
        return False
    return transforming() or bool(((s >= 0) & (s < math.inf)).all())


def _chosen_rows(pool: Tensor, chosen: Tensor, like: Tensor) -> Tensor:
    """Rows of a pool (K, ...) or (K, B, ...) chosen by (S, 1) or (S, B)."""
    if pool.ndim == like.ndim:
        return pool[chosen]
    examples = torch.arange(like.shape[0], device=pool.device)
    return pool[chosen.expand(chosen.shape[0], like.shape[0]), examples]


def count_of(name: str, value: int) -> int:
    """A count of at least 1."""
    if not is_count(value):
        raise ValueError(f"{name} is {say(value)}, expected an int of at least 1")
    return value
