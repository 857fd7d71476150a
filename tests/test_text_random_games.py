"""Games drawn at random against a plain loop: one text at a time, token by token, of lists."""

from __future__ import annotations

import random
from typing import Any

import pytest
import text_families as families
import torch
from oracles import close
from text_models import parts_of
from torch import Tensor

from attrfn import text

NAMES = ("llama", "gpt2", "mistral", "gemma3", "opt")
REPLACED = 3


def by_loop(model: Any, case: dict[str, Any], there: list[bool]) -> Tensor:
    """The log-probability of each answer token where some parts are there."""
    ids, mask, answer, kind = case["ids"], case["mask"], case["answer"], case["remove"]
    n, context = case["n"], case["context"]
    prompt = [(t, m < 0 or there[m]) for t, m in zip(ids, mask, strict=True)]
    found = []
    for i, a in enumerate(answer):
        before = prompt + [(t, not context or there[n + j]) for j, t in enumerate(answer[:i])]
        if kind == "delete":
            row = [t for t, seen in before if seen]
            out = model(torch.tensor([row])).logits[0, -1]
        elif kind == "replace":
            row = [t if seen else REPLACED for t, seen in before]
            out = model(torch.tensor([row])).logits[0, -1]
        else:  # hidden: deleted, with the places that they had
            row = [t for t, seen in before if seen]
            places = [p for p, (_, seen) in enumerate(before) if seen]
            out = model(torch.tensor([row]), position_ids=torch.tensor([places])).logits[0, -1]
        found.append(out.log_softmax(-1)[a])
    return torch.stack(found)


def drawn(r: random.Random) -> dict[str, Any]:
    """A prompt with parts in any order, some in several pieces or without a token."""
    size, n = r.randint(2, 24), r.randint(1, 6)
    lead = r.randint(1, size)
    mask = [-1] * lead + [r.randint(-1, n - 1) for _ in range(size - lead)]
    return {
        "ids": [r.randint(5, 39) for _ in range(size)],
        "mask": mask,
        "n": n,
        "answer": [r.randint(5, 39) for _ in range(r.randint(1, 4))],
        "remove": r.choice(["delete", "replace"]),
        "context": r.random() < 0.3,
        "max_tokens": r.choice([None, 1, 30, 100]),
        "pad_to": r.choice([1, 1, 8]),
        "prefix": r.random() < 0.7,
    }


def play(name: str, case: dict[str, Any], r: random.Random, rows: int) -> None:
    model = families.causal(name)
    remove = {
        "delete": text.delete(),
        "replace": text.replace(REPLACED),
        "hidden": text.unattended(),
    }[case["remove"]]
    g = text.game(
        model,
        parts_of(case["ids"], case["mask"], case["n"]),
        answer=[case["answer"]],
        remove=remove,
        answer_context=case["context"],
        **{k: case[k] for k in ("max_tokens", "pad_to", "prefix")},
    )
    z = [[r.random() < 0.6 for _ in range(g.full.shape[1])] for _ in range(rows)]
    with torch.no_grad():
        expected = torch.stack([by_loop(model, case, there) for there in z])
        close(g.fn(torch.tensor(z).float()), expected, 1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_games(seed: int) -> None:
    r = random.Random(seed)
    play(NAMES[seed % len(NAMES)], drawn(r), r, 6)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(100, 400))
def test_many_games(seed: int) -> None:
    r = random.Random(seed)
    play(r.choice(NAMES), drawn(r), r, 20)


@pytest.mark.parametrize("seed", range(6))
def test_hidden_tokens(seed: int) -> None:
    """Models whose positions are given; windows count places in the row, so none has one."""
    r = random.Random(seed)
    case = drawn(r) | {"remove": "hidden"}
    case["context"] = False
    play(("llama", "gpt2")[seed % 2], case, r, 6)


@pytest.mark.parametrize("seed", range(4))
def test_long_prompts_whose_parts_are_left_out(seed: int) -> None:
    """Long enough for groups of rows that start at their first change."""
    r = random.Random(seed)
    n = 20
    size = 58
    mask = [-1] * r.randint(2, 4)
    mask += sorted(r.randint(0, n - 1) for _ in range(size - len(mask)))
    case = drawn(r) | {
        "ids": [r.randint(5, 39) for _ in range(size)],
        "mask": mask,
        "n": n,
        "context": False,
        "max_tokens": None,
        "pad_to": 1,
        "prefix": True,
    }
    model = families.causal("llama")
    remove = text.delete() if case["remove"] == "delete" else text.replace(REPLACED)
    g = text.game(model, parts_of(case["ids"], mask, n), answer=[case["answer"]], remove=remove)
    z = torch.cat([torch.ones(1, n), 1 - torch.eye(n)])
    with torch.no_grad():
        found = g.fn(z)
        expected = torch.stack([by_loop(model, case, row) for row in z.bool().tolist()])
    close(found, expected, 1e-5)
    # Where lengths differ as well, groups may cost as much as what they save.
    assert g.fn.known.whole is not None or case["remove"] == "delete"
