"""Games: the score of an answer as a function of which parts of the prompt are there."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from attrfn._copies.batch import is_count, wide
from attrfn._explain.explain import explain
from attrfn._torch.say import say
from attrfn.text._adapter import Adapter, bare
from attrfn.text._adapters import adapter
from attrfn.text._answer import foil_ids, token_ids
from attrfn.text._calls import check_ids, check_length
from attrfn.text._parts_type import Game, Parts
from attrfn.text._play import Options, Play, Side
from attrfn.text._removal import Removal, chosen, delete
from attrfn.text._scores import Score, check_score, runner_up_of

# Arguments with an entry for each prompt token; the mask says which tokens there are at all.
_MASK = "attention_mask"


def game(
    model: Any,
    parts: Parts,
    *,
    answer: Any,
    foil: Any = None,
    other: Any = None,
    score: Score = "log_prob",
    remove: Removal | None = None,
    whole: bool = False,
    answer_context: bool = False,
    prefix: bool = True,
    max_tokens: int | None = None,
    pad_to: int = 1,
) -> Game:
    """The score of an answer as a function of which parts of the prompt are there.

        v(z) = score(answer | the prompt with the parts z_k = 1)

    Every method that replaces features explains ``game.fn`` at ``game.full``. Each row is one text,
    and one forward pass scores all of its answer tokens. Rows of different length are padded on the
    right. Tokens before the first part are the same in all rows: their keys and values are computed
    once, when the game is made, and checked against the model without them; weights that change
    later need a new game. Games run eagerly, not inside vmap or torch.compile.

    Args:
        model: As for :func:`scorer`.
        parts: The prompt's ids (1, P), and the part of each token; negative ids are fixed.
        answer: The ids of the answer, (1, N).
        foil: Ids (1, N) in the place of the answer's: at each place, under the answer's prefix, the
            score is less that of the foil. ``"next"``: the runner-up at each place with all parts.
        other: Ids of another answer, of any length: v is the score of the whole answer less that of
            the whole other one, (R, 1), by two forward passes.
        score: As for :func:`scorer`; ``"kl"`` compares with all parts there.
        remove: What replaces a removed part: :func:`delete` (the default), :func:`replace`,
            :func:`template`, :func:`unattended` or :func:`embedding`.
        whole: Add the score of the whole answer as a last column.
        answer_context: Add the answer's tokens as N further parts. Each matters to later ones only,
            and the last one to none.
        prefix: Whether to compute shared prefixes once.
        max_tokens: The most tokens in one call of the model, padding included; None: all rows that
            the method's ``chunk_size`` gives.
        pad_to: Lengths of rows are rounded up to a multiple of this.

    Returns:
        A :class:`Game`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The foil is not as long as the answer, the prompt is empty or too long for the
            model, or an option has a wrong value.

    Example:
        >>> import torch, attrfn
        >>> from attrfn import text
        >>> bag = lambda ids: torch.nn.functional.one_hot(ids, 3).float().cumsum(1)
        >>> parts = text.Parts(torch.tensor([[2, 0, 1, 1]]), torch.tensor([-1, 0, 1, 1]), 2)
        >>> game = text.game(bag, parts, answer=[[0]], score="logit")
        >>> attrfn.shapley_values(game.fn, game.full)
        tensor([[1., 0.]])

    Reference:
        Cohen-Wang, Shah, Georgiev and Madry, ContextCite: Attributing Model Generation to Context,
        2024. https://arxiv.org/abs/2409.00729
    """
    _check(parts, foil, other, score, max_tokens, pad_to)
    given = adapter(model)
    parts, extras, others = _without_padding(given, parts)
    to = bare(given, {k: v for k, v in others.items() if not isinstance(v, Tensor)})
    others = {k: v for k, v in others.items() if isinstance(v, Tensor)}
    check_ids(to.model, parts.ids, "parts")
    a = token_ids(answer, "answer", parts.ids.device)
    if len(a) != 1:
        raise ValueError(f"answer has {len(a)} rows, expected one, (1, N), as the prompt is one")
    removal = chosen(delete() if remove is None else remove, to.model)
    options = Options(
        score, removal, whole or other is not None, max_tokens, pad_to, extras, others
    )
    side = _side(to, parts, a, answer_context)
    play = Play(to, side, None, options)
    full = torch.ones(1, side.text.n, device=parts.ids.device)
    if isinstance(foil, str) or score == "kl":
        logits = _pure(functools.partial(play.logits, side=side), full)
        if score == "kl":
            side = side._replace(reference=logits.to(wide(logits.dtype)).log_softmax(-1))
        if isinstance(foil, str):
            side = side._replace(foil=runner_up_of(logits, a))
    if foil is not None and not isinstance(foil, str):
        side = side._replace(foil=foil_ids(foil, a))
        check_ids(to.model, foil_ids(foil, a), "foil", to.answers)
    against = None
    if other is not None:
        against = _side(to, parts, token_ids(other, "other", parts.ids.device), False)
    play = Play(to, side, against, options)
    if prefix and not extras and not others and removal.name != "embedding":
        play.known.wanted = True
        with torch.no_grad():
            _pure(play.learn, full)
    return Game(play, full, a, side.foil, parts.labels)


def _check(
    parts: object, foil: object, other: object, score: Score, max_tokens: object, pad_to: object
) -> None:
    """Refuse options of the wrong kind, and those that exclude each other."""
    check_score(score, foil)
    if not isinstance(parts, Parts):
        raise TypeError(f"parts is {say(parts)}, expected text.Parts(ids, mask, n)")
    if isinstance(foil, str) and foil != "next":
        raise ValueError(f"foil is {foil!r}, expected token ids, 'next' or None")
    if other is not None and (foil is not None or score in ("entropy", "kl")):
        what = "a foil" if foil is not None else f"score={score!r}"
        raise ValueError(
            f"other is given with {what}, expected one of them: other= compares whole answers, "
            "foil= each token"
        )
    if max_tokens is not None and not is_count(max_tokens):
        raise ValueError(f"max_tokens is {say(max_tokens)}, expected None or an int, at least 1")
    if not is_count(pad_to):
        raise ValueError(f"pad_to is {say(pad_to)}, expected an int of at least 1")
    ids, mask, n = parts.ids, parts.mask, parts.n
    if ids.ndim != 2 or len(ids) != 1 or mask.shape != ids.shape[1:]:
        raise ValueError(
            f"parts has ids {tuple(ids.shape)} and a mask {tuple(mask.shape)}, expected (1, P) and "
            "(P,): one prompt, and the part of each of its tokens"
        )
    if not mask.numel():
        raise ValueError("parts has an empty prompt, expected at least one token")
    if int(mask.max()) >= n:
        raise ValueError(
            f"parts has the part {int(mask.max())} in its mask, expected 0 to {n - 1} with n={n}, "
            "and negative numbers for fixed tokens"
        )


def _side(to: Adapter, parts: Parts, answer: Tensor, context: bool) -> Side:
    """An answer in its text."""
    check_ids(to.model, answer, "answer", to.answers)
    text = to.text(parts.ids[0], parts.mask.to(parts.ids.device), parts.n, answer[0], context)
    if text.source:
        check_length(to.model, text.source, "the source")
        check_length(to.model, len(text.ids) - text.source + 1, "the target with the answer")
    else:
        check_length(to.model, len(text.ids), "the prompt with the answer")
    return Side(text._replace(labels=parts.labels), answer)


def _without_padding(to: Adapter, parts: Parts) -> tuple[Parts, dict[str, Tensor], dict[str, Any]]:
    """The prompt without the tokens that a bound mask hides, and what else the model binds."""
    size = parts.ids.shape[1]
    bound = dict(to.bound)
    own = {
        k: bound.pop(k)[0]
        for k, v in to.bound.items()
        if isinstance(v, Tensor) and v.ndim > 1 and v.shape[:2] == (1, size)
    }
    if (mask := own.pop(_MASK, None)) is not None:
        there = mask.bool().to(parts.ids.device)
        parts = parts._replace(ids=parts.ids[:, there], mask=parts.mask[there])
        own = {k: v[there] for k, v in own.items()}
    places = own.pop("position_ids", None)
    if places is not None and not torch.equal(places, torch.arange(len(places)).to(places)):
        raise ValueError(
            "model binds position_ids that do not count from 0, which texts of another length do "
            "not have: leave them out"
        )
    return parts, own, bound


def _pure(method: Any, full: Tensor) -> Any:
    """What a method of a game returns, run on a private copy of the model."""
    p = explain(method, full, None, differentiated=False, forward_only=True)
    with torch.no_grad():
        return p.model(full)
