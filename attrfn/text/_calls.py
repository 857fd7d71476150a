"""How a language model is called, and what its configuration says."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._torch.guard import called
from attrfn._torch.say import say


def unbound(model: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A model and the keyword arguments that ``functools.partial`` binds to it."""
    keywords: dict[str, Any] = {}
    while isinstance(model, functools.partial):
        if model.args:
            raise ValueError(
                "model is a functools.partial with positional arguments, expected keyword "
                "arguments only: the first argument is the token ids"
            )
        keywords = {**model.keywords, **keywords}
        model = model.func
    if not callable(model):
        raise TypeError(f"model is {say(model)}, expected a torch.nn.Module or another callable")
    return model, keywords


def accepted(model: Callable[..., Any]) -> frozenset[str]:
    """The names of the arguments that a model takes."""
    function = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return frozenset()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in parameters if p.kind in kinds)


def of_config(model: Any, name: str) -> Any:
    """A value of a model's configuration, None where there is none."""
    config = getattr(model, "config", None)
    found = getattr(config, name, None)
    if found is None and callable(inner := getattr(config, "get_text_config", None)):
        found = getattr(inner(), name, None)
    return found


def longest(model: Any) -> int | None:
    """The number of positions that a model has, or None."""
    found = of_config(model, "max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def check_length(model: Any, length: int, what: str) -> None:
    """Refuse texts that are longer than the model.

    Raises:
        ValueError: The configuration names fewer positions.
    """
    most = longest(model)
    if most is not None and length > most:
        raise ValueError(
            f"{what} has {length} tokens, expected at most {most}, the model's "
            "max_position_embeddings: shorten the prompt or the answer"
        )


def check_ids(model: Any, ids: Tensor, name: str, of: str = "vocab_size") -> None:
    """Refuse ids that a model has no token or class for: on a GPU they would end the process.

    Raises:
        ValueError: An id is negative, or not below the number in the configuration.
    """
    size = of_config(model, of)
    most = size - 1 if isinstance(size, int) and size > 0 else int(ids.max())
    if int(ids.min()) < 0 or int(ids.max()) > most:
        raise ValueError(
            f"{name} has ids from {int(ids.min())} to {int(ids.max())}, expected 0 to {most} "
            f"(the model's {of})"
        )


def embedding_of(model: Any) -> Any:
    """The table of embeddings of a model, by the method that Hugging Face's models have.

    Raises:
        ValueError: The model has none.
    """
    find = getattr(model, "get_input_embeddings", None)
    if not callable(find):
        raise ValueError(
            f"model is a {type(model).__name__} without get_input_embeddings(), which embeddings "
            "need: give ids, or methods with layer= the embedding module"
        )
    return find()


def logits_from(out: Any, read: Callable[[Any], Tensor] | None, dims: int) -> Tensor:
    """The logits of a model's output.

    Raises:
        ValueError: There are none, or they have the wrong number of dimensions.
    """
    if read is not None:
        found = called("logits", read, out)
    else:
        found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
        if found is None and isinstance(out, dict):
            found = out.get("logits")
    form = "(R, T, V)" if dims == 3 else "(R, K)"
    if not isinstance(found, Tensor) or found.ndim != dims or not torch.is_floating_point(found):
        got = say(found) if found is not None else f"a {type(out).__name__} without .logits"
        raise ValueError(
            f"model returned {got}, expected logits {form}, as a tensor or the attribute .logits: "
            "give logits=, a function from the model's output to them"
        )
    return found
