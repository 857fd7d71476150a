"""Hugging Face models, tiny and random, built from configurations: no file is fetched."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from zoo import randn

import attrfn

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


def patches(tokens: Tensor) -> Tensor:
    """ViT's tokens (B, 1 + 9, C) as (B, C, 3, 3)."""
    return tokens[:, 1:].mT.unflatten(2, (3, 3))


IMAGES = randn(2, 2, 12, 12, seed=5)


# --- splits --------------------------------------------------------------------------------------

LAYERS = [
    ("bert", "bert.embeddings.word_embeddings"),
    ("bert", "bert.embeddings"),
    ("bert", "bert.encoder.layer.0"),
    ("bert", "bert.encoder.layer.1.attention"),
    ("bert", "bert.encoder.layer.1.attention.self"),
    ("bert", "bert.encoder.layer.0.attention.output.LayerNorm"),
    ("bert", "bert.encoder"),
    ("bert", "bert.pooler"),
    ("bert", "bert"),
    ("bert", "classifier"),
    ("gpt2", "transformer.wte"),
    ("gpt2", "transformer.h.0"),
    ("gpt2", "transformer.h.1.attn"),
    ("gpt2", "transformer.h.1.mlp.act"),
    ("gpt2", "transformer.ln_f"),
    ("gpt2", "transformer"),
    ("gpt2", "lm_head"),
    ("llama", "model.embed_tokens"),
    ("llama", "model.layers.0"),
    ("llama", "model.layers.1.self_attn"),
    ("llama", "model.layers.0.mlp.down_proj"),
    ("llama", "model.norm"),
    ("llama", "model.rotary_emb"),
    ("llama", "model"),
    ("llama", "lm_head"),
]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
@pytest.mark.parametrize("at", ["output", "input"])
def test_split(name, layer, at):
    """Also layers that return a ModelOutput or a tuple, or are called with keywords only."""
    model = bound(name)
    before = zoo.state(model.func)
    with torch.no_grad():
        expected = model(IDS).logits
        head, tail = attrfn.split(model, layer, at=at)
        activation = head(IDS)
        got = tail(activation, IDS).logits
        moved = tail(scaled(activation), IDS).logits
    # the fused kernel and the masks may be chosen by whether a graph is recorded: rounding
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    # token ids are not moved, and the rotary embedding asks its input for the dtype only
    if not (at == "input" and layer.endswith(("embed_tokens", "wte", "embeddings", "rotary_emb"))):
        assert torch.allclose(moved, expected) == (at == "input" and layer in WHOLE)
    assert zoo.same_state(model.func, before)


# their inputs are the token ids and the mask
WHOLE = ("bert", "transformer", "model")


def scaled(value: Any) -> Any:
    """The same value with other numbers in its floating tensors."""
    if isinstance(value, Tensor):
        return value.sin() * 1.5 if value.is_floating_point() else value
    if isinstance(value, dict):
        new = {k: scaled(v) for k, v in value.items()}
        return new if type(value) is dict else type(value)(**new)
    if isinstance(value, (tuple, list)):
        return type(value)(map(scaled, value))
    return value


@pytest.mark.parametrize(
    "layer",
    [
        "vit.embeddings",
        "vit.embeddings.patch_embeddings.projection",
        "vit.layers.0",
        "vit.layers.1.attention",
        "vit.layers.0.mlp.fc1",
        "vit.layernorm",
        "classifier",
    ],
)
def test_split_of_images(layer):
    model = vit()
    with torch.no_grad():
        expected = model(IMAGES).logits
        head, tail = attrfn.split(model, layer)
        torch.testing.assert_close(tail(head(IMAGES), IMAGES).logits, expected, rtol=0, atol=1e-14)
        moved = tail(scaled(head(IMAGES)), IMAGES).logits
    assert not torch.allclose(moved, expected)


def test_threads():
    """Eight threads explain one BERT at once."""
    expected = explain_everything()
    wrong: list[Any] = []

    def work() -> None:
        try:
            for _ in range(3):
                for a, b in zip(explain_everything(), expected, strict=True):
                    if not torch.equal(a, b):
                        wrong.append((a, b))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def explain_everything() -> list[Tensor]:
    model, e, e0 = embedded("bert")
    layer = "model.bert.encoder.layer.0"
    return [
        attrfn.integrated_gradients(model, e, target=class_one, baselines=e0, n_steps=3),
        attrfn.layer_gradient_x_activation(model, e, layer=layer, target=class_one),
        attrfn.layer_conductance(model, e, layer=layer, target=class_one, n_steps=2),
    ]


# --- the words -----------------------------------------------------------------------------------


@each_text
def test_word_embeddings_are_complete(name):
    """sum of attributions = f(x) - f(x0), x0 with mask tokens; special and padded tokens get 0."""
    got = attrfn.layer_integrated_gradients(
        bound(name), IDS, layer=WORDS[name], target=TARGET[name], baselines=BASE, n_steps=60
    )
    assert got.shape == (2, 5, 16)
    # Llama takes its norms in float32, whatever the dtype
    rtol = 1e-4 if name == "llama" else 1e-6
    torch.testing.assert_close(got.sum((1, 2)), change(name), rtol=rtol, atol=1e-7)
    assert float(change(name).abs().min()) > 1e-2
    assert not got[IDS == BASE].any()
    assert got[IDS != BASE].any(-1).all() or name != "bert"
    gap = attrfn.completeness_delta(bound(name), IDS, got, target=TARGET[name], baselines=BASE)
    torch.testing.assert_close(gap, got.sum((1, 2)) - change(name), rtol=0, atol=1e-10)


@each_text
def test_word_embeddings_are_the_embedded_model(name):
    """Two ways to the same: at the embedding layer by name, and from embeddings as inputs."""
    model, e, e0 = embedded(name)
    there = attrfn.integrated_gradients(model, e, target=TARGET[name], baselines=e0, n_steps=7)
    here = attrfn.layer_integrated_gradients(
        bound(name), IDS, layer=WORDS[name], target=TARGET[name], baselines=BASE, n_steps=7
    )
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-11)
    for chunk_size in (1, 3):
        chunked = attrfn.layer_integrated_gradients(
            bound(name),
            IDS,
            layer=WORDS[name],
            target=TARGET[name],
            baselines=BASE,
            n_steps=7,
            chunk_size=chunk_size,
        )
        torch.testing.assert_close(chunked, there, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("base", ["mask", "pad", "zeros"])
def test_all_embeddings_of_bert_jointly(base):
    """Word, position and token-type embeddings together cut the network, and so does their sum."""
    base = {"mask": BASE, "pad": torch.full_like(IDS, PAD), "zeros": None}[base]
    x0 = torch.zeros_like(IDS) if base is None else base
    options = {"target": class_one, "baselines": base, "n_steps": 60}
    parts = ["word_embeddings", "position_embeddings", "token_type_embeddings"]
    layers = [f"bert.embeddings.{part}" for part in parts]
    joint = attrfn.layer_integrated_gradients(bound("bert"), IDS, layer=layers, **options)
    assert isinstance(joint, list)
    # the positions have no row per example and the types are equal in both: the words change alone
    assert joint[1] is None
    assert not joint[2].any()
    expected = change("bert", base=x0)
    torch.testing.assert_close(joint[0].sum((1, 2)), expected, rtol=1e-6, atol=1e-7)
    at_sum = attrfn.layer_integrated_gradients(
        bound("bert"), IDS, layer="bert.embeddings", **options
    )
    torch.testing.assert_close(at_sum.sum((1, 2)), expected, rtol=1e-5, atol=1e-6)


def test_positions_and_words_together():
    """With position ids among the inputs all three tables change; jointly they are complete."""
    model = zoo.make(Positioned)
    layers = [f"bert.bert.embeddings.{k}_embeddings" for k in ("word", "position", "token_type")]
    inputs = (IDS, torch.arange(5).expand(2, 5), torch.zeros_like(IDS))
    base = (BASE, torch.full((2, 5), 9), torch.ones_like(IDS))
    got = attrfn.layer_integrated_gradients(
        model, inputs, layer=layers, target=class_one, baselines=base, n_steps=60
    )
    assert [g.shape for g in got] == [(2, 5, 16)] * 3
    with torch.no_grad():
        expected = class_one(model(*inputs)) - class_one(model(*base))
    total = sum(g.sum((1, 2)) for g in got)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    assert all(float(g.abs().sum()) > 1e-2 for g in got)


class Positioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bert = transformers.BertForSequenceClassification(bert_config())

    def forward(self, ids: Tensor, positions: Tensor, kinds: Tensor) -> Any:
        return self.bert(ids, position_ids=positions, token_type_ids=kinds)


def test_tied_output_of_gpt2():
    """lm_head is wte's weight: overwriting wte's value leaves the output layer as it is."""
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    head, tail = attrfn.split(model, "transformer.wte")
    with torch.no_grad():
        a = head(IDS)
        expected = model(inputs_embeds=a * 2).logits
        torch.testing.assert_close(tail(a * 2, IDS).logits, expected, rtol=0, atol=1e-13)
    # functional_call with the weight under one of its names: both uses have the new value
    weight = {"transformer.wte.weight": (model.lm_head.weight * 1.1).detach()}
    other = functools.partial(torch.func.functional_call, model, weight)
    with torch.no_grad():
        expected = torch.func.functional_call(model, weight, (IDS,)).logits
        head, tail = attrfn.split(other, "transformer.h.0")
        torch.testing.assert_close(tail(head(IDS), IDS).logits, expected, rtol=0, atol=1e-13)
    got = attrfn.layer_integrated_gradients(
        other, IDS, layer="transformer.wte", target=next_word, baselines=BASE, n_steps=60
    )
    with torch.no_grad():
        expected = next_word(other(IDS)) - next_word(other(BASE))
    torch.testing.assert_close(got.sum((1, 2)), expected, rtol=1e-6, atol=1e-7)


def test_words_after_the_target_get_nothing():
    """Causal models: the log-probability after word 4 does not depend on word 5."""
    base = torch.full_like(IDS, 9)
    for name in ("gpt2", "llama"):
        got = attrfn.layer_integrated_gradients(
            TEXT[name](), IDS, layer=WORDS[name], target=next_word, baselines=base, n_steps=4
        )
        assert float(got[:, 4].abs().max()) == 0
        assert bool((got[:, :4].abs().sum((0, 2)) > 0).all())


def test_integers_are_refused_with_advice():
    for method in (attrfn.gradient, attrfn.integrated_gradients, attrfn.saliency):
        with pytest.raises(
            TypeError, match=r"inputs has a tensor of torch\.int64.*embedding layer"
        ):
            method(bound("bert"), IDS, target=class_one)


# --- forms ---------------------------------------------------------------------------------------


FORMS = {
    "activation": attrfn.layer_activation,
    "gradient_x_activation": functools.partial(
        attrfn.layer_gradient_x_activation, target=class_one
    ),
    "integrated": functools.partial(attrfn.layer_integrated_gradients, target=class_one, n_steps=3),
    "saliency": lambda m, x, layer: attrfn.at_layer(attrfn.saliency, layer)(m, x, target=class_one),
    "conductance": functools.partial(attrfn.layer_conductance, target=class_one, n_steps=3),
    "influence": functools.partial(attrfn.internal_influence, target=class_one, n_steps=3),
    "shap": functools.partial(
        attrfn.layer_gradient_shap, target=class_one, baselines=randn(3, 2, 12, 12)
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_layers_of_a_vit_by_name(form):
    """Rows alone are rows of the batch, by name or by module, for plain and fused attention."""
    whole = FORMS[form](vit(), IMAGES, layer="vit.layers.0")
    assert whole.shape == (2, 10, 16)
    by_module = FORMS[form](vit(), IMAGES, layer=vit().vit.layers[0])
    assert torch.equal(whole, by_module)
    # the eager attention takes its softmax in float32
    written_out = FORMS[form](vit("eager"), IMAGES, layer="vit.layers.0")
    torch.testing.assert_close(whole, written_out, rtol=1e-4, atol=1e-6)
    for i in range(2):
        alone = FORMS[form](vit(), IMAGES[i : i + 1], layer="vit.layers.0")
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-8, atol=1e-10)


NEURONS = {
    "gradient": attrfn.neuron_gradient,
    "integrated": functools.partial(attrfn.neuron_integrated_gradients, n_steps=40),
    "conductance": functools.partial(attrfn.neuron_conductance, target=class_one, n_steps=3),
    "shap": functools.partial(attrfn.neuron_gradient_shap, baselines=randn(3, 2, 12, 12)),
}


@pytest.mark.parametrize("form", NEURONS)
def test_neurons_of_a_vit_by_name(form):
    layer, neuron = "vit.layers.1.mlp.fc1", (slice(1, None), 4)
    whole = NEURONS[form](vit(), IMAGES, layer=layer, neuron=neuron)
    assert whole.shape == IMAGES.shape
    for i in range(2):
        alone = NEURONS[form](vit(), IMAGES[i : i + 1], layer=layer, neuron=neuron)
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-8, atol=1e-10)
    if form == "integrated":
        with torch.no_grad():
            a, a0 = (
                attrfn.layer_activation(vit(), x, layer=layer)[:, 1:, 4].sum(1)
                for x in (IMAGES, torch.zeros_like(IMAGES))
            )
        # tokens of a zero image differ by their position only, where LayerNorm is steep
        torch.testing.assert_close(whole.sum((1, 2, 3)), a - a0, rtol=1e-3, atol=1e-3)


def test_gradient_at_a_neuron_by_hand():
    layer = "vit.layers.0.mlp.fc1"
    got = attrfn.neuron_gradient(vit(), IMAGES, layer=layer, neuron=(3, 5))
    kept = []
    hook = vit().vit.layers[0].mlp.fc1.register_forward_hook(lambda m, i, out: kept.append(out))
    x = IMAGES.clone().requires_grad_()
    vit()(x)
    hook.remove()
    expected = torch.autograd.grad(kept[0][:, 3, 5].sum(), x)[0]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_integrated_gradients_of_images():
    base = randn(2, 2, 12, 12, seed=6)
    options = {"target": class_one, "baselines": base, "n_steps": 60}
    got = attrfn.integrated_gradients(vit(), IMAGES, **options, chunk_size=25)
    with torch.no_grad():
        expected = class_one(vit()(IMAGES)) - class_one(vit()(base))
    torch.testing.assert_close(got.sum((1, 2, 3)), expected, rtol=1e-5, atol=1e-6)
    as_vmap = attrfn.integrated_gradients(
        vit("eager"), IMAGES, target=class_one, baselines=base, n_steps=5, batching="vmap"
    )
    as_fold = attrfn.integrated_gradients(
        vit(), IMAGES, target=class_one, baselines=base, n_steps=5
    )
    # the eager attention takes its softmax in float32
    torch.testing.assert_close(as_vmap, as_fold, rtol=1e-4, atol=1e-6)


def test_contrast_as_target():
    """Why this class and not that one: linear in the target."""
    one = attrfn.gradient(vit(), IMAGES, target=lambda out: out.logits[:, 1])
    two = attrfn.gradient(vit(), IMAGES, target=lambda out: out.logits[:, 2])
    both = attrfn.gradient(vit(), IMAGES, target=lambda out: out.logits[:, 1] - out.logits[:, 2])
    torch.testing.assert_close(both, one - two)
    with pytest.raises(TypeError, match=r"returned a ImageClassifierOutput, .*callable that picks"):
        attrfn.gradient(vit(), IMAGES, target=1)


def test_grad_cam():
    """Against the formula on activations and gradients got by hand."""
    layer = "vit.layers.0"
    got = attrfn.grad_cam(vit(), IMAGES, layer=layer, target=class_one, reshape=patches)
    kept = []
    hook = vit().vit.layers[0].register_forward_hook(lambda m, i, out: kept.append(out))
    logits = vit()(IMAGES).logits
    hook.remove()
    a = kept[0] if isinstance(kept[0], Tensor) else kept[0][0]
    g = torch.autograd.grad(logits[:, 1].sum(), a)[0]
    expected = (patches(g).mean((2, 3), keepdim=True) * patches(a)).sum(1, keepdim=True)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-11)
    large = attrfn.grad_cam(
        vit(), IMAGES, layer=layer, target=class_one, reshape=patches, upsample="nearest", relu=True
    )
    expected = expected.detach().clamp(min=0).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(large, expected, rtol=1e-9, atol=1e-11)
    with pytest.raises(
        ValueError, match=r"upsample is 'bilinear', but no input .*reshape= for a la"
    ):
        attrfn.grad_cam(vit(), IMAGES, layer=layer, target=class_one, upsample="bilinear")


@each_text
def test_batch_independence(name):
    """A row alone, and without its padding, has the attributions it has in the batch."""
    model = TEXT[name]()
    target = TARGET[name]
    options = {"layer": WORDS[name], "target": target, "n_steps": 5}
    whole = attrfn.layer_integrated_gradients(bound(name), IDS, baselines=BASE, **options)
    for i, length in enumerate((5, 4)):
        alone = attrfn.layer_integrated_gradients(
            functools.partial(model, attention_mask=LENGTHS[i : i + 1, :length]),
            IDS[i : i + 1, :length],
            baselines=BASE[i : i + 1, :length],
            **options,
        )
        torch.testing.assert_close(alone[0], whole[i, :length], rtol=1e-8, atol=1e-10)
        assert not whole[i, length:].any()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert", "model.bert.encoder.layer.0"),
        ("llama", "model.model.layers.0"),
        ("gpt2", "model.transformer.h.0"),
    ],
)
def test_conductance_is_complete(name, layer):
    """Every path leads through the first block; forward mode passes the attention kernels."""
    model, e, e0 = embedded(name)
    got = attrfn.layer_conductance(
        model, e, layer=layer, target=TARGET[name], baselines=e0, n_steps=50, chunk_size=20
    )
    got = got if isinstance(got, Tensor) else got[0]
    torch.testing.assert_close(got.sum((1, 2)), change(name), rtol=1e-5, atol=1e-6)


# --- second derivatives and compilation ----------------------------------------------------------


BLOCKS = {
    "bert": "model.bert.encoder.layer.0",
    "gpt2": "model.transformer.h.0",
    "llama": "model.model.layers.0",
}


@each_text
@pytest.mark.parametrize("form", ["integrated", "layer", "conductance", "neuron"])
def test_attributions_are_differentiated(name, form):
    """Three ways through fused attention against finite differences along one direction."""
    model, e, e0 = embedded(name)
    at = {"layer": BLOCKS[name]}
    method = {
        "integrated": functools.partial(attrfn.integrated_gradients, baselines=e0, n_steps=2),
        "layer": functools.partial(attrfn.layer_gradient_x_activation, **at),
        "conductance": functools.partial(attrfn.layer_conductance, **at, baselines=e0, n_steps=2),
        "neuron": functools.partial(
            attrfn.neuron_conductance, **at, neuron=(2, 3), baselines=e0, n_steps=2
        ),
    }[form]

    def total(e: Tensor, **options: Any) -> Tensor:
        a = method(model, e, target=TARGET[name], **options)
        return (a**2).sum()

    step = randn(*e.shape, seed=3)
    # Llama takes its norms in float32: a longer step, and fewer digits
    eps, rtol = (1e-2, 3e-2) if name == "llama" else (1e-5, 1e-5)
    expected = (total(e + eps * step) - total(e - eps * step)) / (2 * eps)
    z = e.clone().requires_grad_()
    total(z, create_graph=True).backward()
    close = functools.partial(torch.testing.assert_close, rtol=rtol, atol=1e-7)
    close((z.grad * step).sum(), expected)
    close((torch.func.grad(total)(e) * step).sum(), expected)
    close(torch.func.jvp(total, (e,), (step,))[1], expected)


def test_attributions_reach_the_parameters():
    """A penalty on attributions trains the model: d/dp by autograd against finite differences."""
    model = zoo.make(transformers.BertForSequenceClassification, bert_config())
    weight = model.bert.encoder.layer[0].attention.self.query.weight
    step = randn(*weight.shape, seed=4)

    def total(**options: Any) -> Tensor:
        a = attrfn.layer_integrated_gradients(
            functools.partial(model, attention_mask=LENGTHS),
            IDS,
            layer=WORDS["bert"],
            target=class_one,
            baselines=BASE,
            n_steps=2,
            **options,
        )
        return (a**2).sum()

    total(create_graph=True).backward()
    slope = (weight.grad * step).sum()
    eps = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(step, alpha=sign * eps)
        values.append(total())
        with torch.no_grad():
            weight.sub_(step, alpha=sign * eps)
    expected = (values[0] - values[1]) / (2 * eps)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_compiled():
    """One graph, the same numbers; a second call of the same shapes compiles nothing."""
    torch._dynamo.reset()
    config = bert_config(num_hidden_layers=1)
    model = zoo.make(transformers.BertForSequenceClassification, config)

    def explain(ids: Tensor, base: Tensor, mask: Tensor) -> Tensor:
        return attrfn.layer_integrated_gradients(
            functools.partial(model, attention_mask=mask),
            ids,
            layer="bert.embeddings.word_embeddings",
            target=class_one,
            baselines=base,
            n_steps=3,
        )

    calls = [(IDS, BASE, LENGTHS), (IDS.flip(0), BASE.flip(0), LENGTHS.flip(0))]
    compiled = torch.compile(explain, fullgraph=True, backend="aot_eager")
    first = compiled(*calls[0])
    torch.testing.assert_close(first, explain(*calls[0]), rtol=1e-8, atol=1e-10)
    with torch.compiler.set_stance("fail_on_recompile"):
        second = compiled(*calls[1])
    torch.testing.assert_close(second, explain(*calls[1]), rtol=1e-8, atol=1e-10)
    torch._dynamo.reset()


def test_outputs_are_left_to_the_model():
    """Bound options of the model's call, such as return_dict=False, reach it."""
    model = functools.partial(bert(), attention_mask=LENGTHS, return_dict=False)
    got = attrfn.layer_gradient_x_activation(
        model, IDS, layer=WORDS["bert"], target=lambda out: out[0][:, 1]
    )
    expected = attrfn.layer_gradient_x_activation(
        bound("bert"), IDS, layer=WORDS["bert"], target=class_one
    )
    torch.testing.assert_close(got, expected)


def test_hooks_installed_while_running():
    """transformers hooks its layers when outputs are asked for: the shells', not the user's."""
    model = zoo.make(transformers.BertForSequenceClassification, bert_config())
    model.set_attn_implementation("eager")
    wordy = functools.partial(model, output_attentions=True, output_hidden_states=True)
    before = zoo.state(model)
    head, tail = attrfn.split(wordy, "dropout")
    for _ in range(2):
        out = tail(head(IDS), IDS)
        assert [w.shape for w in out.attentions] == [(2, 2, 5, 5)] * 2
        assert len(out.hidden_states) == 3
    attrfn.layer_integrated_gradients(
        wordy, IDS, layer=WORDS["bert"], target=lambda out: out.hidden_states[1][:, 0, 3], n_steps=3
    )
    assert zoo.same_state(model, before)
    assert len(wordy(IDS).attentions) == 2
    assert len(tail(head(IDS), IDS).attentions) == 2


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("gpt2", "transformer.h.0"),
        ("gpt2", "transformer.h.1.attn"),
        ("llama", "model.layers.0"),
        ("llama", "model.layers.1.self_attn"),
        ("bert", "bert.encoder.layer.1"),
    ],
)
def test_inputs_of_blocks(name, layer):
    """A block's input: tensors are explained; caches, masks and flags are the model's own."""
    options = {"layer": layer, "at": "input", "target": TARGET[name], "baselines": BASE}
    whole = attrfn.layer_integrated_gradients(bound(name), IDS, n_steps=4, **options)
    hidden = hidden_states(whole)
    assert hidden.shape == (2, 5, 16)
    assert hidden.any()
    chunked = attrfn.layer_integrated_gradients(
        bound(name), IDS, n_steps=4, chunk_size=1, **options
    )
    torch.testing.assert_close(hidden, hidden_states(chunked), rtol=1e-8, atol=1e-10)


def hidden_states(value: Any) -> Tensor:
    if isinstance(value, dict):
        return value["hidden_states"]
    return value[0] if isinstance(value, (tuple, list)) else value
