"""The model of a game: from which parts are there to the scores of an answer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrfn._torch.autodiff import transforming
from attrfn._torch.private import version
from attrfn._torch.say import say
from attrfn.text._adapter import Adapter
from attrfn.text._kinds import Causal
from attrfn.text._prefix import Prefix, agrees, prefix_of
from attrfn.text._removal import Removal
from attrfn.text._rows import Plan, Rows, Text, planned
from attrfn.text._scores import Score, scores_of

# What a call costs besides its tokens, in tokens: when fewer tokens are worth another call. On a
# CPU a call of a small model takes as long as this many of its tokens; on a GPU short calls cost
# the same as long ones.
_CALL_ON_CPU, _CALL = 64, 4096


class Side(NamedTuple):
    """An answer, and the text in which it is predicted.

    Attributes:
        text: The prompt and the answer.
        answer: (1, N).
        foil: (1, N), or None.
        reference: Log-probabilities with the whole prompt (1, N, V), or None.
    """

    text: Text
    answer: Tensor
    foil: Tensor | None = None
    reference: Tensor | None = None


class Options(NamedTuple):
    """How a game is played.

    Attributes:
        score: The score.
        remove: How parts are removed.
        whole: Whether the whole answer's score is the last column.
        most: The most tokens of one call of the model, or None.
        pad_to: Lengths are multiples of this.
        extras: Tensors with an entry for each prompt token (P, ...), by the argument's name.
        others: Further arguments, tensors with one row among them.
    """

    score: Score
    remove: Removal
    whole: bool
    most: int | None
    pad_to: int
    extras: dict[str, Tensor]
    others: dict[str, Any]


class Known:
    """The prefixes that are known; an object that private copies of a model share."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter  # of the user, whose weights may change
        self.wanted = False
        self.first: Prefix | None = None
        self.whole: Prefix | None = None
        self.weights: list[tuple[int, int]] = []

    def outdated(self) -> bool:
        """Whether weights have changed since this was asked last; the prefixes are then dropped."""
        weights = [
            (p.data_ptr(), 0 if p.is_inference() else version(p)) for p in self.adapter.parameters()
        ]
        changed = weights != self.weights
        if changed:
            self.first = self.whole = None
            self.weights = weights
        return changed


class Play(nn.Module):
    """A game as a model: z (R, n) to the scores (R, N)."""

    def __init__(self, adapter: Adapter, side: Side, other: Side | None, options: Options) -> None:
        super().__init__()
        self.adapter, self.training = adapter, adapter.training
        self.sides = _Held((side, other))
        self.options = _Held(options)
        self.known = Known(adapter)

    @property
    def asks_model(self) -> Any:
        """The model whose rows these are."""
        return self.adapter.model

    def forward(self, z: Tensor) -> Tensor:
        """The scores of the rows, or those of the answer less those of another one."""
        side, other = self.sides.value
        n = side.text.n
        if transforming() or z.requires_grad:
            raise ValueError(
                "model_fn is a text.game inside a transform, compiled code or a gradient, expected "
                "a method that replaces features, run eagerly: use text.scorer there, with layer= "
                "the model's embedding for gradients"
            )
        if z.ndim != 2 or z.shape[1] != n or not bool(((z == 0) | (z == 1)).all()):
            raise ValueError(
                f"inputs is {say(z)}, expected (R, {n}) with 1 where a part is there and 0 where "
                "it is removed: methods that replace features, such as attrfn.kernel_shap, do that"
            )
        if len(z) == 0:
            return torch.zeros(0, side.answer.shape[1], device=z.device)
        if other is None:
            return self._scores(z, side)
        return self._scores(z, side)[:, -1:] - self._scores(z, other)[:, -1:]

    def rows(self, z: Tensor, side: Side) -> Rows:
        """The texts of the rows."""
        remove: Removal = self.options.value.remove
        return remove.rows(side.text, z, remove.value)

    def logits(self, z: Tensor, side: Side) -> Tensor:
        """The logits of the answer (R, N, V), without a prefix."""
        rows = self.rows(z, side)
        every = torch.arange(len(z), device=z.device)
        return self._run(rows.pick(every), None, 0)

    def learn(self, z: Tensor) -> None:
        """Compute the prefix that all rows share, unless it is short or the cache is wrong."""
        self.known.outdated()
        side = self.sides.value[0]
        leading = int((side.text.part < 0).long().cumprod(0).sum())
        if leading < 2 and self.options.value.remove.name != "template":
            return  # a first token alone is not worth its check
        try:
            ends = self.rows(torch.cat([z, torch.zeros_like(z)]), side)
        except ValueError:  # a template that makes nothing of no parts
            return
        first, last = (ends.pick(torch.tensor([i], device=z.device)) for i in (0, 1))
        size = int(last.same_as(first)[0])
        if size < 2:
            return
        found = prefix_of(self.adapter, first.ids[0, :size])
        if found is not None and self._agrees(found, ends, size):
            self.known.first = found
        else:
            self.known.wanted = False

    def _agrees(self, prefix: Prefix | None, rows: Rows, skip: int) -> bool:
        return (
            isinstance(self.adapter, Causal)
            and prefix is not None
            and agrees(self.adapter, prefix, rows, self.options.value.remove.value, skip)
        )

    def _scores(self, z: Tensor, side: Side) -> Tensor:
        options: Options = self.options.value
        rows = self.rows(z, side)
        way = self._way(rows, side)
        found = []
        for group in way.plan.groups:
            index = torch.tensor(group, device=z.device)
            skip = int(way.shared[index].min())
            logits = self._run(rows.pick(index, options.pad_to), way.prefix, skip)
            _check_seen(logits, rows)
            answer = side.answer.expand(len(index), -1)
            foil = None if side.foil is None else side.foil.expand(len(index), -1)
            found.append(
                scores_of(logits, answer, options.score, foil, side.reference, options.whole)
            )
        order = [i for group in way.plan.groups for i in group]
        return torch.cat(found)[torch.tensor(order, device=z.device).argsort()]

    def _run(self, rows: Rows, prefix: Prefix | None, skip: int) -> Tensor:
        options: Options = self.options.value
        extras = {k: _of_tokens(v, rows) for k, v in options.extras.items()}
        extras |= {k: _expanded(v, len(rows.ids)) for k, v in options.others.items()}
        if prefix is None or skip == 0 or not isinstance(self.adapter, Causal):
            return self.adapter.of_rows(rows, options.remove.value, extras)
        past = prefix.past(skip, len(rows.ids))
        extras = {k: v[:, skip:] if k in options.extras else v for k, v in extras.items()}
        return self.adapter.of_rows(rows, options.remove.value, extras, past, skip)

    def _way(self, rows: Rows, side: Side) -> _Way:
        """The cheapest way to run rows: without a prefix, or with one of the two."""
        known = self.known
        nothing = torch.zeros_like(rows.length)
        if not known.wanted or self._differentiated():
            return self._planned(rows, nothing, None)
        full = torch.ones(1, side.text.n, device=rows.ids.device)
        if known.outdated():
            self.learn(full)
        whole = self.rows(full, side)
        shared = rows.same_as(whole)
        first = known.first
        way = self._planned(rows, nothing if first is None else first.common(shared), first)
        if first is not None and not first.cuts:
            return way
        # The prompt as a whole costs a row once, and saves each row what precedes its first change.
        # Whether it pays depends on these rows alone, so that equal calls give equal bits.
        size = int(whole.at[0, 0])
        deep = self._planned(rows, shared.clamp(max=size), None)
        checks = 0 if first is not None else 3 * int(whole.length)
        price = size - (0 if first is None else first.size) + checks + _call(rows.ids)
        if way.plan.cost - deep.plan.cost <= price:
            return way
        if known.whole is None:
            found = prefix_of(self.adapter, whole.ids[0, :size], first)
            if not (found and found.cuts and (first or self._agrees(found, whole, size // 2))):
                known.wanted = False
                return self._planned(rows, nothing, None)
            known.whole = found
        return deep._replace(prefix=known.whole)

    def _planned(self, rows: Rows, shared: Tensor, prefix: Prefix | None) -> _Way:
        options: Options = self.options.value
        plan = planned(rows, shared, _call(rows.ids), options.most, options.pad_to)
        return _Way(plan, shared, prefix)

    def _differentiated(self) -> bool:
        """Whether gradients may reach the weights, which those through a prefix would not."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())


def _check_seen(logits: Tensor, rows: Rows) -> None:
    """Refuse what attention makes of a token that sees nothing, not even itself."""
    if rows.attend is not None and bool(logits.isnan().any()):
        raise ValueError(
            "remove is unattended, and the model gives nan where a token sees no other, as in a "
            "sliding window whose tokens are all removed: use text.replace(id) or text.delete()"
        )


class _Way(NamedTuple):
    """How rows run: their groups, how many tokens of each are known, and the prefix with them."""

    plan: Plan
    shared: Tensor
    prefix: Prefix | None


def _call(like: Tensor) -> int:
    """What a call of the model costs besides its tokens, in tokens."""
    return _CALL_ON_CPU if like.device.type == "cpu" else _CALL


class _Held:
    """A value that private copies of a module share."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _of_tokens(value: Tensor, rows: Rows) -> Tensor:
    """An argument (P, ...) with an entry for each token of rows, (R, T, ...)."""
    if rows.place is None:
        raise ValueError(
            "model binds arguments with an entry for each token, which no template can follow: use "
            "another removal, such as text.delete()"
        )
    return value[rows.place.clamp(max=len(value) - 1)]


def _expanded(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1:
        return value.expand(rows, *value.shape[1:])
    return value
