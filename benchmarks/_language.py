"""A language model of a made grammar for benchmarks, trained in seconds: what it needs is known.

A text is a list of facts "n17 c3 ." among sentences that say nothing, and ends with a name: the
fact about that name alone says what follows.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

NAMES, COLOURS, NOISE = 128, 16, 16
WORDS = ["<pad>", "<bos>", "."]
WORDS += [f"n{i}" for i in range(NAMES)]
WORDS += [f"c{i}" for i in range(COLOURS)]
WORDS += [f"x{i}" for i in range(NOISE)]
IDS = {word: i for i, word in enumerate(WORDS)}
FIRST = {kind: IDS[f"{kind}0"] for kind in "ncx"}


class Tokenizer:
    """One token for each word, with the space before it."""

    pad_token_id, bos_token_id = 0, 1
    all_special_ids = (0, 1)

    def __call__(
        self, text: str, return_offsets_mapping: bool = False, add_special_tokens: bool = True
    ) -> dict[str, Any]:
        found = [(m.start(), m.end(), m[0].strip()) for m in re.finditer(r"\s*\w+|\s*\.", text)]
        found = [(0, 0, "<bos>")] * add_special_tokens + found
        ids, spans = [IDS[word] for _, _, word in found], [(a, b) for a, b, _ in found]
        return {"input_ids": ids, "offset_mapping": spans}

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {WORDS[i]}" for i in ids)


class Grammar(nn.Module):
    """A layer of attention in which each place also knows the word before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), width)
        self.before, self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(4))
        self.mix = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, len(WORDS))

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Any:
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        before = self.before(nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])
        seen = nn.functional.scaled_dot_product_attention(
            self.query(x), self.key(x + before), self.value(x), is_causal=True
        )
        return SimpleNamespace(logits=self.head(x + seen + self.mix(x + seen)))


def passages(n: int, draw: torch.Generator) -> tuple[list[str], Tensor, Tensor]:
    """n texts of a fact and a sentence of noise, in random order; the names and the colours."""
    names = torch.randperm(NAMES, generator=draw)[:n]
    colours = torch.randint(COLOURS, (n,), generator=draw)
    noise = torch.randint(NOISE, (n, 2), generator=draw)
    found = []
    for name, colour, (a, b) in zip(names.tolist(), colours.tolist(), noise.tolist(), strict=True):
        sentences = [f"n{name} c{colour}.", f"x{a} x{b}."]
        found.append(" ".join(sentences if (a + b) % 2 else sentences[::-1]))
    return found, names, colours


def _batch(rows: int, facts: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Facts and noise, then questions with their answers, which alone are learned."""
    names = torch.rand(rows, NAMES, generator=draw).argsort(1)[:, :facts]
    colours = torch.randint(COLOURS, (rows, facts), generator=draw)
    noise = torch.randint(NOISE, (rows, facts, 2), generator=draw) + FIRST["x"]
    stop = torch.full((rows, facts, 1), IDS["."])
    pairs = torch.stack([names + FIRST["n"], colours + FIRST["c"]], 2)
    known = torch.cat([pairs, stop, noise, stop], 2).flatten(1)
    asked = torch.randint(facts, (rows, facts), generator=draw)
    questions = pairs.gather(1, asked[..., None].expand(-1, -1, 2))
    questions = torch.cat([questions, stop], 2).flatten(1)
    ids = torch.cat([torch.full((rows, 1), IDS["<bos>"]), known, questions], 1)
    targets = ids[:, 1:].clone()
    targets[:, : known.shape[1]] = -100
    # The name of a question cannot be known.
    targets[:, known.shape[1] :: 3] = -100
    return ids[:, :-1], targets


def trained(steps: int = 200, width: int = 64) -> tuple[Grammar, Tokenizer]:
    """The model, and its tokenizer."""
    torch.manual_seed(0)
    model, draw = Grammar(width), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        ids, targets = _batch(16, 5 + step % 30, draw)
        loss = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False), Tokenizer()
