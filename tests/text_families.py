"""Families of language models, tiny and random, built from configurations: no file is fetched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from torch import nn

transformers = pytest.importorskip("transformers", minversion="5.0")

# No two tokens are near each other, so that attributions are far from rounding.
LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
HEADS = LLAMA | {"num_key_value_heads": 4}
HEAD = LLAMA | {"head_dim": 8}
GPT = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WINDOW = {"sliding_window": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": 40,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
        },
    ),
    "gpt_neox": ("GPTNeoX", HEADS),
    "gptj": ("GPTJ", GPT | {"rotary_dim": 4}),
    "opt": (
        "OPT",
        {
            "vocab_size": 40,
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "init_std": 0.3,
        },
    ),
    "bloom": (
        "Bloom",
        {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    ),
    "falcon": ("Falcon", HEADS | {"new_decoder_architecture": False, "multi_query": True}),
    "llama": ("Llama", LLAMA),
    "llama_tied": ("Llama", LLAMA | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", LLAMA | WINDOW),
    "mixtral": ("Mixtral", LLAMA | EXPERTS),
    "qwen2": ("Qwen2", LLAMA),
    "qwen3": ("Qwen3", HEAD),
    "qwen3_moe": (
        "Qwen3Moe",
        HEAD | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    ),
    "gemma": ("Gemma", HEAD),
    "gemma2": ("Gemma2", HEAD | WINDOW | {"query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", HEAD | WINDOW | {"query_pre_attn_scalar": 8}),
    "phi": ("Phi", HEADS),
    "phi3": ("Phi3", LLAMA | {"pad_token_id": 2}),
    "olmo2": ("Olmo2", LLAMA),
    "granite": ("Granite", LLAMA),
    "smollm3": ("SmolLM3", LLAMA),
    "stablelm": ("StableLm", LLAMA),
    "cohere": ("Cohere", LLAMA),
    "starcoder2": ("Starcoder2", LLAMA),
    "mamba": (
        "Mamba",
        {
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "state_size": 4,
            "initializer_range": 0.3,
        },
    ),
}
MOE = ("mixtral", "qwen3_moe")
SEQ2SEQ: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 40,
            "d_model": 16,
            "d_kv": 4,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "vocab_size": 40,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 64,
            "init_std": 0.3,
        },
    ),
}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", SIZES | {"pad_token_id": 2}),
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": 40,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 24,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
        },
    ),
}


@functools.cache
def causal(name: str) -> nn.Module:
    kind, sizes = CAUSAL[name]
    config_name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{config_name}Config")(**sizes)
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    made: Callable[..., nn.Module] = getattr(transformers, kind + head)
    # torch multiplies grouped matrices of experts in single precision only
    dtype = torch.float32 if name in MOE else torch.float64
    return zoo.make(made, config, dtype=dtype)


@functools.cache
def seq2seq(name: str) -> nn.Module:
    kind, sizes = SEQ2SEQ[name]
    config = getattr(transformers, f"{kind.removesuffix('ForConditionalGeneration')}Config")(
        **sizes
    )
    return zoo.make(getattr(transformers, kind), config)


@functools.cache
def encoder(name: str, task: str, attention: str = "sdpa") -> nn.Module:
    kind, sizes = ENCODERS[name]
    config = getattr(transformers, f"{kind}Config")(
        **sizes, num_labels=3, attn_implementation=attention
    )
    return zoo.make(getattr(transformers, f"{kind}{task}"), config)
