"""Adapters by name: how ids, masks and positions reach a model."""

from __future__ import annotations

from typing import Any

import torch

from attrfn._copies.batch import is_integer
from attrfn._torch.say import say
from attrfn.text._adapter import Adapter, Read
from attrfn.text._calls import of_config, unbound
from attrfn.text._kinds import Causal, Encoder, Seq2seq


def causal(model: Any, *, logits: Read | None = None, keep_logits: bool = True) -> Adapter:
    """A causal language model, which reads [prompt answer] and predicts each token of the answer.

    The forward pass gets ``input_ids`` (or ids as its first argument), ``use_cache=False`` and
    ``logits_to_keep`` where it takes them. Rows of different length are padded on the right, which
    causal models do not see.

    Args:
        model: Any callable from ids (R, T) to logits (R, T, V), or to an output with ``.logits``;
            a functools.partial binds further arguments.
        logits: From the model's output to logits (R, T, V).
        keep_logits: Whether to ask for the logits of the answer only.

    Example:
        >>> import torch
        >>> from attrfn import text
        >>> bigram = torch.nn.Embedding(3, 3)
        >>> text.causal(bigram).predicts
        True
    """
    return Causal(model, logits, keep_logits)


def seq2seq(
    model: Any, *, target: int = 0, start: int | None = None, logits: Read | None = None
) -> Adapter:
    """An encoder-decoder model: the encoder reads the prompt, the decoder predicts the answer.

    Args:
        model: A model with ``input_ids`` and ``decoder_input_ids``.
        target: How many of the last prompt tokens belong to the decoder: a part of the target that
            is given, and explained with the source.
        start: The decoder's first token; None: the configuration's.
        logits: From the model's output to logits (R, T, V).
    """
    if not is_integer(target) or target < 0:
        raise ValueError(f"target is {say(target)}, expected a number of tokens, at least 0")
    return Seq2seq(model, target, start, logits=logits)


def classifier(model: Any, *, logits: Read | None = None) -> Adapter:
    """A classifier of texts, whose "answer" is a class: the logits (R, K) are those of one token.

    Args:
        model: A model with ``input_ids`` and ``attention_mask``. Bind what has an entry for each
            token, such as ``token_type_ids`` (1, P), with functools.partial: it follows its tokens.
        logits: From the model's output to logits (R, K).
    """
    return Encoder(model, None, logits=logits)


def masked(model: Any, positions: Any, *, logits: Read | None = None) -> Adapter:
    """A model of masked tokens, whose "answer" are the tokens at some positions of the prompt.

    Args:
        model: A model with ``input_ids`` and ``attention_mask``.
        positions: The places of the mask tokens, N integers. They must be fixed.
        logits: From the model's output to logits (R, T, V).
    """
    at = torch.as_tensor(positions)
    if at.ndim != 1 or at.is_floating_point() or not at.numel():
        raise ValueError(
            f"positions is {say(positions)}, expected the places of the mask tokens, integers (N,)"
        )
    return Encoder(model, at, logits=logits)


def adapter(model: Any, logits: Read | None = None, keep_logits: bool = True) -> Adapter:
    """The adapter that fits a model: itself, :func:`seq2seq` or :func:`causal`."""
    if isinstance(model, Adapter):
        return model
    inner, _ = unbound(model)
    if of_config(inner, "is_encoder_decoder"):
        return Seq2seq(model, 0, None, logits=logits)
    if type(inner).__name__.endswith("ForMaskedLM"):  # its logits at a token have seen that token
        raise ValueError(
            f"model is a {type(inner).__name__}, which also sees the tokens after a place, "
            "expected a causal model: use text.masked(model, positions)"
        )
    return Causal(model, logits, keep_logits)
