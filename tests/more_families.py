"""Further families of models, tiny and random; no file is fetched.

Most are from Hugging Face's transformers; graph networks and cross-covariance attention are written
here after their papers.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from zoo import randn

transformers = pytest.importorskip("transformers", minversion="5.0")

WIDE = {"initializer_range": 0.3}
TEXT = {"vocab_size": 30, "pad_token_id": 0, "max_position_embeddings": 12}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = TEXT | SIZES | WIDE | {"intermediate_size": 20}
CAUSAL = BERT | {"bos_token_id": 1, "eos_token_id": 2}
GROUPED = CAUSAL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
DEEPSEEK = CAUSAL | {
    **{"num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"n_group": 1, "topk_group": 1, "moe_intermediate_size": 12, "first_k_dense_replace": 1},
    **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    **{"v_head_dim": 8, "n_shared_experts": 1},
}
WORDS = (4, 16)


class Family(NamedTuple):
    """How a model is built, and what the tests need to know of it.

    Attributes:
        name: Of the model's class in transformers, without its head, or of a class here.
        head: The rest of the name of that class.
        options: Of the configuration.
        shape: Of the inputs of one example.
        layer: A layer to explain; None takes the third of those that are called.
        argument: The name of the input.
        kinked: Has ReLUs or maxima, so that quadrature leaves a part open.
        jumps: Between two choices of experts, say, so that quadrature leaves all open.
        single: Computes in float32 alone.
        mixed: Computes a part in float32.
    """

    name: str
    head: str
    options: dict[str, Any]
    shape: tuple[int, ...] = WORDS
    argument: str = "inputs_embeds"
    kinked: bool = False
    jumps: bool = False
    single: bool = False
    mixed: bool = False


_lm = functools.partial(Family, head="ForCausalLM")
_text = functools.partial(Family, head="ForSequenceClassification")
_image = functools.partial(Family, head="ForImageClassification", argument="pixel_values")

FAMILIES = {
    # mixtures of experts
    "deepseek_v2": _lm("DeepseekV2", options=DEEPSEEK, jumps=True, single=True),
    "deepseek_v3": _lm("DeepseekV3", options=DEEPSEEK, jumps=True, single=True),
    "qwen3_moe": _lm("Qwen3Moe", options=GROUPED | EXPERTS, jumps=True, single=True),
    "olmoe": _lm("Olmoe", options=CAUSAL | EXPERTS, jumps=True, single=True),
    "gpt_oss": _lm(
        "GptOss",
        options=GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
        jumps=True,
        single=True,
    ),
    # recurrences and state spaces
    "rwkv": _lm(
        "Rwkv",
        options={"vocab_size": 30, "hidden_size": 16, "attention_hidden_size": 16}
        | {"num_hidden_layers": 2, "intermediate_size": 20, "context_length": 12},
        kinked=True,
        mixed=True,
    ),
    "xlstm": _lm(
        "xLSTM",
        options={"vocab_size": 30, "hidden_size": 16, "num_heads": 2, "num_hidden_layers": 2}
        | {"num_blocks": 2, "chunkwise_kernel": "chunkwise--native_autograd", "mode": "train"}
        | {"sequence_kernel": "native_sequence__native", "step_kernel": "native"}
        | {"chunk_size": 4, "qk_dim_factor": 0.5, "v_dim_factor": 1.0},
        mixed=True,
    ),
    "mamba2": _lm(
        "Mamba2",
        options={"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
        | {"expand": 2, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}
        | WIDE,
        mixed=True,
    ),
    "recurrent_gemma": _lm(
        "RecurrentGemma",
        options=GROUPED | {"lru_width": 16, "attention_window_size": 8, "num_hidden_layers": 3},
    ),
    "bamba": _lm(
        "Bamba",
        options=CAUSAL
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_layer_indices": [1]}
        | {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4}
        | {"mamba_expand": 2, "mamba_chunk_size": 4},
        mixed=True,
    ),
    # text
    "fnet": _text("FNet", options=TEXT | WIDE | {"hidden_size": 16, "num_hidden_layers": 2}),
    "gemma3": Family(
        "Gemma3Text", "Gemma3ForCausalLM", GROUPED | {"sliding_window": 4, "num_hidden_layers": 2}
    ),
    "falcon": _lm("Falcon", options=CAUSAL | {"num_kv_heads": 2}),
    "modernbert": _text(
        "ModernBert",
        options=CAUSAL
        | {"global_attn_every_n_layers": 2, "local_attention": 4}
        | {"cls_token_id": 1, "sep_token_id": 2},
    ),
    "xlnet": _text(
        "XLNet",
        options={"vocab_size": 30, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 20} | WIDE,
    ),
    "roformer": _text("RoFormer", options=BERT | {"embedding_size": 16}),
    "squeezebert": _text(
        "SqueezeBert",
        options=BERT
        | {"embedding_size": 16, "q_groups": 2, "k_groups": 2, "v_groups": 2}
        | {"intermediate_groups": 2, "output_groups": 2},
    ),
    "convbert": _text(
        "ConvBert", options=BERT | {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3}
    ),
    "funnel": _text(
        "Funnel",
        options={"vocab_size": 30, "block_sizes": [1, 1], "d_model": 16, "n_head": 2}
        | {"d_head": 8, "d_inner": 20, "num_decoder_layers": 1},
    ),
    # images
    "levit": _image(
        "Levit",
        options={"image_size": 64, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 1]}
        | {"num_attention_heads": [2, 3, 4], "key_dim": [4, 4, 4], "drop_path_rate": 0}
        | {"mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2]},
        shape=(3, 64, 64),
        kinked=True,
    ),
    "segformer": _image(
        "Segformer",
        options={"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1]}
        | {"hidden_sizes": [8, 16], "patch_sizes": [3, 3], "strides": [2, 2]}
        | {"num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "drop_path_rate": 0.0}
        | WIDE,
        shape=(3, 16, 16),
    ),
    "mobilenet_v2": _image(
        "MobileNetV2",
        options={"image_size": 32, "depth_multiplier": 0.25},
        shape=(3, 32, 32),
        kinked=True,
    ),
    "poolformer": _image(
        "PoolFormer",
        options={"depths": [1, 1], "hidden_sizes": [8, 16], "patch_sizes": [3, 3]}
        | {"strides": [2, 2], "padding": [1, 1], "num_encoder_blocks": 2, "drop_path_rate": 0.0}
        | WIDE,
        shape=(3, 16, 16),
    ),
    "pvt": _image(
        "Pvt",
        options={"image_size": 32, "num_encoder_blocks": 2, "depths": [1, 1], "num_labels": 2}
        | {"sequence_reduction_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [4, 2]}
        | {"strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
        | WIDE,
        shape=(3, 32, 32),
    ),
    "regnet": _image(
        "RegNet",
        options={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
        shape=(3, 16, 16),
        kinked=True,
    ),
    "dinov2": _image(
        "Dinov2",
        options=SIZES
        | WIDE
        | {"image_size": 12, "patch_size": 4, "num_channels": 2, "use_swiglu_ffn": True},
        shape=(2, 12, 12),
    ),
    "focalnet": _image(
        "FocalNet",
        options={"image_size": 16, "patch_size": 2, "embed_dim": 8, "hidden_sizes": [8, 16]}
        | {"depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]}
        | {"drop_path_rate": 0.0}
        | WIDE,
        shape=(3, 16, 16),
        kinked=True,
    ),
    "hiera": _image(
        "Hiera",
        options={"image_size": [32, 32], "patch_size": [3, 3], "patch_stride": [2, 2]}
        | {"patch_padding": [1, 1], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
        | {"query_stride": [2, 2], "masked_unit_size": [4, 4], "num_query_pool": 1},
        shape=(3, 32, 32),
        kinked=True,
    ),
    "idefics3": Family(
        "Idefics3Vision",
        "Idefics3VisionTransformer",
        BERT | {"image_size": 12, "patch_size": 4, "num_channels": 3},
        (3, 12, 12),
        "pixel_values",
    ),
    # series and sound
    "patchtst": Family(
        "PatchTST",
        "ForClassification",
        {"num_input_channels": 2, "context_length": 12, "patch_length": 4, "patch_stride": 4}
        | {"num_hidden_layers": 2, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 20}
        | {"num_targets": 3, "init_std": 0.3},
        (12, 2),
        "past_values",
    ),
    "time_series_transformer": Family(
        "TimeSeriesTransformer",
        "Model",
        {"prediction_length": 3, "context_length": 8, "lags_sequence": [1, 2], "init_std": 0.3}
        | {"num_time_features": 1, "encoder_layers": 1, "decoder_layers": 1, "d_model": 16}
        | {"encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2, "dropout": 0.0},
        (10,),
        "past_values",
        kinked=True,
    ),
    "hubert": Family(
        "Hubert",
        "ForSequenceClassification",
        BERT
        | {"conv_dim": [8, 8], "conv_stride": [2, 2], "conv_kernel": [3, 3]}
        | {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4}
        | {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8},
        (64,),
        "input_values",
        kinked=True,
    ),
    # written here
    "gat": Family("GraphAttention", "", {}, (5, 4), "", kinked=True),
    "pna": Family("NeighbourhoodAggregation", "", {}, (5, 4), "", kinked=True),
    "xcit": Family("CrossCovariance", "", {}, (3, 8, 8), ""),
}


class Explained(nn.Module):
    """A model of transformers as a function of one floating-point input, with outputs (B, K)."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model, self.argument = model, argument
        self.options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(self, x: Tensor) -> Tensor:
        more: dict[str, Any] = dict(self.options)
        if isinstance(self.model, transformers.TimeSeriesTransformerModel):
            times = torch.linspace(0, 1, 13, dtype=x.dtype).expand(len(x), 13)[..., None]
            more["past_time_features"], more["future_time_features"] = times[:, :10], times[:, 10:]
            more["past_observed_mask"] = torch.ones_like(x)
            more["future_values"] = torch.ones_like(x[:, :3])
        out = self.model(**{self.argument: x}, **more)
        names = ["logits", "prediction_logits", "last_hidden_state"]
        value = next(v for name in names if (v := getattr(out, name, None)) is not None)
        # Mamba computes in float32 whatever it is given
        return (value if value.ndim == 2 else value[:, -1]).to(x.dtype)


@functools.cache
def built(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, two examples and their baselines."""
    family = FAMILIES[name]
    dtype = torch.float32 if family.single else torch.float64
    if family.argument:
        config = getattr(transformers, f"{family.name}Config")(**family.options)
        kind = getattr(transformers, family.head, None)
        kind = kind or getattr(transformers, family.name + family.head)
        model: nn.Module = Explained(zoo.make(kind, config, dtype=dtype), family.argument)
    else:
        model = zoo.make(globals()[family.name], dtype=dtype)
    model.eval()
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        lively(model)
    x, x0 = (randn(2, *family.shape, seed=seed, dtype=dtype) for seed in (1, 2))
    with torch.no_grad():
        model(x)  # some models hook their own layers at the first call
    return model, x, x0


def lively(model: nn.Module) -> None:
    """Weights under which a convolutional net neither dies out nor blows up, as trained ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                m.weight.normal_(0, math.sqrt(2 / m.weight[0].numel()), generator=generator)
            elif isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
                m.running_mean.normal_(0, 0.2, generator=generator)
                m.running_var.uniform_(0.5, 2, generator=generator)


EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 4, 0], [1, 0, 2, 3, 4, 3, 0, 2]])


class GraphAttention(nn.Module):
    """Attention over the neighbours in a graph, by scatters over its edges.

    Velickovic et al., Graph Attention Networks, 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 6, bias=False), nn.Linear(6, 6, bias=False)])
        self.scores = nn.ParameterList([nn.Parameter(torch.randn(12) / 2) for _ in range(2)])
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        source, end = EDGES
        for layer, score in zip(self.layers, self.scores, strict=True):
            h = layer(x)
            e = F.leaky_relu(torch.cat([h[:, source], h[:, end]], -1) @ score, 0.2).exp()
            at = end.expand(len(x), -1)
            total = torch.zeros(len(x), 5, dtype=x.dtype).scatter_add(1, at, e)
            share = e / total[:, end]
            sent = (share[..., None] * h[:, source]).transpose(1, 2)
            zeros = torch.zeros(len(x), 6, 5, dtype=x.dtype)
            x = F.elu(zeros.index_add(2, end, sent)).transpose(1, 2)
        return self.out(x.mean(1))


class NeighbourhoodAggregation(nn.Module):
    """Mean, maximum, minimum and spread over the neighbours in a graph.

    Corso et al., Principal Neighbourhood Aggregation for Graph Nets, 2020.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mix, self.out = nn.Linear(4, 6), nn.Linear(30, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        source, end = EDGES
        h = torch.tanh(self.inp(x))
        sent = h[:, source]
        at = end[None, :, None].expand_as(sent)

        def over(values: Tensor, how: str) -> Tensor:
            return torch.zeros_like(h).scatter_reduce(1, at, values, how, include_self=False)

        mean = over(sent, "mean")
        spread = torch.sqrt(F.relu(over(sent.square(), "mean") - mean.square()) + 1e-5)
        parts = [h, mean, over(sent, "amax"), over(sent, "amin"), spread]
        return self.out(F.softplus(self.mix(torch.cat(parts, -1))).mean(1))


class CrossCovariance(nn.Module):
    """Attention among channels, after batch norms and a change to tokens.

    El-Nouby et al., XCiT: Cross-Covariance Image Transformers, 2021.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.BatchNorm2d(6), nn.GELU())
        self.norm, self.qkv, self.out = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 3)
        self.local = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(h)).transpose(1, 2).chunk(3, 1)
        share = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)).softmax(-1)
        h = h + (share @ v).transpose(1, 2)
        h = h + self.local(h.transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2)
        return self.out(h.mean(1))
