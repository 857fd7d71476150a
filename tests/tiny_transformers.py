"""Hugging Face models, tiny and random, built from configurations: no file is fetched."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from zoo import randn

transformers = pytest.importorskip("transformers", minversion="5.0")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    # large enough for attention and logits to be far from constant
    "initializer_range": 0.3,
}
PAD, MASK = 0, 3
IDS = torch.tensor([[1, 15, 26, 7, 2], [1, 8, 19, 2, PAD]])
LENGTHS = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])

# the words replaced by the mask token, the special tokens kept
BASE = torch.tensor([[1, MASK, MASK, MASK, 2], [1, MASK, MASK, 2, PAD]])


def bert_config(**more: Any) -> Any:
    words = {"vocab_size": 30, "max_position_embeddings": 12, "pad_token_id": PAD}
    return transformers.BertConfig(**(SIZES | words | {"num_labels": 3} | more))


@functools.cache
def bert(attention: str = "sdpa") -> nn.Module:
    config = bert_config(attn_implementation=attention)
    return zoo.make(transformers.BertForSequenceClassification, config)


@functools.cache
def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=30,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=12,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    return zoo.make(transformers.GPT2LMHeadModel, config)


@functools.cache
def llama() -> nn.Module:
    sizes = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=30, max_position_embeddings=12, **sizes)
    return zoo.make(transformers.LlamaForCausalLM, config)


@functools.cache
def vit(attention: str = "sdpa") -> nn.Module:
    config = transformers.ViTConfig(
        image_size=12,
        patch_size=4,
        num_channels=2,
        num_labels=3,
        attn_implementation=attention,
        **SIZES,
    )
    return zoo.make(transformers.ViTForImageClassification, config)


TEXT = {"bert": bert, "gpt2": gpt2, "llama": llama}
WORDS = {
    "bert": "bert.embeddings.word_embeddings",
    "gpt2": "transformer.wte",
    "llama": "model.embed_tokens",
}


def class_one(out: Any) -> Tensor:
    return out.logits[:, 1]


def next_word(out: Any) -> Tensor:
    """The log-probability of word 7 after the fourth word (no padding before it)."""
    return out.logits[:, 3].log_softmax(-1)[:, 7]


TARGET = {"bert": class_one, "gpt2": next_word, "llama": next_word}
each_text = pytest.mark.parametrize("name", TEXT)


def bound(name: str) -> Any:
    return functools.partial(TEXT[name](), attention_mask=LENGTHS)


def change(name: str, ids: Tensor = IDS, base: Tensor = BASE) -> Tensor:
    """f(x) - f(x0)"""
    with torch.no_grad():
        return TARGET[name](bound(name)(ids)) - TARGET[name](bound(name)(base))


class Embedded(nn.Module):
    """A text model as a function of its word embeddings, which are floating point."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.model(inputs_embeds=embeddings, attention_mask=attention_mask)


def embedded(name: str) -> tuple[Any, Tensor, Tensor]:
    """The model, the embeddings of the words and those of the baseline."""
    model = TEXT[name]()
    words = model.get_input_embeddings()
    bound = functools.partial(Embedded(model).eval(), attention_mask=LENGTHS)
    return bound, words(IDS).detach(), words(BASE).detach()


IMAGES = randn(2, 2, 12, 12, seed=5)
