"""Twenty-six families of Hugging Face models, tiny and random: the primary methods on each of them.

Each model is built from its configuration as a function of floating-point inputs: word embeddings,
pixels, waveforms or spectrograms. No file is fetched.
"""

from __future__ import annotations

import copy
import functools
import re
from typing import Any, NamedTuple

import capabilities
import optree
import pytest
import torch
import zoo
from torch import Tensor, nn
from zoo import randn

import attrfn

transformers = pytest.importorskip("transformers", minversion="5.0")

WIDE = {"initializer_range": 0.3}  # large enough for attention to be far from uniform
TEXT = {"vocab_size": 30, "pad_token_id": 0, "max_position_embeddings": 12}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}
BERT = TEXT | SIZES | WIDE
CAUSAL = BERT | {"bos_token_id": 1, "eos_token_id": 2}
GROUPED = CAUSAL | {"num_attention_heads": 4, "num_key_value_heads": 2}
D_MODEL = {
    **{"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16},
    **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    **{"init_std": 0.3, "dropout": 0.0, "attention_dropout": 0.0},
}
IMAGES = SIZES | WIDE | {"image_size": 12, "patch_size": 4, "num_channels": 2}
WORDS, PIXELS = (4, 16), (2, 12, 12)


class Family(NamedTuple):
    """A configuration, the model built from it, and what the tests need to know of the model."""

    config: str
    model: str
    options: dict[str, Any]
    shape: tuple[int, ...]  # of the inputs of one example
    layer: str  # a layer to explain, by its qualified name
    argument: str = "inputs_embeds"


FAMILIES = {
    # encoders
    "bert": Family(
        "BertConfig", "BertForSequenceClassification", BERT, WORDS, "bert.encoder.layer.1"
    ),
    "roberta": Family(
        "RobertaConfig",
        "RobertaForSequenceClassification",
        CAUSAL,
        WORDS,
        "roberta.encoder.layer.0.attention",
    ),
    "distilbert": Family(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"vocab_size": 30, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 20}
        | {"max_position_embeddings": 12}
        | WIDE,
        WORDS,
        "distilbert.transformer.layer.1.ffn",
    ),
    "albert": Family(
        "AlbertConfig",
        "AlbertForSequenceClassification",
        CAUSAL | {"embedding_size": 16},
        WORDS,
        "albert.encoder.embedding_hidden_mapping_in",
    ),
    "electra": Family(
        "ElectraConfig",
        "ElectraForSequenceClassification",
        BERT | {"embedding_size": 16},
        WORDS,
        "electra.encoder.layer.0.intermediate",
    ),
    "mpnet": Family(
        "MPNetConfig",
        "MPNetForSequenceClassification",
        CAUSAL,
        WORDS,
        "mpnet.encoder.layer.0.output",
    ),
    "deberta": Family(
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4},
        WORDS,
        "deberta.encoder.layer.1",
    ),
    # decoders
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
        | {"bos_token_id": 1, "eos_token_id": 2}
        | WIDE,
        WORDS,
        "transformer.h.1.mlp",
    ),
    "gpt_neox": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", CAUSAL, WORDS, "gpt_neox.layers.1.mlp"
    ),
    "opt": Family(
        "OPTConfig",
        "OPTForCausalLM",
        CAUSAL | {"ffn_dim": 20, "word_embed_proj_dim": 16, "init_std": 0.3},
        WORDS,
        "model.decoder.layers.1.self_attn_layer_norm",
    ),
    "bloom": Family(
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 30, "hidden_size": 16, "n_layer": 2, "n_head": 2} | WIDE,
        WORDS,
        "transformer.h.1.mlp",
    ),
    "llama": Family("LlamaConfig", "LlamaForCausalLM", GROUPED, WORDS, "model.layers.1.mlp"),
    "mistral": Family(
        "MistralConfig",
        "MistralForCausalLM",
        GROUPED | {"sliding_window": 3},
        WORDS,
        "model.layers.0.post_attention_layernorm",
    ),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", GROUPED, WORDS, "model.layers.1.mlp"),
    "gemma": Family(
        "GemmaConfig", "GemmaForCausalLM", GROUPED | {"head_dim": 4}, WORDS, "model.layers.1.mlp"
    ),
    "phi": Family("PhiConfig", "PhiForCausalLM", CAUSAL, WORDS, "model.layers.0.mlp.fc2"),
    "mixtral": Family(
        "MixtralConfig",
        "MixtralForCausalLM",
        GROUPED
        | {"num_local_experts": 3, "num_experts_per_tok": 2, "experts_implementation": "eager"},
        WORDS,
        "model.layers.1.post_attention_layernorm",
    ),
    "mamba": Family(
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 3} | WIDE,
        WORDS,
        "backbone.layers.0",
    ),
    # encoders and decoders
    "t5": Family(
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
        | {"decoder_start_token_id": 0, "pad_token_id": 0, "initializer_factor": 1.0},
        WORDS,
        "encoder.block.0.layer.1",
    ),
    "bart": Family(
        "BartConfig",
        "BartForConditionalGeneration",
        TEXT | D_MODEL,
        WORDS,
        "model.encoder.layers.0.fc2",
    ),
    # images
    "vit": Family(
        "ViTConfig", "ViTForImageClassification", IMAGES, PIXELS, "vit.embeddings", "pixel_values"
    ),
    "swin": Family(
        "SwinConfig",
        "SwinForImageClassification",
        {"image_size": 16, "patch_size": 2, "num_channels": 2, "embed_dim": 8, "window_size": 4}
        | {"depths": [1, 1], "num_heads": [2, 2]}
        | WIDE,
        (2, 16, 16),
        "swin.embeddings",
        "pixel_values",
    ),
    "convnext": Family(
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"image_size": 16, "num_channels": 2, "patch_size": 2, "layer_scale_init_value": 0.5}
        | {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}
        | WIDE,
        (2, 16, 16),
        "convnext.encoder.stages.0",
        "pixel_values",
    ),
    "resnet": Family(
        "ResNetConfig",
        "ResNetForImageClassification",
        {"num_channels": 2, "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]},
        (2, 16, 16),
        "resnet.encoder.stages.0",
        "pixel_values",
    ),
    # sound
    "wav2vec2": Family(
        "Wav2Vec2Config",
        "Wav2Vec2ForSequenceClassification",
        SIZES
        | WIDE
        | {"conv_dim": [8, 8], "conv_stride": [4, 2], "conv_kernel": [8, 3]}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        | {"classifier_proj_size": 8},
        (60,),
        "wav2vec2.feature_extractor",
        "input_values",
    ),
    "spectrogram": Family(
        "ASTConfig",
        "ASTForAudioClassification",
        SIZES
        | WIDE
        | {"patch_size": 4, "max_length": 12, "num_mel_bins": 8}
        | {"frequency_stride": 4, "time_stride": 4},
        (12, 8),
        "audio_spectrogram_transformer.embeddings",
        "input_values",
    ),
}
# Families whose routers switch experts on and off: between two switches only they are smooth.
JUMPS = {"mixtral"}
# Families that cannot be explained by rules as they are, and what the errors say of them.
UNRULED = {
    "bloom": ("BloomGelu", "custom Function"),
    "mixtral": ("MixtralExperts", "differs for the baselines"),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


class Explained(nn.Module):
    """A model of transformers as a function of one floating-point input, with outputs (B, K)."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model, self.argument = model, argument
        self.starts = getattr(model.config, "is_encoder_decoder", False)
        self.caches = "use_cache" in vars(model.config) or hasattr(model.config, "use_cache")

    def forward(self, x: Tensor) -> Tensor:
        more: dict[str, Any] = {}
        if self.starts:
            more["decoder_input_ids"] = torch.tensor([[2, 5, 7]]).expand(len(x), 3)
        if self.caches:
            more["use_cache"] = False
        logits = self.model(**{self.argument: x}, **more).logits
        # Mamba computes in float32 whatever it is given
        return (logits if logits.ndim == 2 else logits[:, -1]).to(x.dtype)  # of the last word


@functools.cache
def built(name: str) -> tuple[Explained, Tensor, Tensor]:
    """The model, two examples and their baselines, in float64."""
    family = FAMILIES[name]
    config = getattr(transformers, family.config)(**family.options)
    model = zoo.make(getattr(transformers, family.model), config)
    # away from the baseline of zeros, where layers without biases are not smooth
    x, x0 = randn(2, *family.shape, seed=1), randn(2, *family.shape, seed=2)
    explained = Explained(model, family.argument).eval()
    explained(x)  # some models hook their own layers at the first call
    return explained, x, x0


def change(model: Any, x: Tensor, x0: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)[:, 1] - model(x0)[:, 1]


def total(value: Tensor) -> Tensor:
    return value.detach().flatten(1).sum(1)


def test_page_names_the_families() -> None:
    names = re.findall(r"^\* [a-z ]+: (.+)$", capabilities.ARCHITECTURES, re.MULTILINE)
    listed = [name.removesuffix(" (AST)") for line in names for name in line.split(", ")]
    assert sorted(listed) == sorted(FAMILIES)


@each_family
def test_gradient_is_autograd(name):
    model, x, _ = built(name)
    before = zoo.state(model)
    got = attrfn.gradient(model, x, target=1)
    z = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(z)[:, 1].sum(), z)
    assert expected.any()
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    assert zoo.same_state(model, before)


@each_family
def test_integrated_gradients(name):
    """Complete, as far as 200 steps go; a row alone is the row in the batch."""
    model, x, x0 = built(name)
    got = attrfn.integrated_gradients(model, x, target=1, baselines=x0, n_steps=200, chunk_size=50)
    if name not in JUMPS:
        gap = (total(got) - change(model, x, x0)).abs()
        assert (gap < 5e-3 * total(got.abs())).all()
    few = functools.partial(attrfn.integrated_gradients, model, target=1, n_steps=4)
    torch.testing.assert_close(few(x[1:]), few(x)[1:], rtol=1e-6, atol=1e-9)


def plain(name: str) -> Explained:
    """The model, its activations in operations of torch where they are hidden in a Function."""
    model, _, _ = built(name)
    if name != "bloom":
        return model
    model = copy.deepcopy(model)
    for block in model.model.transformer.h:
        block.mlp.gelu_impl = nn.GELU("tanh")
    return model


@pytest.mark.parametrize("name", UNRULED)
def test_deep_lift_refuses(name):
    """By the names of the module and of what has no rule, not by numbers that do not sum up."""
    model, x, x0 = built(name)
    module, why = UNRULED[name]
    with pytest.raises(attrfn.UnsupportedOpError, match=rf"{module}.*{why}|{why}.*{module}"):
        attrfn.deep_lift(model, x, target=1, baselines=x0)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - JUMPS))
def test_deep_lift(name):
    """The contributions sum to the change of the output."""
    model, (_, x, x0) = plain(name), built(name)
    got = attrfn.deep_lift(model, x, target=1, baselines=x0)
    torch.testing.assert_close(total(got), change(model, x, x0), rtol=1e-5, atol=1e-6)


@each_family
def test_lrp(name):
    """Relevance is finite and not zero; a row alone is the row in the batch."""
    model, (_, x, _) = plain(name), built(name)
    got = attrfn.lrp(model, x, target=1, rules=attrfn.rules.attn_lrp())
    assert got.isfinite().all()
    assert (total(got.abs()) > 0).all()
    alone = attrfn.lrp(model, x[1:], target=1, rules=attrfn.rules.attn_lrp())
    torch.testing.assert_close(alone, got[1:], rtol=1e-6, atol=1e-9)


@each_family
def test_feature_ablation(name):
    """Against a loop over the features: words, rows of pixels, stretches of sound."""
    model, x, x0 = built(name)
    groups = torch.arange(x[0].numel()).reshape(x[0].shape) * 4 // x[0].numel()
    got = attrfn.feature_ablation(model, x, target=1, baselines=x0, feature_mask=groups)
    with torch.no_grad():
        full = model(x)[:, 1]
        for group in range(4):
            at = (groups == group).expand_as(x)
            drop = full - model(torch.where(at, x0, x))[:, 1]
            of_group = got[at].unflatten(0, (len(x), -1))
            torch.testing.assert_close(
                of_group, drop[:, None].expand_as(of_group), rtol=1e-6, atol=1e-9
            )


@each_family
def test_layers_by_name(name):
    """The gradient at a layer by autograd; the model is left as it was."""
    model, x, _ = built(name)
    before = zoo.state(model)
    layer = f"model.{FAMILIES[name].layer}"
    got = attrfn.layer_gradient_x_activation(model, x, layer=layer, target=1)
    assert zoo.same_state(model, before)
    kept = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        kept.append(out)

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        out = model(x)[:, 1].sum()
    finally:
        handle.remove()
    for a, v in zip(tensors(got), tensors(kept[0]), strict=True):
        (g,) = torch.autograd.grad(out, v, retain_graph=True)
        torch.testing.assert_close(a, v.detach() * g, rtol=1e-6, atol=1e-9)


KINKED = {"distilbert", "opt", "resnet", "t5"}


@each_family
def test_layers_are_complete(name):
    """Along the path of a layer's activation: what the rest of the model makes of its change."""
    model, x, x0 = built(name)
    layer = f"model.{FAMILIES[name].layer}"
    got = attrfn.layer_integrated_gradients(
        model, x, layer=layer, baselines=x0, target=1, n_steps=64
    )
    head, tail = attrfn.split(model, layer)
    with torch.no_grad():
        drop = (tail(head(x), x) - tail(head(x0), x))[:, 1]
    parts = torch.cat([v.flatten(1) for v in tensors(got)], 1)
    assert (drop.abs() > 1e-3).all()
    allowed = 5e-3 if name in KINKED else 1e-5  # of the quadrature, through kinks of ReLU
    assert ((parts.sum(1) - drop).abs() <= allowed * parts.abs().sum(1)).all()


def tensors(value: Any) -> list[Tensor]:
    leaves = optree.tree_leaves(value, namespace="torch")
    return [v for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]
