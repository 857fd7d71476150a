"""Language models of the benchmarks: random weights, built from configurations."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from attrfn import text

PAD = 2


def _gpt2(layers: int, width: int, vocabulary: int) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=width // 32,
        n_positions=20_000,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=PAD,
    )
    return transformers.GPT2LMHeadModel(config)


def _llama(layers: int, width: int, vocabulary: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        max_position_embeddings=20_000,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=PAD,
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {
    "GPT-2, 4 layers x 128": (_gpt2, 4, 128),
    "Llama, 4 layers x 128": (_llama, 4, 128),
    "Llama, 8 layers x 512": (_llama, 8, 512),
}


def model(name: str, device: str, vocabulary: int = 400) -> nn.Module:
    """A model in evaluation mode with frozen weights."""
    build, layers, width = MODELS[name]
    torch.manual_seed(0)
    made: nn.Module = build(layers, width, vocabulary).eval().requires_grad_(False).to(device)
    return made


def prompt(tokens: int, answer: int, device: str) -> tuple[Tensor, Tensor]:
    """Ids of a prompt and of its answer."""
    torch.manual_seed(1)
    ids = torch.randint(3, 400, (1, tokens + answer), device=device)
    return ids[:, :tokens], ids[:, tokens:]


def parts(ids: Tensor, n: int, prefix: int = 0) -> text.Parts:
    """A prompt whose tokens after a prefix are n parts of equal size."""
    free = ids.shape[1] - prefix
    own = torch.arange(free) * n // free
    mask = torch.cat([torch.full((prefix,), -1), own]).to(ids.device)
    return text.Parts(ids, mask, n)


def forward(model: nn.Module, ids: Tensor, answer: Tensor, **more: Any) -> Tensor:
    """One bare forward pass of prompts with an answer: its log-probabilities."""
    rows = torch.cat([ids, answer[:, :-1].expand(len(ids), -1)], 1)
    n = answer.shape[1]
    with torch.no_grad():
        logits = model(input_ids=rows, use_cache=False, logits_to_keep=n, **more).logits
        index = answer.expand(len(ids), -1)[..., None]
        return logits.log_softmax(-1).gather(-1, index)[..., 0]
