"""Language models by hand, whose right attributions are known, and tiny ones of Hugging Face."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attrfn import text

W = torch.tensor([[0.0, 1, 2], [2, 0, 1], [1, 2, 0]], dtype=torch.float64)


class Bigram(nn.Module):
    """logits_t = W[x_t]"""

    def __init__(self, table: Tensor = W) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


class Bag(Bigram):
    """logits_t = sum_{s <= t} W[x_s]"""

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).cumsum(1)


class Positions(Bigram):
    """logits_t = sum_{s <= t} (s + 1) W[x_s], with an attention mask and positions."""

    def forward(self, ids: Tensor, attention_mask: Any = None, position_ids: Any = None) -> Tensor:
        places = torch.arange(ids.shape[1]) if position_ids is None else position_ids
        weight = (places + 1) if attention_mask is None else (places + 1) * attention_mask
        return (self.table(ids) * weight[..., None]).cumsum(1)


class Both(nn.Module):
    """The logit of token c is h where u and v occur (or either), else 0; others have 0."""

    def __init__(self, either: bool, u: int = 1, v: int = 2, c: int = 0, h: float = 3.0) -> None:
        super().__init__()
        self.either, self.u, self.v, self.c, self.h = either, u, v, c, h

    def forward(self, ids: Tensor) -> Tensor:
        has_u = (ids == self.u).cumsum(1) > 0
        has_v = (ids == self.v).cumsum(1) > 0
        there = has_u | has_v if self.either else has_u & has_v
        return torch.nn.functional.one_hot(ids * 0 + self.c, 6) * there[..., None] * self.h


class Counted(nn.Module):
    """A model that counts its calls, rows and tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.log: _Log = _Log()
        self.config = getattr(model, "config", None)

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        logits_to_keep: Any = 0,
    ) -> Any:
        self.log.shapes.append(tuple(input_ids.shape))
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )


class CountedIds(nn.Module):
    """The same of a model that takes ids alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.log = model, _Log()

    def forward(self, ids: Tensor) -> Tensor:
        self.log.shapes.append(tuple(ids.shape))
        found: Tensor = self.model(ids)
        return found


class _Log:
    """What copies of a model write down together."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    @property
    def rows(self) -> int:
        return sum(r for r, _ in self.shapes)

    @property
    def tokens(self) -> int:
        return sum(r * t for r, t in self.shapes)


def parts_of(ids: list[int], mask: list[int] | None = None, n: int | None = None) -> text.Parts:
    """A prompt whose tokens are parts, or that has a mask."""
    mask = list(range(len(ids))) if mask is None else mask
    n = max(mask) + 1 if n is None else n
    return text.Parts(torch.tensor([ids]), torch.tensor(mask), n, tuple(f"<{k}>" for k in range(n)))
