"""Scorers: batches, padding, embeddings, layers and transforms, on models of transformers."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import text_families as families
import torch
from oracles import close
from torch import Tensor

import attrfn
from attrfn import rules, text

IDS = torch.tensor([[5, 6, 7, 8, 9]])
ANSWER = [[20, 21, 22]]


def loop(model: Any, ids: Tensor, answer: list[int]) -> Tensor:
    """Token by token, each with a forward pass of its own."""
    found = []
    for a in answer:
        found.append(model(input_ids=ids).logits[0, -1].log_softmax(-1)[a])
        ids = torch.cat([ids, torch.tensor([[a]])], 1)
    return torch.stack(found)[None].detach()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_one_pass_is_token_by_token(name: str) -> None:
    model = families.causal(name)
    expected = loop(model, IDS, ANSWER[0])
    for keep in (True, False):
        close(text.scorer(model, ANSWER, keep_logits=keep)(IDS).detach(), expected)
    # a model function with a tensor as its output, and one whose output has another form
    plain = text.scorer(lambda ids: model(input_ids=ids).logits, ANSWER)
    close(plain(IDS).detach(), expected)
    other = text.scorer(
        lambda ids: {"scores": model(input_ids=ids).logits}, ANSWER, logits=lambda o: o["scores"]
    )
    close(other(IDS).detach(), expected)
    embeds = text.scorer(model, ANSWER, inputs="embeds")
    close(embeds(model.get_input_embeddings()(IDS)).detach(), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gemma3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_are_rows_alone(name: str, side: str) -> None:
    """A mask that is bound follows the batch; positions are found from it."""
    model = families.causal(name)
    short, rest = IDS[:, :3], [2, 2]
    row = [*rest, *short[0].tolist()] if side == "left" else [*short[0].tolist(), *rest]
    ids = torch.cat([IDS, torch.tensor([row])])
    mask = (ids != 2).long()
    answer = torch.tensor([[20, 21, 22], [23, 24, 25]])
    f = text.scorer(model, answer, attention_mask=mask)
    alone = [text.scorer(model, answer[:1])(IDS), text.scorer(model, answer[1:])(short)]
    close(f(ids).detach(), torch.cat(alone).detach(), 1e-9)
    found = attrfn.feature_ablation(f, ids, baselines=3, feature_mask=mask.cumsum(1) * mask - 1)
    e = attrfn.feature_ablation(text.scorer(model, answer[1:]), short, baselines=3)
    close(found[1][:, mask[1] == 1], e[0], 1e-9)
    assert found[1][:, mask[1] == 0].eq(0).all()


def test_answers_follow_the_batch() -> None:
    """Rows of answers and foils, under copies of the batch of any number."""
    model = families.causal("llama")
    ids = torch.cat([IDS, IDS + 5])
    answer, foil = torch.tensor([[20, 21], [22, 23]]), torch.tensor([[3, 4], [24, 25]])
    f = text.scorer(model, answer, foil=foil)
    for size in (1, 2, None):
        found = attrfn.feature_ablation(f, ids, baselines=3, chunk_size=size)
        for i in range(2):
            one = text.scorer(model, answer[i], foil=foil[i])
            close(found[i : i + 1], attrfn.feature_ablation(one, ids[i : i + 1], baselines=3))


def test_layers_by_module_and_by_the_name_in_the_model() -> None:
    model = families.causal("llama")
    f = text.scorer(model, ANSWER)
    found = [
        attrfn.layer_gradient_x_activation(f, IDS, layer=layer, target=1)
        for layer in (model.get_input_embeddings(), "model.embed_tokens")
    ]
    assert torch.equal(*found)
    e = model.get_input_embeddings()(IDS).detach().requires_grad_()
    (grad,) = torch.autograd.grad(text.scorer(model, ANSWER, inputs="embeds")(e)[0, 1], e)
    close(found[0][:, :5], e.detach() * grad)
    assert found[0].shape[1] == 5 + 3 - 1
    assert found[0][:, 6:].eq(0).all()  # the second answer token sees none after the first
    embeds = text.scorer(model, ANSWER, inputs="embeds")
    close(attrfn.input_x_gradient(embeds, e.detach(), target=1), found[0][:, :5])


def test_rules_by_the_name_in_the_model() -> None:
    """The names of modules in rules are those of the model, too."""
    model = families.causal("llama")
    f, layer = text.scorer(model, ANSWER, score="logit"), "model.embed_tokens"
    found = [
        attrfn.layer_lrp(
            f, IDS, layer=layer, target=0, rules=rules.composite(names={name: rules.gamma(0.5)})
        )
        for name in ("model.layers.0.mlp.up_proj", "model.layers.*.mlp.up_proj")
    ]
    assert (found[0] - found[1]).abs().max() > 1e-6


def test_all_answer_tokens_in_one_call() -> None:
    """each_output, vmap, and the sum of gradients, which is that of the sum."""
    model = families.causal("llama")
    f = text.scorer(model, ANSWER)
    method = attrfn.at_layer(attrfn.input_x_gradient, "model.embed_tokens")
    found = attrfn.each_output(method)(f, IDS)
    for i in range(3):
        close(found[:, i], method(f, IDS, target=i))
    whole = text.scorer(model, ANSWER, score=lambda x, a: _log_probs(x, a).sum(1))
    close(found.sum(1), method(whole, IDS, target=0), 1e-5)  # Llama's norms are of float32


def _log_probs(logits: Tensor, answer: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0]


@pytest.mark.slow
def test_transforms() -> None:
    """vmap over prompts, and a compiled ablation."""
    model = families.causal("llama")
    f = text.scorer(model, ANSWER, foil=[[3, 4, 5]])
    ids = torch.cat([IDS, IDS + 7, IDS + 11])
    each = torch.func.vmap(lambda x: attrfn.feature_ablation(f, x[None], baselines=3)[0])(ids)
    close(each, attrfn.feature_ablation(f, ids, baselines=3), 1e-9)

    @functools.partial(torch.compile, backend="eager", fullgraph=True)
    def compiled(ids: Tensor) -> Tensor:
        return attrfn.feature_ablation(f, ids, baselines=3)

    close(compiled(ids), each, 1e-9)


def test_bound_arguments_of_a_partial() -> None:
    model = families.causal("gpt2")
    ids, mask = torch.tensor([[2, 2, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    f = text.scorer(functools.partial(model, attention_mask=mask), ANSWER)
    close(f(ids).detach(), loop(model, ids[:, 2:], ANSWER[0]), 1e-9)
    one = text.scorer(functools.partial(model, attention_mask=mask), [[20]])
    both = one(torch.cat([ids, ids])).detach()  # a single row of a mask is that of all prompts
    close(both, loop(model, ids[:, 2:], [20]).expand(2, 1), 1e-9)


def test_written_out_activations_are_one_function_for_lrp() -> None:
    """gelu_new in Python has the relevance of the same function as one call."""
    transformers = families.transformers
    found = []
    for activation in ("gelu_new", "gelu_pytorch_tanh"):
        config = transformers.GPT2Config(**families.GPT, activation_function=activation)
        model = families.zoo.make(transformers.GPT2LMHeadModel, config)
        f = text.scorer(model, ANSWER, score="logit")
        found.append(
            attrfn.layer_lrp(f, IDS, layer="transformer.wte", target=0, rules=rules.attn_lrp())
        )
    close(found[0], found[1], 1e-8)
    assert found[0].abs().max() > 1e-3


# --- encoder-decoders and encoders ---------------------------------------------------------------


@pytest.mark.parametrize("name", families.SEQ2SEQ)
def test_encoder_decoders(name: str) -> None:
    """The source alone, and the source with a given part of the target."""
    model = families.seq2seq(name)
    start = model.config.decoder_start_token_id
    f = text.scorer(model, ANSWER)
    expected = [
        model(input_ids=IDS, decoder_input_ids=torch.tensor([[start, *ANSWER[0][:i]]]))
        .logits[0, -1]
        .log_softmax(-1)[a]
        for i, a in enumerate(ANSWER[0])
    ]
    close(f(IDS).detach(), torch.stack(expected)[None].detach(), 1e-9)
    both = torch.tensor([[5, 6, 7, 30, 31]])
    g = text.scorer(text.seq2seq(model, target=2), ANSWER)
    out = model(
        input_ids=both[:, :3], decoder_input_ids=torch.tensor([[start, 30, 31, *ANSWER[0][:2]]])
    )
    expected = _log_probs(out.logits[:, 2:], torch.tensor(ANSWER)).detach()
    close(g(both).detach(), expected, 1e-9)
    embeds = text.scorer(text.seq2seq(model, target=2), ANSWER, inputs="embeds")
    close(embeds(model.get_input_embeddings()(both)).detach(), expected, 1e-9)


@pytest.mark.parametrize("name", families.ENCODERS)
def test_classifiers(name: str) -> None:
    """The answer is a class, and several classes have their rows."""
    model = families.encoder(name, "ForSequenceClassification")
    f = text.scorer(text.classifier(model), [[0, 2]])
    logs = model(input_ids=IDS).logits.log_softmax(-1).detach()
    close(f(IDS).detach(), logs[:, [0, 2]])
    found = attrfn.feature_ablation(f, IDS, baselines=3)
    assert found.shape == (1, 2, 5)
    close(found[:, 1], attrfn.feature_ablation(model, IDS, baselines=3, target=_class_two))


def _class_two(out: Any) -> Tensor:
    return out.logits.log_softmax(-1)[:, 2]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_masked_models(name: str) -> None:
    model = families.encoder(name, "ForMaskedLM")
    ids = torch.tensor([[5, 3, 7, 3, 9]])
    f = text.scorer(text.masked(model, [1, 3]), [[20, 21]])
    logits = model(input_ids=ids).logits[:, [1, 3]]
    close(f(ids).detach(), _log_probs(logits, torch.tensor([[20, 21]])).detach())


# --- what is refused -----------------------------------------------------------------------------


def test_wrong_arguments() -> None:
    model = families.causal("llama")
    for wrong, kind, message in (
        ({"foil": [[1, 2]]}, ValueError, "foil has 2 tokens, expected 3 .* other="),
        ({"foil": "next"}, ValueError, "runner_up"),
        ({"inputs": "text"}, ValueError, "inputs is 'text', expected 'ids' or 'embeds'"),
        ({"answer": [[]]}, ValueError, "expected at least one token id"),
        ({"answer": "Paris"}, TypeError, "answer is 'Paris', expected token ids"),
        ({"answer": [[0.5]]}, TypeError, "expected token ids, integers"),
    ):
        with pytest.raises(kind, match=message):
            text.scorer(model, **({"answer": ANSWER} | wrong))
    f = text.scorer(model, ANSWER)
    with pytest.raises(ValueError, match="at least one token before the answer"):
        f(IDS[:, :0])
    with pytest.raises(ValueError, match=r"has 72 tokens, expected at most 64"):
        f(torch.zeros(1, 70, dtype=torch.long))
    bare = text.scorer(lambda ids: types.SimpleNamespace(scores=ids), ANSWER)
    with pytest.raises(ValueError, match=r"SimpleNamespace without \.logits, .* give logits="):
        bare(IDS)
    with pytest.raises(ValueError, match="without get_input_embeddings"):
        text.scorer(lambda ids: ids, ANSWER, inputs="embeds")(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"BertForMaskedLM, .* use text\.masked"):
        text.scorer(families.encoder("bert", "ForMaskedLM"), ANSWER)
    with pytest.raises(ValueError, match=r"expected logits \(R, T, V\)"):
        text.scorer(families.encoder("bert", "ForSequenceClassification"), ANSWER)(IDS)
    with pytest.raises(ValueError, match="positional arguments"):
        text.scorer(functools.partial(model, IDS), ANSWER)
