"""Methods on Hugging Face models: forms, second derivatives, compilation."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import zoo
from tiny_transformers import (
    BASE,
    IDS,
    IMAGES,
    LENGTHS,
    TARGET,
    TEXT,
    WORDS,
    bert,
    bert_config,
    bound,
    change,
    class_one,
    each_text,
    embedded,
    vit,
)
from torch import Tensor
from zoo import randn

import attrfn

transformers = pytest.importorskip("transformers", minversion="5.0")


def patches(tokens: Tensor) -> Tensor:
    """ViT's tokens (B, 1 + 9, C) as (B, C, 3, 3)."""
    return tokens[:, 1:].mT.unflatten(2, (3, 3))


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
    decompositions = FORMS[form](vit("eager"), IMAGES, layer="vit.layers.0")
    torch.testing.assert_close(whole, decompositions, rtol=1e-4, atol=1e-6)
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
    torch.testing.assert_close(attrfn.gradient(vit(), IMAGES, target=1), one)
    hidden = vit().vit if hasattr(vit(), "vit") else None
    with pytest.raises(TypeError, match=r"returned a BaseModelOutputWithPooling, .*callable that"):
        attrfn.gradient(hidden, IMAGES, target=1)


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
    """Every path leads through the first block."""
    model, e, e0 = embedded(name)
    got = attrfn.layer_conductance(
        model, e, layer=layer, target=TARGET[name], baselines=e0, n_steps=100, chunk_size=40
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
    eps, rtol = (2e-3, 3e-2) if name == "llama" else (1e-5, 1e-5)
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
