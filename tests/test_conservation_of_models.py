"""What ``rules.conservation`` adds up to: the relevance at the inputs, what is lost, and f."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import randn, seeded
from torch import Tensor, nn

import attrfn
from attrfn import rules

X = randn(0, 3, 4)
NET = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)))


def gap(f: Any, x: Any, target: Any, composite: Any) -> float:
    """The sum of relevances and leaks without f, by values that no audit has seen."""
    leaks = rules.conservation(f, x, target=target, rules=composite)
    relevance = attrfn.lrp(f, x, target=target, rules=composite).sum()
    with torch.no_grad():
        whole = target(f(x)).sum()
    return float(relevance + sum(leak.lost for leak in leaks) - whole)


def slices(x: Tensor) -> Tensor:
    t = torch.zeros(3, 6, dtype=x.dtype)
    t[:, :2] = x[:, :2]
    t[:, 2:4].copy_(x[:, 2:])
    t[1:, 5] += x[1:, 0]
    return t.tanh()


def reads_before_a_write(x: Tensor) -> Tensor:
    h = NET[0](x)
    early = h.sigmoid()
    h.mul_(2)
    h[:, :2] = 0
    return early + h.relu_()


def shapes(x: Tensor) -> Tensor:
    h = NET[0](x)
    h.unsqueeze_(1)
    h.transpose_(1, 2)
    h.squeeze_(2)
    return h.relu()


def stacked(x: Tensor) -> Tensor:
    kept = torch.zeros(3, 2, 4, dtype=x.dtype)
    for i, part in enumerate((x, x.tanh())):
        kept[:, i].add_(part)
    return kept.flatten(1)


MODELS: dict[str, Any] = {
    "slices": slices,
    "reads before a write": reads_before_a_write,
    "changes of shape": shapes,
    "buffer of parts": stacked,
    "closure with trainable parameters": lambda x: NET(x),
    "trainable table": lambda x: x * NET[2].weight[:, :4][x.argmax(1)],
    "comparison": lambda x: x * (x > 0),
    "argmax": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "detach": lambda x: x * x.exp().detach() + x.detach(),
    "boolean index": lambda x: NET(x)[NET(x) > 0].tanh().sum().expand(3, 1) / 3,
    "boolean write": lambda x: NET(x).index_put((x > 0,), torch.zeros((), dtype=x.dtype)),
    "no_grad": lambda x: x * torch.no_grad()(torch.exp)(x),
    "Fourier": lambda x: (torch.fft.rfft(x) * (1 + 2j)).real,
    "complex": lambda x: torch.view_as_complex(x.view(3, 2, 2)).mul(2 - 1j).abs(),
    "split, not all used": lambda x: x.split(2, 1)[0].exp(),
    "used twice": lambda x: (lambda h: h * h.sigmoid() + h)(NET[0](x)),
    "activation written out": lambda x: 0.5 * x * (1 + torch.erf(x)),
    "mask of minus infinity": lambda x: (
        (x[:, :, None] * x[:, None])
        .masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        .softmax(-1)
    ),
    "glu and attention": lambda x: F.scaled_dot_product_attention(
        x[:, None], x[:, None], F.glu(torch.cat([x, x], 1))[:, None]
    ),
    "float32 inside": lambda x: NET(x.float().double().tanh()),
}
COMPOSITES = {"attn_lrp": rules.attn_lrp(), "gamma": rules.composite(rules.gamma())}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", MODELS)
def test_small_models(name: str, composite: str) -> None:
    target = lambda y: y.flatten(1).sum(1)  # noqa: E731
    found = gap(MODELS[name], X, target, COMPOSITES[composite])
    assert abs(found) < (1e-6 if "float32" in name else 1e-10)
    parameters = list(NET.parameters())
    assert all(p.grad is None for p in parameters)


def test_the_parts_of_an_operation_are_right_where_it_writes() -> None:
    """Relevance of a slice that was overwritten does not count for what made it before."""

    def f(x: Tensor) -> Tensor:
        h = x * 3.0
        h[:, :2] = x[:, 2:]
        return h

    leaks = rules.conservation(f, X, target=lambda y: y.sum(1), rules=rules.epsilon(0))
    by_op = {leak.op: leak for leak in leaks}
    kept, written = float(3 * X[:, 2:].sum()), float(X[:, 2:].sum())
    assert by_op["torch.Tensor.mul"].received == pytest.approx(kept)
    assert by_op["torch.Tensor.__setitem__"].received == pytest.approx(kept + written)
    assert all(abs(leak.lost) < 1e-12 for leak in leaks)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e300])
def test_memory_that_is_written_later_has_no_relevance(junk: float) -> None:
    """As of torch.empty, which models fill by slices."""

    def f(x: Tensor) -> Tensor:
        h = x.new_full((len(x), 4), junk)
        h[:, :2] = 3.0 * x[:, 2:]
        h[:, 2:] = x[:, :2]
        return h.tanh()

    assert abs(gap(f, X, lambda y: y.sum(1), rules.attn_lrp())) < 1e-10


def test_what_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"conservation cannot account for nan"):
        rules.conservation(lambda x: x.sqrt().sum(1), -X.abs(), rules=rules.epsilon(0))


# ---------------------------------------------------------------------------------------------
# architectures of transformers, tiny and random

WORDS = {"vocab_size": 30, "initializer_range": 0.3}
SIZES = WORDS | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
BLOCK = SIZES | {"intermediate_size": 20}
LLAMA = BLOCK | {"num_key_value_heads": 2, "max_position_embeddings": 32}
HEADS = LLAMA | {"head_dim": 4, "num_key_value_heads": 4}
SHORT = WORDS | {"n_embd": 16, "n_layer": 2, "n_head": 4}
DEEPSEEK = LLAMA | {
    **{"num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 4},
    **{"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1},
    **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 4},
    **{"qk_nope_head_dim": 4, "first_k_dense_replace": 1},
}
EXPERTS = HEADS | {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
# From the name of a model class without its head to its configuration.
CAUSAL: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen3": HEADS,
    "Gemma": HEADS,
    "Gemma2": HEADS,
    "Phi": LLAMA,
    "Phi3": LLAMA | {"pad_token_id": 0},
    "Olmo": LLAMA,
    "Granite": LLAMA,
    "StableLm": LLAMA | {"num_key_value_heads": 4},
    "Starcoder2": LLAMA,
    "Nemotron": LLAMA,
    "Cohere": LLAMA,
    "Falcon": SIZES,
    "OPT": SIZES | {"ffn_dim": 20, "max_position_embeddings": 32, "word_embed_proj_dim": 16},
    "GPTNeoX": BLOCK,
    "GPTJ": SHORT | {"rotary_dim": 4},
    "CodeGen": SHORT | {"rotary_dim": 4},
    "Mpt": WORDS | {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
    "BioGpt": BLOCK,
    "Mamba": WORDS | {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "Mamba2": WORDS
    | {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4}
    | {"head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "DeepseekV3": DEEPSEEK,
    "Qwen3Moe": EXPERTS,
    "Olmoe": EXPERTS,
    "Mixtral": LLAMA | {"num_local_experts": 4},
}
MASKED: dict[str, dict[str, Any]] = {
    "Bert": BLOCK,
    "Roberta": BLOCK,
    "Electra": BLOCK | {"embedding_size": 16},
    "Albert": BLOCK | {"embedding_size": 16},
    "DistilBert": WORDS | {"dim": 16, "hidden_dim": 20, "n_layers": 2, "n_heads": 4},
    "DebertaV2": BLOCK | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "FNet": WORDS | {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 20},
}
# Their experts are products of groups of matrices, which torch has in single precision only.
GROUPED = ("DeepseekV3", "Qwen3Moe", "Olmoe", "Mixtral")
# Some numbers in them are single precision, whatever the precision of the weights.
SINGLE = 1e-5


@functools.cache
def architecture(name: str) -> tuple[Any, Tensor]:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    options, head = (CAUSAL[name], "CausalLM") if name in CAUSAL else (MASKED[name], "MaskedLM")
    config = getattr(transformers, f"{name}Config")(**options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}For{head}")(config).eval()
    dtype = torch.float32 if name in GROUPED else torch.float64
    model = model.to(dtype)
    return lambda e: model(inputs_embeds=e).logits, randn(1, 2, 5, 16).to(dtype)


FEW = ["Llama", "OPT", "Bert", "FNet"]
ALL = [
    pytest.param(name, marks=[] if name in FEW else pytest.mark.fuzz) for name in (*CAUSAL, *MASKED)
]


@pytest.mark.parametrize("name", ALL)
def test_architectures(name: str) -> None:
    f, x = architecture(name)
    for composite in COMPOSITES.values():
        found = gap(f, x, lambda o: o[:, 3, 7], composite)
        assert abs(found) < (SINGLE if name in GROUPED else 1e-8)


@pytest.mark.parametrize("name", ALL)
def test_deep_lift_of_architectures(name: str) -> None:
    """From baselines near enough for every router to take the same path."""
    f, x = architecture(name)
    target = lambda o: o[:, 3, 7]  # noqa: E731
    found = attrfn.deep_lift(f, x, target=target, baselines=x * 0.999)
    with torch.no_grad():
        change = target(f(x)) - target(f(x * 0.999))
    assert (found.flatten(1).sum(1) - change).abs().max() < SINGLE
