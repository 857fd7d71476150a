"""Attacks that are functions of the user, on rows: copies of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, repeat_bound
from attrfn._explain.explain import Explained, explain
from attrfn._explain.noise import count_of
from attrfn._explain.rows import like_rows
from attrfn._explain.tree import call_model
from attrfn._random.keys import row_keys, sample_keys
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import called
from attrfn._torch.typing import Key, Leaves, ModelFn, Tree

# The stream of a key, as in attrfn._explain.noise: changing it changes the numbers of every user.
_ATTEMPT = 0


class Attempted(NamedTuple):
    """A model function and its inputs, which functions of the user attack.

    Attributes:
        p: The model function and its inputs.
        keys: Those of the attempts, (attempts, 1 or B, 2).
    """

    p: Explained
    keys: Tensor

    def moved(self, attack: Callable[..., Tree], *each_row: Tensor) -> Leaves:
        """What the attack makes of S copies of the batch, fresh (S, B, ...).

        Args:
            attack: Called with rows of inputs and of the other arguments.
            each_row: Its other arguments, (S, B, ...) each.
        """
        copies, p = each_row[0].shape[0], self.p
        x = flat_rows(tuple([t.expand(copies, *t.shape).clone() for t in p.x]))
        run = repeat_bound(attack, p.batch, copies)
        found = called("attack", run, p.rebuild(x), *flat_rows(each_row))
        return like_rows(found, p.x, copies, "attack")

    def numbers(self, f: Callable[[Any], Any], name: str, points: Leaves) -> Tensor:
        """A function of the outputs at S copies of the batch, (S, B)."""
        copies, p = points[0].shape[0], self.p
        with torch.set_grad_enabled(transforming() and torch.is_grad_enabled()):
            outputs = call_model(
                repeat_bound(p.model, p.batch, copies), p.rebuild(flat_rows(points))
            )
            found = called(name, repeat_bound(f, p.batch, copies), outputs)
        if not isinstance(found, Tensor):
            found = called(name, torch.as_tensor, found)
        if found.shape != (copies * p.batch,):
            raise ValueError(
                f"{name} returned shape {tuple(found.shape)} for {copies * p.batch} row(s), "
                "expected one value per row: it sees several copies of the batch, so bind tensors "
                "that have a row per example with functools.partial, or use chunk_size=1"
            )
        numbers: Tensor = found.reshape(copies, p.batch)
        return numbers

    def keys_of(self, attempts: Tensor | slice) -> Tensor:
        """The keys of some attempts, (S, B, 2)."""
        keys = self.keys[attempts]
        return keys.expand(keys.shape[0], self.p.batch, 2)

    def result(self, t: Tensor) -> Tensor:
        """Without a graph, but inside transforms."""
        return t if transforming() else t.detach()


def attempted(model_fn: ModelFn, inputs: Tree, n_attempts: int, key: Key) -> Attempted:
    """Check what functions that run attacks of the user have in common."""
    count_of("n_attempts", n_attempts)
    p = explain(model_fn, inputs, None, differentiated=False, forward_only=True)
    keys = row_keys(key, p.batch, p.x[0].device)
    return Attempted(p, sample_keys(keys, slice(0, n_attempts), _ATTEMPT))
