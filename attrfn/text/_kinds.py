"""Kinds of models: causal ones, encoder-decoders and encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._torch.autodiff import transforming
from attrfn.text._adapter import Adapter, pick
from attrfn.text._calls import check_length, of_config
from attrfn.text._rows import Rows, Text


class Causal(Adapter):
    """A model that predicts each token from those before it."""

    def of_rows(
        self, rows: Rows, value: Any, extras: dict[str, Any], past: Any = None, skip: int = 0
    ) -> Tensor:
        """The logits of the answer; ``past`` holds the first ``skip`` tokens, that of all rows."""
        size = rows.ids.shape[1]
        check_length(self.model, size, "the prompt with the answer")
        more = {**extras, **(past or {})}
        if rows.attend is not None:
            self.needs("attention_mask", "text.unattended()")
            more["attention_mask"] = rows.attend.long()
            if "position_ids" in self.names:  # else they may be found from the mask
                places = torch.arange(skip, size, device=rows.ids.device)
                more["position_ids"] = places.expand(len(rows.ids), -1)
        at = rows.at - skip
        keep: Tensor | None = None
        if self.keeps:
            keep = torch.unique(at)
            last = size - skip - int(keep[0])
            more["logits_to_keep"] = last if last == len(keep) else keep
        out = self.call(self.tokens(rows, value, slice(skip, None)), more)
        logits = self.found(out)
        if keep is not None and logits.shape[1] == len(keep):
            return pick(logits, torch.searchsorted(keep, at))
        return pick(logits, at)  # a model may take logits_to_keep and ignore it

    def of_prompt(self, x: Tensor, answer: Tensor, embeds: bool, bound: dict[str, Any]) -> Tensor:
        size, n = x.shape[1], answer.shape[1]
        check_length(self.model, size + n - 1, "the prompt with the answer")
        tail = answer[:, :-1].expand(len(x), -1)
        if embeds:
            tokens = {"inputs_embeds": torch.cat([x, self.embedded(tail).to(x)], 1)}
        else:
            tokens = {"input_ids": torch.cat([x, tail], 1)}
        more = {k: _longer(v, len(x), size, n - 1, k) for k, v in bound.items()}
        mask = more.get("attention_mask")
        at: Tensor | None = None
        if _ends_early(mask, size):
            # What follows the last token of a prompt moves after the answer, which takes its
            # place: windows and relative positions then see no gap.
            places = torch.arange(size, device=x.device)
            last = places.where(more["attention_mask"][:, :size] != 0, -1).amax(1, keepdim=True)
            late = torch.nn.functional.pad(places > last, (0, n - 1))
            order = torch.argsort(late.long(), dim=1, stable=True)
            tokens = {k: _sorted(v, order) for k, v in tokens.items()}
            more = {k: _sorted(v, order) if _is_long(v, order) else v for k, v in more.items()}
            mask, at = more["attention_mask"], last + torch.arange(n, device=x.device)
        if mask is not None and "position_ids" in self.names:
            more.setdefault("position_ids", (mask.long().cumsum(-1) - 1).clamp(min=0))
        if at is not None:
            return pick(self.found(self.call(tokens, more)), at)
        if self.keeps:
            more["logits_to_keep"] = n
        return self.found(self.call(tokens, more))[:, -n:]


class Seq2seq(Adapter):
    """A model whose encoder reads the source, and whose decoder predicts the answer."""

    def __init__(self, model: Any, target: int, start: int | None, **more: Any) -> None:
        super().__init__(model, **more)
        if start is None:
            start = of_config(self.model, "decoder_start_token_id")
        if start is None:
            start = of_config(self.model, "bos_token_id")
        if start is None:
            raise ValueError(
                "start is None, and the model's configuration has no decoder_start_token_id: give "
                "the token with which its decoder begins"
            )
        self.start, self.target = start, target

    def sources(self, prompt: int) -> int:
        if self.target >= prompt:
            raise ValueError(
                f"target is {self.target}, expected less than the {prompt} tokens of the prompt, "
                "so that a source is left"
            )
        return prompt - self.target

    def of_rows(self, rows: Rows, value: Any, extras: dict[str, Any]) -> Tensor:
        most, least = int(rows.source.max()), int(rows.source.min())
        check_length(self.model, most, "the source")
        places = torch.arange(most, device=rows.ids.device)
        mask = places < rows.source[:, None]
        if rows.attend is not None:
            self.needs("attention_mask", "text.unattended()")
            mask = mask & rows.attend[:, :most]
        more = dict(extras)
        if rows.attend is not None or least < most:
            more["attention_mask"] = mask.long()
        size = int((rows.length - rows.source).max())
        places = torch.arange(size, device=rows.ids.device) + rows.source[:, None]
        places = places.clamp(max=rows.ids.shape[1] - 1)
        more |= self._decoder(rows, value, places)
        logits = self.found(self.call(self.tokens(rows, value, slice(0, most)), more))
        return pick(logits, rows.at - rows.source[:, None] + 1)

    def _decoder(self, rows: Rows, value: Any, places: Tensor) -> dict[str, Any]:
        first = torch.full_like(rows.ids[:, :1], self.start)
        ids = torch.cat([first, rows.ids.gather(1, places)], 1)
        check_length(self.model, ids.shape[1], "the target with the answer")
        found: dict[str, Any] = {"decoder_input_ids": ids}
        ones = torch.ones_like(first, dtype=torch.bool)
        if rows.attend is not None and not bool(rows.attend.gather(1, places).all()):
            mask = torch.cat([ones, rows.attend.gather(1, places)], 1)
            found["decoder_attention_mask"] = mask.long()
        if rows.blank is not None and bool(rows.blank.gather(1, places).any()):
            blank = torch.cat([~ones, rows.blank.gather(1, places)], 1)
            found = {"decoder_inputs_embeds": self.embedded(ids, blank, value)}
        return found

    def of_prompt(self, x: Tensor, answer: Tensor, embeds: bool, bound: dict[str, Any]) -> Tensor:
        n, source = answer.shape[1], self.sources(x.shape[1])
        check_length(self.model, source, "the source")
        check_length(self.model, self.target + n, "the target with the answer")
        more = dict(bound)
        if (mask := more.get("attention_mask")) is not None:
            more["attention_mask"] = mask[:, :source]
        first = torch.full((len(x), 1), self.start, device=answer.device, dtype=answer.dtype)
        tail, prefix = answer[:, :-1].expand(len(x), -1), x[:, source:]
        if embeds and self.target:
            parts = [self.embedded(first), prefix, self.embedded(tail)]
            more["decoder_inputs_embeds"] = torch.cat([p.to(x) for p in parts], 1)
        else:
            parts = [first, prefix, tail] if self.target else [first, tail]
            more["decoder_input_ids"] = torch.cat(parts, 1)
        name = "inputs_embeds" if embeds else "input_ids"
        return self.found(self.call({name: x[:, :source]}, more))[:, -n:]


class Encoder(Adapter):
    """A model that reads the whole text at once: a classifier, or a model of masked tokens."""

    predicts = False

    def __init__(self, model: Any, positions: Tensor | None, **more: Any) -> None:
        super().__init__(model, **more)
        self.positions = positions
        if positions is None:
            self.dims, self.answers = 2, "num_labels"

    def of_rows(self, rows: Rows, value: Any, extras: dict[str, Any]) -> Tensor:
        size = rows.ids.shape[1]
        check_length(self.model, size, "the prompt")
        mask = torch.arange(size, device=rows.ids.device) < rows.length[:, None]
        mask = mask if rows.attend is None else mask & rows.attend
        more = dict(extras)
        if not bool(mask.all()):
            self.needs("attention_mask", "a row that is shorter than others")
            more["attention_mask"] = mask.long()
        return self._of(self.call(self.tokens(rows, value), more), rows.at)

    def of_prompt(self, x: Tensor, answer: Tensor, embeds: bool, bound: dict[str, Any]) -> Tensor:
        check_length(self.model, x.shape[1], "the prompt")
        name = "inputs_embeds" if embeds else "input_ids"
        at = torch.zeros_like(answer) if self.positions is None else self.positions.to(x.device)
        return self._of(self.call({name: x}, bound), at.expand(len(x), -1))

    def _of(self, out: Any, at: Tensor) -> Tensor:
        logits = self.found(out)
        if self.positions is None:
            return logits[:, None].expand(-1, at.shape[1], -1)
        return pick(logits, at)

    def text(self, ids: Tensor, part: Tensor, n: int, answer: Tensor, context: bool) -> Text:
        found = super().text(ids, part, n, answer, False)
        if self.positions is None:
            return found
        at = self.positions.to(ids.device)
        if bool((part[at] >= 0).any()):
            raise ValueError(
                "parts has masked tokens among its parts, expected them to be fixed: give them a "
                "negative id in parts.mask"
            )
        return found._replace(at=at)


def _longer(value: Any, rows: int, size: int, more: int, name: str) -> Any:
    """A bound argument with entries for the answer's tokens: masks with 1, positions go on."""
    if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[1] != size:
        return value
    value = value.expand(rows, -1)
    if not more:
        return value
    last = value[:, -1:].expand(-1, more)
    if name == "attention_mask":
        last = torch.ones_like(last)
    if name == "position_ids":
        last = last + torch.arange(1, more + 1, device=value.device)
    return torch.cat([value, last], 1)


def _ends_early(mask: Any, size: int) -> bool:
    """Whether a prompt may be padded on the right."""
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return False
    return transforming() or not bool(mask[:, size - 1].all())


def _is_long(value: Any, order: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == order.shape


def _sorted(t: Tensor, order: Tensor) -> Tensor:
    """Tokens (R, T, ...) in another order (R, T)."""
    index = order.reshape(*order.shape, *[1] * (t.ndim - 2))
    return t.gather(1, index.expand(-1, -1, *t.shape[2:]))
