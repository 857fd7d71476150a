"""Texts of different lengths as rows of one tensor, and groups of rows that run together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Text(NamedTuple):
    """What a model reads where all parts are there: the prompt, then the answer but its last token.

    Attributes:
        ids: (T,).
        part: The part of each token, (T,); negative: fixed.
        n: The number of parts.
        at: The token after which each answer token is predicted, (N,).
        prompt: P, the number of prompt tokens.
        source: How many of them an encoder reads; 0 without one.
        labels: The text of each part.
        bos: The token of a row without any other token, or None.
        predicts: Whether an answer token is predicted from the tokens before it.
    """

    ids: Tensor
    part: Tensor
    n: int
    at: Tensor
    prompt: int
    source: int
    labels: tuple[str, ...] = ()
    bos: int | None = None
    predicts: bool = True

    def kept(self, z: Tensor) -> Tensor:
        """Which tokens are there, z (R, n) to (R, T)."""
        padded = torch.nn.functional.pad(z.bool(), (0, 1), value=True)
        return padded[:, self.part.where(self.part >= 0, self.n)]


class Rows(NamedTuple):
    """Texts [prompt answer | anything], one a row.

    Attributes:
        ids: (R, T).
        length: How many tokens of each row are text, (R,).
        at: The token after which each answer token is predicted, (R, N).
        place: Where each token was in the whole text, (R, T); None where it was not in it.
        source: How many of the first tokens an encoder reads, (R,).
        attend: False for tokens that no other token may look at, (R, T); None: all true.
        blank: Tokens whose embedding is replaced, (R, T); None: all false.
    """

    ids: Tensor
    length: Tensor
    at: Tensor
    place: Tensor | None
    source: Tensor
    attend: Tensor | None = None
    blank: Tensor | None = None

    def pick(self, index: Tensor, pad_to: int = 1) -> Rows:
        """Some of the rows, cut to the longest of them, at a multiple of ``pad_to``."""
        most = int(self.length[index].max())
        most = -(-most // pad_to) * pad_to
        return self._replace(
            ids=_cut(self.ids, index, most),
            length=self.length[index],
            at=self.at[index],
            place=None if self.place is None else _cut(self.place, index, most),
            source=self.source[index],
            attend=None if self.attend is None else _cut(self.attend, index, most),
            blank=None if self.blank is None else _cut(self.blank, index, most),
        )

    def same_as(self, other: Rows) -> Tensor:
        """How many of the first tokens each row has in common with another text, (R,).

        At most those before the first answer token is predicted, so that something is left to run.
        """
        size = min(self.ids.shape[1], other.ids.shape[1])
        same = self.ids[:, :size] == other.ids[:, :size]
        for own, its, default in (
            (self.attend, other.attend, True),
            (self.blank, other.blank, False),
        ):
            if own is not None or its is not None:
                own = torch.full_like(same, default) if own is None else own[:, :size]
                its = torch.full_like(same[:1], default) if its is None else its[:, :size]
                same = same & (own == its)
        common = same.long().cumprod(1).sum(1)
        return torch.minimum(common, torch.minimum(self.at.amin(1), other.at.amin(1)))


def _cut(t: Tensor, index: Tensor, size: int) -> Tensor:
    t = t[index, :size]
    return torch.nn.functional.pad(t, (0, size - t.shape[1]))


def packed(text: Text, kept: Tensor) -> Rows:
    """Rows without the tokens that are not kept, (R, T): what is left moves up."""
    # Tokens that are gone come after the others: causal models look at none of them, and encoders
    # get a mask.
    order = torch.argsort(~kept, dim=1, stable=True)
    before = kept.long().cumsum(1)
    return Rows(
        ids=text.ids[order],
        length=kept.sum(1),
        at=before[:, text.at] - 1,
        place=order,
        source=before[:, text.source - 1] if text.source else before.new_zeros(len(before)),
    )


def in_place(text: Text, rows: int) -> Rows:
    """The whole text, in each of the rows."""
    size = len(text.ids)
    whole = torch.arange(size, device=text.ids.device)
    return Rows(
        ids=text.ids.expand(rows, -1),
        length=whole.new_full((rows,), size),
        at=text.at.expand(rows, -1),
        place=whole.expand(rows, -1),
        source=whole.new_full((rows,), text.source),
    )


class Plan(NamedTuple):
    """Rows that run together.

    Attributes:
        groups: Indices of rows, a tensor for each call of the model.
        cost: What the calls cost, in tokens.
    """

    groups: list[list[int]]
    cost: int


def planned(rows: Rows, shared: Tensor, call: int, most: int | None, pad_to: int) -> Plan:
    """Groups of rows in which few tokens are computed more often than needed.

    Rows of a group lose the tokens that not all of them share with the prefix, are padded to the
    longest, and get logits wherever one of them needs some. A new group starts where that waste
    exceeds what a call costs; the logits of a token count like the token.

    Args:
        rows: All rows.
        shared: How many of the first tokens of each are known, (R,).
        call: What a call of the model costs, in tokens.
        most: The most tokens of a group, prefixes included; a row that is longer runs alone.
        pad_to: Lengths are rounded up to a multiple of this.
    """
    lengths = [-(-t // pad_to) * pad_to for t in rows.length.tolist()]
    starts, at = shared.tolist(), rows.at.tolist()
    groups: list[list[int]] = []
    cost, own, group = 0, 0, _Group(0, 0, frozenset())
    for i in sorted(range(len(lengths)), key=lambda i: (starts[i], lengths[i], i)):
        count = len(groups[-1]) + 1 if groups else 1
        joined = group.joined(lengths[i], at[i])
        alone = _Group(starts[i], lengths[i], frozenset(at[i]))
        over = most is not None and count * joined.size > most
        if not groups or over or joined.cost(count) - own - alone.cost(1) > call:
            cost += call + group.cost(count - 1)
            groups.append([])
            joined, own = alone, 0
        groups[-1].append(i)
        own += alone.cost(1)
        group = joined
    return Plan(groups, cost + group.cost(len(groups[-1])))


class _Group(NamedTuple):
    """Rows that run together: where they start, their length, and the places with logits."""

    start: int
    size: int
    at: frozenset[int]

    def joined(self, size: int, at: list[int]) -> _Group:
        return _Group(self.start, max(self.size, size), self.at.union(at))

    def cost(self, rows: int) -> int:
        return rows * (self.size - self.start + len(self.at))
