"""Hugging Face models, tiny and random, built from configurations: no file is fetched."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
import zoo
from tiny_transformers import (
    BASE,
    IDS,
    IMAGES,
    PAD,
    TARGET,
    TEXT,
    WORDS,
    bert_config,
    bound,
    change,
    class_one,
    each_text,
    embedded,
    gpt2,
    next_word,
    vit,
)
from torch import Tensor, nn

import attrfn

transformers = pytest.importorskip("transformers", minversion="5.0")


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
                    # beside other threads conductance takes other operations
                    if not torch.allclose(a, b, rtol=1e-10, atol=1e-13):
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


TABLES = ("word", "position", "token_type")


@pytest.mark.parametrize("base", ["mask", "pad", "zeros"])
def test_all_embeddings_of_bert_jointly(base):
    """Word and token-type embeddings change together as their sum does; positions have no rows."""
    base = {"mask": BASE, "pad": torch.full_like(IDS, PAD), "zeros": None}[base]
    x0 = torch.zeros_like(IDS) if base is None else base
    options = {"target": class_one, "baselines": base, "n_steps": 60}
    words, positions, types = (f"bert.embeddings.{k}_embeddings" for k in TABLES)
    joint = attrfn.layer_integrated_gradients(bound("bert"), IDS, layer=[words, types], **options)
    assert isinstance(joint, list)
    assert not joint[1].any()  # the types are equal in both: the words change alone
    for layer in (positions, [words, positions, types]):
        with pytest.raises(ValueError, match="position_embeddings' gives no floating tensor"):
            attrfn.layer_integrated_gradients(bound("bert"), IDS, layer=layer, **options)
    expected = change("bert", base=x0)
    torch.testing.assert_close(joint[0].sum((1, 2)), expected, rtol=1e-6, atol=1e-7)
    at_sum = attrfn.layer_integrated_gradients(
        bound("bert"), IDS, layer="bert.embeddings", **options
    )
    torch.testing.assert_close(at_sum.sum((1, 2)), expected, rtol=1e-5, atol=1e-6)


def test_positions_and_words_together():
    """With position ids among the inputs all three tables change; jointly they are complete."""
    model = zoo.make(Positioned)
    layers = [f"bert.bert.embeddings.{k}_embeddings" for k in TABLES]
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
