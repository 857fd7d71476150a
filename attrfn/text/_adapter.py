"""What all models of texts have in common: how tokens reach them, and logits leave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrfn.text._calls import accepted, embedding_of, logits_from, of_config, unbound
from attrfn.text._rows import Rows, Text

Read = Callable[[Any], Tensor]


class Adapter(nn.Module):
    """A model of texts, as a function of token ids. Made by :func:`causal` and the like.

    Args:
        model: The model, or a functools.partial that binds keyword arguments to it.
        logits: From the model's output to its logits.
        keep_logits: Ask a model for the logits that are needed, where it takes ``logits_to_keep``.
    """

    predicts = True
    dims = 3
    answers = "vocab_size"

    def __init__(self, model: Any, logits: Read | None = None, keep_logits: bool = True) -> None:
        super().__init__()
        self.model, self.bound = unbound(model)
        # train() or eval() of this wrapper would change the user's model.
        self.training = isinstance(self.model, nn.Module) and self.model.training
        self.read = logits
        self.names = accepted(self.model)
        self.keeps = keep_logits and "logits_to_keep" in self.names

    def text(self, ids: Tensor, part: Tensor, n: int, answer: Tensor, context: bool) -> Text:
        """What the model reads: ids and parts of the prompt, (P,), and the answer, (N,)."""
        tail = answer[:-1] if self.predicts else answer[:0]
        own = torch.arange(len(tail), device=part.device) + n if context else -torch.ones_like(tail)
        count = n + len(answer) if context else n
        source = self.sources(len(ids))
        places = torch.arange(len(answer), device=ids.device)
        return Text(
            ids=torch.cat([ids, tail]),
            part=torch.cat([part, own]),
            n=count,
            at=places + len(ids) - 1 if self.predicts else torch.zeros_like(places),
            prompt=len(ids),
            source=source,
            bos=of_config(self.model, "bos_token_id"),
            predicts=self.predicts,
        )

    def sources(self, prompt: int) -> int:
        """How many of the prompt's tokens an encoder reads."""
        return 0

    def of_rows(self, rows: Rows, value: Any, extras: dict[str, Any]) -> Tensor:
        """The logits of the answer, (R, N, V), in rows of text.

        Args:
            rows: The rows.
            value: The embedding of blank tokens.
            extras: Further arguments, tensors with an entry for each token (R, T) among them.
        """
        raise NotImplementedError

    def of_prompt(self, x: Tensor, answer: Tensor, embeds: bool, bound: dict[str, Any]) -> Tensor:
        """The logits of the answer (R, N) after prompts (R, P), or embeddings (R, P, D)."""
        raise NotImplementedError

    def call(self, tokens: dict[str, Any], more: dict[str, Any]) -> Any:
        """Run the model on ``input_ids`` or ``inputs_embeds``, and further arguments."""
        arguments = {**self.bound, **tokens, **more}
        if "use_cache" in self.names:
            arguments.setdefault("use_cache", False)
        if "input_ids" in arguments and "input_ids" not in self.names:
            return self.model(arguments.pop("input_ids"), **arguments)
        return self.model(**arguments)

    def embedded(self, ids: Tensor, blank: Tensor | None = None, value: Any = None) -> Tensor:
        """The embeddings of tokens, with another one for blank tokens."""
        table = embedding_of(self.model)
        found: Tensor = table(ids)
        if blank is None:
            return found
        if isinstance(value, str):
            value = table(torch.arange(len(table.weight), device=ids.device)).mean(0)
        return found.where(~blank[..., None], torch.as_tensor(value).to(found))

    def tokens(self, rows: Rows, value: Any, part: slice = slice(None)) -> dict[str, Any]:
        """The argument for some of the tokens of rows: ids, or embeddings if there are blanks."""
        if rows.blank is None:
            return {"input_ids": rows.ids[:, part]}
        return {"inputs_embeds": self.embedded(rows.ids[:, part], rows.blank[:, part], value)}

    def needs(self, name: str, why: str) -> None:
        """Refuse what a model cannot do because it lacks an argument."""
        if name not in self.names:
            raise ValueError(
                f"model is a {type(self.model).__name__} whose forward has no argument {name}, "
                f"which {why} needs: use another removal, such as text.delete()"
            )

    def found(self, out: Any) -> Tensor:
        """The logits in what the model returned."""
        return logits_from(out, self.read, self.dims)


def pick(logits: Tensor, at: Tensor) -> Tensor:
    """The logits (R, N, V) at places (R, N) of each row."""
    return logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))


def bare(to: Adapter, bound: dict[str, Any] | None = None) -> Adapter:
    """An adapter that binds nothing but this itself: other tensors follow the batch."""
    if not to.bound:
        return to
    other = object.__new__(type(to))
    other.__dict__ = {**to.__dict__, "bound": bound or {}}
    return other
