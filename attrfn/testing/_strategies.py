"""Strategies of hypothesis: models, and what goes with them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from attrfn._explain.tree import flatten
from attrfn._torch.typing import Tree
from attrfn.testing._draw import hypothesis, normal
from attrfn.testing._known import Additive, Game, Treats
from attrfn.testing._models import KINDS, OUTPUTS, example, kinds_where

Strategy: TypeAlias = Any
"""``hypothesis.strategies.SearchStrategy``; hypothesis is imported when a strategy is made."""

SEEDS = 31
"""Drawn numbers come from small seeds, so that the smallest failing example is found soon."""


def models(
    kinds: Collection[str] | None = None,
    *,
    outputs: int = OUTPUTS,
    dtype: torch.dtype = torch.float64,
) -> Strategy:
    """Small models of many kinds, in evaluation mode: :class:`attrfn.testing.ExampleModel`.

    Args:
        kinds: Names of kinds: ``"mlp"``, ``"rectified"``, ``"cnn"``, ``"residual"``,
            ``"recurrent"``, ``"attention"``, ``"reuse"`` (one ReLU used three times),
            ``"functional"``, ``"in-place"``, ``"rectified cnn"``; ``None`` for all.
        outputs: K, for outputs (B, K); 0 for outputs (B,).
        dtype: Of the parameters.

    Returns:
        A strategy of models, whose attribute ``shape`` is that of one example.

    Example:
        >>> import attrfn, attrfn.axioms, attrfn.testing
        >>> from hypothesis import given, strategies as st
        >>> @given(attrfn.testing.models(["mlp"]), st.data())
        ... def test_complete(model, data):
        ...     x = data.draw(attrfn.testing.inputs_for(model))
        ...     gap = attrfn.axioms.completeness(model, x, attrfn.deep_lift, target=0)
        ...     assert gap.abs().max() < 1e-9
        >>> test_complete()
    """
    st = hypothesis().strategies
    known = [kind.kind for kind in KINDS]
    if unknown := sorted(set(kinds or ()) - set(known)):
        raise ValueError(f"kinds is {unknown[0]!r}, expected some of {', '.join(known)}")
    chosen = kinds_where(lambda kind: kinds is None or kind.kind in kinds)
    return st.builds(
        lambda kind, width, seed: example(kind, width, outputs, seed, dtype),
        st.sampled_from(chosen),
        st.integers(1, 4),
        _seeds(),
    )


def _seeds() -> Strategy:
    return hypothesis().strategies.integers(0, SEEDS)


def inputs_for(
    model: nn.Module,
    *,
    shape: tuple[int, ...] | None = None,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
) -> Strategy:
    """Inputs of a model, normal numbers (B, ...).

    Args:
        model: A model; those of this module tell what they take.
        shape: The shape of one example, for any other model.
        batch: B; ``None`` draws 1, 2 or 3.
        dtype: ``None`` is that of the model's parameters.

    Returns:
        A strategy of tensors.
    """
    st = hypothesis().strategies
    if shape is None:
        shape = getattr(model, "shape", None)
        players = getattr(model, "n", None)
        shape = (players,) if shape is None and isinstance(players, int) else shape
    if shape is None:
        raise ValueError(
            f"shape is None for a {type(model).__name__}, expected the shape of one example: "
            "only the models of attrfn.testing tell theirs"
        )
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    kind = dtype or (tensors[0].dtype if tensors else torch.get_default_dtype())
    size = st.integers(1, 3) if batch is None else st.just(batch)
    return st.builds(lambda b, seed: normal(b, *shape, seed=100 + seed, dtype=kind), size, _seeds())


def targets_for(outputs: Tensor) -> Strategy:
    """Targets for outputs (B,) or (B, K...): an int or tuple, one for each example, or a function.

    Args:
        outputs: Outputs of the model.

    Returns:
        A strategy of targets; for outputs (B,), of None.
    """
    st = hypothesis().strategies
    if outputs.ndim == 1:
        return st.none()
    places = st.tuples(*[st.integers(0, k - 1) for k in outputs.shape[1:]])
    if outputs.ndim > 2:
        return st.one_of(places, st.lists(places, min_size=len(outputs), max_size=len(outputs)))
    index = st.integers(0, outputs.shape[1] - 1)
    rows = st.lists(index, min_size=len(outputs), max_size=len(outputs))
    return st.one_of(index, rows.map(torch.tensor), rows, index.map(_Log))


class _Log:
    """The log-probability of a class, with a text for messages."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, outputs: Tensor) -> Tensor:
        return outputs.log_softmax(-1)[:, self.index]

    def __repr__(self) -> str:
        return f"lambda out: out.log_softmax(-1)[:, {self.index}]"


def baselines_for(inputs: Tree) -> Strategy:
    """Baselines for inputs: None, a number, one for all examples, or one for each.

    Args:
        inputs: A tensor (B, ...) or a pytree of those.

    Returns:
        A strategy of baselines.
    """
    st = hypothesis().strategies
    leaves, rebuild = flatten(inputs)

    def drawn(rows: int | None, seed: int) -> Tree:
        found = []
        for i, t in enumerate(leaves):
            shape = t.shape if rows is None else (rows, *t.shape[1:])
            found.append(0.5 * normal(*shape, seed=200 + 40 * i + seed, dtype=t.dtype))
        return rebuild(found)

    return st.one_of(
        st.none(),
        st.floats(-1, 1, width=16),
        st.builds(drawn, st.just(1), _seeds()),
        st.builds(drawn, st.none(), _seeds()),
    )


def games(n: int) -> Strategy:
    """Games of n players, with their Shapley values: :class:`attrfn.testing.Game`.

    Args:
        n: The number of players.

    Returns:
        A strategy of models of (B, n); ``game.shapley`` has the right attributions of
        ``game.inputs`` with baselines 0.
    """
    st = hypothesis().strategies
    value = st.integers(-8, 8)
    return st.lists(value, min_size=2**n, max_size=2**n).map(
        lambda v: Game(torch.tensor(v, dtype=torch.float64) / 4)
    )


def additive(n: int = 4) -> Strategy:
    """Sums of functions of one element each: :class:`attrfn.testing.Additive`.

    Args:
        n: The number of elements.

    Returns:
        A strategy of models of (B, n).
    """
    return hypothesis().strategies.builds(lambda seed: Additive(n, seed), _seeds())


def symmetric(i: int, j: int, n: int = 4, *, outputs: int = 0) -> Strategy:
    """Models that treat elements i and j alike, for :func:`attrfn.axioms.symmetry`.

    Args:
        i: One element.
        j: The other.
        n: The number of elements of an example.
        outputs: K, for outputs (B, K); 0 for outputs (B,).

    Returns:
        A strategy of models of n elements.
    """
    _places((i, j), n)
    st = hypothesis().strategies
    return st.builds(lambda seed: Treats(n, alike=(i, j), seed=seed, outputs=outputs), _seeds())


def with_dummy(k: int, n: int = 4, *, outputs: int = 0) -> Strategy:
    """Models that do not read element k, for :func:`attrfn.axioms.dummy`.

    Args:
        k: The element.
        n: The number of elements of an example.
        outputs: K, for outputs (B, K); 0 for outputs (B,).

    Returns:
        A strategy of models of n elements.
    """
    _places((k,), n)
    st = hypothesis().strategies
    return st.builds(lambda seed: Treats(n, unread=(k,), seed=seed, outputs=outputs), _seeds())


def _places(places: tuple[int, ...], n: int) -> None:
    for k in places:
        if not 0 <= k < n:
            raise ValueError(f"element {k} is not one of {n}, expected 0 to {n - 1}")


def tree_of(x: Tensor) -> Tree:
    """A tensor cut in two along its last dimension, as a tree."""
    return {"b": (x[..., 1:],), "a": x[..., :1]}
