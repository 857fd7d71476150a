"""Scores: a number for each token of an answer, from the logits that predict it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._torch.guard import called
from attrfn._torch.say import say

Name: TypeAlias = Literal["log_prob", "logit", "prob", "log_odds", "entropy", "kl"]
Score: TypeAlias = Name | Callable[[Tensor, Tensor], Tensor]


def _log_prob(logits: Tensor, answer: Tensor) -> Tensor:
    return _chosen(logits.log_softmax(-1), answer)


def _logit(logits: Tensor, answer: Tensor) -> Tensor:
    return _chosen(logits, answer)


def _prob(logits: Tensor, answer: Tensor) -> Tensor:
    return _log_prob(logits, answer).exp()


def _log_odds(logits: Tensor, answer: Tensor) -> Tensor:
    # log p - log(1 - p) with p from a softmax is inf for p near 1, where 1 - p rounds to 0.
    others = logits.scatter(-1, answer[..., None], -torch.inf)
    return _chosen(logits, answer) - others.logsumexp(-1)


def _entropy(logits: Tensor, answer: Tensor) -> Tensor:
    logs = logits.log_softmax(-1)
    # A token that cannot come has the logit -inf and adds nothing.
    return -(logs.exp() * logs.clamp_min(torch.finfo(logs.dtype).min)).sum(-1)


_OF_TOKENS = {
    "log_prob": _log_prob,
    "logit": _logit,
    "prob": _prob,
    "log_odds": _log_odds,
    "entropy": _entropy,
}
NAMES = (*_OF_TOKENS, "kl")
ADDITIVE = ("log_prob", "logit", "kl")


def _chosen(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids[..., None])[..., 0]


def check_score(score: object, foil: object = None) -> None:
    """Refuse what is not a score, and a foil for a score that takes none.

    Raises:
        TypeError: The score is neither a name nor a callable.
        ValueError: There is no score of this name, or it takes no foil.
    """
    if not isinstance(score, str) and not callable(score):
        raise TypeError(f"score is {say(score)}, expected one of {', '.join(NAMES)} or a callable")
    if isinstance(score, str) and score not in NAMES:
        raise ValueError(f"score is {score!r}, expected one of {', '.join(NAMES)} or a callable")
    if foil is not None and score in ("entropy", "kl"):
        raise ValueError(
            f"foil is given with score={score!r}, which is about no single token: use log_prob, "
            "logit, prob, log_odds or a callable"
        )


def scores_of(
    logits: Tensor,
    answer: Tensor,
    score: Score,
    foil: Tensor | None = None,
    reference: Tensor | None = None,
    whole: bool = False,
) -> Tensor:
    """The score of each answer token, less that of the foil.

    Args:
        logits: l, (R, N, V).
        answer: a, (R, N).
        score: A name, or a callable ``(logits, answer) -> (R, N) or (R,)``.
        foil: Tokens (R, N) in the place of the answer's, under the answer's prefix.
        reference: For ``"kl"``: log-probabilities (1 or R, N, V) with the whole prompt.
        whole: Add the score of the whole answer as the last column.

    Returns:
        (R, N), (R, N + 1), or what a callable returns for whole answers, (R, 1).
    """
    logits = logits.to(wide(logits.dtype))  # a softmax in half precision loses small probabilities
    if score == "kl":
        if reference is None:
            raise ValueError(
                "score is 'kl', which compares with the whole prompt, and reference is None: give "
                "the log-probabilities (1, N, V) there, or use text.game, which computes them"
            )
        ratio = (reference - logits.log_softmax(-1)).masked_fill(reference == -torch.inf, 0)
        each = -(reference.exp() * ratio).sum(-1)
    elif isinstance(score, str):
        each = _contrast(logits, answer, foil, score)
    else:
        each = _own(logits, answer, score)
        each = each if foil is None else each - _own(logits, foil, score)
    if not whole:
        return each
    if not isinstance(score, str):  # a sum, unless the callable is about whole answers
        several = each.shape[1] == answer.shape[1]
        return torch.cat([each, each.sum(1, keepdim=True)], 1) if several else each
    total = whole_of(logits, answer, score, each)
    if foil is not None and score not in ADDITIVE:
        total = total - whole_of(logits, foil, score, _OF_TOKENS[score](logits, foil))
    return torch.cat([each, total[:, None]], 1)


def _contrast(logits: Tensor, answer: Tensor, foil: Tensor | None, score: str) -> Tensor:
    if foil is None:
        return _OF_TOKENS[score](logits, answer)
    if score == "log_prob":  # the normaliser cancels
        score = "logit"
    of = _OF_TOKENS[score]
    return of(logits, answer) - of(logits, foil)


def _own(logits: Tensor, answer: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    found = called("score", score, logits, answer)
    shapes = [tuple(answer.shape), (len(answer),)]
    if not isinstance(found, Tensor) or tuple(found.shape) not in shapes:
        raise ValueError(
            f"score returned {say(found)}, expected a tensor {shapes[0]} or {shapes[1]}: a number "
            "for each answer token, or for each whole answer"
        )
    return found[:, None] if found.ndim == 1 else found


def whole_of(logits: Tensor, answer: Tensor, score: str, each: Tensor | None = None) -> Tensor:
    """The score of whole answers, (R,).

    A sum for log_prob, logit and kl, the mean for entropy, the product for prob. For log_odds it is
    the logit of the product of the p_i. With o_i the log-odds of each token, so that
    log p_i = logsigmoid(o_i) and log(1 - p_i) = logsigmoid(-o_i):

        log(1 - prod_i p_i) = logsumexp_i ( sum_{j<i} log p_j + log(1 - p_i) )
    """
    each = _OF_TOKENS[score](logits, answer) if each is None else each
    if score in ADDITIVE:
        return each.sum(1)
    if score == "entropy":
        return each.mean(1)
    if score == "prob":
        return _log_prob(logits, answer).sum(1).exp()
    odds = _log_odds(logits, answer)
    yes = torch.nn.functional.logsigmoid(odds)
    no = torch.nn.functional.logsigmoid(-odds)
    before = yes.cumsum(1) - yes
    return yes.sum(1) - (before + no).logsumexp(1)


def runner_up_of(logits: Tensor, answer: Tensor) -> Tensor:
    """The best token at each place that is not the answer's, (R, N)."""
    return logits.scatter(-1, answer[..., None], -torch.inf).argmax(-1)
