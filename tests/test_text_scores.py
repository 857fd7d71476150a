"""Scores of an answer: formulas on paper, loops, and probabilities that are nearly 1."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import close
from torch import Tensor

from attrfn import text
from attrfn.text._scores import scores_of, whole_of


def logits(rows: int = 2, n: int = 3, v: int = 5) -> Tensor:
    return torch.randn(rows, n, v, dtype=torch.float64) * 2


ANSWER = torch.tensor([[0, 3, 1], [2, 2, 4]])
FOIL = torch.tensor([[1, 3, 0], [4, 0, 1]])


def by_hand(name: str, row: Tensor, a: int) -> float:
    """One token, in Python's numbers."""
    p = [math.exp(x) for x in row.tolist()]
    p = [x / sum(p) for x in p]
    return {
        "log_prob": math.log(p[a]),
        "logit": float(row[a]),
        "prob": p[a],
        "log_odds": math.log(p[a] / (1 - p[a])),
        "entropy": -sum(x * math.log(x) for x in p),
    }[name]


each_name = pytest.mark.parametrize("name", ["log_prob", "logit", "prob", "log_odds", "entropy"])


@each_name
def test_each_score_by_hand(name: str) -> None:
    found = logits()
    expected = [
        [by_hand(name, row, a) for row, a in zip(rows, ids, strict=True)]
        for rows, ids in zip(found, ANSWER.tolist(), strict=True)
    ]
    close(scores_of(found, ANSWER, name), torch.tensor(expected, dtype=torch.float64))


@each_name
def test_foils(name: str) -> None:
    """The score less that of the foil: 0 where they are one token; the foil's is the opposite."""
    if name == "entropy":
        with pytest.raises(ValueError, match="no single token"):
            text.scorer(lambda ids: ids, [[1]], foil=[[2]], score=name)
        return
    found = logits()
    difference = scores_of(found, ANSWER, name, FOIL)
    close(difference, scores_of(found, ANSWER, name) - scores_of(found, FOIL, name))
    close(difference, -scores_of(found, FOIL, name, ANSWER))
    assert difference[0, 1] == 0
    if name == "log_prob":
        assert torch.equal(difference, scores_of(found, ANSWER, "logit", FOIL))


@each_name
def test_whole_answers(name: str) -> None:
    """Sums, products, means, and the logit of the product."""
    found, n = logits(), ANSWER.shape[1]
    each = scores_of(found, ANSWER, name)
    p = scores_of(found, ANSWER, "prob").prod(1)
    expected = {
        "prob": p,
        "log_odds": (p / (1 - p)).log(),
        "entropy": each.mean(1),
    }.get(name, each.sum(1))
    both = scores_of(found, ANSWER, name, whole=True)
    close(both[:, :n], each)
    close(both[:, n], expected)
    if name in ("prob", "log_odds"):
        contrast = scores_of(found, ANSWER, name, FOIL, whole=True)[:, n]
        close(contrast, expected - whole_of(found, FOIL, name))


def test_log_odds_of_a_whole_answer_that_is_nearly_certain() -> None:
    """o = (21, 20): log(p q / (1 - p q)) = -log(e^-21 + e^-20 + e^-41), 19.687, in float32, too."""
    odds = torch.tensor([21.0, 20.0])
    rows = torch.stack([odds, torch.zeros(2)], 1)[None]
    answer = torch.tensor([[0, 0]])
    expected = -math.log(math.exp(-21) + math.exp(-20) + math.exp(-41))
    assert expected == pytest.approx(19.687, abs=1e-3)
    found = scores_of(rows, answer, "log_odds", whole=True)[0]
    assert found.tolist() == pytest.approx([21.0, 20.0, expected], rel=1e-6)
    rows = rows * 10
    assert scores_of(rows, answer, "log_odds", whole=True).isfinite().all()
    assert scores_of(-rows, answer, "log_odds", whole=True).isfinite().all()


def test_half_precision_is_widened() -> None:
    found = logits().to(torch.bfloat16)
    for name in ("log_prob", "prob", "log_odds", "entropy"):
        scores = scores_of(found, ANSWER, name)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, scores_of(found.float(), ANSWER, name))


def test_kl_from_the_whole_prompt() -> None:
    found = logits()
    reference = logits(1).log_softmax(-1)
    p, q = reference.exp(), found.softmax(-1)
    close(scores_of(found, ANSWER, "kl", None, reference), -(p * (p / q).log()).sum(-1))
    with pytest.raises(ValueError, match="reference is None"):
        scores_of(found, ANSWER, "kl")


def test_tokens_that_cannot_come() -> None:
    """A logit of -inf is a probability of 0, which adds nothing."""
    row = torch.tensor([[[0.0, 1.0, -torch.inf]]])
    two = torch.tensor([[[0.0, 1.0]]])
    for name in ("log_prob", "prob", "log_odds", "entropy"):
        close(scores_of(row, ANSWER[:1, :1], name), scores_of(two, ANSWER[:1, :1], name))
    reference = row.log_softmax(-1)
    close(scores_of(row, ANSWER[:1, :1], "kl", None, reference), torch.zeros(1, 1))


def test_own_scores() -> None:
    """A callable has a number for each token, or for each answer."""

    def margin(logits: Tensor, answer: Tensor) -> Tensor:
        return logits.gather(-1, answer[..., None])[..., 0] - logits.amax(-1)

    found = logits()
    close(scores_of(found, ANSWER, margin), margin(found, ANSWER))
    whole = scores_of(found, ANSWER, lambda x, a: margin(x, a).sum(1))
    close(whole, margin(found, ANSWER).sum(1)[:, None])
    close(scores_of(found, ANSWER, margin, FOIL), margin(found, ANSWER) - margin(found, FOIL))
    with pytest.raises(ValueError, match=r"score returned .* expected a tensor \(2, 3\) or \(2,\)"):
        scores_of(found, ANSWER, lambda x, a: x)


@pytest.mark.parametrize("wrong", ["odds", 3, None])
def test_no_score(wrong: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"score is .* expected one of log_prob"):
        text.scorer(lambda ids: ids, [[1]], score=wrong)
