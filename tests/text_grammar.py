"""A language model of a made grammar, trained in seconds: which part drives an answer is known.

A text is a list of facts such as "bob blue.", among sentences that say nothing, and ends with a
name: "bob" is followed by "blue" because of the fact about bob, and of nothing else.
"""

from __future__ import annotations

import functools
import itertools
import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

NAMES = ["ann", "bob", "cy", "dora", "eli", "fay", "gus", "hal", "ivy", "jo", "kim", "lee"]
COLOURS = ["red", "blue", "green", "pink", "black", "white", "gold", "grey", "brown", "teal"]
NOISE = ["it", "rains", "today", "birds", "sing", "so", "we", "walk", "and"]
WORDS = ["<pad>", "<bos>", "<eos>", ".", *NAMES, *COLOURS, *NOISE]
IDS = {word: i for i, word in enumerate(WORDS)}


class Tokenizer:
    """One token for each word, with the space before it."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2
    all_special_ids = (0, 1, 2)

    def __call__(
        self, text: str, return_offsets_mapping: bool = False, add_special_tokens: bool = True
    ) -> dict[str, Any]:
        found = [(m.start(), m.end(), m[0].strip()) for m in re.finditer(r"\s*\w+|\.", text)]
        found = [(0, 0, "<bos>")] * add_special_tokens + found
        out: dict[str, Any] = {"input_ids": [IDS[word] for _, _, word in found]}
        if return_offsets_mapping:
            out["offset_mapping"] = [(a, b) for a, b, _ in found]
        return out

    def decode(self, ids: list[int]) -> str:
        return "".join(WORDS[i] if i <= 3 else f" {WORDS[i]}" for i in ids)


class Grammar(nn.Module):
    """A layer of attention in which each place also knows the word before it.

    So a query for the colour of a name finds the place whose word before is that name.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), width)
        self.before = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.mix = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, len(WORDS))
        self.config = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        before = self.before(nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])
        seen = nn.functional.scaled_dot_product_attention(
            self.query(x), self.key(x + before), self.value(x), is_causal=True
        )
        hidden = x + seen
        return SimpleNamespace(logits=self.head(hidden + self.mix(hidden)))


def facts(
    n: int, generator: torch.Generator, noise: float = 0.3, length: int | None = None
) -> list[list[str]]:
    """Sentences: n facts about different names, and between them some that say nothing."""
    names = torch.randperm(len(NAMES), generator=generator)[:n].tolist()
    colours = torch.randint(len(COLOURS), (n,), generator=generator).tolist()
    found = []
    for name, colour in zip(names, colours, strict=True):
        while torch.rand((), generator=generator) < noise:
            found.append([NOISE[i] for i in torch.randint(len(NOISE), (3,), generator=generator)])
        found.append([NAMES[name], COLOURS[colour]])
    return found


def _batch(rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ids, targets = torch.zeros(rows, length, dtype=torch.long), torch.full((rows, length), -100)
    for r in range(rows):
        n = int(torch.randint(2, 7, (), generator=generator))
        sentences = facts(n, generator)
        words = [w for s in sentences for w in [*s, "."]]
        known = [s for s in sentences if len(s) == 2]
        while len(words) < length:  # questions
            words += [*known[int(torch.randint(n, (), generator=generator))], "."]
        row = [IDS[w] for w in ["<bos>", *words]][: length + 1]
        ids[r, : len(row) - 1] = torch.tensor(row[:-1])
        seen: set[int] = set()
        for t, (word, after) in enumerate(itertools.pairwise(row)):
            if word in seen or WORDS[word] in COLOURS:
                targets[r, t] = after
            if WORDS[word] in NAMES:
                seen.add(word)
    return ids, targets


@functools.cache
def trained(steps: int = 80) -> tuple[Grammar, Tokenizer]:
    """The model, and its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Grammar()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        ids, targets = _batch(16, 40, generator)
        loss = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False), Tokenizer()
